"""Lossless coding of the bytes of tensors, alone or as differences from those of another tensor.

    bytes ─▶ blocks of 1 MiB ─▶ numbers ─▶ one plane for each byte of a number ─▶ Zstandard

A block is coded as `PLANES` (the numbers as they are) or as `DELTA`. A delta maps the numbers of both tensors to
integers in their order, subtracts them (modulo 2**bits), and moves the sign of the difference to its lowest bit. So
numbers that lie close together have differences with few bits, and the upper planes are mostly zeros. Every step is
a bijection of bits: NaN payloads and -0.0 survive.

Second moments shrink: where no squared gradient is added, Adam multiplies them by `beta2` at each step. The coder
`DELTA + c` first takes about c / 2**22 of itself from each float32 of the base: of its bits, with its 12 upper bits of
significand m (the hidden one too), it subtracts m * c >> 10, modulo 2**32.

A coded tensor is its blocks one after the other, and a table at its end: for each block the coder, and the size of
each plane, lowest byte first, as uint32. The size 0 stands for a plane of zeros; a plane that does not get smaller is
stored as it is. What is gained by each step: docs/decisions/0022-deltas.md.
"""

from __future__ import annotations

from threading import local

from statedict.errors import CorruptFileError
from statedict.io.pipeline import BLOCK
from statedict.io.source import allocate
from statedict.tensor.zstd import import_zstandard as import_zstandard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from statedict.dtypes import DType

PLANES, DELTA = 0, 1
_SHRINK = 22  # bits of the share that `DELTA + c` takes away
_MOST_SHRINK = 1 << 20  # of c, and more than it ever is: a quarter
# the fast strategy, with the smallest table to look for repetitions in: bytes of planes repeat by chance only, and what
# is found then costs more than their entropy (docs/decisions/0022-deltas.md)
_PARAMETERS = {"window_log": 17, "hash_log": 6, "chain_log": 6, "min_match": 7, "strategy": 1, "write_content_size": 1}
_SAMPLES, _SAMPLE = 4, 8 << 10  # pieces of a block, and most bytes of each, by which the coder of a block is chosen
_SHARE = 16  # a sample is at most this part of a block, but not below a kilobyte
_THREAD = local()


def unit_of(kind: DType) -> tuple[int, bool]:
    """The bytes of a number of a dtype, and whether it is a floating-point number with a sign bit on top.

    >>> from statedict.dtypes import dtype
    >>> unit_of(dtype("complex64")), unit_of(dtype("int16")), unit_of(dtype("float6_e2m3fn"))
    ((4, True), (2, False), (1, False))
    """
    part = kind.component
    packed = part.bits != 8 * part.itemsize or part.name == "float4_e2m1fn_x2"
    return (1, False) if packed else (part.itemsize, part.kind == "float")


def encode(
    block: memoryview, base: memoryview | None, unit: int, signed: bool, alone: int | None = None
) -> tuple[int, list[int], bytes]:
    """The coder of a block, the size of each plane, and the planes; `base` is as long as the block.

    A sample says whether a difference is smaller. It is not needed where that is much smaller than `alone`, the size of
    the base's own planes.
    """
    if base is not None and _is_equal(block, base):
        return DELTA, [0] * unit, b""
    numbers, delta = _numbers(block, unit), None
    if base is not None:
        before = _numbers(base, unit)
        coder = _find_coder(numbers, before, signed)
        if alone is not None:
            delta = _pack_planes(_subtract(numbers, before, signed, coder))
        if (delta is not None and alone is not None and 5 * sum(delta[0]) < 4 * alone) or _helps(
            numbers, before, signed, coder
        ):
            return coder, *(delta or _pack_planes(_subtract(numbers, before, signed, coder)))
    return PLANES, *_pack_planes(numbers)


def decode(coder: int, planes: Sequence[memoryview], base: memoryview | None, signed: bool, out: memoryview) -> None:
    """Fill `out` with the block; ValueError if the planes are not those of a block."""
    numbers = _numbers(out, len(planes))
    _join(planes, numbers)
    if coder != PLANES:
        if base is None:
            raise ValueError("a difference without a base")
        _add(numbers, _numbers(base, len(planes)), signed, coder)


def _numbers(data: memoryview, unit: int) -> Any:
    import numpy

    return numpy.frombuffer(data, f"<u{unit}")


def _is_equal(block: memoryview, base: memoryview) -> bool:
    import numpy

    # comparing memoryviews takes ten times as long, and is over at the first difference
    return block[:64] == base[:64] and numpy.array_equal(_numbers(block, 1), _numbers(base, 1))


def _helps(numbers: Any, base: Any, signed: bool, coder: int) -> bool:
    """Whether a difference makes a sample of a block at least 1% smaller, for it costs more to read."""
    numbers, base = _take_sample(numbers, base)
    return 100 * sum(_pack_planes(_subtract(numbers, base, signed, coder))[0]) < 99 * sum(_pack_planes(numbers)[0])


def _take_sample(*blocks: Any) -> list[Any]:
    """The same few pieces of each block, or all of a small one."""
    import numpy

    first = blocks[0]
    most = max(256, min(_SAMPLE, first.nbytes // (_SAMPLES * _SHARE))) // first.itemsize
    if first.size <= _SAMPLES * most:
        return list(blocks)
    starts = [first.size // _SAMPLES * index for index in range(_SAMPLES)]
    return [numpy.concatenate([block[at : at + most] for at in starts]) for block in blocks]


def _find_coder(numbers: Any, base: Any, signed: bool) -> int:
    """`DELTA`, or with the share that nearly all of a sample of positive float32 lost at most, if that is closer."""
    import numpy

    if not signed or numbers.itemsize != 4 or (numbers[:64] >> 31).any():
        return DELTA
    numbers, base = (sample.view("<i4") for sample in _take_sample(numbers, base))
    if min(numbers.min(), base.min()) < 0:
        return DELTA
    upper = (base & 0x400000) > 0  # of which taking away a quarter leaves the exponent
    lost = ((base - numbers)[upper] / (base[upper] & 0x7FFFFF | 0x800000)).astype("f4")
    if not lost.size:
        return DELTA
    middle, at = lost.size // 2, lost.size - 1 - lost.size // 100
    most = numpy.partition(lost, at)[at]
    share = int(most * (1 << _SHRINK))
    plain, closer = (numpy.partition(numpy.abs(one), middle)[middle] for one in (lost, most - lost))
    return DELTA + share if 0 < share < _MOST_SHRINK and 10 * closer < 9 * plain else DELTA


def _take_scratch(index: int, size: int) -> Any:
    """One of this thread's arrays, as bytes: fresh memory for each block would cost as much as coding it."""
    import numpy

    held: dict[int, Any] = _THREAD.__dict__.setdefault("scratch", {})
    if index not in held or held[index].size < size:
        held[index] = numpy.frombuffer(allocate(max(size, BLOCK)), "u1")
    return held[index][:size]


def _scratch_like(index: int, numbers: Any) -> Any:
    return _take_scratch(index, numbers.nbytes).view(numbers.dtype)


def _spread_sign(numbers: Any, out: Any) -> None:
    """Fill `out` with the sign of each number: all bits of it, or none."""
    import numpy

    signed = f"<i{numbers.itemsize}"
    numpy.right_shift(numbers.view(signed), 8 * numbers.itemsize - 1, out=out.view(signed))


def _to_order(numbers: Any, mask: Any, out: Any) -> Any:
    """Integers in the order of floating-point numbers: of negative ones all bits are flipped but the sign.

    It is its own inverse. `out` may be `numbers` or `mask`.
    """
    import numpy

    _spread_sign(numbers, mask)
    numpy.right_shift(mask, 1, out=mask)
    return numpy.bitwise_xor(mask, numbers, out=out)


def _shrink(base: Any, coder: int) -> Any:
    """The base, or what is left of it in this thread's memory."""
    import numpy

    if coder == DELTA:
        return base
    left = _scratch_like(2, base)
    numpy.right_shift(base, 12, out=left)
    numpy.bitwise_and(left, 0x7FF, out=left)
    numpy.bitwise_or(left, 0x800, out=left)
    numpy.multiply(left, coder - DELTA, out=left)
    numpy.right_shift(left, _SHRINK - 12, out=left)
    return numpy.subtract(base, left, out=left)


def _subtract(numbers: Any, base: Any, signed: bool, coder: int = DELTA) -> Any:
    """The differences, in this thread's memory."""
    import numpy

    found, other, base = _scratch_like(0, numbers), _scratch_like(1, numbers), _shrink(base, coder)
    if signed:
        numbers, base = _to_order(numbers, found, found), _to_order(base, other, other)
    numpy.subtract(numbers, base, out=found)
    _spread_sign(found, other)
    numpy.left_shift(found, 1, out=found)
    return numpy.bitwise_xor(found, other, out=found)


def _add(found: Any, base: Any, signed: bool, coder: int) -> None:
    """Invert `_subtract`, in place."""
    import numpy

    other, base = _scratch_like(0, found), _shrink(base, coder)
    numpy.bitwise_and(found, 1, out=other)
    numpy.negative(other, out=other)
    numpy.right_shift(found, 1, out=found)
    numpy.bitwise_xor(found, other, out=found)
    numpy.add(found, _to_order(base, other, other) if signed else base, out=found)
    if signed:
        _to_order(found, other, found)


def _split(numbers: Any) -> list[Any]:
    """A plane for each byte, in this thread's memory."""
    import numpy

    if numbers.itemsize == 1:
        return [numbers]
    planes = _take_scratch(1, numbers.nbytes).reshape(numbers.itemsize, -1)
    shifted = _scratch_like(2, numbers)
    for index, plane in enumerate(planes):
        numpy.right_shift(numbers, 8 * index, out=shifted)
        numpy.copyto(plane, shifted, casting="unsafe")
    return list(planes)


def _join(planes: Sequence[memoryview], numbers: Any) -> None:
    """Invert `_split` and `_pack` of each plane."""
    import numpy

    numbers[:] = 0
    for index, plane in reversed(list(enumerate(planes))):
        if len(plane):
            numpy.bitwise_or(numbers, _unpack(plane, numbers.size), out=numbers)
        if index:
            numpy.left_shift(numbers, 8, out=numbers)


def _pack_planes(numbers: Any) -> tuple[list[int], bytes]:
    planes = [_pack(plane) for plane in _split(numbers)]
    return [len(plane) for plane in planes], b"".join(planes)


def _pack(plane: Any) -> bytes | memoryview:
    if not plane.any():
        return b""
    packer = getattr(_THREAD, "packer", None)
    if packer is None:
        zstandard = import_zstandard()
        parameters = zstandard.ZstdCompressionParameters(**_PARAMETERS)
        packer = _THREAD.packer = zstandard.ZstdCompressor(compression_params=parameters)
    packed: bytes = packer.compress(plane.data)
    return packed if len(packed) < plane.size else plane.data


def _unpack(data: memoryview, size: int) -> Any:
    """A plane; what was compressed is in this thread's memory."""
    import numpy

    if len(data) >= size:
        if len(data) != size:
            raise ValueError("a plane of another size")
        return numpy.frombuffer(data, "u1")
    zstandard = import_zstandard()
    unpacker = getattr(_THREAD, "unpacker", None)
    if unpacker is None:
        unpacker = _THREAD.unpacker = zstandard.ZstdDecompressor()
    plane = _take_scratch(1, size)
    try:
        if zstandard.frame_content_size(data) != size:
            raise ValueError("a plane of another size")
        if unpacker.stream_reader(data, read_size=len(data)).readinto(plane.data) != size:
            raise ValueError("a plane that ends early")
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    return plane


def pack_table(rows: Sequence[tuple[int, Sequence[int]]]) -> bytes:
    """The table at the end of a coded tensor, of each block's coder and sizes."""
    import numpy

    return numpy.array([number for coder, sizes in rows for number in (coder, *sizes)], "<u4").tobytes()


def count_blocks(nbytes: int) -> int:
    """How many blocks so many bytes make."""
    return -(-nbytes // BLOCK)


def table_size(nbytes: int, unit: int) -> int:
    """The bytes of the table of a tensor of so many bytes."""
    return count_blocks(nbytes) * (1 + unit) * 4


def read_table(data: bytes | bytearray, unit: int, blocks_size: int, name: str) -> Any:
    """An array with a row for each block: its begin, its coder, and the sizes of its planes.

    `blocks_size` are the bytes of all blocks.

    Raises:
        CorruptFileError: the sizes are not those of the blocks.
    """
    import numpy

    rows = numpy.frombuffer(data, "<u4").reshape(-1, 1 + unit).astype("i8")
    ends = rows[:, 1:].sum(1).cumsum()
    most = DELTA if unit != 4 else DELTA + _MOST_SHRINK - 1
    wrong = rows.size and (rows[:, 0].max() > most or rows[:, 1:].max() > BLOCK // unit or ends[-1] != blocks_size)
    if wrong:
        raise CorruptFileError(f"{name}: the table of its blocks does not fit them; the file is damaged")
    begins = numpy.concatenate([numpy.zeros(1, "i8"), ends[:-1]])
    return numpy.concatenate([begins[:, None], rows], 1)
