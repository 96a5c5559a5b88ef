"""safetensors, and whole checkpoints in it.

    8 bytes      N, the length of the header, little-endian
    N bytes      JSON: {"__metadata__": {string: string}, NAME: {"dtype", "shape", "data_offsets": [begin, end]}, …}
    the rest     the tensors' bytes, row-major, little-endian, without holes or overlaps; offsets count from here

The format is flat and holds tensors only. A tree's tensors go under their paths, and the rest of it as JSON under the
key `statedict` of `__metadata__` (docs/format.md). A flat dict of tensors needs no such key and makes the file that
everybody else writes. Tied tensors are stored once and named in `__metadata__` as `safetensors.torch.save_model` does:
{the name that is left out: the name that is kept}. `statedict.digests` there holds the XXH3-128 of the header and of
each tensor.

Source: the README of huggingface/safetensors 0.8. Limits: a header of 100 MB.
"""

from __future__ import annotations

import json
from itertools import pairwise

from statedict.dtypes import BY_SAFETENSORS, MAX_NAME, labelled_dtype
from statedict.errors import CorruptFileError, FormatError, TruncatedError, UnsupportedError
from statedict.formats.skeleton import put_together, taken_apart
from statedict.io.descriptor import same_file
from statedict.io.json import parse
from statedict.io.pipeline import Part
from statedict.tensor.arrays import MAX_DIMS, find_shape_fault
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.pipeline import Sink, Sums
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_MAX_HEADER = 100_000_000
_DIGESTS = "statedict.digests"
_MAX_NUMEL = 1 << 256  # where a product of sizes is a lie; one more size keeps it short
_NO_DIGEST = "0" * 32
_MARKER = json.dumps(_DIGESTS).encode() + b':"xxh3_128 '


def read(source: ByteSource) -> Any:
    """The tree in the file, lazily: the header is read, no tensor is.

    Raises:
        CorruptFileError: the header is not what the format says, or promises bytes that the file does not have.
    """
    _, metadata, tensors = _header(source)
    return put_together(tensors, metadata, source.name)


def checks(source: ByteSource) -> Iterator[Found]:
    """The header and every tensor, with their digests where the file has them."""
    from statedict.io.source import BytesSource
    from statedict.tensor.checks import Check, Problem, group_tensors, refusal

    raw, metadata, tensors = _header(source)
    held: dict[Storage, list[tuple[str, LazyTensor]]] = {}
    try:
        held = group_tensors(put_together(dict(tensors), metadata, source.name), lambda storage: storage)
    except FormatError as error:
        yield refusal(error, source.name, "header")
    count = len(tensors) + 1
    texts = [text for key, text in metadata.items() if key == _DIGESTS or _looks_signed(text, count)]
    at = raw.find(_MARKER) + len(_MARKER)
    sums: list[str | None] = [None] * count
    if texts and (at < len(_MARKER) or not _looks_signed(texts[0], count)):
        remedy = "another program rewrote it, or it is damaged; fetch or save it again"
        yield Problem("header", "the digests in it are not as they were written", remedy=remedy)
    elif texts:
        sums = list(texts[0].split(" ")[1:])
        raw = raw[:at] + _NO_DIGEST.encode() + raw[at + 32 :]
    yield Check("header", BytesSource(raw, source.name), 0, len(raw), (), None, sums[0])
    for (name, tensor), digest in zip(tensors.items(), sums[1:], strict=True):
        storage = tensor.storage
        here = tuple(held.get(storage, ()))
        yield Check(name, source, storage.offset, storage.nbytes, here, None, digest)


def _looks_signed(text: str, count: int) -> bool:
    """Whether a text in the metadata is that of the digests, of which a byte of the key may be damaged."""
    return text.startswith("xxh3_128 ") and [len(digest) for digest in text.split(" ")[1:]] == [32] * count


def _header(source: ByteSource) -> tuple[bytes, dict[str, str], dict[str, LazyTensor]]:
    """The header as it stands in the file, its `__metadata__`, its tensors."""
    name = source.name
    if source.size < 8:
        raise TruncatedError(f"{name}: {source.size} bytes are too few for a header; the file looks truncated")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > min(_MAX_HEADER, source.size - 8):
        raise TruncatedError(
            f"{name}: the header claims {length:,} bytes, the file has {source.size - 8:,} and the format allows "
            f"{_MAX_HEADER:,}; the file looks truncated or is no safetensors file"
        )
    raw = bytes(source.read(8, length))
    header = _parse(raw, name)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # null is none for safetensors, too
    if not isinstance(metadata, dict) or not all(type(value) is str for value in metadata.values()):
        raise CorruptFileError(f"{name}: __metadata__ is not a dict of strings")
    return raw, metadata, _tensors(source, header, 8 + length)


def _parse(raw: bytes, name: str) -> dict[str, Any]:
    header = parse(raw, f"{name}: the header", keys=_count_keys)
    if not isinstance(header, dict):
        raise CorruptFileError(f"{name}: the header is a JSON {type(header).__name__}, not an object")
    return header


def _count_keys(header: Any) -> tuple[int, int]:
    """The keys of a header and of what is in it, or -1 of something else; the colons in the texts of the metadata."""
    try:
        metadata = header.get("__metadata__", {})
        colons = sum(text.count(":") for text in metadata.values())
        return len(header) + sum(map(len, header.values())), colons
    except (TypeError, AttributeError):
        return -1, 0


def _tensors(source: ByteSource, header: dict[str, Any], start: int) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    ranges: list[tuple[int, int]] = []
    for key, entry in header.items():
        try:
            code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numel = 1
            for n in shape:
                if n < 0 or type(n) is not int or numel >= _MAX_NUMEL:
                    raise ValueError(f"shape {str(shape)[:200]}")
                numel *= n
            if (not numel or len(shape) > MAX_DIMS) and (fault := find_shape_fault(shape, 16)):
                raise ValueError(f"shape {str(shape)[:200]}: {fault}")
            if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
                raise ValueError(f"data_offsets [{begin}, {end}]")
            kind = BY_SAFETENSORS.get(code)
        except (TypeError, KeyError, ValueError) as error:
            raise CorruptFileError(
                f"{source.name}: tensor {key!r} is described wrongly ({error}); the file is damaged"
            ) from error
        if start + end > source.size:
            raise _cut(source, header, key, start)
        storage = Storage(source, start + begin, end - begin)
        if kind is None:
            ranges.append((begin, end))
            tensors[key] = _make_labelled(source, key, code, numel, tuple(shape), storage)
            continue
        if kind.safetensors == "F4":  # its shape counts the halves of our bytes
            if not shape or shape[-1] % 2:
                raise CorruptFileError(f"{source.name}: tensor {key!r}: an odd number of 4 bit elements in a row")
            numel, shape = numel // 2, [*shape[:-1], shape[-1] // 2]
        if end - begin != (numel * kind.itemsize or kind.nbytes(numel)):
            raise CorruptFileError(
                f"{source.name}: tensor {key!r}: {kind} of shape {shape} takes {kind.nbytes(numel):,} bytes, "
                f"data_offsets give {end - begin:,}; the file is damaged"
            )
        ranges.append((begin, end))
        tensors[key] = LazyTensor(kind, tuple(shape), storage)
    _check_coverage(source, ranges, source.size - start)
    return tensors


def _cut(source: ByteSource, header: dict[str, Any], key: str, start: int) -> TruncatedError:
    """The error for a tensor past the end: the header tells how long the file should be."""
    begin, end = header[key]["data_offsets"]
    try:
        whole = start + max(entry["data_offsets"][1] for entry in header.values())
    except (TypeError, KeyError, IndexError):
        whole = start + end
    return TruncatedError(
        f"{source.name}: tensor {key!r}: bytes {start + begin:,} to {start + end:,} lie past the end of "
        f"the file ({source.size:,} of {whole:,} bytes); the file looks truncated, fetch it again"
    )


def _check_coverage(source: ByteSource, ranges: list[tuple[int, int]], size: int) -> None:
    ranges.sort()
    for (_, end), (begin, _) in pairwise([(0, 0), *ranges, (size, size)]):
        if begin != end:
            what = "overlap" if begin < end else "leave a hole"
            raise CorruptFileError(
                f"{source.name}: the tensors {what} at data byte {min(begin, end):,} (to {max(begin, end):,}); "
                "the file is damaged, or bytes were appended"
            )


def _make_labelled(
    source: ByteSource, key: str, code: Any, numel: int, shape: tuple[int, ...], storage: Storage
) -> LazyTensor:
    """A tensor of a dtype that our table does not have yet: bytes under its code.

    They need not be a whole number of bits an element, for blocks may share a scale.
    """
    if type(code) is not str or not (code.isascii() and code.isprintable()) or not 0 < len(code) <= MAX_NAME:
        raise CorruptFileError(f"{source.name}: tensor {key!r} has an unknown dtype {code!r:.100}, which is no name")
    if not numel and storage.nbytes:
        raise CorruptFileError(f"{source.name}: tensor {key!r} has no elements and {storage.nbytes:,} bytes")
    if numel and storage.nbytes * 8 % numel == 0 and storage.nbytes:
        return LazyTensor(labelled_dtype(code, storage.nbytes * 8 // numel, code), shape, storage)
    return Labelled(labelled_dtype(code, 0, code), shape, storage)


def write(tree: Any, sink: Sink) -> None:
    """Write the tree; its leaves are LazyTensors and plain values.

    Raises:
        UnsupportedError: a value that is no data, or more than 100 MB of header.
    """
    tensors, metadata = taken_apart(tree)
    metadata[_DIGESTS] = " ".join(["xxh3_128", *[_NO_DIGEST] * (len(tensors) + 1)])
    parts: list[Part] = []
    position = 0
    places: dict[str, tuple[int, int]] = {}
    # larger elements first keeps every tensor aligned without padding, which the format forbids
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
        places[name] = position, position + tensor.nbytes
        position += tensor.nbytes
    raw = _describe(tensors, metadata, places)
    raw += b" " * (-(8 + len(raw)) % 64)
    if len(raw) > _MAX_HEADER:
        raise UnsupportedError(f"the header takes {len(raw):,} bytes, safetensors allows {_MAX_HEADER:,}; save as .pth")
    start = 8 + len(raw)
    for name, (begin, end) in places.items():
        tensor = tensors[name]
        storage = tensor.storage
        parts.append(Part(start + begin, storage.source, storage.offset + tensor.offset, end - begin))

    def head(sums: list[Sums]) -> bytes:
        digests = dict(zip(places, (s.digest for s in sums), strict=True))
        return len(raw).to_bytes(8, "little") + _sign(raw, [digests[name] for name in tensors])

    sink.reserve(start + position)
    sink.put_headed(parts, head)


def rewrite(tree: Any, source: ByteSource, before: Any) -> tuple[int, bytes] | None:
    """What to put where in a file so that it holds a tree of the same bytes under other names.

    Args:
        tree: of LazyTensors and plain values.
        source: the file as it is.
        before: the tree that was read from it; the header says all that is needed here.

    Returns:
        0, and as many bytes as length and header take now; None where the tree has other tensors than the file, or its
        header takes more room.
    """
    raw, old_metadata, old = _header(source)
    start = 8 + len(raw)
    tensors, metadata = taken_apart(tree)
    there = {(t.storage.offset + t.offset, t.nbytes): name for name, t in old.items()}
    places: dict[str, tuple[int, int]] = {}
    origins: list[str] = []
    for name, tensor in tensors.items():
        at = tensor.storage.offset + tensor.offset
        if not same_file(tensor.storage.source, source) or (at, tensor.nbytes) not in there:
            return None
        places[name] = at - start, at - start + tensor.nbytes
        origins.append(there.pop((at, tensor.nbytes)))
    if there:
        return None
    digests = dict(zip(old, old_metadata.get(_DIGESTS, "").split(" ")[2:], strict=False))
    signed = len(digests) == len(old) and _looks_signed(old_metadata[_DIGESTS], len(old) + 1)
    if signed:
        metadata[_DIGESTS] = " ".join(["xxh3_128", *[_NO_DIGEST] * (len(tensors) + 1)])
    if not old_metadata and metadata == {"format": "pt"}:
        metadata = {}  # it would take room that may not be there
    new = _describe(tensors, metadata, places)
    if len(new) > len(raw):
        return None
    new += b" " * (len(raw) - len(new))
    new = _sign(new, [digests[name] for name in origins]) if signed else new
    return 0, len(new).to_bytes(8, "little") + new


def _describe(tensors: dict[str, LazyTensor], metadata: dict[str, str], places: dict[str, tuple[int, int]]) -> bytes:
    """The header."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, tensor in tensors.items():
        shape = tensor.shape
        if tensor.dtype.safetensors == "F4":
            if not shape:
                raise UnsupportedError(f"{name}: safetensors has no shape for a single pair of 4 bit elements")
            shape = (*shape[:-1], 2 * shape[-1])
        header[name] = {"dtype": tensor.dtype.safetensors, "shape": shape, "data_offsets": places[name]}
    return _dump(header)


def _sign(raw: bytes, digests: list[str]) -> bytes:
    """Put the digests in the place that was kept for them, the header's own over the header with zeros there."""
    from xxhash import xxh3_128_hexdigest

    at = raw.index(_MARKER) + len(_MARKER)
    tail = " ".join(digests).encode()
    signed = bytearray(raw)
    signed[at + 33 : at + 33 + len(tail)] = tail
    signed[at : at + 32] = xxh3_128_hexdigest(signed).encode()
    return bytes(signed)


def _dump(header: dict[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
