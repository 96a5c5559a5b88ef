"""Reports as lines of text, of checkpoints and of runs. A name in a line may have line breaks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter

import click

from statedict.render.diff_text import LIMIT, measures
from statedict.render.text import limit_lines, number, printable, shape, table
from statedict.reports.combine import CombineReport, DeltaReport
from statedict.reports.outcomes import (
    DANGEROUS,
    DATA,
    OPAQUE,
    RESTORED,
    UNREADABLE,
    WORST_FIRST,
    Change,
    EditReport,
    Finding,
    RestoreReport,
    ScanReport,
    VerifyReport,
    explain_problems,
    summarize_entries,
)
from statedict.reports.runs import Bisection, Blame, History, Pruned, RunVerified
from statedict.values import abbreviate, count, human_bytes, shorten

_NOTES = 3
_LONGEST = 80  # characters of a global
_COLOURS = {DANGEROUS: "red", OPAQUE: "yellow", UNREADABLE: "yellow", DATA: "green"}
_MEANING = {
    DANGEROUS: "opening it with pickle.load or torch.load(weights_only=False) can run code",
    OPAQUE: "it names objects that are not data; statedict keeps them inert, pickle.load would import and use them",
    UNREADABLE: "a part could not be read to its end; what was found until there is data",
    DATA: "no pickle in it names what runs code",
}
_MEANING_OF_MODEL = "it has no pickle, but loading it with its own library, such as Keras, can run code"


def verify(report: VerifyReport) -> Iterator[str]:
    """The verdict and what was checked, problems, notes, and tensors with NaN or infinities."""
    fine = "no damage found" if report.unread else "fine"
    verdict = count(len(report.problems), "problem") if report.problems else fine
    counts = f"{count(report.tensors, 'tensor')} in {count(report.parts, 'part')}"
    sums = f"CRC-32 of {report.crcs:,}, digests of {report.digests:,}"
    yield f"{report.file}: {verdict} ({report.format}, {counts}, {sums})"
    yield from (f"  {problem}" for problem in report.problems)
    yield from (f"  note: {note}" for note in report.notes)
    if report.unread:
        yield f"  not looked at: {', '.join(report.unread)}"
    for one in report.nonfinite or ():
        yield f"  {one.path}: {one.nan:,} NaN and {one.inf:,} infinite of {one.elements:,} elements"


def combine(report: CombineReport) -> Iterator[str]:
    """The sources with their shares, what the method did not make, what is left out, then the size."""
    yield from (name if share is None else f"{number(share)} × {name}" for name, share in report.sources)
    by_rule: dict[str, list[str]] = {}
    for path, rule in report.rules:
        by_rule.setdefault(rule, []).append(path)
    yield from (f"{rule}, not combined: {abbreviate(paths)}" for rule, paths in by_rule.items())
    if report.left_out:
        yield "left out: " + abbreviate([f"{path} ({why})" for path, why in report.left_out], 5)
    yield from (f"note: {note}" for note in report.notes)
    yield from report.files.lines()
    done = f"{report.method}: {count(report.tensors, 'tensor')}, {human_bytes(report.nbytes)}"
    yield done if report.written else f"{done} (nothing was written)"


def delta(report: DeltaReport) -> Iterator[str]:
    """The sizes before and after, and how many tensors are differences."""
    before, after = report.nbytes
    what = f"{report.deltas:,} of {report.tensors:,} tensors as differences from {report.base}"
    share = f" ({after / before:.1%})" if report.verb == "make" and before else ""
    done = f"{human_bytes(before)} → {human_bytes(after)}{share}: {what}"
    yield done if report.written else f"{done} (nothing was written)"
    yield from report.files.lines()


def edit(report: EditReport) -> Iterator[str]:
    """The changes of each step, then the size before and after."""
    yield from map(_change, report.changes)
    yield edit_total(report)
    yield from report.notes
    yield from report.files.lines()


def edit_total(report: EditReport) -> str:
    """The size before and after."""
    sides = zip(report.tensors, report.nbytes, strict=True)
    text = " → ".join(f"{count(tensors, 'tensor')}, {human_bytes(nbytes)}" for tensors, nbytes in sides)
    return text if report.written else text + " (nothing was written)"


def _change(change: Change) -> str:
    parts = []
    for verb, paths in (("removed", change.removed), ("added", change.added), ("altered", change.altered)):
        if paths:
            parts.append(f"{len(paths):,} {verb}: {', '.join(paths[:2])}" + ", …" * (len(paths) > 2))
    return f"{change.step}: " + ("; ".join(parts) or "nothing changed")


def restore(report: RestoreReport) -> Iterator[str]:
    """How many entries were restored, notes, entries that changed, problems and hints."""
    restored = sum(entry.action in RESTORED for entry in report.entries)
    whole = len(report.entries) + len(report.problems)
    yield f"{'restored' if report.written else 'would restore'} {restored:,} of {whole:,} entries"
    yield from (f"  {note}" for note in report.notes[:_NOTES])
    if len(report.notes) > _NOTES:
        yield f"  and {len(report.notes) - _NOTES:,} more notes"
    yield from summarize_entries(entry for entry in report.entries if entry.action != "restored" or entry.detail)
    yield from explain_problems(report)


def scan(report: ScanReport) -> Iterator[str]:
    """The verdict, a line for each global, damage and notes."""
    yield f"{report.file}: {report.verdict}"
    yield from (f"  {finding.verdict} {finding.qualified}: {finding.why}" for finding in report.globals)
    yield from (f"  {text}" for text in (*report.damage, *report.notes))


def scan_table(report: ScanReport) -> Iterator[str]:
    """In colour: a row for each global and reason, the worst first, then damage and notes, then the verdict."""

    def order(finding: Finding) -> tuple[int, str, str, str, int]:
        return WORST_FIRST.index(finding.verdict), finding.qualified, finding.why, finding.member, finding.offset

    rows: list[tuple[str, ...]] = []
    same = attrgetter("verdict", "qualified", "why")
    for (verdict, name, why), group in groupby(sorted(report.globals, key=order), key=same):
        found = list(group)
        calls = sum(finding.called for finding in found)
        where = f"{found[0].member} at {found[0].offset:,}".lstrip()
        more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
        used = f"called {calls:,}×" if calls else "named"
        rows.append((verdict, shorten(printable(name), _LONGEST), used, why, printable(where) + more))

    def style(number: int, cells: list[str]) -> list[str]:
        return [_colour(cells[0], rows[number][0]), *cells[1:]]

    yield from table(rows, style=style, elide=(1, 3, 4))
    yield from (click.style("damaged", fg="yellow") + f"  {printable(text)}" for text in report.damage)
    yield from (f"note  {printable(text)}" for text in report.notes)
    head = f"{printable(report.file)}: {_colour(report.verdict, report.verdict)}, {count(report.pickles, 'pickle')}"
    meaning = _MEANING_OF_MODEL if report.verdict == DANGEROUS and not report.pickles else _MEANING[report.verdict]
    yield f"{head}: {meaning}"


def _colour(text: str, verdict: str) -> str:
    return click.style(text, fg=_COLOURS[verdict], bold=verdict == DANGEROUS)


def blame(report: Blame, limit: int | None = LIMIT) -> Iterator[str]:
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
        yield from table(
            [(one.path, one.dtype, shape(one.shape), "  ".join(_extent(report, one, single))) for one in group[:limit]],
            indent=2,
        )
        if single:
            changes = (
                f"    {each.name}  {measures(each.measures, cosine=False) if each.measures else each.note}"
                for each in group[0].changes[:limit]
            )
            yield from limit_lines(changes, len(group[0].changes), limit, 4)
        yield from limit_lines((), len(group), limit, 2)
    if limit is not None and len(groups) > limit:
        yield f"… and {sum(map(len, groups[limit:])):,} tensors with {len(groups) - limit:,} other histories"
    for rank, (name, some) in enumerate(groupby(report.broken, key=lambda one: one.broken and one.broken.name)):
        paths = abbreviate([one.path for one in some])
        yield f"{'then' if rank else 'first'} NaN or infinite at {name}: {paths}"
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
    head += ", by headers and sizes" if report.quick else ""
    yield head + (" as far as looked at" if report.unread else "")
    for name, damage in report.damage.items():
        left = report.unread.get(name, ())
        yield f"  {name}  {damage or 'fine'}" if damage or not left else f"  {name}  no damage found"
        yield from [f"    not looked at: {', '.join(left)}"] if left else []
    yield from (f"  {name}  unfinished" for name in report.unfinished)
    if beside := report.unread.get(""):
        yield f"  not looked at: {', '.join(beside)}"


def pruned(report: Pruned) -> Iterator[str]:
    """How many checkpoints go, which, and why the others stay."""
    yield f"{len(report.removed):,} removed, {report.nbytes:,} bytes; {len(report.kept):,} stay"
    yield from (f"  removed {step}" for step in report.removed)
    yield from (f"  {step} stays: {why}" for step, why in report.kept.items())
