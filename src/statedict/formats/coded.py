"""Compressed checkpoints, and differences from another one: safetensors whose tensors are coded.

The file is one that every reader of safetensors opens. Each coded tensor is one of bytes (U8), see tensor/coding.py.
The first key of `__metadata__`, `statedict.coding`, is JSON that says what it decodes to:

    {"version": 1,
     "tensors": {NAME: [dtype, shape, XXH3-128 of its decoded bytes, path of its tensor in the base or null]
                       or the same and the name of the coded tensor that holds several small ones, in this order},
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
from itertools import chain
from operator import attrgetter

from statedict.dtypes import BY_NAME
from statedict.errors import CorruptFileError, FormatError, StateDictError, UnsupportedError
from statedict.formats.kinds import check_part, detect, read_part
from statedict.formats.places import get_folder, open_file, resolve_inside
from statedict.formats.safetensors import CODING, as_stored, check_stored, read_header
from statedict.formats.skeleton import put_together
from statedict.io.json import parse
from statedict.io.parallel import batches, parallel
from statedict.io.pipeline import compute_sums
from statedict.io.source import ComputedSource, Joined
from statedict.io.urls import folder_of, is_url, join, redact
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.checks import Check, group_tensors, refusal, tensors_of
from statedict.tensor.coded import CodedSource
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor
    from typing import Any

    from statedict.formats.guard import Guard
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

    Row = tuple[str, str, tuple[int, ...], str]
    """Path, dtype, shape and digest of a tensor."""

# what a checkpoint is a difference from: path → tensor, its digest, and how a file names it: {"name": …} or {"step": …}
# and the blocks (name, index) of which a delta was not worth it
Base = namedtuple("Base", "tensors digest names lost")
_Entry = namedtuple("_Entry", "kind shape digest path stored")  # of a tensor, and the coded one that it is in
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
    return _check(source, None)


def outline(source: ByteSource) -> Iterator[Found]:
    """As `checks`, but the base is not opened: what is a difference has its digest and cannot be read."""
    return _check(source, UnsupportedError(f"{source.name}: only its header was read"))


def _check(source: ByteSource, unopened: StateDictError | None) -> Iterator[Found]:
    raw, metadata, stored = read_header(source)
    held: dict[Storage, list[tuple[str, LazyTensor]]] = {}
    coding, tensors, lack = _Coding({}, None), stored, None
    try:
        coding = _parse_coding(metadata, source.name)
        tensors, lack = _decode(source, stored, coding, None, unopened)
        held = group_tensors(put_together(dict(tensors), metadata, source.name), as_stored)
    except FormatError as error:
        coding, lack = _Coding({}, None), None
        yield refusal(error, source.name, "header")
    groups = _group(coding.entries)
    for item in check_stored(source, raw, metadata, stored, held):
        if isinstance(item, Check) and item.part in groups:
            names = groups[item.part] if lack is not None and unopened is None else ()
            here = tuple(one for name in names for one in held.get(tensors[name].storage, ()))
            item.part, item.coded, item.tensors = f"{item.part} (coded)", True, here
        yield item
    if unopened is None and lack is not None and "step" in coding.base:
        yield refusal(lack, source.name)
    elif unopened is None and lack is not None:
        yield f"a delta: its coded bytes are checked, and its tensors when it is applied to {name_base(coding.base)}"
        return
    for name, entry in coding.entries.items():
        storage = tensors[name].storage
        needs = None if entry.path is None else name_base(coding.base)
        held_here = tuple(held.get(storage, ()))
        yield Check(name, storage.source, storage.offset, storage.nbytes, held_here, None, entry.digest, base=needs)


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
        entries = {key: _parse_entry(key, *entry) for key, entry in found["tensors"].items()}
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


def _parse_entry(name: str, kind: Any, shape: Any, digest: Any, path: Any, stored: Any = None) -> _Entry:
    if type(shape) is not list or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shape {shape!r:.80}")
    if fault := find_shape_fault(tuple(shape), BY_NAME[kind].itemsize or 1):
        raise ValueError(f"shape {shape!r:.80}: {fault}")
    if type(digest) is not str or any(type(one) is not str for one in (path, stored) if one is not None):
        raise TypeError("a digest, a path or a name")
    return _Entry(BY_NAME[kind], tuple(shape), digest, path, name if stored is None else stored)


def _decode(
    source: ByteSource,
    stored: Mapping[str, LazyTensor],
    coding: _Coding,
    base: Base | None,
    lack: StateDictError | None = None,
) -> tuple[dict[str, LazyTensor], StateDictError | None]:
    """The tensors of a file by name, and why its base is not there, if it is not; with `lack` it is not looked for."""
    if lack is None and base is None and coding.base is not None:
        try:
            base = _open_base(source, coding.base)
        except StateDictError as error:
            lack = error
    elif base is not None and (coding.base is None or base.digest != coding.base["digest"]):
        raise _other_base_error(source.name, coding.base, base)
    groups = _group(coding.entries)
    if missing := groups.keys() - stored.keys():
        raise CorruptFileError(f"{source.name}: tensor {min(missing)!r} is described and not there; it is damaged")
    tensors = {name: tensor for name, tensor in stored.items() if name not in groups}
    for held, names in groups.items():
        where = f"{source.name}: tensor {held!r}"
        entries = [coding.entries[name] for name in names]
        if len({(entry.kind, entry.path is None) for entry in entries}) > 1:
            raise CorruptFileError(f"{where}: the tensors in it are not coded alike; the file is damaged")
        sizes = [LazyTensor(entry.kind, entry.shape, stored[held].storage).nbytes for entry in entries]
        before = None
        if entries[0].path is not None:
            below = [
                _find_in_base(base, entry, where) if lack is None else _refuse(entry, lack, source.name)
                for entry in entries
            ]
            before = below[0] if len(below) == 1 else join_tensors(below)
        coded = CodedSource(stored[held], entries[0].kind, sum(sizes), before, where)
        if twice := tensors.keys() & names:
            raise CorruptFileError(f"{where}: {min(twice)!r} is in the file twice; it is damaged")
        offset = 0
        for name, entry, size in zip(names, entries, sizes, strict=True):
            tensors[name] = LazyTensor(entry.kind, entry.shape, Storage(coded, offset, size))
            offset += size
    return tensors, lack


def _group(entries: Mapping[str, _Entry]) -> dict[str, list[str]]:
    """The names of the tensors in each coded one."""
    groups: dict[str, list[str]] = {}
    for name, entry in entries.items():
        groups.setdefault(entry.stored, []).append(name)
    return groups


def join_tensors(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """The bytes of tensors, one after the other."""
    parts = [(one.storage.source, one.storage.offset + one.offset, one.nbytes) for one in map(_contiguous, tensors)]
    joined = Joined(parts, parts[0][0].name)
    return LazyTensor(BY_NAME["uint8"], (joined.size,), Storage(joined, 0, joined.size))


def _contiguous(tensor: LazyTensor) -> LazyTensor:
    return tensor.contiguous()


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
        return Base(dict(tensors_of(read_part(source))), digest_checks(check_part(source, "")), names, set())
    if find_base_of(source) is not None:
        raise CorruptFileError(f"{source.name}: is a delta itself")
    return Base(dict(tensors_of(read(source))), digest_checks(checks(source)), names, set())


def digest_checks(found: Iterable[Found]) -> str:
    """The digest of the tensors in a file, from the digests that its checks have; "" if some have none."""
    rows: dict[str, Row] = {}
    for item in found:
        if isinstance(item, Check) and item.tensors:
            if not item.digest:
                return ""
            rows |= {path: (path, one.dtype.name, one.shape, item.digest) for path, one in item.tensors}
    return digest_rows(rows.values())


def digest_tensors(
    tensors: Mapping[str, LazyTensor], executor: Executor | None = None, guard: Guard | None = None
) -> str:
    """The digest of tensors, which are read, and compared with what a guard knows of them."""
    regions = {path: tensor.region for path, tensor in tensors.items()}  # of an empty tensor another one each time
    firsts = {region: tensors[path] for path, region in regions.items()}
    jobs = batches(firsts.values(), size_of=attrgetter("nbytes"))
    sums = dict(zip(firsts, chain.from_iterable(parallel(_digest, jobs, executor)), strict=True))
    if guard is not None:
        guard.compare_digests(map(_contiguous, firsts.values()), sums.values())
    return digest_rows((path, one.dtype.name, one.shape, sums[regions[path]]) for path, one in tensors.items())


def _digest(batch: Sequence[LazyTensor]) -> list[str]:
    whole = map(_contiguous, batch)
    return [
        compute_sums(one.storage.source, one.storage.offset + one.offset, one.nbytes, crc=False).digest for one in whole
    ]


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
