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
import re

from statedict.dtypes import BY_SAFETENSORS, MAX_NAME, labelled_dtype
from statedict.errors import CorruptFileError, FormatError, TruncatedError, UnsupportedError
from statedict.formats.places import find_gaps
from statedict.formats.skeleton import put_together, take_apart
from statedict.io.disk import same_file
from statedict.io.json import parse
from statedict.io.pipeline import Part
from statedict.io.source import BytesSource
from statedict.tensor.arrays import MAX_DIMS, find_shape_fault
from statedict.tensor.checks import Check, Problem, group_tensors, refusal
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.pipeline import Sink, Sums
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

MAX_HEADER = 100_000_000
_FIELDS = ("dtype", "shape", "data_offsets")
_MINUS_ZERO = re.compile(rb"[\[,:]\s*-0\s*[\],}]")
_PAIRS = BY_SAFETENSORS["F4"]  # its shape counts the halves of our bytes
DIGESTS = "statedict.digests"
CODING = "statedict.coding"  # of files whose tensors coded.py decodes
_MAX_NUMEL = 1 << 256  # where a product of sizes is a lie; one more size keeps it short
_NO_DIGEST = "0" * 32
_MARKER = json.dumps(DIGESTS).encode() + b':"xxh3_128 '


def read(source: ByteSource) -> Any:
    """Read the tree lazily: only the header is read."""
    _, metadata, tensors = read_header(source)
    _refuse_coded(metadata, source.name)
    return put_together(tensors, metadata, source.name)


def checks(source: ByteSource) -> Iterator[Found]:
    """List the header and every tensor, with digests if the file has them."""
    raw, metadata, tensors = read_header(source)
    _refuse_coded(metadata, source.name)
    held: dict[Storage, list[tuple[str, LazyTensor]]] = {}
    try:
        held = group_tensors(put_together(dict(tensors), metadata, source.name), as_stored)
    except FormatError as error:
        yield refusal(error, source.name, "header")
    yield from check_stored(source, raw, metadata, tensors, held)


def _refuse_coded(metadata: dict[str, str], name: str) -> None:
    if CODING in metadata:
        raise CorruptFileError(
            f"{name}: its tensors are compressed, and another program rewrote its header; "
            'load it with format="coded", or fetch it again'
        )


def check_stored(
    source: ByteSource,
    raw: bytes,
    metadata: dict[str, str],
    tensors: dict[str, LazyTensor],
    held: dict[Storage, list[tuple[str, LazyTensor]]],
) -> Iterator[Found]:
    """List the header `raw` and every tensor in it; `held` are the (path, tensor) of the tree for each storage."""
    count = len(tensors) + 1
    texts = [text for key, text in metadata.items() if key == DIGESTS or _looks_signed(text, count)]
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


def as_stored(storage: Storage) -> Storage:
    """The storage in the file of a tensor that has strides of its own."""
    origin = getattr(storage.source, "origin", None)
    return origin[0].storage if origin else storage


def _looks_signed(text: str, count: int) -> bool:
    """Whether a metadata text looks like our digests, even under a damaged key."""
    return text.startswith("xxh3_128 ") and [len(digest) for digest in text.split(" ")[1:]] == [32] * count


def read_header(source: ByteSource) -> tuple[bytes, dict[str, str], dict[str, LazyTensor]]:
    """Read the bytes of the header, `__metadata__`, and the tensors lazily."""
    name = source.name
    if source.size < 8:
        raise TruncatedError(f"{name}: {source.size} bytes are too few for a header; the file looks truncated")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > min(MAX_HEADER, source.size - 8):
        raise TruncatedError(
            f"{name}: the header claims {length:,} bytes, the file has {source.size - 8:,} and the format allows "
            f"{MAX_HEADER:,}; the file looks truncated or is not a safetensors file"
        )
    raw = bytes(source.read(8, length))
    header = parse(raw, f"{name}: the header", keys=_count_keys)
    if not isinstance(header, dict):
        raise CorruptFileError(f"{name}: the header is a JSON {type(header).__name__}, not an object")
    if _MINUS_ZERO.search(raw):  # a float, as for the reference
        header = json.loads(raw, parse_int=lambda text: -0.0 if text == "-0" else int(text))
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # safetensors allows null
    if not isinstance(metadata, dict) or not all(type(value) is str for value in metadata.values()):
        raise CorruptFileError(f"{name}: __metadata__ is not a dict of strings")
    for key, entry in header.items():
        if type(entry) is list and len(entry) == len(_FIELDS):  # which the reference reads, too
            header[key] = dict(zip(_FIELDS, entry, strict=True))
    return raw, metadata, _make_tensors(source, header, 8 + length)


def _count_keys(header: Any) -> tuple[int, int]:
    """Count the keys of a header and its entries, or -1 if it is malformed, and the colons in its metadata."""
    try:
        metadata = header.get("__metadata__", {})
        colons = sum(text.count(":") for text in metadata.values())
        return len(header) + sum(map(len, header.values())), colons
    except (TypeError, AttributeError):
        return -1, 0


def _make_tensors(source: ByteSource, header: dict[str, Any], start: int) -> dict[str, LazyTensor]:
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
            raise _truncated_error(source, header, key, start)
        storage = Storage(source, start + begin, end - begin)
        bits = 8 * (end - begin) if kind is None else numel * (4 if kind is _PAIRS else kind.bits)
        if bits != 8 * (end - begin):
            size = f"{bits // 8:,}" + f"{bits % 8 / 8:g}"[1:]
            raise CorruptFileError(
                f"{source.name}: tensor {key!r}: {kind} of shape {shape} takes {size} bytes, "
                f"data_offsets give {end - begin:,}; the file is damaged"
            )
        ranges.append((begin, end))
        if kind is None or (kind is _PAIRS and shape[-1] % 2):  # rows of half a byte, for which PyTorch has no shape
            tensors[key] = _make_labelled(f"{source.name}: tensor {key!r}", code, numel, tuple(shape), storage)
            continue
        if kind is _PAIRS:
            shape = [*shape[:-1], shape[-1] // 2]
        tensors[key] = LazyTensor(kind, tuple(shape), storage)
    for gap in find_gaps(ranges, source.size - start, "data byte"):
        raise CorruptFileError(f"{source.name}: the tensors {gap}; the file is damaged, or bytes were appended")
    return tensors


def _truncated_error(source: ByteSource, header: dict[str, Any], key: str, start: int) -> TruncatedError:
    """The error for a tensor past the end; the header tells how long the file should be."""
    begin, end = header[key]["data_offsets"]
    try:
        whole = start + max(entry["data_offsets"][1] for entry in header.values())
    except (TypeError, KeyError, IndexError):
        whole = start + end
    return TruncatedError(
        f"{source.name}: tensor {key!r}: bytes {start + begin:,} to {start + end:,} lie past the end of "
        f"the file ({source.size:,} of {whole:,} bytes); the file looks truncated, fetch it again"
    )


def _make_labelled(where: str, code: Any, numel: int, shape: tuple[int, ...], storage: Storage) -> LazyTensor:
    """Make a tensor of a dtype from no table; blocks may share a scale, so its bits may not divide evenly."""
    if type(code) is not str or not (code.isascii() and code.isprintable()) or not 0 < len(code) <= MAX_NAME:
        raise CorruptFileError(f"{where} has the dtype {code!r:.100}, which is not a name")
    if not numel and storage.nbytes:
        raise CorruptFileError(f"{where} has no elements and {storage.nbytes:,} bytes")
    if numel and storage.nbytes * 8 % numel == 0 and storage.nbytes:
        return LazyTensor(labelled_dtype(code, storage.nbytes * 8 // numel, code), shape, storage)
    return Labelled(labelled_dtype(code, 0, code), shape, storage)


def write(tree: Any, sink: Sink) -> None:
    """Write a tree of LazyTensors and plain values."""
    tensors, metadata = take_apart(tree)
    metadata[DIGESTS] = reserve_digests(len(tensors))
    position = 0
    places: dict[str, tuple[int, int]] = {}
    # larger elements first keeps every tensor aligned without padding, which the format forbids
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
        places[name] = position, position + tensor.nbytes
        position += tensor.nbytes
    raw = encode_header(tensors, metadata, places)
    raw += b" " * (-(8 + len(raw)) % 64)
    if len(raw) > MAX_HEADER:
        raise UnsupportedError(f"the header takes {len(raw):,} bytes, safetensors allows {MAX_HEADER:,}; save as .pth")
    start = 8 + len(raw)
    parts: list[Part] = []
    for name, (begin, end) in places.items():
        storage = tensors[name].storage
        parts.append(Part(start + begin, storage.source, storage.offset + tensors[name].offset, end - begin))

    def head(sums: list[Sums]) -> bytes:
        digests = dict(zip(places, (s.digest for s in sums), strict=True))
        return len(raw).to_bytes(8, "little") + sign(raw, [digests[name] for name in tensors])

    sink.reserve(start + position)
    sink.put_headed(parts, head)


def rewrite(tree: Any, source: ByteSource, before: Any) -> tuple[int, bytes] | None:
    """As `formats.rewrite`: a new header at byte 0; None if the tensors differ or the header has no room."""
    raw, old_metadata, old = read_header(source)
    start = 8 + len(raw)
    tensors, metadata = take_apart(tree)
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
    digests = dict(zip(old, old_metadata.get(DIGESTS, "").split(" ")[2:], strict=False))
    signed = len(digests) == len(old) and _looks_signed(old_metadata[DIGESTS], len(old) + 1)
    if signed:
        metadata[DIGESTS] = reserve_digests(len(tensors))
    if not old_metadata and metadata == {"format": "pt"}:
        metadata = {}  # it would take room that may not be there
    new = encode_header(tensors, metadata, places)
    if len(new) > len(raw):
        return None
    new += b" " * (len(raw) - len(new))
    new = sign(new, [digests[name] for name in origins]) if signed else new
    return 0, len(new).to_bytes(8, "little") + new


def encode_header(
    tensors: dict[str, LazyTensor], metadata: dict[str, str], places: dict[str, tuple[int, int]]
) -> bytes:
    """The JSON of a header; `places` are begin and end of each tensor."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, tensor in tensors.items():
        shape = tensor.shape
        if tensor.dtype is _PAIRS:
            if not shape:
                raise UnsupportedError(f"{name}: safetensors has no shape for a single pair of 4 bit elements")
            shape = (*shape[:-1], 2 * shape[-1])
        header[name] = {"dtype": tensor.dtype.safetensors, "shape": shape, "data_offsets": places[name]}
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def reserve_digests(count: int) -> str:
    """The text under the key `DIGESTS` before `sign` fills it in."""
    return " ".join(["xxh3_128", *[_NO_DIGEST] * (count + 1)])


def sign(raw: bytes, digests: list[str]) -> bytes:
    """Fill in the digests; that of the header is taken while its own place holds zeros."""
    from xxhash import xxh3_128_hexdigest

    at = raw.index(_MARKER) + len(_MARKER)
    tail = " ".join(digests).encode()
    signed = bytearray(raw)
    signed[at + 33 : at + 33 + len(tail)] = tail
    signed[at : at + 32] = xxh3_128_hexdigest(signed).encode()
    return bytes(signed)
