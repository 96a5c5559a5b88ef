"""Which view each type has: HTML for notebooks, text for prompts and the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from statedict.render import diff_text, notebook, report_text, reports, stats_text, tree_text
from statedict.reports.diff import Diff, TensorDiff
from statedict.reports.edit import EditReport
from statedict.reports.restore import RestoreReport
from statedict.reports.scan import ScanReport
from statedict.reports.stats import GroupStats, StatsReport, TensorStats
from statedict.reports.summary import Summary
from statedict.reports.verify import VerifyReport
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict

HTML: dict[type, Callable[[Any], str]] = {
    Diff: reports.diff,
    EditReport: reports.edit,
    GroupStats: reports.group,
    LazyTensor: notebook.tensor,
    RestoreReport: reports.restore,
    ScanReport: reports.scan,
    StateDict: notebook.html,
    StatsReport: reports.stats,
    Summary: reports.summary,
    TensorDiff: reports.tensor_diff,
    TensorStats: reports.tensor,
    VerifyReport: reports.verify,
}
TEXT: dict[type, Callable[[Any], Iterable[str]]] = {
    Diff: diff_text.lines,
    EditReport: report_text.edit,
    RestoreReport: report_text.restore,
    ScanReport: report_text.scan,
    StatsReport: stats_text.lines,
    Summary: lambda summary: [tree_text.total_line(summary)],
    VerifyReport: report_text.verify,
}


def html(value: object) -> str:
    """The HTML view of a value."""
    return next(HTML[kind] for kind in type(value).__mro__ if kind in HTML)(value)


def text(value: object) -> str:
    """The text view of a report."""
    return "\n".join(TEXT[type(value)](value))
