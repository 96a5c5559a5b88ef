"""statedict: save, open, see, alter and restore state_dicts and checkpoints.

>>> import statedict
>>> state = statedict.load("examples/checkpoint.pth")
>>> state["model_state"]["fc3.bias"]
LazyTensor(float32, (10,), 40 B, 'examples/checkpoint.pth')
"""

from __future__ import annotations

import importlib

from statedict import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.adapters.history import renamed_in as renamed_in
    from statedict.api.files import convert as convert
    from statedict.api.files import edit as edit
    from statedict.api.files import load as load
    from statedict.api.files import save as save
    from statedict.api.live import capture as capture
    from statedict.api.live import restore as restore
    from statedict.api.look import diff as diff
    from statedict.api.look import inspect as inspect
    from statedict.api.look import scan as scan
    from statedict.api.look import stats as stats
    from statedict.api.look import verify as verify
    from statedict.dtypes import DType as DType
    from statedict.dtypes import dtype as dtype
    from statedict.errors import AlterError as AlterError
    from statedict.errors import CorruptFileError as CorruptFileError
    from statedict.errors import ExistingFileError as ExistingFileError
    from statedict.errors import FileError as FileError
    from statedict.errors import FormatError as FormatError
    from statedict.errors import LimitError as LimitError
    from statedict.errors import MissingExtraError as MissingExtraError
    from statedict.errors import MissingFileError as MissingFileError
    from statedict.errors import OutOfMemoryError as OutOfMemoryError
    from statedict.errors import PathError as PathError
    from statedict.errors import RefusedError as RefusedError
    from statedict.errors import RenameError as RenameError
    from statedict.errors import RestoreError as RestoreError
    from statedict.errors import RunError as RunError
    from statedict.errors import StateDictError as StateDictError
    from statedict.errors import TreeError as TreeError
    from statedict.errors import TruncatedError as TruncatedError
    from statedict.errors import UnknownFormatError as UnknownFormatError
    from statedict.errors import UnsupportedError as UnsupportedError
    from statedict.errors import WorkerError as WorkerError
    from statedict.reports.diff import Diff as Diff
    from statedict.reports.edit import EditReport as EditReport
    from statedict.reports.restore import RestoreReport as RestoreReport
    from statedict.reports.scan import ScanReport as ScanReport
    from statedict.reports.stats import StatsReport as StatsReport
    from statedict.reports.stats import TensorStats as TensorStats
    from statedict.reports.summary import Summary as Summary
    from statedict.reports.verify import VerifyReport as VerifyReport
    from statedict.runs.keep import AnyPolicy as AnyPolicy
    from statedict.runs.keep import BestN as BestN
    from statedict.runs.keep import CustomSteps as CustomSteps
    from statedict.runs.keep import EveryNSeconds as EveryNSeconds
    from statedict.runs.keep import EveryNSteps as EveryNSteps
    from statedict.runs.keep import LatestN as LatestN
    from statedict.runs.loader import ResumableLoader as ResumableLoader
    from statedict.runs.manager import CheckpointManager as CheckpointManager
    from statedict.runs.rng import rng as rng
    from statedict.tensor.lazy import LazyTensor as LazyTensor
    from statedict.tensor.lazy import Storage as Storage
    from statedict.tree.state_dict import StateDict as StateDict
    from statedict.tree.state_dict import unflatten as unflatten
    from statedict.values import Device as Device
    from statedict.values import Opaque as Opaque
    from statedict.values import Size as Size
    from statedict.view.report import Page as Page
    from statedict.view.report import report as report

__version__ = "0.1.0"

# name → the module that has it; imported at first use, so that `import statedict` costs milliseconds
_EXPORTS = {
    "AlterError": "errors",
    "AnyPolicy": "runs.keep",
    "BestN": "runs.keep",
    "CheckpointManager": "runs.manager",
    "CorruptFileError": "errors",
    "CustomSteps": "runs.keep",
    "DType": "dtypes",
    "Device": "values",
    "Diff": "reports.diff",
    "EditReport": "reports.edit",
    "EveryNSeconds": "runs.keep",
    "EveryNSteps": "runs.keep",
    "ExistingFileError": "errors",
    "FileError": "errors",
    "FormatError": "errors",
    "LatestN": "runs.keep",
    "LazyTensor": "tensor.lazy",
    "LimitError": "errors",
    "MissingExtraError": "errors",
    "MissingFileError": "errors",
    "Opaque": "values",
    "OutOfMemoryError": "errors",
    "Page": "view.report",
    "PathError": "errors",
    "RefusedError": "errors",
    "RenameError": "errors",
    "RestoreError": "errors",
    "RestoreReport": "reports.restore",
    "ResumableLoader": "runs.loader",
    "RunError": "errors",
    "ScanReport": "reports.scan",
    "Size": "values",
    "StateDict": "tree.state_dict",
    "StateDictError": "errors",
    "StatsReport": "reports.stats",
    "Storage": "tensor.lazy",
    "Summary": "reports.summary",
    "TensorStats": "reports.stats",
    "TreeError": "errors",
    "TruncatedError": "errors",
    "UnknownFormatError": "errors",
    "UnsupportedError": "errors",
    "VerifyReport": "reports.verify",
    "WorkerError": "errors",
    "capture": "api.live",
    "convert": "api.files",
    "diff": "api.look",
    "dtype": "dtypes",
    "edit": "api.files",
    "inspect": "api.look",
    "load": "api.files",
    "renamed_in": "adapters.history",
    "report": "view.report",
    "restore": "api.live",
    "rng": "runs.rng",
    "save": "api.files",
    "scan": "api.look",
    "stats": "api.look",
    "unflatten": "tree.state_dict",
    "verify": "api.look",
}

shown.use(lambda: importlib.import_module("statedict.render.views"))

__all__ = sorted([*_EXPORTS, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "torch":  # the drop-in, which imports PyTorch
        return importlib.import_module("statedict.torch")
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'statedict' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"statedict.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
