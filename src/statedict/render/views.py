"""The views of every report: as HTML the verdict first, then what folds open at a click; as text, lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice, pairwise
from operator import attrgetter
from typing import Any

from statedict.render import diff_text, lora_text, notebook, report_text, tree_text
from statedict.render.html import Safe, Wide, entry, fold, histogram, listing, page, table, tree
from statedict.render.text import number, shape
from statedict.reports import diff as kinds
from statedict.reports.combine import CombineReport, DeltaReport
from statedict.reports.diff import Diff, TensorDiff
from statedict.reports.lora import LoraApplied, LoraExtracted, LoraReport
from statedict.reports.outcomes import Change, EditReport, Entry, RestoreReport, ScanReport, VerifyReport
from statedict.reports.quantization import sums as sum_weights
from statedict.reports.runs import Bisection, Blame, Pruned, RunVerified
from statedict.reports.stats import Figures, Flag, GroupStats, StatsReport, TensorStats
from statedict.reports.summary import Node, Optimizer, Summary, mark_inferred
from statedict.tensor.checks import Problem
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict
from statedict.values import abbreviate, count, human_bytes, shorten

_NOTES = 3  # up to this many are open
_ROWS = 30  # a table of up to this many rows is open
_WRONG = ("nan", "inf")  # flags that no one wants
_LARGE = 20  # octaves of a histogram on each side of 0
_FIGURES = ("min", "max", "mean", "std", "l2", "zeros", "nan", "inf")
_TONES = {"dangerous": "bad", "unreadable": "bad", "opaque": "look"}


def _section(
    title: str, head: Sequence[str], items: Sequence[Any], cells: Any = tuple, tone: Any = "", opened: Any = None
) -> Safe:
    """A table whose title says how many rows it has; a short one is open."""
    rows = table(head, items, cells, tone)
    return fold(f"{title}: {len(items):,}", rows, len(items) <= _ROWS if opened is None else opened)


def _wide(*texts: str | Sequence[str]) -> tuple[Wide, ...]:
    """Texts, or the first of several names, as cells that may wrap."""
    return tuple(Wide(text if isinstance(text, str) else _first(text)) for text in texts)


def _first(names: Sequence[str]) -> str:
    return abbreviate([*(shorten(name, 80) for name in names[:3]), *names[3:]])


def _summary(report: Summary) -> str:
    def line(key: str, node: Node) -> Safe:
        if node.tensor is not None:
            one = node.tensor
            role = one.role if one.role == "buffer" else ""
            return entry(key, one.dtype, shape(one.shape), human_bytes(one.nbytes), node.note, role)
        if node.value is not None:
            return entry(key, node.value)
        total = node.total
        sums = f"{count(total.tensors, 'tensor')}, {human_bytes(total.nbytes)}" if total.tensors else ""
        return entry(key, sums, node.note)

    dtypes = [(name, sums.tensors, sums.elements, human_bytes(sums.nbytes)) for name, sums in report.dtypes.items()]
    troubles = [trouble for one in report.optimizers for trouble in one.troubles.values()]
    troubles += [*report.quantization.notes, *(f"{one.name}: {one.what}" for one in report.quantization.troubles)]
    if report.wasted:
        troubles.append(f"wasted {human_bytes(report.wasted)}: storages hold more than their views")
    opaque = [f"{name}: {times:,}" for name, times in report.opaque.items()]
    kinds = [(kind, sum_weights(weights)) for kind, weights in report.quantization.kinds.items()]
    quantized = [
        (kind, one["weights"], one["parameters"], human_bytes(one["nbytes"]), one["bits_per_weight"])
        for kind, one in kinds
    ]
    return page(
        next(lines(report)),
        listing(troubles),
        tree(report.root, line, lambda node: (len(node.children), node.children)),
        fold("dtypes", table(("dtype", "tensors", "elements", "bytes"), dtypes)),
        fold("quantization", table(("kind", "weights", "parameters", "bytes", "bits each"), quantized))
        if quantized
        else "",
        *map(_groups, report.optimizers[:20]),
        fold("objects that are not data, kept inert", listing(opaque)),
        tone="look" if troubles else "",
    )


def _groups(one: Optimizer) -> Safe:
    def plain(value: Any) -> Any:
        return value if type(value) in (type(None), int, float, str) else repr(value)

    keys = list(dict.fromkeys(key for _, group in one.groups for key in group))[:30]
    rows = [(at, count, *(group.get(key) for key in keys)) for at, (count, group) in enumerate(one.groups)]
    groups = table(("group", "parameters", *map(str, keys)), rows, lambda row: map(plain, row))
    return fold(f"groups of {one.path or 'the optimizer'}: {len(one.groups):,}", groups)


def _stats(report: StatsReport) -> str:
    def is_wrong(flag: Flag) -> bool:
        return flag.kind in _WRONG

    def tone(tensor: TensorStats) -> str:
        return tones.get(tensor.name, "")

    def sums(group: GroupStats) -> tuple[Any, ...]:
        return group.name or "all", group.tensors, *_figures(group)

    tones = {flag.name: "bad" if is_wrong(flag) else "look" for flag in sorted(report.flags, key=is_wrong)}
    counts = Counter(sorted(flag.kind for flag in report.flags))
    verdict = ", ".join(f"{kind} in {count:,}" for kind, count in counts.items()) or "nothing deserves a look"
    flags = [(flag.kind, flag.name, Wide(flag.what)) for flag in report.flags]
    parts = [_section("deserves a look", ("", "tensor", ""), flags)]
    if len(report.tensors) == 1:
        parts.append(_card(report.tensors[0]))
    else:
        dtypes = report.dtypes if len(report.dtypes) > 1 else ()
        parts += [
            table(("", "tensors", *_FIGURES, ""), [*dtypes, report.total], sums),
            _section("modules", ("module", "tensors", *_FIGURES, ""), report.modules, sums, opened=False),
            _section("tensors", ("tensor", "dtype", "shape", *_FIGURES, "", ""), report.by_module, _tensor_cells, tone),
            *map(_groups, report.optimizers[:20]),
        ]
    title = f"{count(len(report.tensors), 'tensor')}, {report.total.elements:,} elements: {verdict}"
    return page(title, *parts, tone="bad" if "bad" in tones.values() else "look" if tones else "fine")


def _figures(of: Figures) -> tuple[Any, ...]:
    """The numbers, and a linear histogram."""
    counts = of.bins()
    label = f"histogram: {', '.join(f'{count:,}' for count in counts)}"
    return *(getattr(of, name) for name in _FIGURES), histogram(counts, label[:200], 120, 18)


def _tensor_cells(one: TensorStats) -> tuple[Any, ...]:
    if one.tied is not None:
        figures = *_figures(one)[:-1], f"= {one.tied}"
    else:
        figures = _figures(one) if one.computed else (*(None,) * len(_FIGURES), "not computed")
    return one.name, one.kind, shape(one.shape), *figures, mark_inferred(one.parameter, one.inferred)


def _card(one: TensorStats | GroupStats) -> Safe:
    names = ("elements", *_FIGURES, "denormal", "edge")
    if not getattr(one, "computed", True):
        return listing(["not computed: its numbers are packed, or not known"])
    top = one.histogram.exponent + len(one.histogram.positive)
    octaves = [f"2^{top - back - 1} to 2^{top - back}" for back in range(_LARGE)]
    bins = [*(f"-({octave})" for octave in octaves), "closer to 0", *reversed(octaves)]
    bars = histogram(one.bins(True, _LARGE), "histogram by powers of two", 420, 80, bins)
    ends = [f"{sign}{number(math.ldexp(1.0, top)) if -1000 < top < 1000 else f'2^{top}'}" for sign in ("-", "")]
    axis = f'<div class="axis" style="width:420px"><span>{ends[0]}</span><span>0</span><span>{ends[1]}</span></div>'
    note = f"a bar for each power of two; what is closer to 0 than 2^{top - _LARGE} is in the middle"
    head = table(names, [one], lambda of: (getattr(of, name) for name in names))
    if not bars:
        return head
    powers = fold("by powers of two", f"<div>{bars}{axis}<small>{note}</small></div>")
    return Safe(f"{head}{_linear(one)}{powers}")


def _linear(one: Figures) -> Safe:
    """A linear histogram with its axis."""
    bins, edges = one.linear, [number(one.linear.start + at * one.linear.width) for at in range(len(one.bins()) + 1)]
    if not bins.counts:
        edges = [number(one.min), number(one.max)]
    names = [f"{left} to {right}" for left, right in pairwise(edges)]
    bars = histogram(one.bins(), "histogram", 420, 80, names)
    return Safe(
        f'<div>{bars}<div class="axis" style="width:420px"><span>{edges[0]}</span><span>{edges[-1]}</span></div></div>'
    )


def _tensor_stats(one: TensorStats | GroupStats) -> str:
    """The figures of one tensor or module, with a histogram."""
    if isinstance(one, TensorStats):
        title = f"{one.name or 'tensor'}: {one.dtype} {shape(one.shape)}"
        title += f", tied to {one.tied}" if one.tied else ""
    else:
        title = f"{one.name or 'all'}: {count(one.tensors, 'tensor')}"
    return page(title, _card(one), tone="bad" if one.nan or one.inf else "")


def _diff(report: Diff) -> str:
    def row(one: TensorDiff) -> Iterable[object]:
        found = one.measures
        name, _ = diff_text.tensor(one)
        if found is None:
            return name, None, None, None, None, "other bytes"
        sizes = (None, None) if found.beyond else (found.relative, found.max_abs)
        note = f"{found.nonfinite:,} not finite" if found.nonfinite else ""
        return name, *sizes, found.cosine, f"{found.changed:,} of {found.elements:,}", note

    head = ("tensor", "relative", "largest", "cosine", "elements changed", "")
    parts = [listing([f"moved {rule}: {count(rule.count, 'tensor')}" for rule in report.moved])]
    for kind, tensors in diff_text.tensor_groups(report):
        is_measured = kind in (kinds.CHANGED, kinds.CLOSE)
        parts.append(
            _section(kind, head if is_measured else ("", ""), tensors, row if is_measured else diff_text.tensor)
        )
    parts += [_section(kind, ("", ""), values, diff_text.value) for kind, values in diff_text.value_groups(report)]
    title = f"{report.a} → {report.b}: {diff_text.summary(report)}"
    return page(title, *parts, listing(report.notes), tone="fine" if report.same else "look")


def _tensor_diff(one: TensorDiff) -> str:
    def both(sides: Sequence[str | None]) -> str:
        return " → ".join(dict.fromkeys(side for side in sides if side is not None))

    shapes = [None if sizes is None else shape(sizes) for sizes in one.shapes]
    facts = [("before", one.before), ("after", one.after), ("dtype", both(one.dtypes)), ("shape", both(shapes))]
    if one.measures is not None:
        facts += [(name, number(value)) for name, value in one.measures.to_json().items()]
    facts += [("equal", None if one.equal is None else str(one.equal)), ("same bytes as", one.same_as)]
    facts += [("note", "same bytes, proves little")] if one.weak else []
    rows = table(("", ""), [fact for fact in facts if fact[1] is not None])
    return page(f"{one.path}: {one.kind}", rows, tone="fine" if one.passed else "look")


def _verify(report: VerifyReport) -> str:
    def cells(one: Problem) -> tuple[Any, ...]:
        return one.part, *_wide(one.what), one.expected, one.got, *_wide(one.tensors, one.remedy)

    head = ("part", "what", "expected", "got", "tensors", "remedy")
    nonfinite = [(one.path, one.elements, one.nan, one.inf) for one in report.nonfinite or ()]
    return page(
        next(lines(report)),
        _section("problems", head, report.problems, cells, "bad"),
        _section("not finite", ("tensor", "elements", "NaN", "infinite"), nonfinite),
        listing(report.notes),
        tone="fine" if report.ok else "bad",
    )


def _scan(report: ScanReport) -> str:
    sections = []
    for kind, findings in islice(groupby(report.globals, key=attrgetter("verdict")), 10):
        rows = [(one.qualified, Wide(one.why), one.called, one.member) for one in findings]
        opened = False if kind == "data" else None
        head = ("global", "why", "called", "in")
        sections.append(_section(kind, head, rows, tone=_TONES.get(kind, ""), opened=opened))
    return page(
        f"{report.file}: {report.verdict}, {count(report.pickles, 'pickle')}",
        *sections,
        fold("could not be read to the end", listing(report.damage), True),
        listing(report.notes),
        tone=_TONES.get(report.verdict, "fine"),
    )


def _edit(report: EditReport) -> str:
    def cells(change: Change) -> tuple[Wide, ...]:
        return _wide(change.step, change.removed, change.added, change.altered)

    steps = _section("steps", ("step", "removed", "added", "altered"), report.changes, cells)
    return page(report_text.edit_total(report), steps, listing((*report.notes, *report.files.lines())))


def _restore(report: RestoreReport) -> str:
    return page(
        next(lines(report)),
        fold(f"problems: {len(report.problems):,}", _by_action(report.problems, True), True),
        listing(report.hints),
        fold("notes", listing(report.notes), len(report.notes) <= _NOTES),
        _by_action(report.entries),
        tone="bad" if report.problems else "fine",
    )


def _pruned(report: Pruned) -> str:
    kept = table(("step", "why"), [*report.kept.items()])
    return page(
        next(lines(report)),
        fold("removed", listing(report.removed), len(report.removed) <= _ROWS),
        fold("stay", kept, len(report.kept) <= _ROWS),
    )


def _by_action(entries: Sequence[Entry], bad: bool = False) -> Safe:
    """A fold for each action, `restored` last."""
    actions: dict[str, list[tuple[str, Wide]]] = {}
    for one in entries:
        actions.setdefault(one.action, []).append((one.path or "the whole", Wide(one.detail)))
    order = sorted(actions, key=lambda action: action == "restored")
    return Safe("".join(_section(one, ("", ""), actions[one], tone="bad" * bad, opened=bad) for one in order))


def _text_page(report: Any) -> str:
    """A page of the lines of a report."""
    head, *rest = lines(report)
    return page(head, listing(rest))


# class → what makes its HTML, and what makes the lines of its text; some have no text
_VIEWS: dict[type, tuple[Callable[[Any], str], Any]] = {
    Bisection: (_text_page, report_text.bisection),
    Blame: (_text_page, report_text.blame),
    CombineReport: (_text_page, report_text.combine),
    DeltaReport: (_text_page, report_text.delta),
    Diff: (_diff, diff_text.lines),
    EditReport: (_edit, report_text.edit),
    GroupStats: (_tensor_stats, None),
    LazyTensor: (notebook.tensor, None),
    LoraApplied: (_text_page, lora_text.applied),
    LoraExtracted: (_text_page, lora_text.extracted),
    LoraReport: (_text_page, lora_text.adapter),
    Pruned: (_pruned, report_text.pruned),
    RestoreReport: (_restore, report_text.restore),
    RunVerified: (_text_page, report_text.verified),
    ScanReport: (_scan, report_text.scan),
    StateDict: (notebook.html, None),
    StatsReport: (_stats, tree_text.stats_lines),
    Summary: (_summary, tree_text.totals),
    TensorDiff: (_tensor_diff, None),
    TensorStats: (_tensor_stats, None),
    VerifyReport: (_verify, report_text.verify),
}


def html(value: object) -> str:
    """The HTML view of a value."""
    kind = next(kind for kind in type(value).__mro__ if kind in _VIEWS)
    return _VIEWS[kind][0](value)


def lines(report: object) -> Iterator[str]:
    """The text view of a report, line by line."""
    yield from _VIEWS[type(report)][1](report)


def text(report: object) -> str:
    """The text view of a report."""
    return "\n".join(lines(report))
