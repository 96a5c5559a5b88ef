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

    from statedict.reports.diff import Diff as Diff
    from statedict.reports.edit import EditReport as EditReport
    from statedict.reports.restore import RestoreReport as RestoreReport
    from statedict.reports.scan import ScanReport as ScanReport
    from statedict.reports.stats import StatsReport as StatsReport
    from statedict.reports.stats import TensorStats as TensorStats
    from statedict.reports.summary import Summary as Summary
    from statedict.reports.verify import VerifyReport as VerifyReport

_EXPORTS = {
    "Diff": "diff",
    "EditReport": "edit",
    "RestoreReport": "restore",
    "ScanReport": "scan",
    "StatsReport": "stats",
    "Summary": "summary",
    "TensorStats": "stats",
    "VerifyReport": "verify",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'statedict.reports' has no attribute {name!r}")
    return getattr(importlib.import_module(f"statedict.reports.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
