"""The directory of a run: what is committed in it, what is damaged, what is left over; commit and remove.

RUN/100/        a checkpoint, see manifest.py
RUN/pins.json   steps that are never pruned
RUN/.lock       who writes here, see lock.py
RUN/.…          what a process writes or removes, or left when it died, see places.py
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from statedict import formats
from statedict.api.look import verify
from statedict.errors import CorruptFileError, FileError, FormatError, MissingFileError
from statedict.formats.places import resolve_inside
from statedict.io.json import parse, read_document
from statedict.io.location import location
from statedict.io.parallel import parallel
from statedict.io.pipeline import put_bytes
from statedict.io.urls import folder_of, join, redact
from statedict.runs.manifest import (
    DATA,
    MARKER,
    NAME,
    Manifest,
    decode,
    digest,
    encode,
    has_base,
    parse_whole,
    read_entries,
)
from statedict.runs.places import LEFTOVER, PARTS, Disk, Files, Store

PINS = "pins.json"
LEVELS = ("full", "quick", "off")
LOOKS = 100  # how often to look again while others change what is there

Result = TypeVar("Result")


class GoneError(MissingFileError):
    """A checkpoint was there and has been removed."""


class Directory:
    """The directory of a run."""

    def __init__(self, path: str) -> None:
        stem = path.rstrip("/")
        self.path = path if stem.endswith(":") or not stem else stem
        self.location = location(self.path)
        self.remote = not self.location.has_folders
        self.place = Store(self.path) if self.remote else Disk(self.path)
        self.damaged: set[int] = set()  # steps that were found to be damaged, and not replaced since
        self._sound: dict[int, object] = {}  # step → signature of its files when they were sound
        self._waiting: dict[int, str] = {}  # step → the hidden folder in which it is, see places.py
        self._brief: dict[int, tuple[bytes, Manifest]] = {}  # step → marker, manifest without entries

    def __str__(self) -> str:
        return redact(self.path)

    def folder(self, step: int) -> str:
        """The folder of a checkpoint."""
        return join(self.path, self.name(step))

    def name(self, step: int) -> str:
        """The name of that folder."""
        return self._waiting.get(step, str(step))

    def steps(self) -> list[int]:
        """The committed steps, in order; they may be damaged."""
        for _ in range(LOOKS):
            names = self._names()
            steps = sorted({int(name) for name in names if is_step(name)} | {*self.place.find_waiting(names)})
            committed = parallel(partial(self.is_committed, names=names), steps, workers=self.location.workers)
            found = [step for step, there in zip(steps, committed, strict=True) if there]
            if found or self._names() == names:  # else all were removed meanwhile, and others may have come
                break
        return found

    def torn_steps(self) -> list[int]:
        """Steps on a disk that have lost their manifest or marker; in an object store these are still being written."""
        if self.remote:
            return []
        names, torn = self._names(), []
        for step in (int(name) for name in names if is_step(name)):
            if not self.is_committed(step, names):
                inside = {*(location(self.folder(step)).names() or ())}  # listed once: it may be replaced meanwhile
                if inside and inside <= PARTS and not {NAME, MARKER} <= inside:
                    torn.append(step)
        return torn

    def is_committed(self, step: int, names: list[str] | None = None) -> bool:
        """Whether a step is committed, and note in which folder; a link out of the directory counts, as damaged.

        `names` are those in the directory, if they are known.
        """
        self._waiting.pop(step, None)
        if self._is_whole(str(step)):
            return True
        waiting = {} if self.remote else self.place.find_waiting(self._names() if names is None else names)
        if step not in waiting or not self._is_whole(waiting[step]):
            return False
        self._waiting[step] = waiting[step]
        return True

    def _is_whole(self, name: str) -> bool:
        return {NAME, MARKER} <= self.names_of(name, {NAME, MARKER})

    def names_of(self, folder: str, outside: Collection[str] = ()) -> set[str]:
        """The names in a folder of the directory; empty if it is gone, `outside` if it is a link out of there."""
        try:
            return {*(location(self.inner_path(folder)).names() or ())}
        except MissingFileError:
            return set()
        except FormatError:
            return {*outside}

    def inner_path(self, *names: str) -> str:
        """The path of something in the directory; a link out of there is a FormatError."""
        path = self.path
        for name in names:
            path = resolve_inside(path, name)
        return path

    def _names(self) -> list[str]:
        try:
            return self.location.names() or []
        except MissingFileError:
            return []

    def _read(self, step: int, name: str) -> bytes:
        return read(self.inner_path(self.name(step), name))

    def identity(self, step: int) -> object | None:
        """A value that changes when a checkpoint is removed, replaced or moved; None if there is none."""
        if not self.is_committed(step):
            return None
        try:
            return self.folder(step), self._read(step, MARKER)
        except (FormatError, FileError) as error:
            return self.folder(step), getattr(error, "errno", None)

    def marker(self, step: int) -> str | None:
        """The marker of a checkpoint in hexadecimal, which no other checkpoint ever has; None if there is none."""
        try:
            return self._read(step, MARKER).hex() if self.is_committed(step) else None
        except (MissingFileError, FormatError):
            return None

    def read_steadily(self, step: int, look: Callable[[], Result]) -> Result:
        """Call a function that reads a checkpoint, again if that changed meanwhile; a GoneError if it was removed."""
        try:
            return look()
        except (FormatError, OSError):
            pass
        for _ in range(LOOKS):
            before = self.identity(step)
            if before is None:
                break
            try:
                return look()
            except (FormatError, OSError):
                if self.identity(step) == before:
                    raise
        raise GoneError(errno.ENOENT, f"step {step} was removed meanwhile", str(self))

    def manifest(self, step: int) -> Manifest:
        """The manifest of a checkpoint."""
        return self.read_steadily(step, partial(self._manifest, step))

    def _manifest(self, step: int) -> Manifest:
        folder = self.folder(step)
        data, marker = (self._read(step, name) for name in (NAME, MARKER))
        if marker != digest(data):
            raise CorruptFileError(
                f"{redact(join(folder, NAME))}: differs from what was committed; {MARKER} has another digest"
            )
        found = decode(data, redact(join(folder, NAME)))
        if found.step != step:
            raise CorruptFileError(f"{redact(folder)}: its manifest is that of step {found.step}; rename the directory")
        return found

    def brief_manifest(self, step: int) -> Manifest:
        """The manifest without entries, cached as long as the marker stays the same; raises as `manifest`."""
        return self.read_steadily(step, partial(self._read_brief, step))

    def _read_brief(self, step: int) -> Manifest:
        marker = self._read(step, MARKER)
        known = self._brief.get(step)
        if known is None or known[0] != marker:
            known = self._brief[step] = marker, replace(self._manifest(step), entries=())
        return known[1]

    def manifests(self) -> tuple[list[Manifest], dict[int, str]]:
        """The readable manifests without entries, in the order of steps; step → why another cannot be read."""
        for _ in range(LOOKS):
            found, unread, gone = list[Manifest](), dict[int, str](), False
            for step in self.steps():
                try:
                    found.append(self.brief_manifest(step))
                except GoneError:
                    gone = True
                except (FormatError, FileError) as error:
                    unread[step] = str(error)
            if found or not gone:  # else all were removed meanwhile, and others may have come
                break
        return found, unread

    def data(self, step: int) -> str:
        """The file with a checkpoint's tree."""
        if not self.remote:
            self.is_committed(step)  # notes where it is
        folder = self.inner_path(self.name(step))
        names = location(folder).names() or ()
        return resolve_inside(folder, next((name for name in DATA.values() if name in names), DATA["safetensors"]))

    def damage(self, step: int, level: str = "full") -> str | None:
        """What is wrong with a committed checkpoint; None if nothing is.

        `"full"` reads all bytes, unless it read these files before; `"quick"` reads the manifest, headers and sizes;
        `"off"` the manifest.
        """
        try:
            self.read_steadily(step, partial(self._check, step, level))
        except GoneError:
            self.damaged.discard(step)
            raise
        except (FormatError, OSError) as error:
            self.damaged.add(step)
            return str(error)
        if level == "full":
            self.damaged.discard(step)
        return None

    def _check(self, step: int, level: str) -> None:
        manifest = self._manifest(step)
        if level == "off":
            return
        for name, size in manifest.files.items():
            path = self.inner_path(self.name(step), name)
            if location(path).open().size != size:
                raise CorruptFileError(f"{redact(path)}: its size is not the {size:,} bytes that were committed")
        signature = [self.place.signature(self.folder(step), manifest)]
        if manifest.base is not None:
            if not self.is_committed(manifest.base):
                what = f"is a delta to step {manifest.base}, which is gone; put that back, or take another step"
                raise CorruptFileError(f"{redact(self.folder(step))}: {what}")
            signature.append(self.place.signature(self.folder(manifest.base), self._manifest(manifest.base)))
        if self._sound.get(step) == signature:
            return
        file = self.data(step)
        if read_entries(file) != manifest.entries:
            raise CorruptFileError(f"{redact(file)}: is not the file that was committed; its digests are others")
        report = verify(file, quick=level == "quick")
        if report.problems:
            raise CorruptFileError(f"{report.file}: {report.problems[0]}")
        if level == "full":
            self._sound[step] = signature

    def commit(
        self,
        root: Any,
        manifest: Manifest,
        format: str,
        *,
        write: Callable[[Any, Any], Any] | None = None,
        announce: Callable[[bytes], None] = lambda marker: None,
        dry_run: bool = False,
    ) -> Manifest:
        """Write the file, the manifest and the marker of a checkpoint, each durable before the next.

        `write` writes the file, by default as the format does. `announce` gets the marker right before it is written.
        `dry_run` removes the checkpoint without committing it.
        """
        name, folder = DATA[format], self.folder(manifest.step)
        written: list[Manifest] = []

        def describe(sink: Any) -> None:
            file = join(folder_of(sink.path) if hasattr(sink, "path") else folder, name)
            base = manifest.base if manifest.base is not None and has_base(file) else None
            files = {name: location(file).open().size}
            written.append(replace(manifest, files=files, entries=read_entries(file), base=base))
            put_bytes(encode(written[0], file), sink)

        def mark() -> bytes:
            marker = digest(written[0].to_bytes())
            if not dry_run:
                announce(marker)
            return marker

        if self.place.untidy:
            self.clean()
        write = write or formats.load_writer(format).write
        files: Files = {name: partial(write, root), NAME: describe}
        self.place.commit(manifest.step, files, mark, dry_run)
        self._sound.pop(manifest.step, None)
        self.damaged.discard(manifest.step)
        return written[0]

    def bases(self, steps: Iterable[int]) -> dict[int, int]:
        """The step that each of those needs that are deltas, as far as their manifests can be read."""
        found: dict[int, int] = {}
        for step in steps:
            try:
                base = self.brief_manifest(step).base
            except (FormatError, FileError):
                continue
            if base is not None:
                found[step] = base
        return found

    def remove(self, step: int) -> None:
        """Remove a checkpoint; it stops counting at once."""
        folder = self.folder(step)
        for known in (self._sound, self._brief, self._waiting):
            known.pop(step, None)
        self.damaged.discard(step)
        self.place.remove(step, folder)

    def leftovers(self) -> list[str]:
        """What dead processes left behind, if nobody else writes: hidden files, and steps without a marker."""
        names = self._names()
        needed = {name for step, name in self.place.find_waiting(names).items() if not self._is_whole(str(step))}
        found = [join(self.path, name) for name in names if LEFTOVER.fullmatch(name) and name not in needed]
        begun = [join(self.path, name) for name in names if is_step(name) and not self._is_whole(name)]
        return found + [folder for folder in begun if self.place.is_leftover(folder)]

    def clean(self) -> list[str]:
        """Remove the leftovers; only the holder of the lock may."""
        self.place.finish(self._names())
        self._waiting.clear()
        leftovers = self.leftovers()
        self.place.discard(leftovers)
        return leftovers

    def pins(self) -> set[int]:
        """The steps that are never pruned."""
        name = redact(join(self.path, PINS))
        try:
            pinned = parse(read(self.inner_path(PINS)), name)["pinned"]
            if type(pinned) is not list:
                raise TypeError(f"a {type(pinned).__name__}")
            return {parse_whole(step) for step in pinned}
        except MissingFileError:
            return set()
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"{name}: not a list of pinned steps; remove it and pin again") from error

    def pin(self, steps: set[int]) -> None:
        """Set the steps that are never pruned."""
        data = (json.dumps({"pinned": sorted(steps)}) + "\n").encode()
        location(join(self.path, PINS)).publish(partial(put_bytes, data))


def is_step(name: str) -> bool:
    """Whether a name is that of a step's folder."""
    return name.isdecimal() and str(int(name)) == name


def read(name: str) -> bytes:
    """Read a small file."""
    return read_document(location(name).open())
