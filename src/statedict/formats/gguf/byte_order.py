"""Big-endian files: plain numbers are swapped; whether BF16 and the scales in blocks are, the numbers have to tell.

`GGUFWriter(endianess=BIG)` leaves both little-endian, `gguf-convert-endian` and llama.cpp on such a machine do not, and
no field says so. Read in the wrong order the exponents of a model's numbers are as good as random. So of the first
numbers of some tensors the exponents are compared in both orders: where they scatter twice as far in one, the tensor
votes for the other. If tensors disagree, or none tells, these tensors are listed and reading one is an error.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from statedict.errors import UnsupportedError
from statedict.formats.gguf.header import Entry, Header
from statedict.io.source import ByteSource, BytesSource, ComputedSource, swap_bytes
from statedict.tensor.blocks import BlockType
from statedict.tensor.ggml.types import BLOCKS, PLAIN, SWAPPED

BF16 = 30
_TENSORS, _BLOCKS, _NUMBERS = 16, 64, 256  # that are looked at: tensors, blocks of one, numbers of one
_LEAST = 8  # numbers that tell anything


def in_our_order(source: ByteSource, header: Header, entry: Entry, swapped: bool | None) -> tuple[ByteSource, int]:
    """A source with a tensor's bytes in little-endian order, and where they begin there.

    `swapped` says whether BF16 and the scales of blocks are big-endian; None if that cannot be told.
    """
    if not entry.nbytes:  # wherever it is said to lie
        return BytesSource(b"", source.name), 0
    start = header.start + entry.begin
    kind = BLOCKS.get(entry.code)
    if header.order == "<" or (kind is not None and SWAPPED[kind.name] == ()):
        return source, start
    unsure = kind is not None or entry.code == BF16
    if unsure and swapped is False:
        return source, start
    if unsure and swapped is None:
        what = "is big-endian, and whether its BF16 and block scales are cannot be told from their values"
        return _refuse(source, entry, f"{what}; write it as little-endian by the program that made it"), 0
    if kind is None:
        return swap_bytes(source, start, entry.nbytes, PLAIN[entry.code]), 0
    if SWAPPED[kind.name] is None:
        what = f"is big-endian with swapped blocks, which are not read for {kind.name}"
        return _refuse(source, entry, f"{what}; write it as little-endian by the program that made it"), 0
    fill = partial(_read_swapped, source, start, kind)
    return ComputedSource(entry.nbytes, fill, source.name, source.remote), 0


def find_swapped(source: ByteSource, header: Header) -> bool | None:
    """Whether BF16 and the scales of blocks of a big-endian file are big-endian, too; None if that cannot be told."""
    votes: set[bool] = set()
    looked = 0
    for entry in header.tensors:
        if looked < _TENSORS and (entry.code == BF16 or (entry.code in BLOCKS and SWAPPED[BLOCKS[entry.code].name])):
            looked += 1
            votes |= _vote(_sample(source, header.start + entry.begin, entry), 7 if entry.code == BF16 else 10)
    return votes.pop() if len(votes) == 1 else None


def _sample(source: ByteSource, start: int, entry: Entry) -> Any:
    """The first numbers of a tensor that may be swapped, read as little-endian."""
    import numpy

    if entry.code == BF16:
        return numpy.frombuffer(source.read(start, min(entry.nbytes, 2 * _NUMBERS)), "<u2")
    kind = BLOCKS[entry.code]
    count = min(entry.nbytes // kind.nbytes, _BLOCKS)
    blocks = numpy.frombuffer(source.read(start, count * kind.nbytes), numpy.uint8).reshape(count, kind.nbytes)
    at = (SWAPPED[kind.name] or (0,))[0]
    return numpy.ascontiguousarray(blocks[:, at : at + 2]).view("<u2").reshape(-1)


def _vote(words: Any, shift: int) -> set[bool]:
    """What the numbers of a tensor say: nothing, or whether they are big-endian; `shift` is where exponents begin."""
    words = words[(words != 0) & (words != words.byteswap())]
    if len(words) < _LEAST:
        return set()
    bits = 15 - shift
    exponents = [(some >> shift & (1 << bits) - 1).astype(float) for some in (words, words.byteswap())]
    little, big = (float(some.std()) for some in exponents)
    if shift == 7:  # weights lie around 1, so their exponents around the bias
        little, big = (far + float(abs(some - 127).mean()) for far, some in zip((little, big), exponents, strict=True))
    return {little > big} if max(little, big) > 2 * min(little, big) else set()


def _read_swapped(source: ByteSource, start: int, kind: BlockType, offset: int, buffer: memoryview) -> None:
    import numpy

    first, within = divmod(offset, kind.nbytes)
    count = -(-(within + len(buffer)) // kind.nbytes)
    data = numpy.frombuffer(source.read(start + first * kind.nbytes, count * kind.nbytes), numpy.uint8).copy()
    blocks = data.reshape(count, kind.nbytes)
    for at in SWAPPED[kind.name] or ():
        blocks[:, at : at + 2] = blocks[:, at : at + 2][:, ::-1].copy()
    buffer[:] = data[within : within + len(buffer)].data


def _refuse(source: ByteSource, entry: Entry, what: str) -> ByteSource:
    return ComputedSource(entry.nbytes, partial(_raise, f"{source.name}: tensor {entry.name!r} {what}"), source.name)


def _raise(message: str, *_: object) -> None:
    raise UnsupportedError(message)
