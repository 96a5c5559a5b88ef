"""MindSpore: a checkpoint of `mindspore.save_checkpoint`, .ckpt.

    Checkpoint     value 1: tag 1, tensor 2: dims 1, tensor_type 2, tensor_content 3
    17 bytes       crc_num, and the CRC-32 of what comes before, big-endian, if it was asked for

A tensor of over 512 MB stands in several values of one tag, one after the other, whose contents follow each other. The
tree has the tensors under their tags. What was appended, the epoch for one, is a tensor too; texts, in UTF-32, are
values.

Source: checkpoint.proto and serialization.py of mindspore 2.10. Limits: no encrypted files, no hash tables (MapTensor).
"""

from __future__ import annotations

from math import prod
from typing import Any

from statedict.dtypes import BY_NAME
from statedict.errors import CorruptFileError, UnsupportedError
from statedict.io.protobuf import LENGTH, Field, Reader, join
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.checks import Check, by_storage, tensors_of
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_CRC = b"crc_num"
_TAIL = len(_CRC) + 10
_ENTRY = 700  # bytes of memory that a tensor takes
_NAMES = {"bool": "bool", "bfloat16": "bfloat16"} | {
    f"{kind}{bits}": f"{kind}{bits}"
    for kind, sizes in (
        ("int", (8, 16, 32, 64)),
        ("uint", (8, 16, 32, 64)),
        ("float", (16, 32, 64)),
        ("complex", (64, 128)),
    )
    for bits in sizes
}


def read(source: ByteSource) -> StateDict:
    """Read the tree lazily: tags, shapes and places are read, no tensor is."""
    return _read(source)[0]


def checks(source: ByteSource) -> Iterator[Found]:
    """The whole file with its CRC-32, if it has one, else its tensors."""
    tree, end, crc = _read(source)
    if crc is None:
        yield from by_storage(tree)
    else:
        yield Check("checkpoint", source, 0, end, tuple(tensors_of(tree)), crc)


def _read(source: ByteSource) -> tuple[StateDict, int, int | None]:
    end, crc = source.size, None
    tail = bytes(source.read(max(0, end - _TAIL), min(end, _TAIL)))
    if tail.startswith(_CRC):
        end, crc = end - _TAIL, int.from_bytes(tail[len(_CRC) :], "big") & 0xFFFFFFFF
    file, found = Reader(source), dict[str, list[Any]]()  # tag → dims, type, ranges of the content
    last = ""
    for value in file.fields(0, end):
        if value.number != 1:
            raise file.damage(f"has a field {value.number} at byte {value.begin:,}")
        tag, tensor = "", None
        for field in file.fields(file.check(value, LENGTH, "a value").begin, value.end):
            if field.number == 1:
                tag = file.text(field, "a tag")
            elif field.number == 2:
                tensor = file.check(field, LENGTH, "a tensor")
            elif field.number == 3:
                raise UnsupportedError(f"{source.name}: {tag!r:.80} is a hash table; save it without it")
        if tensor is None:
            raise file.damage(f"{tag!r:.80} has no tensor")
        file.spend(_ENTRY + len(tag))
        dims, kind, content = _parse(file, tensor, tag)
        if tag in found and (tag != last or found[tag][:2] != [dims, kind]):
            raise file.damage(f"two tensors are called {tag!r:.80}")
        found.setdefault(tag, [dims, kind, []])[2].append(content)
        last = tag
    tree = StateDict((tag, _make(source, tag, *parts)) for tag, parts in found.items())
    return tree, end, crc


def _parse(file: Reader, tensor: Field, tag: str) -> tuple[list[int], str, tuple[int, int]]:
    dims, kind, content = list[int](), "", (0, 0)
    for field in file.fields(tensor.begin, tensor.end):
        if field.number == 1:
            dims += file.integers(field, f"the dims of {tag!r:.80}")
        elif field.number == 2:
            kind = file.text(field, f"the type of {tag!r:.80}")
        elif field.number == 3:
            file.check(field, LENGTH, f"the content of {tag!r:.80}")
            content = field.begin, field.end
    return dims, kind, content


def _make(source: ByteSource, tag: str, dims: list[int], kind: str, ranges: list[tuple[int, int]]) -> Any:
    where = f"{source.name}: tensor {tag!r:.80}"
    data = join(source, ranges)
    if kind.lower() in ("str", "string"):
        return bytes(data.read(0, data.size)).decode("utf-32-le", "replace")
    name = _NAMES.get(kind.lower())
    if name is None:
        raise UnsupportedError(f"{where} has the type {kind!r:.40}, which this version does not know")
    shape = () if dims == [0] and data.size else tuple(dims)  # as MindSpore writes a scalar
    itemsize = BY_NAME[name].itemsize
    fault = "a negative size" if min(shape, default=0) < 0 else find_shape_fault(shape, itemsize)
    if fault or prod(shape) * itemsize != data.size:
        fault = fault or f"{prod(shape) * itemsize:,} bytes, and there are {data.size:,}"
        raise CorruptFileError(
            f"{where} has the shape {list(shape)!s:.80}: {fault}; the file is damaged, fetch it again"
        )
    begin = ranges[0][0]
    storage = Storage(source, begin, data.size) if len(ranges) == 1 else Storage(data, 0, data.size)
    return LazyTensor(BY_NAME[name], shape, storage)
