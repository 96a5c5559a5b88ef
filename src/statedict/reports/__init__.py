"""What operations found: frozen data with `to_json`.

>>> import statedict
>>> isinstance(statedict.inspect("examples/checkpoint.pth"), statedict.reports.Summary)
True
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.reports.combine import CombineReport as CombineReport
    from statedict.reports.combine import DeltaReport as DeltaReport
    from statedict.reports.diff import Diff as Diff
    from statedict.reports.lora import LoraApplied as LoraApplied
    from statedict.reports.lora import LoraExtracted as LoraExtracted
    from statedict.reports.lora import LoraReport as LoraReport
    from statedict.reports.outcomes import EditReport as EditReport
    from statedict.reports.outcomes import RestoreReport as RestoreReport
    from statedict.reports.outcomes import ScanReport as ScanReport
    from statedict.reports.outcomes import VerifyReport as VerifyReport
    from statedict.reports.stats import StatsReport as StatsReport
    from statedict.reports.stats import TensorStats as TensorStats
    from statedict.reports.summary import Summary as Summary

_EXPORTS = {
    "CombineReport": "combine",
    "DeltaReport": "combine",
    "Diff": "diff",
    "EditReport": "outcomes",
    "LoraApplied": "lora",
    "LoraExtracted": "lora",
    "LoraReport": "lora",
    "RestoreReport": "outcomes",
    "ScanReport": "outcomes",
    "StatsReport": "stats",
    "Summary": "summary",
    "TensorStats": "stats",
    "VerifyReport": "outcomes",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'statedict.reports' has no attribute {name!r}")
    return getattr(importlib.import_module(f"statedict.reports.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
