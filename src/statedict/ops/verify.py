"""Check a file for damage: read every part once, compare its sums, and its structure as its format describes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from statedict.errors import FileError, FormatError, LimitError, TreeError, UnknownFormatError
from statedict.io.parallel import batches, parallel
from statedict.io.pipeline import Meter, Sums, compute_sums, meter
from statedict.ops.jobs import Part
from statedict.reports.outcomes import Nonfinite, VerifyReport
from statedict.tensor.checks import Check, Found, Problem, Unread, refusal
from statedict.tensor.lazy import LazyTensor

_REMEDY = "fetch the file again, or save it again"
_JOB = 32 << 20  # bytes that a thread takes at a time
_SMALL = 16 << 20  # parts without tensors, such as a header or a pickle, are read even by `quick` up to this size

_QUICK = "structure only: no tensor was read, so damage within tensors is not seen"
_BARE = "it carries no digests, so damage within tensors cannot be seen; files that statedict saves do"

_NO_CRC32C = "its CRC-32C were not compared, which takes google-crc32c; pip install 'statedict[tensorflow]'"


def examine(file: str, name: str, found: Iterator[Found], values: bool = False, quick: bool = False) -> VerifyReport:
    """Carry out the checks of the format called `name`, which yielded `found`.

    `values` reads tensors once more to count NaN and infinities; `quick` skips the parts that hold tensors.

    Raises:
        UnknownFormatError: it turns out to be no checkpoint.
    """
    checks, read = list[Check](), list[Check]()
    problems, notes, unread, counter = list[Problem](), list[str](), list[str](), meter()

    def parts() -> Iterator[Check]:
        """The checks to read; threads read the first ones while the format examines the rest of the structure."""
        try:
            for item in found:
                if isinstance(item, Problem):
                    problems.append(item)
                elif isinstance(item, Unread):
                    unread.append(item)
                elif isinstance(item, str):
                    notes.append(item)
                else:
                    checks.append(item)
                    if not quick or (not item.tensors and not item.coded and item.size <= _SMALL):
                        read.append(item)
                        counter.expect(item.size)
                        yield item
        except UnknownFormatError:
            raise
        except (FormatError, FileError, TreeError) as error:
            problems.append(refusal(error, file))

    nonfinite: dict[str, Nonfinite] = {}
    for done in parallel(lambda batch: [_check(part, values, counter) for part in batch], batches(parts(), _JOB)):
        for problem, counts in done:
            problems += [problem] if problem else []
            for one in counts:
                old = nonfinite.get(one.path, Nonfinite(one.path, 0, 0, 0))  # of another part of the tensor
                sums = old.elements + one.elements, old.nan + one.nan, old.inf + one.inf
                nonfinite[one.path] = Nonfinite(one.path, *sums)
    paths = {path for check in checks for path in check.paths}
    if not paths and not problems:
        notes.append("no tensor is in it")
    elif quick:
        notes.append(_QUICK)
    else:
        notes += _note_sums(checks)
    return VerifyReport(
        file=file,
        format=name,
        tensors=len(paths),
        parts=len(checks),
        nbytes=sum(check.size for check in read),
        crcs=sum(check.crc is not None or check.crc32c is not None for check in read),
        digests=sum(check.digest is not None for check in read),
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(notes),
        unread=tuple(unread),
        nonfinite=tuple(one for one in nonfinite.values() if one.nan or one.inf) if values else None,
    )


def _note_sums(checks: list[Check]) -> list[str]:
    """What to say where not all bytes are compared with sums."""
    if checks and not any(check.digest or check.crc is not None or check.crc32c is not None for check in checks):
        return [_BARE]
    some = any(check.crc32c is not None for check in checks)
    return [_NO_CRC32C] if some and import_crc32c() is None else []


def _check(check: Check, values: bool, counter: Meter) -> tuple[Problem | None, list[Nonfinite]]:
    """The problem of a part, if it has one, and its numbers that are not finite."""
    extend, crc32c = import_crc32c() if check.crc32c is not None else None, 0

    def advance(_: int, block: Any) -> None:
        nonlocal crc32c
        counter.advance(len(block))
        if extend is not None:
            crc32c = extend(crc32c, bytes(block))

    try:
        wanted = check.crc is not None, check.digest is not None
        sums = compute_sums(check.source, check.start, check.size, *wanted, advance)
        return _compare(check, sums, crc32c if extend else None), list(_count_nonfinite(check)) if values else []
    except (FormatError, FileError) as error:
        found = refusal(error, check.source.name)
        return Problem(check.part, found.what, remedy=found.remedy or _REMEDY, tensors=check.paths), []


def import_crc32c() -> Any:
    """The function that goes on with a CRC-32C; None if its library is not installed."""
    try:
        from google_crc32c import extend
    except ImportError:
        return None
    return extend


def _compare(check: Check, sums: Sums, crc32c: int | None = None) -> Problem | None:
    pairs = [("digest", check.digest, sums.digest)] if check.digest is not None else []
    if check.crc is not None:
        pairs.append(("CRC-32", f"{check.crc:08x}", f"{sums.crc:08x}"))
    if crc32c is not None:
        pairs.append(("CRC-32C", f"{check.crc32c:08x}", f"{crc32c:08x}"))
    wrong = [pair for pair in pairs if pair[1] != pair[2]]
    if not wrong:
        return None
    what = f"its {' and '.join(kind for kind, _, _ in wrong)} {'differs' if len(wrong) == 1 else 'differ'}"
    if len(wrong) < len(pairs):
        right = next(kind for kind, expected, got in pairs if expected == got)
        what += f", its {right} does not: its bytes are right and the {wrong[0][0]} in the file is damaged"
    else:
        what += ", so its bytes are damaged" if check.base is None else f": its coded bytes or {check.base} are damaged"
    remedy = _REMEDY if check.base is None else f"verify {check.base} first"
    return Problem(check.part, what, wrong[0][1] or "", wrong[0][2], remedy, check.paths)


def _count_nonfinite(check: Check) -> Iterator[Nonfinite]:
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
            yield _count_values(path, tensor)


def _count_values(path: str, tensor: LazyTensor) -> Nonfinite:
    kind, nan, inf = tensor.dtype, 0, 0
    # float4 has neither NaN nor infinities, smaller ones have no numpy dtype
    if kind.kind in ("float", "complex") and kind.itemsize and kind.name != "float4_e2m1fn_x2":
        import numpy

        # in the order of the file; an element that a stride of 0 repeats is counted once
        spread = tensor.nbytes >= tensor.span
        whole = tensor if spread else tensor.contiguous()
        for block in Part(path, whole, 1, 0, tensor.span if spread else tensor.nbytes).blocks(Meter()):
            array = numpy.frombuffer(block, kind.numpy)
            with numpy.errstate(invalid="ignore"):  # a signalling NaN is a NaN
                if not numpy.isfinite(array).all():
                    nan += int(numpy.isnan(array).sum())
                    inf += int(numpy.isinf(array).sum())
    return Nonfinite(path, tensor.numel(), nan, inf)
