"""The reports of verify, edit, scan and restore as lines of text. A name in a line may have line breaks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter

import click

from statedict.render.text import printable, table
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
from statedict.values import count, human_bytes, shorten

_NOTES = 3
_LONGEST = 80  # characters of a global
_COLOURS = {DANGEROUS: "red", OPAQUE: "yellow", UNREADABLE: "yellow", DATA: "green"}
_MEANING = {
    DANGEROUS: "opening it with pickle.load or torch.load(weights_only=False) can run code",
    OPAQUE: "it names objects that are not data; statedict keeps them inert, pickle.load would import and use them",
    UNREADABLE: "a part could not be read to its end; what was found until there is data",
    DATA: "no pickle in it names what runs code",
}


def verify_head(report: VerifyReport) -> str:
    """The verdict and what was checked."""
    verdict = count(len(report.problems), "problem") if report.problems else "fine"
    counts = f"{count(report.tensors, 'tensor')} in {count(report.parts, 'part')}"
    sums = f"CRC-32 of {report.crcs:,}, digests of {report.digests:,}"
    return f"{report.file}: {verdict} ({report.format}, {counts}, {sums})"


def verify(report: VerifyReport) -> Iterator[str]:
    """The verdict, problems, notes, and tensors with NaN or infinities."""
    yield verify_head(report)
    yield from (f"  {problem}" for problem in report.problems)
    yield from (f"  note: {note}" for note in report.notes)
    for one in report.nonfinite or ():
        yield f"  {one.path}: {one.nan:,} NaN and {one.inf:,} infinite of {one.elements:,} elements"


def edit(report: EditReport) -> Iterator[str]:
    """The changes of each step, then the size before and after."""
    yield from map(_change, report.changes)
    yield edit_total(report)


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


def restore_head(report: RestoreReport) -> str:
    """How many entries were restored."""
    restored = sum(entry.action in RESTORED for entry in report.entries)
    whole = len(report.entries) + len(report.problems)
    return f"{'restored' if report.written else 'would restore'} {restored:,} of {whole:,} entries"


def restore(report: RestoreReport) -> Iterator[str]:
    """How many entries were restored, notes, entries that changed, problems and hints."""
    yield restore_head(report)
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

    yield from table(rows, style=style)
    yield from (click.style("damaged", fg="yellow") + f"  {printable(text)}" for text in report.damage)
    yield from (f"note  {printable(text)}" for text in report.notes)
    head = f"{printable(report.file)}: {_colour(report.verdict, report.verdict)}, {count(report.pickles, 'pickle')}"
    yield f"{head}: {_MEANING[report.verdict]}"


def _colour(text: str, verdict: str) -> str:
    return click.style(text, fg=_COLOURS[verdict], bold=verdict == DANGEROUS)
