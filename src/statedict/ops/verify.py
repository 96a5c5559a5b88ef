"""Is a file damaged? Every part of it read once, its sums compared, its structure as its format sees it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from statedict.errors import FileError, FormatError, LimitError, TreeError, UnknownFormatError
from statedict.io.parallel import batches, parallel
from statedict.io.pipeline import Sums, blocks, compute_sums
from statedict.io.progress import Meter, meter
from statedict.reports.verify import Nonfinite, VerifyReport
from statedict.tensor.checks import Check, Found, Problem, refusal
from statedict.tensor.lazy import LazyTensor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.io.pipeline import Block

_REMEDY = "fetch the file again, or save it again"
_JOB = 32 << 20  # bytes that a thread takes at a time
_SMALL = 16 << 20  # a part without tensors, such as a header or a pickle, that even a quick look reads

_QUICK = "structure only: no tensor was read, so damage within tensors is not seen"
_BARE = "it carries no digests, so damage within tensors cannot be seen; files that statedict saves do"


def examine(file: str, name: str, found: Iterator[Found], values: bool = False, quick: bool = False) -> VerifyReport:
    """Carry out what a format's `checks` say.

    Args:
        file: names the report.
        name: the format's name.
        found: what `checks` yields.
        values: also count NaN and infinities, for which the tensors are read once more.
        quick: leave the parts unread that hold tensors.

    Raises:
        UnknownFormatError: it turns out to be no checkpoint.
    """
    checks, looked = list[Check](), list[Check]()
    problems, notes = list[Problem](), list[str]()
    here = meter()

    def parts() -> Iterator[Check]:
        """The checks to read; the threads read the first ones while the rest of the structure is looked at."""
        try:
            for item in found:
                if isinstance(item, Check):
                    checks.append(item)
                    if not quick or (not item.tensors and item.size <= _SMALL):
                        looked.append(item)
                        here.expect(item.size)
                        yield item
                else:
                    kept: list[Any] = problems if isinstance(item, Problem) else notes
                    kept.append(item)
        except UnknownFormatError:
            raise
        except (FormatError, FileError, TreeError) as error:
            problems.append(refusal(error, file))

    nonfinite: dict[str, Nonfinite] = {}
    for done in parallel(lambda batch: [_look(check, values, here) for check in batch], batches(parts(), _JOB)):
        for problem, counts in done:
            problems += [problem] if problem else []
            for count in counts:
                nonfinite[count.path] = _sum(count, nonfinite.get(count.path))
    paths = {path for check in checks for path in check.paths}
    if not paths and not problems:
        notes.append("no tensor is in it")
    elif quick:
        notes.append(_QUICK)
    elif checks and not any(check.digest or check.crc is not None for check in checks):
        notes.append(_BARE)
    return VerifyReport(
        file=file,
        format=name,
        tensors=len(paths),
        parts=len(checks),
        nbytes=sum(check.size for check in looked),
        crcs=sum(check.crc is not None for check in looked),
        digests=sum(check.digest is not None for check in looked),
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(notes),
        nonfinite=tuple(count for count in nonfinite.values() if count.nan or count.inf) if values else None,
    )


def _sum(count: Nonfinite, before: Nonfinite | None) -> Nonfinite:
    """The counts of two parts of a tensor."""
    if before is None:
        return count
    elements, nan, inf = before.elements + count.elements, before.nan + count.nan, before.inf + count.inf
    return Nonfinite(count.path, elements, nan, inf)


def _look(check: Check, values: bool, here: Meter) -> tuple[Problem | None, list[Nonfinite]]:
    """What is wrong with a part, and its numbers that are not finite."""
    try:
        with_crc, with_digest = check.crc is not None, check.digest is not None
        sums = compute_sums(check.source, check.start, check.size, with_crc, with_digest, partial(_count, here))
        return _compare(check, sums), list(_nonfinite(check)) if values else []
    except (FormatError, FileError) as error:
        found = refusal(error, check.source.name)
        return Problem(check.part, found.what, remedy=found.remedy or _REMEDY, tensors=check.paths), []


def _count(here: Meter, _: int, block: Block) -> None:
    here.advance(len(block))


def _compare(check: Check, sums: Sums) -> Problem | None:
    pairs = [("digest", check.digest, sums.digest)] if check.digest is not None else []
    if check.crc is not None:
        pairs.append(("CRC-32", f"{check.crc:08x}", f"{sums.crc:08x}"))
    wrong = [pair for pair in pairs if pair[1] != pair[2]]
    if not wrong:
        return None
    what = f"its {' and '.join(kind for kind, _, _ in wrong)} {'differs' if len(wrong) == 1 else 'differ'}"
    if len(wrong) < len(pairs):
        right = next(kind for kind, expected, got in pairs if expected == got)
        what += f", its {right} does not: its bytes are right and the {wrong[0][0]} in the file is damaged"
    else:
        what += ", so its bytes are damaged"
    return Problem(check.part, what, wrong[0][1] or "", wrong[0][2], _REMEDY, check.paths)


def _nonfinite(check: Check) -> Iterator[Nonfinite]:
    """The counts of a part's tensors; tied ones once, under the first path."""
    seen: set[object] = set()
    left = 64 * check.size + (1 << 20)
    for path, tensor in check.tensors:
        region = tensor.region
        if region not in seen:
            seen.add(region)
            left -= min(tensor.span, tensor.nbytes)
            if left < 0:
                raise LimitError(f"its {len(check.tensors):,} tensors overlap too often for their values to be counted")
            yield Nonfinite(path, tensor.numel(), *_counts(tensor))


def _counts(tensor: LazyTensor) -> tuple[int, int]:
    """How many elements are NaN, and how many infinite."""
    kind = tensor.dtype
    # float4 has neither and comes in pairs, smaller ones have no numpy dtype
    if kind.kind not in ("float", "complex") or not kind.itemsize or kind.name == "float4_e2m1fn_x2":
        return 0, 0
    import numpy

    # in the order of the file; an element that stands many times, by a stride of 0, is looked at once
    spread = tensor.nbytes >= tensor.span
    whole = tensor if spread else tensor.contiguous()
    nan = inf = 0
    start, size = whole.storage.offset + whole.offset, tensor.span if spread else tensor.nbytes
    for _, block in blocks(whole.storage.source, start, size):
        array = numpy.frombuffer(block, kind.numpy)
        with numpy.errstate(invalid="ignore"):  # a signalling NaN is a NaN
            if not numpy.isfinite(array).all():
                nan += int(numpy.isnan(array).sum())
                inf += int(numpy.isinf(array).sum())
    return nan, inf
