"""The numbers in GGUF's blocks, bit by bit as `gguf.quants.dequantize` 0.19.0 computes them.

A decoder gets blocks, an array of bytes (blocks, bytes of one), and fills an array of float32 (blocks, elements of
one). Packed numbers are unpacked eight bytes at a time, as words of 64 bits; the order of the multiplications is
ggml's, since another one rounds differently. What that is worth: docs/decisions/0024-gguf.md.

Source: dequantize_row_* in ggml-quants.c of ggml; `gguf` has no decoder for Q1_0 and Q8_K.
"""

from __future__ import annotations

from base64 import b85decode
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy

from statedict.errors import UnsupportedError
from statedict.tensor.ggml.grids import TABLES

_WORD = numpy.dtype("<u8")
_NIBBLES, _PAIRS, _BITS = (numpy.uint64(mask * 0x0101010101010101) for mask in (15, 3, 1))
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # doubled
_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def decode(name: str, elements: int, nbytes: int, data: bytes | bytearray, out: memoryview) -> None:
    """Fill a buffer with the float32 of whole blocks of a type, of so many elements and bytes each.

    Raises:
        UnsupportedError: the numbers of this type are not known.
    """
    if name not in _DECODERS:
        raise UnsupportedError(
            f"blocks of {name} cannot be dequantized: it is for intermediate results; read them by .blocks"
        )
    blocks = numpy.frombuffer(data, numpy.uint8).reshape(-1, nbytes)
    with numpy.errstate(invalid="ignore", over="ignore"):  # scales may be infinite, or NaN
        _DECODERS[name](blocks, numpy.frombuffer(out, "<f4").reshape(-1, elements))


def _cut(blocks: Any, begin: int, end: int, kind: Any = numpy.uint8) -> Any:
    """The numbers in a range of the bytes of each block."""
    return numpy.ascontiguousarray(blocks[:, begin:end]).view(kind)


def _half(blocks: Any, at: int) -> Any:
    """A float16 of each block as float32, shaped (blocks, 1)."""
    return _cut(blocks, at, at + 2, "<f2").astype(numpy.float32)


def _unpack(blocks: Any, begin: int, end: int, run: int, shifts: Any, mask: Any) -> Any:
    """Small numbers packed into runs of so many bytes: for each shift those of all bytes, then the next run.

    As bytes, shaped (blocks, runs, shifts, bytes of a run).
    """
    words = _cut(blocks, begin, end, _WORD).reshape(len(blocks), -1, 1, run // 8)
    found = numpy.empty((len(blocks), words.shape[1], len(shifts), run // 8), _WORD)
    for at, shift in enumerate(shifts):
        numpy.right_shift(words[:, :, 0], numpy.uint64(shift), out=found[:, :, at])
    found &= mask
    return found.view(numpy.uint8)


def _scale(out: Any, numbers: Any, scales: Any, least: Any = None) -> None:
    """Compute scales × numbers − least into `out`, for runs of elements with a scale each."""
    runs = out.reshape(len(out), scales.shape[1], -1)
    runs[...] = numbers.reshape(runs.shape)
    runs *= scales[:, :, None]
    if least is not None:
        runs -= least[:, :, None]


def _q4_0(blocks: Any, out: Any) -> None:
    numbers = _unpack(blocks, 2, 18, 16, (0, 4), _NIBBLES).view(numpy.int8)
    numbers -= numpy.int8(8)
    _scale(out, numbers, _half(blocks, 0))


def _q4_1(blocks: Any, out: Any) -> None:
    _scale(out, _unpack(blocks, 4, 20, 16, (0, 4), _NIBBLES), _half(blocks, 0))
    out += _half(blocks, 2)


def _fifth_bits(blocks: Any, at: int) -> Any:
    """Bit j of a word as bit 4 of number j."""
    bits = numpy.unpackbits(_cut(blocks, at, at + 4), axis=1, bitorder="little")
    bits <<= 4
    return bits


def _q5_0(blocks: Any, out: Any) -> None:
    numbers = _unpack(blocks, 6, 22, 16, (0, 4), _NIBBLES).reshape(-1, 32)
    numbers |= _fifth_bits(blocks, 2)
    numbers = numbers.view(numpy.int8)
    numbers -= numpy.int8(16)
    _scale(out, numbers, _half(blocks, 0))


def _q5_1(blocks: Any, out: Any) -> None:
    numbers = _unpack(blocks, 8, 24, 16, (0, 4), _NIBBLES).reshape(-1, 32)
    numbers |= _fifth_bits(blocks, 4)
    _scale(out, numbers, _half(blocks, 0))
    out += _half(blocks, 2)


def _q8_0(blocks: Any, out: Any) -> None:
    out[...] = blocks[:, 2:].view(numpy.int8)
    out *= _half(blocks, 0)


def _q8_k(blocks: Any, out: Any) -> None:
    out[...] = blocks[:, 4:260].view(numpy.int8)
    out *= _cut(blocks, 0, 4, "<f4")


def _q1_0(blocks: Any, out: Any) -> None:
    numpy.multiply(_signs(blocks, 2, 18, negative=0), _half(blocks, 0), out=out)


def _q2_k(blocks: Any, out: Any) -> None:
    scales = blocks[:, :16]
    numbers = _unpack(blocks, 16, 80, 32, (0, 2, 4, 6), _PAIRS)
    least = _half(blocks, 82) * (scales >> 4).astype(numpy.float32)
    _scale(out, numbers, _half(blocks, 80) * (scales & 15).astype(numpy.float32), least)


def _q3_k(blocks: Any, out: Any) -> None:
    low = _unpack(blocks, 96, 104, 8, (0, 4), _NIBBLES).reshape(-1, 16)
    high = blocks[:, None, 104:108] >> numpy.array([[0], [2], [4], [6]], numpy.uint8) & 3
    scales = (low | high.reshape(-1, 16) << 4).view(numpy.int8) - numpy.int8(32)
    numbers = _unpack(blocks, 32, 96, 32, (0, 2, 4, 6), _PAIRS).reshape(-1, 256)
    high = _unpack(blocks, 0, 32, 32, range(8), _BITS).reshape(-1, 256)
    high <<= 2  # where the bit is not set, 4 less
    numbers |= high
    numbers = numbers.view(numpy.int8)
    numbers -= numpy.int8(4)
    _scale(out, numbers, _half(blocks, 108) * scales.astype(numpy.float32))


def _six_bits(blocks: Any) -> tuple[Any, Any]:
    """The scales and minima of a block of Q4_K or Q5_K, eight of six bits each."""
    one, two, rest = _cut(blocks, 4, 16, "<u4").T
    pairs = numpy.empty((2, len(blocks), 2), "<u4")
    for pair, low, high in zip(pairs, (one, two), (rest, rest >> 4), strict=True):
        pair[:, 0] = low & 0x3F3F3F3F
        pair[:, 1] = (high & 0x0F0F0F0F) | (low >> 2 & 0x30303030)
    scales, least = pairs.view(numpy.uint8).astype(numpy.float32)
    scales *= _half(blocks, 0)
    least *= _half(blocks, 2)
    return scales, least


def _q4_k(blocks: Any, out: Any) -> None:
    _scale(out, _unpack(blocks, 16, 144, 32, (0, 4), _NIBBLES), *_six_bits(blocks))


def _q5_k(blocks: Any, out: Any) -> None:
    numbers = _unpack(blocks, 48, 176, 32, (0, 4), _NIBBLES).reshape(-1, 256)
    high = _unpack(blocks, 16, 48, 32, range(8), _BITS).reshape(-1, 256)
    high <<= 4
    numbers |= high
    _scale(out, numbers, *_six_bits(blocks))


def _q6_k(blocks: Any, out: Any) -> None:
    numbers = _unpack(blocks, 0, 128, 64, (0, 4), _NIBBLES).reshape(-1, 256)
    high = _unpack(blocks, 128, 192, 32, (0, 2, 4, 6), _PAIRS).reshape(-1, 256)
    high <<= 4
    numbers |= high
    numbers = numbers.view(numpy.int8)
    numbers -= numpy.int8(32)
    _scale(out, numbers, _half(blocks, 208) * blocks[:, 192:208].view(numpy.int8).astype(numpy.float32))


def _tq1_0(blocks: Any, out: Any) -> None:
    numbers = numpy.empty((len(blocks), 256), numpy.uint8)
    at = 0
    for begin, end, powers in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        for power in range(powers):  # five digits of base 3 in a byte, as a fraction of 256
            size = end - begin
            numpy.multiply(blocks[:, begin:end], numpy.uint8(3**power), out=numbers[:, at : at + size])
            at += size
    digits = (numbers.astype(numpy.uint16) * 3 >> 8).astype(numpy.int8)
    digits -= numpy.int8(1)
    _scale(out, digits, _half(blocks, 52))


def _tq2_0(blocks: Any, out: Any) -> None:
    numbers = _unpack(blocks, 0, 64, 32, (0, 2, 4, 6), _PAIRS).view(numpy.int8)
    numbers -= numpy.int8(1)
    _scale(out, numbers, _half(blocks, 64))


def _look_up(out: Any, table: tuple[int, ...], numbers: Any, scales: Any) -> None:
    """Compute scales × table[numbers] into `out`."""
    runs = out.reshape(len(out), scales.shape[1], -1)
    numpy.take(numpy.array(table, numpy.float32), numbers.reshape(runs.shape), out=runs, mode="clip")
    runs *= scales[:, :, None]


def _mxfp4(blocks: Any, out: Any) -> None:
    numbers = _unpack(blocks, 1, 17, 16, (0, 4), _NIBBLES)
    exponents = blocks[:, :1].astype(numpy.uint32)  # of 2, less 127; half of that, since the numbers are doubled
    bits = numpy.where(exponents < 2, numpy.uint32(0x00200000) << exponents, exponents - 1 << numpy.uint32(23))
    _look_up(out, _E2M1, numbers, bits.view(numpy.float32))


@cache
def _ue4m3() -> Any:
    """The halved scale for each byte of NVFP4."""
    byte = numpy.arange(256)
    exponent, mantissa = byte >> 3 & 15, (byte & 7).astype(numpy.float32)
    normal = (1 + mantissa / 8) * numpy.float32(2) ** (exponent - 7).astype(numpy.float32)
    scales = numpy.where(exponent == 0, mantissa * numpy.float32(2**-9), normal) * numpy.float32(0.5)
    scales[[0, 0x7F]] = 0
    return scales


def _nvfp4(blocks: Any, out: Any) -> None:
    _look_up(out, _E2M1, _unpack(blocks, 4, 36, 8, (0, 4), _NIBBLES), _ue4m3()[blocks[:, :4]])


def _iq4_nl(blocks: Any, out: Any) -> None:
    _look_up(out, _NONLINEAR, _unpack(blocks, 2, 18, 16, (0, 4), _NIBBLES), _half(blocks, 0))


def _iq4_xs(blocks: Any, out: Any) -> None:
    high = _cut(blocks, 2, 4, "<u2") >> numpy.arange(0, 16, 2, dtype=numpy.uint16) & 3
    low = _nibbles(blocks, 4, 8)
    scales = (low | high.astype(numpy.uint8) << 4).view(numpy.int8) - numpy.int8(32)
    numbers = _unpack(blocks, 8, 136, 16, (0, 4), _NIBBLES)
    _look_up(out, _NONLINEAR, numbers, _half(blocks, 0) * scales.astype(numpy.float32))


def _nibbles(blocks: Any, begin: int, end: int) -> Any:
    """Both numbers of a byte, then those of the next one."""
    pairs = blocks[:, begin:end, None] >> numpy.array([0, 4], numpy.uint8) & 15
    return pairs.reshape(len(blocks), -1)


@cache
def _grid(name: str) -> Any:
    """The runs of elements that an IQ type can have, shaped (runs, elements of one)."""
    runs, elements, numbers, packed = TABLES[name]
    bits = 2 if len(numbers) <= 4 else 4
    data = numpy.frombuffer(b85decode(packed), numpy.uint8)
    indices = data[:, None] >> numpy.arange(0, 8, bits, dtype=numpy.uint8) & (1 << bits) - 1
    return numpy.array(numbers, numpy.float32)[indices.reshape(runs, elements)]


@cache
def _sign_table(negative: int) -> Any:
    """For each byte eight factors: -1 where its bit is `negative`."""
    bits = numpy.arange(256)[:, None] >> numpy.arange(8) & 1
    return numpy.where(bits == negative, numpy.float32(-1), numpy.float32(1))


def _signs(blocks: Any, begin: int, end: int, negative: int = 1) -> Any:
    """The factors that the bits of bytes mean, eight for each byte."""
    return _sign_table(negative)[blocks[:, begin:end]].reshape(len(blocks), -1)


def _seven_bits(words: Any) -> Any:
    """The signs of four runs from each word: seven bits of one, and the eighth so that their number is even."""
    indices = (words[:, :, None] >> numpy.array([0, 7, 14, 21], numpy.uint32) & 127).reshape(len(words), -1)
    return _even_signs()[indices].reshape(len(words), -1)


@cache
def _even_signs() -> Any:
    seven = numpy.arange(128)
    parity = (seven[:, None] >> numpy.arange(7) & 1).sum(1) & 1
    return _sign_table(1)[seven | parity << 7]


def _take(out: Any, name: str, indices: Any, signs: Any, scales: Any) -> None:
    """Compute scales × runs of the grid × signs into `out`."""
    out[...] = _grid(name)[indices].reshape(out.shape)
    runs = out.reshape(len(out), scales.shape[1], -1)
    runs *= scales[:, :, None]
    out *= signs


_ONE, _HALF, _QUARTER = (numpy.float32(number) for number in (1, 0.5, 0.25))


def _iq2_xxs(blocks: Any, out: Any) -> None:
    words = _cut(blocks, 2, 66, "<u4").reshape(len(blocks), 8, 2)
    scales = _half(blocks, 0) * (_HALF + (words[:, :, 1] >> 28).astype(numpy.float32)) * _QUARTER
    indices = numpy.ascontiguousarray(words[:, :, 0]).view(numpy.uint8)
    _take(out, "IQ2_XXS", indices, _seven_bits(words[:, :, 1]), scales)


def _iq2_xs(blocks: Any, out: Any) -> None:
    words = _cut(blocks, 2, 66, "<u2")
    scales = _half(blocks, 0) * (_HALF + _nibbles(blocks, 66, 74).astype(numpy.float32)) * _QUARTER
    signs = _even_signs()[words >> 9].reshape(len(blocks), -1)
    _take(out, "IQ2_XS", words & 511, signs, scales)


def _iq2_s(blocks: Any, out: Any) -> None:
    scales = _half(blocks, 0) * (_HALF + _nibbles(blocks, 74, 82).astype(numpy.float32)) * _QUARTER
    high = blocks[:, 66:74, None] >> numpy.array([0, 2, 4, 6], numpy.uint8) & 3
    indices = blocks[:, 2:34] | high.reshape(len(blocks), -1).astype(numpy.uint16) << 8
    _take(out, "IQ2_S", indices, _signs(blocks, 34, 66), scales)


def _iq3_xxs(blocks: Any, out: Any) -> None:
    words = _cut(blocks, 66, 98, "<u4")
    scales = _half(blocks, 0) * (_HALF + (words >> 28).astype(numpy.float32)) * _HALF
    _take(out, "IQ3_XXS", blocks[:, 2:66], _seven_bits(words), scales)


def _iq3_s(blocks: Any, out: Any) -> None:
    scales = _half(blocks, 0) * (1 + 2 * _nibbles(blocks, 106, 110)).astype(numpy.float32)
    high = numpy.unpackbits(_cut(blocks, 66, 74), axis=1, bitorder="little")
    indices = blocks[:, 2:66] | high.astype(numpy.uint16) << 8
    _take(out, "IQ3_S", indices, _signs(blocks, 74, 106), scales)


def _shift_grid(out: Any, indices: Any, shifted: Any, scales: Any) -> None:
    """Compute scales × (runs of the grid ± 1/8) into `out`; − where `shifted`."""
    out[...] = _grid("IQ1_S")[indices].reshape(out.shape)
    runs = out.reshape(len(out), shifted.shape[1], -1)
    runs += numpy.where(shifted, numpy.float32(-0.125), numpy.float32(0.125))[:, :, None]
    runs = out.reshape(len(out), scales.shape[1], -1)
    runs *= scales[:, :, None]


def _iq1_s(blocks: Any, out: Any) -> None:
    words = _cut(blocks, 34, 50, "<u2")
    scales = _half(blocks, 0) * (2 * (words >> 12 & 7) + 1).astype(numpy.float32)
    high = (words[:, :, None] >> numpy.array([0, 3, 6, 9], numpy.uint16) & 7) << 8
    _shift_grid(out, blocks[:, 2:34] | high.reshape(len(blocks), -1), words & 0x8000 != 0, scales)


def _iq1_m(blocks: Any, out: Any) -> None:
    words = _cut(blocks, 48, 56, "<u2")
    parts = (words & 0xF000) >> numpy.array([12, 8, 4, 0], numpy.uint16)  # of a float16, four bits in each word
    whole = numpy.bitwise_or.reduce(parts, axis=1, keepdims=True).view(numpy.float16).astype(numpy.float32)
    numbers = (words[:, :, None] >> numpy.array([0, 3, 6, 9], numpy.uint16) & 7).reshape(len(blocks), -1)
    high = _nibbles(blocks, 32, 48)
    indices = blocks[:, :32] | (high & 7).astype(numpy.uint16) << 8
    _shift_grid(out, indices, high & 8 != 0, whole * (2 * numbers + 1).astype(numpy.float32))


_DECODERS: dict[str, Callable[[Any, Any], None]] = {
    "Q1_0": _q1_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "Q8_K": _q8_k,
    "TQ1_0": _tq1_0, "TQ2_0": _tq2_0, "MXFP4": _mxfp4, "NVFP4": _nvfp4,
    "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s, "IQ1_S": _iq1_s, "IQ1_M": _iq1_m,
}  # fmt: skip
