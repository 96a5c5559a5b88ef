"""Compressed checkpoints, and differences from another one: safetensors whose tensors are coded.

The file is one that every reader of safetensors opens. Each coded tensor is one of bytes (U8), see tensor/coding.py.
The first key of `__metadata__`, `statedict.coding`, is JSON that says what it decodes to:

    {"version": 1,
     "tensors": {NAME: [dtype, shape, XXH3-128 of its decoded bytes, path of its tensor in the base or null]},
     "base": {"digest": …, "name": "base.safetensors"}          of a delta: what it is a difference from
             {"digest": …, "step": 10}                          or the checkpoint of that step in the same run}

Other tensors are stored as they are; `statedict.digests` covers the bytes that are stored. The digest of a base is
that of the names, dtypes, shapes and digests of its tensors, so that the base fits in any format. Limits: a base must
not be a delta itself.
"""

from __future__ import annotations

import json
import os
from collections import namedtuple
from functools import partial

from statedict.dtypes import BY_NAME
from statedict.errors import CorruptFileError, FormatError, StateDictError, UnsupportedError
from statedict.formats.kinds import check_part, detect, read_part
from statedict.formats.places import get_folder, open_file, resolve_inside
from statedict.formats.safetensors import CODING, as_stored, check_stored, read_header
from statedict.formats.skeleton import put_together
from statedict.io.json import parse
from statedict.io.parallel import parallel
from statedict.io.pipeline import compute_sums
from statedict.io.source import ComputedSource
from statedict.io.urls import folder_of, is_url, join, redact
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.checks import Check, group_tensors, refusal, tensors_of
from statedict.tensor.coded import CodedSource
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

    Row = tuple[str, str, tuple[int, ...], str]
    """Path, dtype, shape and digest of a tensor."""

# what a checkpoint is a difference from: path → tensor, its digest, and how a file names it: {"name": …} or {"step": …}
Base = namedtuple("Base", "tensors digest names")
_Entry = namedtuple("_Entry", "kind shape digest path")  # of a coded tensor
_Coding = namedtuple("_Coding", "entries base")
_DATA = "checkpoint.safetensors"  # of a run; runs/manifest.py


def read(source: ByteSource, base: Base | None = None) -> Any:
    """Read the tree lazily; a delta with its base, which for one of a run is found in that run.

    Without its base, tensors that differ from it cannot be read.
    """
    _, metadata, stored = read_header(source)
    coding = _parse_coding(metadata, source.name)
    tensors, _ = _decode(source, stored, coding, base)
    return put_together(tensors, metadata, source.name)


def find_base_of(source: ByteSource) -> dict[str, Any] | None:
    """What a file says about its base: `digest`, and `name` or `step`; None if it needs none."""
    found: dict[str, Any] | None = _parse_coding(read_header(source)[1], source.name).base
    return found


def count_deltas(source: ByteSource) -> int:
    """How many tensors of a file need its base."""
    coding = _parse_coding(read_header(source)[1], source.name)
    return sum(entry.path is not None for entry in coding.entries.values())


def checks(source: ByteSource) -> Iterator[Found]:
    """List the header, what is stored, and what that decodes to; of a delta without its base not the latter."""
    raw, metadata, stored = read_header(source)
    held: dict[Storage, list[tuple[str, LazyTensor]]] = {}
    coding, tensors, lack = _Coding({}, None), stored, None
    try:
        coding = _parse_coding(metadata, source.name)
        tensors, lack = _decode(source, stored, coding, None)
        held = group_tensors(put_together(dict(tensors), metadata, source.name), as_stored)
    except FormatError as error:
        coding, lack = _Coding({}, None), None
        yield refusal(error, source.name, "header")
    for item in check_stored(source, raw, metadata, stored, held):
        if isinstance(item, Check) and item.part in coding.entries:
            here = held.get(tensors[item.part].storage, ()) if lack is not None else ()
            item.part, item.coded, item.tensors = f"{item.part} (coded)", True, tuple(here)
        yield item
    if lack is not None and "step" in coding.base:
        yield refusal(lack, source.name)
    elif lack is not None:
        yield f"a delta: its coded bytes are checked, and its tensors when it is applied to {name_base(coding.base)}"
        return
    for name, entry in coding.entries.items():
        storage = tensors[name].storage
        needs = None if entry.path is None else name_base(coding.base)
        held_here = tuple(held.get(storage, ()))
        yield Check(name, storage.source, 0, storage.nbytes, held_here, None, entry.digest, base=needs)


def checks_stored(source: ByteSource) -> Iterator[Found]:
    """List what is stored alone, which needs no base."""
    raw, metadata, stored = read_header(source)
    return check_stored(source, raw, metadata, stored, {})


def _parse_coding(metadata: Mapping[str, str], name: str) -> _Coding:
    where = f"{name}: the coding under {CODING!r}"
    found = parse(metadata.get(CODING, ""), where, surrogates=True)
    try:
        if found["version"] != 1:
            raise FormatError(f"{where} has version {found['version']!r:.20}; a newer statedict may read it")
        entries = {key: _parse_entry(*entry) for key, entry in found["tensors"].items()}
        base = found.get("base")
        if base is not None and (type(base["digest"]) is not str or not _is_named(base)):
            raise ValueError("its base has no name")
        return _Coding(entries, base)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise CorruptFileError(f"{where} is damaged ({type(error).__name__}: {error})") from None


def _is_named(base: Mapping[str, Any]) -> bool:
    step = base.get("step")
    return type(base.get("name")) is str if "step" not in base else type(step) is int and 0 <= step < 1 << 63


def _parse_entry(kind: Any, shape: Any, digest: Any, path: Any) -> _Entry:
    if type(shape) is not list or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shape {shape!r:.80}")
    if fault := find_shape_fault(tuple(shape), BY_NAME[kind].itemsize or 1):
        raise ValueError(f"shape {shape!r:.80}: {fault}")
    if type(digest) is not str or not (path is None or type(path) is str):
        raise TypeError("a digest or a path")
    return _Entry(BY_NAME[kind], tuple(shape), digest, path)


def _decode(
    source: ByteSource, stored: Mapping[str, LazyTensor], coding: _Coding, base: Base | None
) -> tuple[dict[str, LazyTensor], StateDictError | None]:
    """The tensors of a file by name, and why its base is not there, if it is not."""
    lack: StateDictError | None = None
    if base is None and coding.base is not None:
        try:
            base = _open_base(source, coding.base)
        except StateDictError as error:
            lack = error
    elif base is not None and (coding.base is None or base.digest != coding.base["digest"]):
        raise _other_base_error(source.name, coding.base, base)
    if missing := coding.entries.keys() - stored.keys():
        raise CorruptFileError(f"{source.name}: tensor {min(missing)!r} is described and not there; it is damaged")
    tensors = dict(stored)
    for name, entry in coding.entries.items():
        where = f"{source.name}: tensor {name!r}"
        before = None
        if entry.path is not None:
            before = _find_in_base(base, entry, where) if lack is None else _refuse(entry, lack, source.name)
        size = LazyTensor(entry.kind, entry.shape, stored[name].storage).nbytes
        coded = CodedSource(stored[name], entry.kind, size, before, where)
        tensors[name] = LazyTensor(entry.kind, entry.shape, Storage(coded, 0, size))
    return tensors, lack


def _find_in_base(base: Base | None, entry: _Entry, where: str) -> LazyTensor:
    found: LazyTensor | None = None if base is None else base.tensors.get(entry.path)
    if found is None or found.dtype is not entry.kind or found.shape != entry.shape:
        raise CorruptFileError(f"{where}: its base has no such tensor {entry.path!r}; the file is damaged")
    return found


def _refuse(entry: _Entry, lack: StateDictError, name: str) -> LazyTensor:
    """A tensor that stands for one of a base that is not there."""
    size = LazyTensor(entry.kind, entry.shape, Storage(None, 0, 0)).nbytes  # type: ignore[arg-type]
    nothing = ComputedSource(size, partial(_raise, type(lack), str(lack)), name)
    return LazyTensor(entry.kind, entry.shape, Storage(nothing, 0, size))


def _raise(kind: type[StateDictError], message: str, *_: object) -> None:
    raise kind(message)


def _open_base(source: ByteSource, base: Mapping[str, Any]) -> Base:
    """The base of a delta that is the checkpoint of a run."""
    if "step" not in base:
        remedy = f"read it by delta.apply(base, {source.name!r})"
        raise UnsupportedError(f"{source.name}: is a delta, and its base {name_base(base)} is not in it; {remedy}")
    file = join(str(base["step"]), _DATA)
    try:
        found = _read_whole(open_file(resolve_inside(_find_run(get_folder(source), source.name, file), file)), base)
    except StateDictError as error:
        raise CorruptFileError(
            f"{source.name}: is a delta to {name_base(base)} of its run, which cannot be read ({error}); "
            "put that back, or take another step"
        ) from None
    if found.digest != base["digest"]:
        raise _other_base_error(source.name, base, found)
    return found


def _find_run(folder: str, name: str, base: str) -> str:
    """The folder of the run that a step's file lies in; both the step's folder and its file may be named by a link."""
    if is_url(folder):
        return folder_of(folder)
    runs = [os.path.dirname(path) for path in (os.path.realpath(folder), os.path.dirname(os.path.realpath(name)))]
    return next((run for run in runs if os.path.lexists(join(run, base))), runs[0])


def _read_whole(source: ByteSource, names: Mapping[str, Any]) -> Base:
    """A file as a base, with the digest that its header tells."""
    if detect(source) != "coded":
        return Base(dict(tensors_of(read_part(source))), digest_checks(check_part(source, "")), names)
    if find_base_of(source) is not None:
        raise CorruptFileError(f"{source.name}: is a delta itself")
    return Base(dict(tensors_of(read(source))), digest_checks(checks(source)), names)


def digest_checks(found: Iterable[Found]) -> str:
    """The digest of the tensors in a file, from the digests that its checks have; "" if some have none."""
    rows: dict[str, Row] = {}
    for item in found:
        if isinstance(item, Check) and item.tensors:
            if not item.digest:
                return ""
            rows |= {path: (path, one.dtype.name, one.shape, item.digest) for path, one in item.tensors}
    return digest_rows(rows.values())


def digest_tensors(tensors: Mapping[str, LazyTensor]) -> str:
    """The digest of tensors, which are read."""
    regions = {path: tensor.region for path, tensor in tensors.items()}  # of an empty tensor another one each time
    firsts = {region: tensors[path] for path, region in regions.items()}
    sums = dict(zip(firsts, parallel(_digest, firsts.values()), strict=True))
    return digest_rows((path, one.dtype.name, one.shape, sums[regions[path]]) for path, one in tensors.items())


def _digest(tensor: LazyTensor) -> str:
    whole = tensor.contiguous()
    start = whole.storage.offset + whole.offset
    digest: str = compute_sums(whole.storage.source, start, whole.nbytes, crc=False).digest
    return digest


def digest_rows(rows: Iterable[Row]) -> str:
    """The digest of tensors with these digests."""
    from xxhash import xxh3_128_hexdigest

    digest: str = xxh3_128_hexdigest(json.dumps(sorted(rows)).encode())
    return digest


def _other_base_error(name: str, wanted: Mapping[str, Any] | None, found: Base) -> CorruptFileError:
    if wanted is None:
        return CorruptFileError(f"{name}: is not a delta; load it by itself")
    return CorruptFileError(
        f"{name}: is a delta to {name_base(wanted)} with the digest {wanted['digest']}, and "
        f"{name_base(found.names)} has {found.digest}; find the one that it was made from"
    )


def name_base(base: Mapping[str, Any]) -> str:
    """What a delta calls its base."""
    return f"step {base['step']}" if "step" in base else redact(str(base["name"]))
