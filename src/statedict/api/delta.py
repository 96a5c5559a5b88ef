"""delta: make what a checkpoint changes of another one, and put both together again. Dispatch only."""

from __future__ import annotations

import os
from dataclasses import replace

from statedict.api.files import Target, name_of, plan_companions, to_writable, tree_of, wrap_root
from statedict.api.guarding import open_guard
from statedict.api.names import is_path, split
from statedict.collector import Paused
from statedict.errors import CorruptFileError, FormatError, UnsupportedError
from statedict.formats import WRITABLE, get_suffix, places, resolve_name
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import Executor
    from typing import Any

    from statedict.api.names import Path


def make(
    base: Any,
    tuned: Any,
    path: Path | None,
    *,
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
        path: the file to write, or its URL; None with `dry_run`.
        overwrite: if false, an existing file is an error.
        fsync: wait until it is on the disk.
        verify: compare both with the digests in their files first.
        dry_run: write nothing, and tell how large it would be.
        executor: as for `save`. It also reads and encodes.

    Returns:
        How large it is, and how many tensors are differences.

    Raises:
        MissingExtraError: zstandard is not installed.
        UnsupportedError: `path` is the base, or a folder.
        StateDictError: what `load` and `save` raise.

    >>> import numpy, statedict, tempfile
    >>> base, tuned = ({"w": numpy.full(1000, value, "float32")} for value in (1.0, 1.001))
    >>> path = tempfile.mkdtemp() + "/tuned.delta"
    >>> print(statedict.delta.make(base, tuned, path))
    4.0 kB → ... B (...%): 1 of 1 tensors as differences from memory
    >>> statedict.delta.apply(base, path)["w"].numpy()[:2]
    array([1.001, 1.001], dtype=float32)
    """
    if path is not None:
        _check_target(to_name(path), base)
    with Paused():
        root, tensors = _read(tuned, verify), dict(tensors_of(_read(base, verify)))
        whole = Base(tensors, digest_tensors(tensors, executor), _name(base), set())
        found: list[tuple[int, int]] = []

        def put(sink: Any) -> None:
            found.append(write(root, sink, whole))

        if path is None or dry_run:
            put(NullSink(executor))
        else:
            location(to_name(path)).publish(put, overwrite=overwrite, fsync=fsync, executor=executor)
        nbytes, deltas = found[-1]
        held = [tensor for _, tensor in tensors_of(root)]
        sizes = count_bytes(held), nbytes
        return DeltaReport("make", name_of(base), whole.digest, len(held), deltas, sizes, not dry_run)


def _read(source: Any, verify: bool) -> Any:
    root = to_writable(tree_of(source))
    if verify:
        open_guard(source, None, root, StateDict())
    return root


def _name(base: Any) -> dict[str, str]:
    return {"name": os.path.basename(name_of(base).rstrip("/"))}


def _check_target(path: str, base: Any) -> None:
    """Refuse to write a delta over a file of its base, or as a folder."""
    if path.endswith("/"):
        raise UnsupportedError(f"{redact(path)}: a delta is a file; name it without a slash at the end")
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
        path: the delta, or its URL.

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
    source = places.open_checkpoint(split(path)[0])
    base = find_base_of(source) if detect(source) == "coded" else None
    return None if base is None else name_base(base)


def _apply(base: Any, path: Any) -> tuple[StateDict, DeltaReport]:
    if not is_path(path):
        raise UnsupportedError(f"apply takes the file of a delta, not a {type(path).__name__}; name it by a str")
    name, at = split(path)
    source = places.open_checkpoint(name)
    if (kind := detect(source)) != "coded":
        raise FormatError(f"{redact(name)}: is {kind}, not a delta; make one by delta.make(base, tuned, path)")
    with Paused():
        if problems := examine(redact(name), kind, checks_stored(source)).problems:
            raise CorruptFileError(f"{redact(name)}: {problems[0]}")
        tensors = dict(tensors_of(to_writable(tree_of(base))))
        whole = Base(tensors, digest_tensors(tensors), {"name": name_of(base)}, set())
        tree = wrap_root(read(source, whole))
        held = dict(tensors_of(tree))
        sizes = source.size, count_bytes([*held.values()])
        report = DeltaReport("apply", name_of(base), whole.digest, len(held), count_deltas(source), sizes, False)
    return wrap_root(tree.at(at)) if at else tree, report
