"""statedict: save, open, show, compare, alter and restore state_dicts and checkpoints.

More is in `statedict.alter` (verbs that alter), `statedict.delta` (what one changes of another), `statedict.lora`
(adapters), `statedict.errors`, `statedict.reports` (what verbs return), `statedict.runs` (policies, and the checkpoints
of a run) and `statedict.torch` (the drop-in for `torch.load`).

>>> import statedict
>>> state = statedict.load("examples/checkpoint.pth")
>>> state["model_state"]["fc3.bias"]
LazyTensor(float32, (10,), 40 B, 'examples/checkpoint.pth')
"""

from __future__ import annotations

import importlib
import os

if not hasattr(os, "preadv"):  # nor the other calls of POSIX by which files are read, written and locked
    raise ImportError("statedict runs on Linux and macOS, and this system has no os.preadv; on Windows use WSL")

from statedict import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict import alter as alter
    from statedict import delta as delta
    from statedict import errors as errors
    from statedict import lora as lora
    from statedict import reports as reports
    from statedict import runs as runs
    from statedict.adapters.history import renamed_in as renamed_in
    from statedict.api.combine import average as average
    from statedict.api.combine import merge as merge
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
    from statedict.errors import StateDictError as StateDictError
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

# module → what it gives, imported at first use, so that `import statedict` costs milliseconds
_CONTENTS = {
    "adapters.history": ("renamed_in",),
    "api.combine": ("average", "merge"),
    "api.files": ("convert", "edit", "load", "save"),
    "api.live": ("capture", "restore"),
    "api.look": ("diff", "inspect", "scan", "stats", "verify"),
    "dtypes": ("DType", "dtype"),
    "errors": ("StateDictError",),
    "runs.loader": ("ResumableLoader",),
    "runs.manager": ("CheckpointManager",),
    "runs.rng": ("rng",),
    "tensor.lazy": ("LazyTensor", "Storage"),
    "tree.state_dict": ("StateDict", "unflatten"),
    "values": ("Device", "Opaque", "Size"),
    "view.report": ("Page", "report"),
}
_EXPORTS = {name: module for module, names in _CONTENTS.items() for name in names}
_MODULES = ("alter", "delta", "errors", "lora", "reports", "runs")

shown.use(lambda: importlib.import_module("statedict.render.views"))

__all__ = sorted([*_EXPORTS, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _MODULES or name == "torch":  # the drop-in, which imports PyTorch
        return importlib.import_module(f"statedict.{name}")
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'statedict' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"statedict.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
