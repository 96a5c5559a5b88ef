"""Directories of `torch.distributed.checkpoint.HuggingFaceStorageWriter(save_distributed=True)`.

    shard-RANK-model-N-of-M.safetensors   what one rank saved; __metadata__ has DCP_SHARDING_INFO:
                                          {NAME: {"saved_offsets": the corner of this part in the whole tensor}, …}

There is no index: a tensor is as large as its parts reach, so nobody can tell whether the last ones are missing.
PyTorch also writes DCP_SHARDING_INFO into whole files; there all corners are 0.
Source: torch/distributed/checkpoint/hf_storage.py, _hf_utils.py (PyTorch 2.13).
"""

from __future__ import annotations

import os
from functools import partial
from math import prod

from statedict.errors import CorruptFileError, FileError, FormatError
from statedict.formats import places, safetensors
from statedict.formats.skeleton import put_together
from statedict.io.json import parse
from statedict.tensor.arrays import find_shape_fault, format_boxes
from statedict.tensor.assembled import REMEDY, assemble, covers, missing_error
from statedict.tensor.checks import Problem, refusal, within
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict
from statedict.values import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

    Parts = dict[str, tuple[tuple[int, ...], LazyTensor]]
    """Name → the corner in the whole tensor, and the part."""

_INFO = "DCP_SHARDING_INFO"
_KEYS = (_INFO, "DCP_VERSION")  # they describe files, so that a tree does not keep them


def read(source: ByteSource) -> Any:
    """Read the tensors of all ranks in a folder, or of a file that holds whole ones; lazily."""
    if not isinstance(source, places.Listing):
        parts, metadata = _read_parts(source, alone=True)
        if text := _describe_parts(source, parts):
            raise FormatError(
                f"{source.name}: {text}; name the folder, where those of the other ranks lie, or load it with "
                'format="safetensors" to see the parts'
            )
        return put_together({name: tensor for name, (_, tensor) in parts.items()}, metadata, source.name)
    files = places.open_files(source.folder, source.files)
    for opened in files.values():
        if isinstance(opened, FileError):
            raise opened
    read = (_read_parts(opened)[0] for opened in files.values() if not isinstance(opened, FileError))
    return StateDict(_assemble(source.name, read))


def list_files(source: ByteSource) -> list[str]:
    """The files beside it that belong to it."""
    return source.files if isinstance(source, places.Listing) else []


def _read_parts(source: ByteSource, alone: bool = False) -> tuple[Parts, dict[str, str]]:
    """Read the parts in a file; in one that is opened `alone` a tensor may be renamed, and then counts as whole."""
    if source.read(0, min(4, source.size)) == b"PK\3\4":
        raise CorruptFileError(
            f"{source.name}: PyTorch wrote a value that is not a tensor before the tensors, and cannot read such a "
            "file itself; save tensors only"
        )
    _, metadata, tensors = safetensors.read_header(source)
    info = parse(metadata.get(_INFO, "null"), f"{source.name}: {_INFO}")
    parts: Parts = {}
    for name, tensor in tensors.items():
        try:
            corner = (0,) * tensor.ndim if alone and name not in info else tuple(info[name]["saved_offsets"])
        except (TypeError, KeyError) as error:
            raise CorruptFileError(f"{source.name}: {_INFO} does not say which part of {name!r} it is") from error
        if len(corner) != tensor.ndim or not all(type(n) is int and n >= 0 for n in corner):
            raise CorruptFileError(f"{source.name}: {_INFO} has no corner of {name!r}: {str(corner)[:80]}")
        parts[name] = corner, tensor
    return parts, {key: value for key, value in metadata.items() if key not in _KEYS}


def _describe_parts(source: ByteSource, parts: Parts) -> str:
    """Which parts of tensors a file holds; "" if it holds whole ones, as far as it says."""
    if not places.is_part(os.path.basename(source.name)) and not any(any(corner) for corner, _ in parts.values()):
        return ""
    boxes = [f"{format_boxes([(at, part.shape)])} of {name!r}" for name, (at, part) in parts.items() if part.nbytes]
    shown = ", ".join(boxes[:3]) + ", …" * (len(boxes) > 3)
    return f"holds the parts of {count(len(parts), 'tensor')} that one rank saved: {shown}"


def _assemble(where: str, ranks: Iterable[Parts]) -> dict[str, LazyTensor]:
    found: dict[str, list[tuple[tuple[int, ...], LazyTensor]]] = {}
    for parts in ranks:
        for name, part in parts.items():
            found.setdefault(name, []).append(part)
    return {name: _put_together(f"{where}: {name!r}", parts) for name, parts in found.items()}


def _put_together(where: str, parts: list[tuple[tuple[int, ...], LazyTensor]]) -> LazyTensor:
    first = parts[0][1]
    kind = first.dtype
    if any(part.dtype is not kind or part.ndim != first.ndim for _, part in parts):
        raise CorruptFileError(f"{where}: its parts differ in dtype or dimensions; they are of different checkpoints")
    shape = tuple(max(corner[axis] + part.shape[axis] for corner, part in parts) for axis in range(first.ndim))
    if fault := find_shape_fault(shape, kind.itemsize):
        raise CorruptFileError(f"{where}: its parts reach to a size that no tensor has: {fault}")
    boxes = [(corner, part.shape) for corner, part in parts]
    whole = covers(where, shape, boxes)
    chunks = [(corner, part) for corner, part in parts if prod(part.shape)]
    if whole and len(chunks) <= 1:
        return (chunks or parts)[0][1]
    held = tuple((corner, part.shape) for corner, part in chunks)
    lack = None if whole else (held, partial(missing_error, where, shape, held, ()))
    return assemble(kind, shape, chunks, first.storage.source.name, lack=lack)


def checks(source: ByteSource) -> Iterator[Found]:
    """Check every file, and that the parts make up the tensors."""
    if not isinstance(source, places.Listing):
        yield from safetensors.checks(source)
        yield from filter(None, [_describe_parts(source, _read_parts(source, alone=True)[0])])
        return
    read: list[Parts] = []
    for file, opened in places.open_files(source.folder, source.files).items():
        try:
            if isinstance(opened, FileError):
                raise opened
            yield from within(safetensors.checks(opened), file)
            read.append(_read_parts(opened)[0])
        except (FormatError, FileError) as error:
            yield refusal(error, error.filename if isinstance(error, FileError) else f"{source.folder}/{file}", file)
    if len(read) == len(source.files):
        for name, tensor in _assemble(source.name, read).items():
            if tensor.present_boxes is not None:
                what = f"of its shape {tensor.shape} there is {format_boxes(tensor.present_boxes)} only"
                yield Problem(name, what, remedy=REMEDY, tensors=(name,))
    yield "its files have no index, so that nobody can tell whether those of the last ranks are missing"
