"""GGUF files: by the package gguf, and forged byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy


def write(
    path: Path, tensors: dict[str, Any], pairs: dict[str, Any] | None = None, alignment: int = 0, **options: Any
) -> Path:
    """A file by GGUFWriter: arrays, or (name of a type, its bytes by row), and key → (method of the writer, value)."""
    writer = gguf.GGUFWriter(path, "llama", **options)
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, (kind, value) in (pairs or {}).items():
        getattr(writer, f"add_{kind}")(key, value)
    for name, value in tensors.items():
        kind, array = value if isinstance(value, tuple) else (None, value)
        writer.add_tensor(name, array, raw_dtype=None if kind is None else gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(kind: str, rows: int, blocks: int, seed: int = 0) -> Any:
    """Rows of blocks of any bytes."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    return numpy.random.default_rng(seed).integers(0, 256, (rows, blocks * size), dtype=numpy.uint8)


def text(value: str | bytes) -> bytes:
    """A string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, code: int, value: bytes) -> bytes:
    """A pair of metadata."""
    return text(key) + struct.pack("<I", code) + value


def array(code: int, count: int, values: bytes) -> bytes:
    """An array."""
    return struct.pack("<IQ", code, count) + values


def tensor(
    name: str | bytes, sizes: tuple[int, ...], code: int = 0, offset: int = 0, count: int | None = None
) -> bytes:
    """A tensor's entry, its sizes as they stand in the file."""
    count = len(sizes) if count is None else count
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", count, *sizes, code, offset)


def forge(
    path: Path,
    pairs: list[bytes] = [],  # noqa: B006 - never altered
    tensors: list[bytes] = [],  # noqa: B006 - never altered
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> Path:
    """A file of these parts."""
    n, m = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, n, m) + b"".join(pairs) + b"".join(tensors)
    path.write_bytes(head + bytes(-len(head) % max(alignment, 1)) + data)
    return path
