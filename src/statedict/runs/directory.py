"""The directory of a run: what is committed in it, what is damaged, what is left over; commit and remove.

    RUN/100/        a checkpoint, see manifest.py
    RUN/pins.json   steps that are never pruned
    RUN/.lock       who writes here, see lock.py
    RUN/.…          what is being written or removed, or was when its process died, see places.py

On a disk a checkpoint is written into a hidden directory, which is renamed at the end. In an object store its objects
appear one by one, and the marker is the last: it is put there only if there is none.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from statedict import formats
from statedict.api.look import verify
from statedict.errors import (
    CorruptFileError,
    FileError,
    FormatError,
    MissingFileError,
    RunError,
    UnsupportedError,
    file_error,
)
from statedict.formats.places import inside, open_file
from statedict.io import atomic
from statedict.io.json import parse, read_document
from statedict.io.location import location
from statedict.io.parallel import REMOTE_WORKERS, parallel
from statedict.io.pipeline import put_bytes
from statedict.io.urls import folder_of, is_url, join, redact
from statedict.runs import places
from statedict.runs.manifest import DATA, MARKER, NAME, Entry, Manifest, decode, parse_whole
from statedict.tensor.checks import Check, Problem

PINS = "pins.json"
LEVELS = ("full", "quick", "off")
LOOKS = 100  # times that somebody looks again, while others change what is there


Result = TypeVar("Result")


class GoneError(MissingFileError):
    """A checkpoint was there and has been removed."""


class Directory:
    """The directory of a run, or its URL.

    Attributes:
        path: its name.
    """

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/") or path
        self.remote = is_url(path)
        self._sound: dict[int, object] = {}
        """Step → what its files were like when it was found to be sound."""
        self._waiting: dict[int, str] = {}
        """Step → the hidden folder in which it is, where its process died before it had its name."""
        self._untidy = False
        """Whether something failed here that may have left a part."""
        self.guard: Callable[[], None] = lambda: None
        """Raises if what holds the right to write here has lost it; called before what could hurt another writer."""
        self.damaged: set[int] = set()
        """Steps that were found to be damaged, and not replaced since."""
        self._brief: dict[int, tuple[bytes, Manifest]] = {}
        """Step → its marker and its manifest without the entries, for what looks at all steps again and again."""

    def __str__(self) -> str:
        return redact(self.path)

    def folder(self, step: int) -> str:
        """The directory of a checkpoint."""
        return join(self.path, self.name(step))

    def name(self, step: int) -> str:
        """What that is called in the run's."""
        return self._waiting.get(step, str(step))

    # what is there

    def steps(self) -> list[int]:
        """The steps that are committed, in order; whether they are sound is not looked at."""
        for _ in range(LOOKS):
            names = self._names()
            steps = sorted({int(name) for name in names if is_step(name)} | {*places.find_waiting(names)})
            workers = REMOTE_WORKERS if self.remote else 1
            there = parallel(partial(self._committed, names), steps, workers=workers)
            found = [step for step, committed in zip(steps, there, strict=True) if committed]
            if found or self._names() == names:  # else all of them were removed meanwhile, for others that came
                break
        return found

    def torn(self) -> list[int]:
        """Steps on a disk that have lost a part without which they do not count; an object store has such by nature."""
        if self.remote:
            return []
        names = self._names()
        steps = [int(name) for name in names if is_step(name)]
        return [step for step in steps if not self._committed(names, step) and self._is_torn(self.folder(step))]

    def _is_torn(self, folder: str) -> bool:
        names = {*(location(folder).names() or ())}  # looked at once: it may be replaced meanwhile
        return bool(names) and names <= {NAME, MARKER, *DATA.values()} and not {NAME, MARKER} <= names

    def committed(self, step: int) -> bool:
        """Whether a step is; one that is a link out of the directory is damaged, and not looked into."""
        return self._committed(None, step)

    def _committed(self, names: list[str] | None, step: int) -> bool:
        """The same, where the names in the directory are known; and where it is to be looked for from now on."""
        self._waiting.pop(step, None)
        if self._whole(str(step)):
            return True
        after = None if self.remote else places.find_waiting(self._names() if names is None else names).get(step)
        if after is None or not self._whole(after):
            return False
        self._waiting[step] = after
        return True

    def _whole(self, name: str) -> bool:
        try:
            return {NAME, MARKER} <= {*(location(self.inner(name)).names() or ())}
        except MissingFileError:
            return False
        except FormatError:
            return True

    def names_of(self, folder: str) -> set[str]:
        """The names in a folder of the directory; none of one that is a link out of it, or is gone."""
        try:
            return {*(location(self.inner(folder)).names() or ())}
        except (FormatError, MissingFileError):
            return set()

    def inner(self, *names: str) -> str:
        """The path of what is in the directory, or in a folder of it.

        Raises:
            FormatError: it is a link out of there.
        """
        path = self.path
        for name in names:
            path = inside(path, name)
        return path

    def _names(self) -> list[str]:
        try:
            return location(self.path).names() or []
        except MissingFileError:
            return []

    def seen(self, step: int) -> object | None:
        """What is another thing once a checkpoint is gone, was replaced or has moved; None if there is none."""
        if not self.committed(step):
            return None
        folder = self.folder(step)
        try:
            return folder, _read(self.inner(self.name(step), MARKER))
        except FormatError:
            return folder, None
        except FileError as error:
            return folder, error.errno

    def marker(self, step: int) -> bytes | None:
        """What names a checkpoint of a step among all that were ever saved; None if there is none.

        Raises:
            FileError: it cannot be read.
        """
        try:
            return _read(self.inner(self.name(step), MARKER)) if self.committed(step) else None
        except (MissingFileError, FormatError):
            return None

    def steadily(self, step: int, look: Callable[[], Result]) -> Result:
        """What a function finds out about a checkpoint. What it raises is of a checkpoint that stayed what it was.

        Others write, replace and remove while somebody looks, and half of what was there may be gone by then. That is
        no damage, so it is looked at again.

        Raises:
            GoneError: it was removed.
        """
        try:
            return look()
        except (FormatError, OSError):
            pass
        for _ in range(LOOKS):
            before = self.seen(step)
            if before is None:
                break
            try:
                return look()
            except (FormatError, OSError):
                if self.seen(step) == before:
                    raise
        raise GoneError(errno.ENOENT, f"step {step} was removed meanwhile", str(self))

    def manifest(self, step: int) -> Manifest:
        """What a checkpoint says of itself.

        Raises:
            CorruptFileError: it is damaged.
            FileError: it cannot be read.
        """
        return self.steadily(step, partial(self._manifest, step))

    def _manifest(self, step: int) -> Manifest:
        folder = self.folder(step)
        data, marker = (_read(self.inner(self.name(step), name)) for name in (NAME, MARKER))
        if marker != _marker(data):
            raise CorruptFileError(f"{redact(join(folder, NAME))}: is not as committed; {MARKER} has another digest")
        found = decode(data, redact(join(folder, NAME)))
        if found.step != step:
            raise CorruptFileError(f"{redact(folder)}: its manifest is that of step {found.step}; rename the directory")
        return found

    def brief(self, step: int) -> Manifest:
        """The manifest without its entries; read once as long as the marker stays what it is.

        Raises:
            CorruptFileError: it is damaged.
            FileError: it cannot be read.
        """
        return self.steadily(step, partial(self._brief_of, step))

    def _brief_of(self, step: int) -> Manifest:
        marker = _read(self.inner(self.name(step), MARKER))
        known = self._brief.get(step)
        if known is None or known[0] != marker:
            known = self._brief[step] = marker, replace(self._manifest(step), entries=())
        return known[1]

    def manifests(self) -> tuple[list[Manifest], dict[int, str]]:
        """Those that can be read, without their entries, in the order of their steps; step → why another cannot be."""
        for _ in range(LOOKS):
            found, unread, gone = list[Manifest](), dict[int, str](), False
            for step in self.steps():
                try:
                    found.append(self.brief(step))
                except GoneError:
                    gone = True
                except (FormatError, FileError) as error:
                    unread[step] = str(error)
            if found or not gone:  # else all of them were removed meanwhile, for others that came
                break
        return found, unread

    def data(self, step: int) -> str:
        """The file of a checkpoint's tree.

        Raises:
            FormatError: it is a link out of the directory.
        """
        if not self.remote:
            self.committed(step)  # and where it is
        names = location(self.inner(self.name(step))).names() or ()
        name = next((name for name in DATA.values() if name in names), DATA["safetensors"])
        return self.inner(self.name(step), name)

    def damage(self, step: int, level: str = "full") -> str | None:
        """What is wrong with a checkpoint, in words; None if nothing is.

        Args:
            step: of a committed one.
            level: `"full"` reads all of its bytes, if they were not read before and changed since; `"quick"` its
                manifest, headers and sizes; `"off"` the manifest.

        Raises:
            GoneError: it was removed meanwhile.
        """
        try:
            self.steadily(step, partial(self._check, step, level))
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
            path = self.inner(self.name(step), name)
            if location(path).open().size != size:
                raise CorruptFileError(f"{redact(path)}: has not the {size:,} bytes that were committed")
        signature = self._signature(step, manifest)
        if self._sound.get(step) == signature:
            return
        file = self.data(step)
        if entries(file) != manifest.entries:
            raise CorruptFileError(f"{redact(file)}: is not the file that was committed; its digests are others")
        report = verify(file, quick=level == "quick")
        if report.problems:
            raise CorruptFileError(f"{report.file}: {report.problems[0]}")
        if level == "full":
            self._sound[step] = signature

    def _signature(self, step: int, manifest: Manifest) -> object:
        """What changes when the files of a checkpoint do; of objects nothing that could be asked."""
        if self.remote:
            return manifest.time
        looked = [os.stat(join(self.folder(step), name)) for name in (*manifest.files, NAME, MARKER)]
        return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in looked]

    # what changes it

    def make(self) -> None:
        """Make the directory if it is not there, durably."""
        if self.remote or os.path.isdir(self.path):
            return
        above = os.path.dirname(os.path.abspath(self.path))
        missing = [self.path]
        while not os.path.isdir(above):
            missing.append(above)
            above = os.path.dirname(above)
        try:
            os.makedirs(self.path, exist_ok=True)
            for path in missing:
                atomic.sync_directory(os.path.dirname(os.path.abspath(path)))
        except OSError as error:
            raise file_error(self.path, "cannot make the directory of the run", error) from error

    def commit(
        self,
        root: Any,
        manifest: Manifest,
        format: str,
        *,
        announce: Callable[[bytes], None] = lambda marker: None,
        dry_run: bool = False,
    ) -> Manifest:
        """Write a checkpoint: its file, its manifest, its marker, each durable before the next.

        Args:
            root: a tree of LazyTensors and plain values.
            manifest: what is known of it.
            format: `"safetensors"` or `"torch"`.
            announce: called with the bytes of the marker before it is committed.
            dry_run: take it away again; it was never committed.

        Returns:
            The manifest that was written.

        Raises:
            FileError: the file system refuses; nothing was committed.
            RunError: another process has committed that step meanwhile.
        """
        name, folder = DATA[format], self.folder(manifest.step)
        made: list[Manifest] = []

        def describe(sink: Any) -> None:
            here = folder_of(sink.path) if hasattr(sink, "path") else folder
            file = join(here, name)
            made.append(replace(manifest, files={name: location(file).open().size}, entries=entries(file)))
            put_bytes(_encode(made[0], file), sink)

        def mark() -> bytes:
            marker = _marker(made[0].encoded())
            if not dry_run:
                announce(marker)
            return marker

        files: dict[str, Callable[[Any], None]] = {name: partial(formats.writer(format).write, root), NAME: describe}
        if self.remote:
            self._upload(folder, files, mark, dry_run)
        else:
            files |= {MARKER: lambda sink: put_bytes(mark(), sink)}
            self._replace(manifest.step, files, dry_run)
        self._sound.pop(manifest.step, None)
        self.damaged.discard(manifest.step)
        return made[0]

    def _replace(self, step: int, files: dict[str, Callable[[Any], None]], dry_run: bool) -> None:
        """Write beside a checkpoint of that step, if there is one, and put the new one in its place."""
        folder = join(self.path, str(step))
        try:
            if self._untidy:
                self.clean()
            if not dry_run and os.path.lexists(folder) and not self._replaceable(folder):
                raise RunError(
                    f"{folder}: is no checkpoint of ours and would be replaced; move it away, or name another directory"
                )
            self._untidy = True
            if not dry_run and not os.path.lexists(folder):
                location(folder).publish_folder(files)
                self._untidy = False
                return
            place = places.hidden_name(self.path, step, "new")
            location(place).publish_folder(files)
            left = place if dry_run else places.put_in_place(self.path, step, place)
            if left:
                atomic.discard(left)
            self._untidy = os.path.lexists(left)
        except OSError as error:
            if isinstance(error, FileError):
                raise
            raise file_error(folder, "cannot commit the checkpoint", error) from error

    def _upload(
        self, folder: str, files: dict[str, Callable[[Any], None]], mark: Callable[[], bytes], dry_run: bool
    ) -> None:
        from statedict.io.remote import at

        self.guard()
        _remove_objects(folder, location(folder).names() or [])  # of one that was never committed, or is to be replaced
        try:
            for name, write in files.items():
                location(join(folder, name)).publish(write)
            marker = mark()
            self.guard()
            if not dry_run and at(join(folder, MARKER)).write_if(marker, None) is None:
                raise RunError(f"{redact(folder)}: another process committed this step; is a run there twice?")
        except RunError:
            raise
        except BaseException:
            _remove_objects(folder, [MARKER, *files])  # the answer to the marker may be what is missing
            raise
        if dry_run:
            _remove_objects(folder, [*files])

    def remove(self, step: int) -> None:
        """Take a checkpoint away; from then on it is not committed, whatever happens meanwhile."""
        self._sound.pop(step, None)
        self._brief.pop(step, None)
        self.damaged.discard(step)
        folder = self.folder(step)
        self._waiting.pop(step, None)
        if self.remote:
            self.guard()
            _remove_objects(folder, location(folder).names() or [])
            return
        untidy, self._untidy = self._untidy, True
        try:
            gone = places.put_aside(self.path, step, folder)
            if gone:
                (os.unlink if os.path.islink(gone) else shutil.rmtree)(gone)
        except OSError as error:
            raise file_error(folder, f"cannot remove step {step}", error) from error
        self._untidy = untidy

    def leftovers(self) -> list[str]:
        """What processes that died have left: what is hidden, and objects without a marker; if nobody else writes."""
        names = self._names()
        needed = {name for step, name in places.find_waiting(names).items() if not self._whole(str(step))}
        found = [join(self.path, name) for name in names if places.LEFTOVER.fullmatch(name) and name not in needed]
        begun = [join(self.path, name) for name in names if is_step(name) and not self._whole(name)]
        return found + [one for one in begun if (self._ours(one) if self.remote else self._is_half_removed(one))]

    def _is_half_removed(self, folder: str) -> bool:
        return places.is_half_removed(location(folder).names())

    def _ours(self, folder: str) -> bool:
        """Whether nothing is in a folder but what a checkpoint is made of."""
        names = location(folder).names()
        return names is not None and {*names} <= {NAME, MARKER, *DATA.values()}

    def _replaceable(self, folder: str) -> bool:
        """Whether a folder on a disk is empty, or what we wrote is all that is in it; data alone may be anybody's."""
        names = {*(location(folder).names() or ())}
        return self._ours(folder) and (not names or bool(names & {NAME, MARKER}))

    def clean(self) -> list[str]:
        """Remove the leftovers; only who holds the lock may."""
        if not self.remote:
            try:
                places.finish(self.path, self._names())
            except OSError as error:
                raise file_error(self.path, "cannot tidy up after a process that has died", error) from error
            self._waiting.clear()
        found = self.leftovers()
        if found and not self.remote:
            atomic.sync_directory(self.path)  # else the names of what goes could come back, and its files not
        for path in found:
            if self.remote:
                _remove_objects(path, location(path).names() or [])
            else:
                atomic.discard(path)
        self._untidy = not self.remote and any(map(os.path.lexists, found))
        return found

    # pins

    def pins(self) -> set[int]:
        """The steps that are never pruned.

        Raises:
            CorruptFileError: their file is damaged.
        """
        name = join(self.path, PINS)
        try:
            pinned = parse(_read(self.inner(PINS)), redact(name))["pinned"]
            if type(pinned) is not list:
                raise TypeError(f"a {type(pinned).__name__}")
            return {parse_whole(step) for step in pinned}
        except MissingFileError:
            return set()
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"{redact(name)}: is no list of pinned steps; remove it and pin again") from error

    def pin(self, steps: set[int]) -> None:
        """Write down the steps that are never pruned."""
        data = (json.dumps({"pinned": sorted(steps)}) + "\n").encode()
        location(join(self.path, PINS)).publish(lambda sink: put_bytes(data, sink))


def entries(file: str) -> tuple[Entry, ...]:
    """The tensors of a file with the digests in it; only its index is read.

    Raises:
        CorruptFileError: it is damaged.
    """
    return tuple(_entries(file))


def _entries(file: str) -> Iterator[Entry]:
    _, found = formats.checks(open_file(file))
    for item in found:
        if isinstance(item, Problem):
            raise CorruptFileError(f"{redact(file)}: {item}")
        if isinstance(item, Check):
            for path, tensor in item.tensors:
                yield Entry(path, tensor.dtype.name, tuple(tensor.shape), item.digest or "")


def _encode(manifest: Manifest, file: str) -> bytes:
    """The bytes of a manifest, if they say the same when they are read.

    Raises:
        UnsupportedError: JSON joins two halves of a surrogate pair, and a name with the halves is another one.
    """
    data = manifest.encoded()
    if b"\\ud" in data:  # otherwise every name is as it was
        for before, after in zip(manifest.entries, decode(data, redact(file)).entries, strict=True):
            if before != after:
                raise UnsupportedError(
                    f"{before.path!r:.80}: holds the two halves of a surrogate pair, which a manifest would join; "
                    "rename it"
                )
    return data


def is_step(name: str) -> bool:
    """Whether that is what the folder of a step is called."""
    return name.isdecimal() and str(int(name)) == name


def _read(name: str) -> bytes:
    return read_document(location(name).open())


def _marker(manifest: bytes) -> bytes:
    from xxhash import xxh3_128_hexdigest

    return f"xxh3_128 {xxh3_128_hexdigest(manifest)}\n".encode()


def _remove_objects(folder: str, names: Iterable[str]) -> None:
    """Remove them, the marker first: from then on they are no checkpoint."""
    from statedict.io.remote import at

    for name in sorted(names, key=lambda name: name != MARKER):
        try:
            at(join(folder, name)).delete()
        except MissingFileError:
            pass
