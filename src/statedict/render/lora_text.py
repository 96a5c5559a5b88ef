"""Reports of adapters as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from statedict.render.report_text import combine
from statedict.render.text import limit_lines, number, shape, table
from statedict.reports.lora import HIDDEN, PROVED, WRONG, LoraApplied, LoraExtracted, LoraReport
from statedict.values import abbreviate, count, human_bytes, shorten

ROWS = 30
_LONGEST = 160  # characters of a setting


def adapter(report: LoraReport, limit: int | None = ROWS) -> Iterator[str]:
    """What it is and for what, its settings, a row for each module, and whether it can be applied.

    Args:
        report: what `lora.show` returned.
        limit: most modules; None for all.
    """
    size = f"{count(report.tensors, 'tensor')}, {human_bytes(report.nbytes)}"
    made_for = f", for {report.base}" if report.base else ""
    yield f"{report.source}: {report.kind} ({report.dialect}), {size}{made_for}"
    yield from (f"  {key}: {shorten(value, _LONGEST)}" for key, value in report.settings)
    rows = [
        (
            one.name,
            "whole" if one.rank is None else f"rank {one.rank}",
            "" if one.scale is None else f"scale {number(one.scale)}",
            "" if one.norm is None else f"norm {number(one.norm)}",
            "  ".join(f"{part} {shape(sizes)}" for part, sizes in zip(one.parts, one.shapes, strict=True)),
        )
        for one in report.modules[:limit]
    ]
    yield from table(rows, indent=2, elide=(0, 4)) if rows else ()
    yield from limit_lines((), len(report.modules), limit, 2)
    yield from (f"note: {note}" for note in report.notes[:ROWS])
    if report.fault:
        yield f"cannot be applied: {report.fault}"


def applied(report: LoraApplied, limit: int | None = ROWS) -> Iterator[str]:
    """The adapters, a row for each tensor that they change, what the proof says, and what `average` says.

    Args:
        report: what was applied.
        limit: most tensors; None for all.
    """
    order = {WRONG: 0, HIDDEN: 1}
    targets = sorted(report.targets, key=lambda one: order.get(one.proof, 2))
    rows = [
        (
            one.path,
            one.how + ("" if one.rank is None else f" of rank {one.rank}"),
            "" if one.norm is None else f"norm {number(one.norm)}",
            one.proof,
        )
        for one in targets[:limit]
    ]
    yield from table(rows)
    yield from limit_lines((), len(targets), limit)
    yield from combine(report)
    if report.wrong:
        yield f"wrong beside them: {abbreviate(report.wrong)}"
    proofs = [one.proof for one in report.targets]
    if any(proofs):
        said = [f"{proofs.count(kind):,} {kind}" for kind in (PROVED, HIDDEN, WRONG) if kind in proofs]
        yield f"proof: {', '.join(said)} of {len(proofs):,} changes" + ("" if report.proved else "; not proved")


def extracted(report: LoraExtracted, limit: int | None = ROWS) -> Iterator[str]:
    """A row for each module, what is in it whole, and the size.

    Args:
        report: what was extracted.
        limit: most modules; None for all.
    """
    rows = [(name, f"rank {rank}", f"energy {energy:.4f}") for name, rank, energy in report.modules[:limit]]
    yield from table(rows) if rows else ()
    yield from limit_lines((), len(report.modules), limit)
    if report.whole:
        yield f"whole: {abbreviate(report.whole)}"
    yield from (f"note: {note}" for note in report.notes)
    parts = f"{count(len(report.modules), 'module')}, {report.energy:.4f} of the change of its matrices"
    yield f"{parts}, {human_bytes(report.nbytes)}" + ("" if report.written else " (nothing was written)")
