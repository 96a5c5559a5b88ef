"""Writes GGUF, byte by byte as `GGUFWriter` of gguf 0.19.0 writes the same entries: little-endian, version 3.

A file holds tensors under names, and under `metadata` a dict of plain values. Nested dicts, other plain values and
dtypes that GGUF lacks are errors before anything is written. Tensors that are tied are written twice, since GGUF's
must not overlap. Those stored as blocks go as they are.
"""

from __future__ import annotations

import json
import struct
import warnings
from functools import partial
from typing import Any

from statedict.errors import UnsupportedError
from statedict.formats.gguf.header import ALIGNMENT, ARRAY, MAGIC, SCALARS, STRING
from statedict.formats.gguf.values import METADATA, TYPES, fits, is_float32, type_of
from statedict.io.pipeline import Part
from statedict.io.source import BytesSource
from statedict.tensor.attributes import left_out_note
from statedict.tensor.blocks import find_blocks
from statedict.tensor.ggml import BIG_ENDIAN
from statedict.tensor.ggml.types import CODES
from statedict.tensor.lazy import LazyTensor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.io.pipeline import Sink

_NUMBERS = {name: (code, form) for code, (name, form) in SCALARS.items()} | {"string": (STRING, "")}
_NOT_CARRIED = (TYPES, BIG_ENDIAN, "format")  # the last is safetensors' name of a framework


def write(tree: Any, sink: Sink) -> None:
    """Write a tree of LazyTensors under names, and of plain values under `metadata`."""
    pairs, tensors = _take_apart(tree)
    alignment = pairs.get("general.alignment", (ALIGNMENT, ""))[0]
    head = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(pairs)))
    for key, (value, kind) in pairs.items():
        head += _encode_text(key) + struct.pack("<I", _code_of(kind))
        head += _encode(value, kind)
    position = 0
    places: list[tuple[int, LazyTensor]] = []
    for name, (code, shape, stored) in tensors.items():
        head += _encode_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], code, position)
        places.append((position, stored))
        position += -(-stored.nbytes // alignment) * alignment
    head += bytes(-len(head) % alignment)
    parts = [Part(0, BytesSource(bytes(head)), 0, len(head))]
    for begin, stored in places:
        storage, size = stored.storage, stored.nbytes
        pad = partial(_pad, -size % alignment)
        if size:
            parts.append(Part(len(head) + begin, storage.source, storage.offset + stored.offset, size, b"", pad))
    sink.reserve(len(head) + position)
    sink.put(parts)


def _pad(size: int, *_: int) -> bytes:
    return bytes(size)


def _take_apart(tree: Any) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[int, tuple[int, ...], LazyTensor]]]:
    """Key → (value, type) of the metadata, and name → (type, shape, what is stored) of the tensors."""
    if not isinstance(tree, dict):
        raise UnsupportedError(f"a GGUF file holds a dict of tensors, not a {type(tree).__name__}")
    tensors: dict[str, tuple[int, tuple[int, ...], LazyTensor]] = {}
    for name, value in tree.items():
        if name == METADATA and isinstance(value, dict):
            continue
        if type(name) is not str or not _is_unicode(name):
            raise UnsupportedError(f"{name!r:.80}: a GGUF file names tensors by Unicode text; rename it")
        if isinstance(value, dict):
            raise UnsupportedError(f"{name}: a GGUF file holds no nested dicts; write the model alone (strip)")
        if not isinstance(value, LazyTensor):
            remedy = f"drop it, or move it into the dict {METADATA!r}"
            raise UnsupportedError(f"{name}: a GGUF file holds plain values under {METADATA} only; {remedy}")
        tensors[name] = _choose(name, value)
    lost = [f"{name}.{key}" for name, value in tree.items() for key in getattr(value, "attributes", None) or ()]
    if lost:
        warnings.warn(left_out_note(lost), stacklevel=2)
    values = tree.get(METADATA)
    return _type_pairs(values if isinstance(values, dict) else {}, getattr(tree, "metadata", {})), tensors


def _choose(name: str, tensor: LazyTensor) -> tuple[int, tuple[int, ...], LazyTensor]:
    blocks = find_blocks(tensor)
    if blocks is not None and blocks.quantization in CODES:
        return CODES[blocks.quantization], tensor.shape, blocks.blocks
    code = CODES.get(tensor.dtype.name)
    if code is None:
        known = ", ".join(kind for kind in CODES if kind.islower())
        raise UnsupportedError(f"{name}: GGUF has no type for {tensor.dtype}; cast it to one of {known}, or drop it")
    return code, tensor.shape, tensor.contiguous()


def _type_pairs(values: dict[Any, Any], beside: dict[str, str]) -> dict[str, tuple[Any, Any]]:
    """The metadata with types: those that a file had, where they still fit, else what the values suggest."""
    try:
        known = json.loads(beside.get(TYPES, "{}"))
    except (ValueError, RecursionError):
        known = {}
    known = known if isinstance(known, dict) else {}
    pairs: dict[str, tuple[Any, Any]] = {}
    for key, value in values.items():
        path = f"{METADATA}.{key}"
        if type(key) is not str or not _is_unicode(key):
            raise UnsupportedError(f"{path!r:.80}: the keys of GGUF's metadata are Unicode text; rename it")
        kind = known.get(key)
        kind = kind if _fits(value, kind) else type_of(value)
        if kind is None or not _fits(value, kind):
            what = f"{value!r:.60} ({type(value).__name__})"
            raise UnsupportedError(
                f"{path}: {what} is no value of GGUF: text, numbers of 64 bits, bools, lists of one of these; drop it"
            )
        pairs[key] = value, kind
    alignment, kind = pairs.get("general.alignment", (ALIGNMENT, "uint32"))
    if kind != "uint32" or alignment < 1 or alignment & (alignment - 1):
        raise UnsupportedError(f"{METADATA}.general.alignment: {alignment!r:.40} is no power of two; set or drop it")
    rest = {key: (text, "string") for key, text in beside.items() if key not in _NOT_CARRIED and key not in pairs}
    return pairs | rest


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value can be written as a type."""
    if isinstance(kind, list):
        if type(value) not in (list, tuple) or not kind:
            return False
        if kind[0] == "array":
            return len(kind) == len(value) + 1 and all(map(_fits, value, kind[1:]))
        return len(kind) == 1 and type(kind[0]) is str and all(_fits(one, kind[0]) for one in value)
    if kind == "string":
        return type(value) is str and _is_unicode(value)
    if kind == "bool":
        return type(value) is bool
    if kind in ("float32", "float64"):
        return type(value) is float and (kind == "float64" or is_float32(value))
    return kind in _NUMBERS and type(value) is int and fits(value, kind)


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


def _code_of(kind: Any) -> int:
    return ARRAY if isinstance(kind, list) else _NUMBERS[kind][0]


def _encode_text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _encode(value: Any, kind: Any) -> bytes:
    if kind == "string":
        return _encode_text(value)
    if not isinstance(kind, list):
        return struct.pack(f"<{_NUMBERS[kind][1]}", value)
    inner = ARRAY if kind[0] == "array" else _NUMBERS[kind[0]][0]
    head = struct.pack("<IQ", inner, len(value))
    if kind[0] == "array":
        return head + b"".join(_encode(one, sub) for one, sub in zip(value, kind[1:], strict=True))
    if kind[0] == "string":
        return head + b"".join(map(_encode_text, value))
    return head + struct.pack(f"<{len(value)}{_NUMBERS[kind[0]][1]}", *value)
