"""An `.npz` archive: a zip archive of `.npy` files, whose names are those of the arrays.

    NAME.npy    an array, see `npy.py`
    comment     of the archive: what the arrays do not say, if there is any

`numpy.load` finds just the arrays, under their names; paths stay joined by dots, or what their writer joined them by.
The comment is JSON: `metadata`, the strings of a safetensors file with the tree under `statedict` (docs/format.md), and
`dtypes`, the names of those that NumPy does not have, by array. Such an array is one of bytes, `V2` for bfloat16, as
NumPy itself writes those of ml_dtypes; in files of others their names are lost, and are not guessed. A comment of over
65,535 bytes is a last member instead, `.statedict.json`.

Members that are not arrays are texts, or inert. CRC-32 is the archive's.

Source: numpy/lib/_npyio_impl.py (NumPy 2.4). Limits: names of 65,531 bytes.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial

from statedict.dtypes import BY_NAME, labelled_dtype
from statedict.errors import CorruptFileError, FormatError, UnsupportedError
from statedict.formats.numpy.npy import CODES, encode_header, read_array
from statedict.formats.safetensors import as_stored
from statedict.formats.skeleton import put_together, take_apart
from statedict.io.json import parse
from statedict.io.pipeline import Part
from statedict.io.source import BytesSource
from statedict.io.zip import MAX_COMMENT, OURS, ArchiveLayout, Inflated, read_comment, read_directory
from statedict.tensor.checks import group_tensors, refusal, tensors_of
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import visit, walk
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.dtypes import DType
    from statedict.io.pipeline import Sink
    from statedict.io.source import ByteSource
    from statedict.io.zip import Record
    from statedict.tensor.checks import Found

    Records = dict[str, Record | Inflated]

SUFFIX = ".npy"
_MAX_TEXT = 1 << 20
_HEAD = 4096
_OPENING = b'{"metadata":'
_REMEDY = "another program changed the archive; save its arrays by numpy to drop what it says beside them"
_MAX_NAME = 65_535


def read(source: ByteSource) -> Any:
    """Read the tree lazily: only the headers of the arrays are read."""
    records = read_directory(source)
    return _complete(_read_arrays(source, records), source, records)


def _read_arrays(source: ByteSource, records: Records) -> dict[str, Any]:
    return {name: _read_member(source, name, record) for name, record in records.items() if name != OURS}


def _read_member(source: ByteSource, name: str, record: Record | Inflated) -> Any:
    if name.endswith(SUFFIX):
        head = b""
        if isinstance(record, Inflated):
            head = bytes(next(record.stream(_HEAD), (0, b""))[1])
        return read_array(record, 0, head, f"{source.name}: {name}")[0]
    if record.size <= _MAX_TEXT:
        with suppress(UnicodeDecodeError):
            return bytes(record.read(0, record.size)).decode()
    return Opaque(f"a file of {record.size:,} bytes")


def _complete(arrays: dict[str, Any], source: ByteSource, records: Records) -> Any:
    """The tree that our record describes."""
    tree = StateDict({name.removesuffix(SUFFIX): array for name, array in arrays.items()})
    if len(tree) < len(arrays):
        raise CorruptFileError(f"{source.name}: a member {SUFFIX} and one without it have one name; rename one")
    text = bytes(records[OURS].read(0, records[OURS].size)) if OURS in records else read_comment(source)
    if not text.startswith(_OPENING):
        return tree
    content = parse(text, f"{source.name}: the tree beside its arrays", weight=2)
    metadata, dtypes = content.get("metadata"), content.get("dtypes")
    if not isinstance(metadata, dict) or not isinstance(dtypes, dict) or {*map(type, metadata.values())} - {str}:
        raise CorruptFileError(f"{source.name}: the tree beside its arrays is not one that statedict writes")
    tensors: dict[str, LazyTensor] = {}
    for name, leaf in tree.items():
        if not isinstance(leaf, LazyTensor):
            raise CorruptFileError(f"{source.name}: {name!r} is not of the tree beside its arrays; {_REMEDY}")
        kind = _find_named(dtypes[name], leaf, source.name) if name in dtypes else leaf.dtype
        tensors[name] = leaf.replace(dtype=kind)
    if lost := dtypes.keys() - tensors.keys():
        raise CorruptFileError(f"{source.name}: has no array {min(lost)!r}, which the tree beside has; {_REMEDY}")
    return put_together(tensors, metadata, source.name)


def _find_named(name: Any, tensor: LazyTensor, where: str) -> DType:
    kind = BY_NAME.get(name) or (labelled_dtype(name, tensor.dtype.bits) if type(name) is str else None)
    if kind is None or kind.itemsize != tensor.dtype.itemsize:
        raise CorruptFileError(f"{where}: {tensor!r} cannot hold {name!r:.60}; the archive is damaged")
    return kind


def checks(source: ByteSource) -> Iterator[Found]:
    """List every member with its CRC-32; check the archive's structure."""
    from statedict.formats.torch.structure import find_faults, make_check

    records = read_directory(source)
    held: dict[str, list[tuple[str, LazyTensor]]] = {}
    try:
        arrays = _read_arrays(source, records)
        members = {tensor.storage: name for name, array in arrays.items() for _, tensor in tensors_of(array)}
        held = group_tensors(_complete(arrays, source, records), lambda storage: members[as_stored(storage)])
    except FormatError as error:
        yield refusal(error, source.name)
    for name, record in records.items():
        yield make_check(name, record, tuple(held.get(name, ())))
    yield from find_faults(source, records)


def write(tree: Any, sink: Sink) -> None:
    """Write a tree of LazyTensors and plain values."""
    from zlib_ng.zlib_ng import crc32

    if all(leaf.ndarray for _, leaf in walk(tree) if isinstance(leaf, LazyTensor)):  # which goes without saying
        tree = visit(tree, _without_flag, _build)
    tensors, metadata = take_apart(tree, lambda kind: bool(kind.itemsize))
    layout, parts = ArchiveLayout(), list[Part]()
    spelled: dict[str, str] = {}
    for name, tensor in tensors.items():
        member, head = name + SUFFIX, encode_header(tensor)
        if "\0" in member or len(member.encode()) > _MAX_NAME:
            raise UnsupportedError(f"{name[:100]!r}: is not a name for a member of a zip archive; rename it")
        if (other := spelled.setdefault(name.replace("\\", "/"), name)) != name:
            raise UnsupportedError(
                f"{name[:100]!r}: some readers of zip archives take it for {other[:100]!r}; rename one"
            )
        _, local, at = layout.add(member, len(head) + tensor.nbytes)
        start, tail = tensor.storage.offset + tensor.offset, partial(_describe, len(head))
        source = tensor.storage.source
        parts.append(Part(at + len(head), source, start, tensor.nbytes, local + head, tail, crc32(head)))
    own = _encode(metadata, tensors)
    if len(own) > MAX_COMMENT:
        _, local, at = layout.add(OURS, len(own))
        parts.append(Part(at, BytesSource(own, OURS), 0, len(own), local, layout.descriptor))
        own = b""
    at = layout.position
    sink.reserve(at + len(layout.directory([0] * len(parts), own)))
    end = layout.directory([sums.crc for sums in sink.put(parts, crc=True)], own)
    sink.put([Part(at, BytesSource(end), 0, len(end))])


def _without_flag(_: str, leaf: Any) -> Any:
    return leaf.replace(ndarray=False) if isinstance(leaf, LazyTensor) else leaf


def _build(node: Any, below: Any) -> Any:
    if isinstance(node, Opaque):
        return node
    return like(node, StateDict(below)) if isinstance(node, dict) else type(node)(below)


def _describe(ahead: int, crc: int, size: int) -> bytes:
    return ArchiveLayout.descriptor(crc, ahead + size)


def _encode(metadata: dict[str, str], tensors: dict[str, LazyTensor]) -> bytes:
    """Our record, in ASCII; empty if none is needed."""
    dtypes = {name: tensor.dtype.name for name, tensor in tensors.items() if tensor.dtype.name not in CODES}
    if metadata["format"] == "pt":  # which safetensors files say
        del metadata["format"]
    if not metadata and not dtypes and tensors:
        return b""
    return json.dumps({"metadata": metadata, "dtypes": dtypes}, separators=(",", ":")).encode()
