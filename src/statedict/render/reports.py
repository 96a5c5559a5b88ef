"""Reports of operations as HTML: the verdict first, then what folds open at a click."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

from statedict.render import diff_text, report_text, tree_text
from statedict.render.html import Safe, Wide, entry, fold, histogram, listing, page, table, tree
from statedict.render.text import number, shape
from statedict.reports.summary import marked
from statedict.values import abbreviate, count, human_bytes, shorten

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from statedict.reports.diff import Diff, TensorDiff
    from statedict.reports.edit import Change, EditReport
    from statedict.reports.figures import Figures, Histogram
    from statedict.reports.restore import Entry, RestoreReport
    from statedict.reports.scan import ScanReport
    from statedict.reports.stats import Flag, GroupStats, StatsReport, TensorStats
    from statedict.reports.summary import Node, Optimizer, Summary
    from statedict.reports.verify import VerifyReport

_NOTES = 3  # up to which they are open
_OPENED = 30  # rows up to which a table is open
_WRONG = ("nan", "inf")  # flags that are no matter of taste
_SMALL, _LARGE = 10, 20  # octaves on each side of 0 that a histogram has
_FIGURES = ("min", "max", "mean", "std", "l2", "zeros", "nan", "inf")


def _section(
    title: str, head: Sequence[str], items: Sequence[Any], cells: Any, marked: Any = None, opened: bool | None = None
) -> Safe:
    """A table with how many rows it has; a short one is open."""
    if opened is None:
        opened = len(items) <= _OPENED
    return fold(f"{title}: {len(items):,}", table(head, items, cells, marked), opened)


# inspect


def summary(report: Summary) -> str:
    """The tree with totals, the dtypes, the optimizers."""

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

    dtypes = table(
        ("dtype", "tensors", "elements", "bytes"),
        list(report.dtypes.items()),
        lambda item: (item[0], item[1].tensors, item[1].elements, human_bytes(item[1].nbytes)),
    )
    troubles = [trouble for one in report.optimizers for trouble in one.troubles.values()]
    if report.wasted:
        troubles.append(f"wasted {human_bytes(report.wasted)}: storages hold more than their views")
    opaque = [f"{name}: {times:,}" for name, times in report.opaque.items()]
    return page(
        tree_text.total_line(report),
        listing(troubles),
        tree(report.root, line, lambda node: (len(node.children), node.children)),
        fold("dtypes", dtypes),
        *map(_groups, report.optimizers[:20]),
        fold("objects that are no data, kept inert", listing(opaque)),
        tone="look" if troubles else "",
    )


def _groups(one: Optimizer) -> Safe:
    keys = list(dict.fromkeys(key for _, group in one.groups for key in group))[:30]
    rows = [(at, count, *(group.get(key) for key in keys)) for at, (count, group) in enumerate(one.groups)]
    groups = table(("group", "parameters", *map(str, keys)), rows, lambda row: map(_plain, row))
    return fold(f"groups of {one.path or 'the optimizer'}: {len(one.groups):,}", groups)


def _plain(value: Any) -> Any:
    return value if value is None or (isinstance(value, int | float | str) and type(value) is not bool) else repr(value)


# stats


def stats(report: StatsReport) -> str:
    """What deserves a look, the figures of all, of dtypes, of modules and of tensors."""
    tones = {flag.name: "bad" if flag.kind in _WRONG else "look" for flag in sorted(report.flags, key=_is_wrong)}
    kinds = [(kind, len(list(same))) for kind, same in groupby(sorted(flag.kind for flag in report.flags))]
    found = ", ".join(f"{kind} in {count:,}" for kind, count in kinds)
    whole = f"{count(len(report.tensors), 'tensor')}, {report.total.elements:,} elements"
    groups = [*(report.dtypes if len(report.dtypes) > 1 else ()), report.total]
    own: tuple[Safe, ...]
    if len(report.tensors) == 1:
        own = (_card(report.tensors[0]),)
    else:
        own = (
            table(("", "tensors", *_FIGURES, ""), groups, lambda one: (one.name or "all", one.tensors, *_figures(one))),
            _section(
                "modules",
                ("module", "tensors", *_FIGURES, ""),
                report.modules,
                lambda one: (one.name, one.tensors, *_figures(one)),
                opened=False,
            ),
            _section(
                "tensors",
                ("tensor", "dtype", "shape", *_FIGURES, "", ""),
                report.tensors,
                lambda one: (
                    one.name,
                    one.dtype,
                    shape(one.shape),
                    *_of_tensor(one),
                    marked(one.parameter, one.inferred),
                ),
                lambda one: tones.get(one.name, ""),
            ),
            *map(_groups, report.optimizers[:20]),
        )
    return page(
        f"{whole}: {found or 'nothing deserves a look'}",
        _section(
            "deserves a look", ("", "tensor", ""), report.flags, lambda flag: (flag.kind, flag.name, Wide(flag.what))
        ),
        *own,
        tone="bad" if "bad" in tones.values() else "look" if tones else "fine",
    )


def _is_wrong(flag: Flag) -> bool:
    return flag.kind in _WRONG


def _figures(of: Figures) -> tuple[Any, ...]:
    return *(getattr(of, name) for name in _FIGURES), bars(of.histogram, of.zeros, 120, 18, _SMALL)


def _of_tensor(one: TensorStats) -> tuple[Any, ...]:
    if one.tied is not None:
        return *_figures(one)[:-1], f"= {one.tied}"
    return _figures(one) if one.computed else (*(None,) * len(_FIGURES), "not computed")


def bars(of: Histogram, zeros: int, width: int, height: int, octaves: int) -> Safe:
    """The largest octaves below 0, all that is closer to 0, the largest octaves above it."""
    counts = of.counts(zeros, octaves)
    label = f"histogram by powers of two: {', '.join(f'{count:,}' for count in counts if count)}"
    return histogram(counts, label[:200], width, height)


def figures(one: TensorStats | GroupStats, title: str) -> str:
    """The figures of a tensor or a module, with its histogram."""
    tied = getattr(one, "tied", None)
    return page(f"{title}, tied to {tied}" if tied else title, _card(one), tone="bad" if one.nan or one.inf else "")


def _card(one: TensorStats | GroupStats) -> Safe:
    names = ("elements", *_FIGURES, "denormal", "edge")
    if not getattr(one, "computed", True):
        return listing(["not computed: its numbers are packed, or not known"])
    counts = one.histogram.counts(one.zeros, _LARGE)
    top = one.histogram.exponent + len(one.histogram.positive)
    drawn = histogram(counts, "histogram by powers of two", 420, 80, _bins(top))
    ends = [f"{sign}{number(math.ldexp(1.0, top)) if -1000 < top < 1000 else f'2^{top}'}" for sign in ("-", "")]
    axis = f'<div class="axis" style="width:420px"><span>{ends[0]}</span><span>0</span><span>{ends[1]}</span></div>'
    note = f"a bar for each power of two; what is closer to 0 than 2^{top - _LARGE} is in the middle"
    head = table(names, [one], lambda of: (getattr(of, name) for name in names))
    return Safe(f"{head}<div>{drawn}{axis}<small>{note}</small></div>" if drawn else head)


def _bins(top: int) -> list[str]:
    """What is in each bar."""
    above = [f"2^{top - back - 1} to 2^{top - back}" for back in range(_LARGE)]
    return [*(f"-({name})" for name in above), "closer to 0", *reversed(above)]


def tensor(one: TensorStats) -> str:
    """The figures of one tensor, with its histogram."""
    return figures(one, f"{one.name or 'tensor'}: {one.dtype} {shape(one.shape)}")


def group(one: GroupStats) -> str:
    """The figures of a module, with its histogram."""
    return figures(one, f"{one.name or 'all'}: {count(one.tensors, 'tensor')}")


# diff


def diff(report: Diff) -> str:
    """What changed most first; what is identical is a number."""
    from statedict.reports import diff as kinds

    measured = ("tensor", "relative", "largest", "cosine", "elements changed", "")

    def row(one: TensorDiff) -> Iterable[object]:
        found = one.measures
        name, _ = diff_text.tensor(one)
        if found is None:
            return name, None, None, None, None, "other bytes"
        apart = f"{found.nonfinite:,} not finite" if found.nonfinite else ""
        sizes = (None, None) if found.beyond else (found.relative, found.max_abs)
        return name, *sizes, found.cosine, f"{found.changed:,} of {found.elements:,}", apart

    parts = [listing([f"moved {rule}: {count(rule.count, 'tensor')}" for rule in report.moved])]
    parts += [
        _section(kind, measured, report.filter(kind).sort().tensors, row) for kind in (kinds.CHANGED, kinds.CLOSE)
    ]
    parts += [
        _section(kind, ("", ""), report.filter(kind).tensors, diff_text.tensor)
        for kind in (kinds.RETYPED, kinds.RESHAPED, kinds.RENAMED, kinds.ADDED, kinds.REMOVED)
    ]
    for kind in (kinds.CHANGED, kinds.ADDED, kinds.REMOVED):
        values = [value for value in report.values if value.kind == kind]
        parts.append(_section(f"values {kind}", ("", ""), values, diff_text.value))
    title = f"{report.a} → {report.b}: {diff_text.summary(report)}"
    return page(title, *parts, listing(report.notes), tone="fine" if report.same else "look")


def tensor_diff(one: TensorDiff) -> str:
    """What became of one tensor."""
    facts: list[tuple[str, object]] = [("before", one.before), ("after", one.after), ("dtype", _change(one.dtypes))]
    facts.append(("shape", _change([None if sizes is None else shape(sizes) for sizes in one.shapes])))
    if one.measures is not None:
        facts += [(name, number(value)) for name, value in one.measures.to_json().items()]
    facts += [("equal", one.equal), ("same bytes as", one.same_as)]
    table_of = table(("", ""), [fact for fact in facts if fact[1] is not None], lambda fact: (fact[0], str(fact[1])))
    return page(f"{one.path}: {one.kind}", table_of, tone="fine" if one.passed else "look")


def _change(sides: Sequence[str | None]) -> str:
    return " → ".join(dict.fromkeys(side for side in sides if side is not None))


# verify, scan, edit


def verify(report: VerifyReport) -> str:
    """What is wrong, part by part."""
    return page(
        report_text.verify_head(report),
        _section(
            "problems",
            ("part", "what", "expected", "got", "tensors", "remedy"),
            report.problems,
            lambda one: (
                one.part, Wide(one.what), one.expected, one.got, Wide(_first(one.tensors)), Wide(one.remedy),
            ),
            lambda one: "bad",
        ),
        _section(
            "not finite",
            ("tensor", "elements", "NaN", "infinite"),
            report.nonfinite or (),
            lambda one: (one.path, one.elements, one.nan, one.inf),
        ),
        listing(report.notes),
        tone="fine" if report.ok else "bad",
    )  # fmt: skip


def scan(report: ScanReport) -> str:
    """What the pickles name, the worst first."""
    verdicts = {"dangerous": "bad", "unreadable": "bad", "opaque": "look"}
    by_verdict = [(kind, list(some)) for kind, some in groupby(report.globals, key=lambda one: one.verdict)]
    return page(
        f"{report.file}: {report.verdict}, {count(report.pickles, 'pickle')}",
        *(
            _section(
                kind,
                ("global", "why", "called", "in"),
                some,
                lambda one: (one.qualified, Wide(one.why), one.called, one.member),
                lambda one: verdicts.get(one.verdict, ""),
                opened=kind != "data" and len(some) <= _OPENED,
            )
            for kind, some in by_verdict[:10]
        ),
        fold("could not be read to the end", listing(report.damage), True),
        listing(report.notes),
        tone=verdicts.get(report.verdict, "fine"),
    )


def edit(report: EditReport) -> str:
    """Step by step."""

    def cells(change: Change) -> Iterable[object]:
        return Wide(change.step), *(Wide(_first(getattr(change, name))) for name in ("removed", "added", "altered"))

    return page(
        report_text.edit_total(report),
        _section("steps", ("step", "removed", "added", "altered"), report.changes, cells),
    )


def _first(paths: Sequence[str]) -> str:
    return abbreviate([*(shorten(path, 80) for path in paths[:3]), *paths[3:]])


# restore


def restore(report: RestoreReport) -> str:
    """What forbids it, what to do, then every entry."""
    return page(
        report_text.restore_head(report),
        fold(f"problems: {len(report.problems):,}", _by_action(report.problems, True), True),
        listing(report.hints),
        fold("notes", listing(report.notes), len(report.notes) <= _NOTES),
        _by_action(report.entries),
        tone="bad" if report.problems else "fine",
    )


def _by_action(entries: Sequence[Entry], bad: bool = False) -> Safe:
    """A fold an action, those that need no word last."""
    actions: dict[str, list[Entry]] = {}
    for one in entries:
        actions.setdefault(one.action, []).append(one)
    order = sorted(actions, key=lambda action: action == "restored")

    def row(one: Entry) -> tuple[str, str]:
        return one.path or "the whole", Wide(one.detail)

    tables = (
        (action, len(actions[action]), table(("", ""), actions[action], row, lambda _: "bad" * bad)) for action in order
    )
    return Safe("".join(fold(f"{action}: {count:,}", rows, bad) for action, count, rows in tables))
