"""What a loss of power may leave of a recorded run.

The file system promises only what POSIX does. Bytes of a file are there after fsync of the file; before it, any of its
writes may be missing, torn, or zeros. A name is there after fsync of its directory; before it, any of the changes of a
directory may be missing, whatever came after it. A change by rename is there whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path

from faults.calls import directory, recorded, scratch
from faults.shim import Call
from faults.work import FaultError, Job, Mode, go_on, look

Change = tuple[int, bytes | None]  # bytes at an offset, or the file cut there
State = dict[str, bytes | None]  # path → bytes of a file, None of a directory
ALL_SUBSETS = 5  # of up to so many changes


@dataclass
class File:
    """A file: what is on the disk, and what came since."""

    safe: bytes = b""
    since: list[Change] = field(default_factory=list)

    def now(self) -> bytes:
        """As the process sees it."""
        return _applied(self.safe, self.since)


@dataclass
class Folder:
    """A directory: the names on the disk, and what came since."""

    safe: dict[str, File | Folder] = field(default_factory=dict)
    since: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def now(self) -> dict[str, File | Folder]:
        """As the process sees it."""
        return _named(self.safe, self.since)


Node = File | Folder


def try_out(job: Job, mode: Mode) -> int:
    """Lose power after each call of a job, in every way; how many different directories that made.

    Raises:
        FaultError: something does not hold in one of them.
    """
    folder, calls = recorded(job, mode)
    seen: set[int] = set()
    before = _begun(job, mode)
    for n, state in _states(before, folder.parent, calls):
        key = hash(frozenset(state.items())), n == len(calls)
        if hash(key) in seen:
            continue
        seen.add(hash(key))
        with scratch() as above:
            _put(state, above)
            try:
                _hold(above / "run", job, mode, n == len(calls))
            except FaultError as error:
                left = "\n".join(f"  {path} {len(data) if data is not None else ''}" for path, data in state.items())
                last = calls[n - 1]
                raise FaultError(f"{error}\nafter call {n}, {last.kind} {last.path} {last.other}\n{left}") from error
    return len(seen)


def _hold(folder: Path, job: Job, mode: Mode, done: bool) -> None:
    if not folder.exists():
        if done or None not in job.latest:
            raise FaultError("the directory is gone")
        return
    newest = look(folder, job, mode)
    if done and newest != job.latest[-1]:
        raise FaultError(f"the save had returned, and the newest is {newest}")
    go_on(folder, job, mode)


def _begun(job: Job, mode: Mode) -> Folder:
    """The directory before the calls that were recorded, durable."""
    with directory(job, mode) as folder:
        if job.begin is not None:
            manager = job.manager(folder, mode)
            job.begin(manager, mode)
            manager.close()
        return _read(folder.parent)


def _read(folder: Path) -> Folder:
    return Folder({one.name: _read(one) if one.is_dir() else File(one.read_bytes()) for one in folder.iterdir()})


def _states(root: Folder, base: Path, calls: list[Call]) -> Iterator[tuple[int, State]]:
    """(number of calls before it, what the disk may hold)."""
    yield from ((0, state) for state in _left(root))
    for n, call in enumerate(calls, 1):
        _carry_out(root, base, call)
        yield from ((n, state) for state in _left(root))


def _carry_out(root: Folder, base: Path, call: Call) -> None:
    path = os.path.relpath(call.path, base)
    if call.kind == "sync":
        node = _find(root, path)
        if isinstance(node, Folder) or node is not None:
            node.safe, node.since = node.now(), []
        return
    folder = _find(root, os.path.dirname(path))
    assert isinstance(folder, Folder), call
    name, there = os.path.basename(path), folder.now()
    if call.kind in ("write", "truncate"):
        file = there[name]
        assert isinstance(file, File), call
        file.since.append((call.offset, call.data if call.kind == "write" else None))
    elif call.kind == "open":
        if name not in there:
            folder.since.append({name: File()})
        elif call.flags:
            file = there[name]
            assert isinstance(file, File), call
            file.since.append((0, None))
    elif call.kind == "mkdir":
        folder.since.append({name: Folder()})
    elif call.kind in ("unlink", "rmdir"):
        folder.since.append({name: None})
    elif call.kind in ("rename", "link"):
        assert os.path.dirname(call.path) == os.path.dirname(call.other), call
        other = os.path.basename(call.other)
        folder.since.append({name: there[other] if call.flags else None, other: there[name]} if call.kind == "rename"
                            else {other: there[name]})  # fmt: skip


def _find(root: Folder, path: str) -> Node | None:
    node: Node | None = root
    for name in Path(path).parts:
        node = node.now().get(name) if isinstance(node, Folder) else None
    return node


def _left(root: Folder) -> Iterator[State]:
    """What the disk may hold now: each choice of changes of names, with each kind of loss of bytes."""
    folders = [node for node in _all(root) if isinstance(node, Folder) and node.since]
    changes = [(folder, n) for folder in folders for n in range(len(folder.since))]
    unsafe = any(isinstance(node, File) and node.since for node in _all(root))
    for chosen in _choices(len(changes)):
        kept: dict[int, list[dict[str, Node | None]]] = {}
        for index in chosen:
            folder, n = changes[index]
            kept.setdefault(id(folder), []).append(folder.since[n])
        for bytes_of in LOSSES.values() if unsafe else [File.now]:
            yield dict(_listed(root, "", kept, bytes_of))


def _choices(count: int) -> Iterator[tuple[int, ...]]:
    everything = tuple(range(count))
    if count <= ALL_SUBSETS:
        yield from chain.from_iterable(combinations(everything, size) for size in range(count + 1))
        return
    for n in everything:
        yield everything[:n]
        yield (n,)
        yield everything[:n] + everything[n + 1 :]
    yield everything


def _all(node: Node) -> Iterator[Node]:
    """A node and what is below it, now, on the disk, or in between."""
    found, queue = {id(node): node}, [node]
    while queue:
        one = queue.pop()
        if isinstance(one, Folder):
            for child in chain(one.safe.values(), *(change.values() for change in one.since)):
                if child is not None and id(child) not in found:
                    found[id(child)] = child
                    queue.append(child)
    yield from found.values()


def _listed(
    folder: Folder, prefix: str, kept: dict[int, list[dict[str, Node | None]]], bytes_of: Callable[[File], bytes]
) -> Iterator[tuple[str, bytes | None]]:
    for name, node in sorted(_named(folder.safe, kept.get(id(folder), [])).items()):
        if isinstance(node, Folder):
            yield prefix + name, None
            yield from _listed(node, f"{prefix}{name}/", kept, bytes_of)
        else:
            yield prefix + name, bytes_of(node)


def _named(safe: dict[str, Node], changes: list[dict[str, Node | None]]) -> dict[str, Node]:
    found: dict[str, Node | None] = {**safe}
    for change in changes:
        found |= change
    return {name: node for name, node in found.items() if node is not None}


def _applied(data: bytes, changes: list[Change]) -> bytes:
    out = bytearray(data)
    for at, new in changes:
        if len(out) < at:
            out += bytes(at - len(out))
        if new is None:
            del out[at:]
        else:
            out[at : at + len(new)] = new
    return bytes(out)


def _torn(file: File) -> bytes:
    """The first half of the changes, and half of the bytes of the next."""
    half = len(file.since) // 2
    changes = file.since[:half]
    if half < len(file.since) and (last := file.since[half])[1]:
        changes = [*changes, (last[0], last[1][: len(last[1]) // 2])]
    return _applied(file.safe, changes)


def _zeros(file: File) -> bytes:
    """The new length, and nothing new in it."""
    length = len(file.now())
    return file.safe[:length] + bytes(max(0, length - len(file.safe)))


LOSSES: dict[str, Callable[[File], bytes]] = {
    "nothing": File.now,
    "everything": lambda file: file.safe,
    "torn": _torn,
    "zeros": _zeros,
    "the first change": lambda file: _applied(file.safe, file.since[1:]),
    "the last change": lambda file: _applied(file.safe, file.since[:-1]),
}


def _put(state: State, above: Path) -> None:
    for path, data in state.items():
        if data is None:
            (above / path).mkdir()
        else:
            (above / path).write_bytes(data)
    shutil.rmtree(above / "trace", ignore_errors=True)
