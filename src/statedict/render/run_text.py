"""Reports about runs as lines of text. A line may hold a name with line breaks in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from statedict.render.diff_text import measures
from statedict.render.text import limit_lines, shape
from statedict.reports.runs import Bisection, Blame, History, Pruned, RunVerified
from statedict.values import abbreviate, count

_SHOWN = 20


def blame(report: Blame, limit: int | None = _SHOWN) -> Iterator[str]:
    """Tensors with the same history together, single ones change by change.

    Args:
        report: what `blame` returned.
        limit: most groups, tensors of a group, and changes of a tensor; None for all.
    """
    where = f"{count(len(report.checkpoints), 'checkpoint')}, {report.checkpoints[0]} to {report.checkpoints[-1]}"
    yield f"{count(len(report.histories), 'tensor')} in {where}"
    groups = report.groups()
    for group in groups[:limit]:
        single = len(group) == 1
        yield _describe(group[0]) + ("" if single else f": {count(len(group), 'tensor')}")
        for one in group[:limit]:
            yield "  " + "  ".join([one.path, one.dtype, shape(one.shape), *_extent(report, one, single)])
            if single:
                changes = (
                    f"{each.name}  {measures(each.measures, cosine=False) if each.measures else each.note}"
                    for each in one.changes[:limit]
                )
                yield from (f"    {line}" for line in limit_lines(changes, len(one.changes), limit))
        yield from (f"  {line}" for line in limit_lines((), len(group), limit))
    if limit is not None and len(groups) > limit:
        yield f"… and {sum(map(len, groups[limit:])):,} tensors with {len(groups) - limit:,} other histories"
    for number, (name, some) in enumerate(groupby(report.broken, key=lambda one: one.broken and one.broken.name)):
        paths = abbreviate([one.path for one in some])
        yield f"{'then' if number else 'first'} NaN or infinite at {name}: {paths}"
    for name, why in report.skipped.items():
        yield f"skipped {name}: {why}"


def _describe(one: History) -> str:
    if not one.changes:
        return "never changed" if len(one.there) > 1 else "in one checkpoint only"
    if len(one.changes) == len(one.there) - 1:
        return "changed at every step"
    names = [change.name for change in one.changes]
    cut = [*names[:6], f"… and {len(names) - 7} more, {names[-1]}"] if len(names) > 8 else names
    return f"changed at {', '.join(cut)}"


def _extent(report: Blame, one: History, single: bool) -> Iterator[str]:
    sizes = [change.measures.relative for change in one.changes if change.measures is not None]
    if sizes and not single:
        yield f"rel {sizes[0]:.2e}" + (f" … {sizes[-1]:.2e}" if len(sizes) > 1 else "")
    if len(one.there) < len(report.checkpoints):
        yield f"in {len(one.there):,} of {len(report.checkpoints):,} checkpoints"
    if one.broken is not None:
        yield (
            f"since {one.broken.name}: {one.broken.nan:,} NaN, {one.broken.inf:,} infinite of {one.broken.elements:,}"
        )


def bisection(report: Bisection) -> Iterator[str]:
    """The first bad checkpoint, or the ones that it may be."""
    bad, tests = report.bad.name, count(len(report.tried), "test")
    if report.found:
        yield f"{bad} is the first bad checkpoint, {report.good.name} the last good one ({tests})"
    else:
        names = ", ".join((*report.between, bad))
        yield f"the first bad checkpoint is one of {names}; those before {bad} were skipped ({tests})"


def verified(report: RunVerified) -> Iterator[str]:
    """How many checkpoints are damaged, and what is wrong with each."""
    bad = sum(map(bool, report.damage.values()))
    head = f"{report.directory}: {count(len(report.damage), 'checkpoint')}, {bad or 'none'} damaged"
    yield head + (", by headers and sizes" if report.quick else "")
    yield from (f"  {name}  {damage or 'fine'}" for name, damage in report.damage.items())
    yield from (f"  {name}  unfinished" for name in report.unfinished)


def pruned_head(report: Pruned) -> str:
    """How many checkpoints go, and how many stay."""
    return f"{len(report.removed):,} removed, {report.nbytes:,} bytes; {len(report.kept):,} stay"


def pruned(report: Pruned) -> Iterator[str]:
    """How many checkpoints go, which, and why the others stay."""
    yield pruned_head(report)
    yield from (f"  removed {step}" for step in report.removed)
    yield from (f"  {step} stays: {why}" for step, why in report.kept.items())
