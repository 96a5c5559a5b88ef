"""delta: make what a checkpoint changes of another one, and put both together again. Dispatch only."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

from statedict.api.companions import plan_companions
from statedict.api.files import Target, name_of, to_writable, tree_of, wrap_root
from statedict.api.guarding import open_guard
from statedict.api.names import is_path, split
from statedict.collector import Paused
from statedict.errors import CorruptFileError, FormatError, UnsupportedError
from statedict.formats import WRITABLE, get_suffix, places, resolve_name, sharded
from statedict.formats.coded import Base, checks_stored, count_deltas, digest_tensors, find_base_of, name_base, read
from statedict.formats.coded_writing import NullSink, write
from statedict.formats.kinds import detect
from statedict.io.location import location
from statedict.io.urls import is_url, redact, to_name
from statedict.ops.verify import examine
from statedict.reports.combine import DeltaReport
from statedict.tensor.checks import tensors_of
from statedict.tensor.segments import count_bytes
from statedict.tree.state_dict import StateDict
from statedict.values import parse_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor
    from typing import Any

    from statedict.api.names import Path
    from statedict.formats.guard import Guard
    from statedict.io.source import ByteSource


def make(
    base: Any,
    tuned: Any,
    path: Path | None,
    *,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
    fsync: bool = True,
    verify: bool = True,
    dry_run: bool = False,
    executor: Executor | None = None,
) -> DeltaReport:
    """Write what a checkpoint changes of another one: a lossless delta, from which `apply` makes it again bit for bit.

    Each tensor is stored as the difference from that of the same name, dtype and shape in the base, or compressed by
    itself where that is smaller; all other values are stored whole. Needs the extra `compress`.

    Args:
        base: a path or URL as for `load`, or a tree, as for `save`.
        tuned: likewise; their formats may differ.
        path: the file to write, or its URL; a name that ends in `/` is a folder; None with `dry_run`.
        max_shard_size: write a folder of deltas with an index, each of at most so many bytes of tensors before they are
            coded, `"5GB"`.
        overwrite: if false, an existing file is an error.
        fsync: wait until it is on the disk.
        verify: compare both with the digests in their files first.
        dry_run: write nothing, and tell how large it would be.
        executor: as for `save`. It also reads and encodes.

    Returns:
        How large it is, and how many tensors are differences.

    Raises:
        MissingExtraError: zstandard is not installed.
        UnsupportedError: `path` is the base.
        StateDictError: what `load` and `save` raise.

    >>> import numpy, statedict, tempfile
    >>> base, tuned = ({"w": numpy.full(1000, value, "float32")} for value in (1.0, 1.001))
    >>> path = tempfile.mkdtemp() + "/tuned.delta"
    >>> print(statedict.delta.make(base, tuned, path))
    4.0 kB → ... B (...%): 1 of 1 tensors as differences from memory
    >>> statedict.delta.apply(base, path)["w"].numpy()[:2]
    array([1.001, 1.001], dtype=float32)
    """
    name = None if path is None else to_name(path)
    if name is not None:
        _check_target(name, base)
    with Paused():
        (root, guard), (before, base_guard) = (_read(one, verify) for one in (tuned, base))
        tensors = dict(tensors_of(before))
        whole = Base(tensors, digest_tensors(tensors, executor, base_guard), _name(base), set())
        how: dict[str, Any] = {"overwrite": overwrite, "fsync": fsync, "executor": executor}
        target = None if dry_run else name
        most = None if max_shard_size is None else parse_bytes(max_shard_size)
        nbytes, deltas = _write(root, whole, target, most, guard, how)
        held = [tensor for _, tensor in tensors_of(root)]
        sizes = count_bytes(held), nbytes
        return DeltaReport("make", name_of(base), whole.digest, len(held), deltas, sizes, not dry_run)


def _write(
    root: Any, base: Base, name: str | None, most: int | None, guard: Guard | None, how: dict[str, Any]
) -> tuple[int, int]:
    """Write a file, a folder with `most` bytes a shard, or nothing; its bytes, and how many tensors are differences."""
    found: dict[int, tuple[int, int]] = {}

    def put(tree: Any, sink: Any) -> None:
        def write_one(sink: Any) -> None:  # more than once, where an upload is tried again
            found[id(tree)] = write(tree, sink, base)

        (write_one if guard is None else guard.watch(write_one))(sink)

    files = sharded.files(root, most, "delta", put)
    if name is None:
        nowhere: Any = NullSink(how["executor"])
        for one in files.values():
            one(nowhere)
    elif most is None and not name.endswith("/"):
        location(name).publish(partial(put, root), **how)
    else:
        stale = places.find_stale(name, files, how["overwrite"])
        places.check_folder(name, files, [one.storage.source for one in base.tensors.values()], stale)
        location(name).publish_folder(files, stale, **how)
    return sum(size for size, _ in found.values()), sum(deltas for _, deltas in found.values())


def _read(source: Any, verify: bool) -> tuple[Any, Guard | None]:
    """A tree, and what compares its bytes while they are read; those that have a CRC-32 alone are compared here."""
    root = to_writable(tree_of(source))
    guard = open_guard(source, None, root, root) if verify else None
    if guard is not None and guard.with_crc:
        guard = open_guard(source, None, root, StateDict())
    return root, guard


def _name(base: Any) -> dict[str, str]:
    return {"name": os.path.basename(name_of(base).rstrip("/"))}


def _check_target(path: str, base: Any) -> None:
    """Refuse to write a delta over a file of its base, or into its folder."""
    if not is_path(base):
        return
    name = split(base)[0]
    same = path.rstrip("/") == name.rstrip("/")
    if not is_url(path) and not is_url(name) and os.path.lexists(path):
        real = os.path.realpath(name)
        is_shard = resolve_name(get_suffix(path)) in WRITABLE and os.path.dirname(os.path.realpath(path)) == real
        same = is_shard or os.path.realpath(path) == real
    if same:
        raise UnsupportedError(f"{redact(path)}: is the base, which the delta needs; name another file")


def apply(base: Any, path: Path) -> StateDict:
    """The checkpoint that a delta was made of: a lazy tree, whose tensors are decoded as they are read or saved.

    The whole delta and the whole base are read first and their digests compared, so nothing is ever put together from
    damaged files, nor from another base.

    Args:
        base: what the delta was made from, in any format: a path or URL as for `load`, or a tree.
        path: the delta, or its URL; a file or a folder.

    Raises:
        CorruptFileError: the delta is damaged, or the base is not the one that it was made from.
        FormatError: the file is not a delta.
        StateDictError: what `load` raises.
    """
    return _apply(base, path)[0]


def apply_file(
    base: Any,
    path: Path,
    dst: Path | None,
    *,
    format: str | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
    dry_run: bool = False,
) -> DeltaReport:
    """Write what `apply` gives, as `save` does, into a folder with the files beside the base; see `apply`.

    With `dry_run` only check the base, and report.
    """
    target = None if dst is None else Target(dst, format, max_shard_size, base, overwrite=overwrite)
    tree, report = _apply(base, path)
    if target is None:
        return report
    side, companions = plan_companions(base, target.model_folder, tree, tree)
    if companions:
        side = replace(
            side, notes=(*side.notes, "they are those of the base; a delta has none of the checkpoint's own")
        )
    report = replace(report, files=side)
    if dry_run:
        return report
    target.write(tree, companions)
    return replace(report, written=True)


def base_of(path: Path) -> str | None:
    """What the file of a checkpoint calls its base; None if it is not a delta."""
    source: ByteSource = places.open_checkpoint(split(path)[0])
    if detect(source) == "sharded":
        source = next(_open_parts(source), source)
    base = find_base_of(source) if detect(source) == "coded" else None
    return None if base is None else name_base(base)


def _open_parts(source: ByteSource) -> Iterator[ByteSource]:
    """The files that an index names."""
    folder = places.get_folder(source)
    for file in dict.fromkeys(sharded.list_files(source)):
        yield places.open_file(places.resolve_inside(folder, file))


def _apply(base: Any, path: Any) -> tuple[StateDict, DeltaReport]:
    if not is_path(path):
        raise UnsupportedError(f"apply takes the file of a delta, not a {type(path).__name__}; name it by a str")
    name, at = split(path)
    source: ByteSource = places.open_checkpoint(name)
    kind, parts, check = detect(source), [source], checks_stored
    if kind == "sharded":
        parts, check = [*_open_parts(source)], sharded.checks
    for part in parts:
        if (found := detect(part)) != "coded":
            raise FormatError(
                f"{redact(part.name)}: is {found}, not a delta; make one by delta.make(base, tuned, path)"
            )
    with Paused():
        if problems := examine(redact(name), kind, check(source)).problems:
            raise CorruptFileError(f"{redact(name)}: {problems[0]}")
        tensors = dict(tensors_of(to_writable(tree_of(base))))
        whole = Base(tensors, digest_tensors(tensors), {"name": name_of(base)}, set())
        read_delta = partial(read, base=whole)
        tree = wrap_root(read_delta(source) if kind == "coded" else sharded.read(source, read_delta))
        held = dict(tensors_of(tree))
        sizes, deltas = (sum(part.size for part in parts), count_bytes([*held.values()])), sum(map(count_deltas, parts))
        report = DeltaReport("apply", name_of(base), whole.digest, len(held), deltas, sizes, False)
    return wrap_root(tree.at(at)) if at else tree, report
