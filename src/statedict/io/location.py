"""Where a file or folder is, on disk or in a store: open, list, publish. Code that has a Location never asks which."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from statedict.errors import ExistingFileError, FileError, MissingFileError
from statedict.io import disk
from statedict.io.disk import UNCHANGED, Descriptor, check_space, file_errors
from statedict.io.parallel import REMOTE_WORKERS, check_spawned, parallel
from statedict.io.pipeline import FileSink, StreamSink
from statedict.io.source import FileSource
from statedict.io.urls import Item, is_url, join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Executor
    from typing import Any

    from statedict.io.remote import Remote, RemoteSource

    Write = Callable[[Any], object]


def location(name: str) -> Location:
    """The location of a name, as `urls.to_name` gives it.

    >>> "checkpoint.pth" in location("examples").names()
    True
    """
    return _Stored(name) if is_url(name) else Location(name)


class Location:
    """A file or folder on this machine."""

    __slots__ = ("name",)

    workers = 1  # requests at a time that are worth it
    has_folders = True  # to make, rename and lock; a store has objects only

    def __init__(self, name: str) -> None:
        self.name = name

    def absolute(self) -> str:
        """The name, whatever the current directory is."""
        return os.path.abspath(self.name)

    def open(self) -> FileSource | RemoteSource:
        """Open the file."""
        return FileSource(self.name)

    def is_folder(self) -> bool:
        """Whether it is a folder, as far as that is known without asking a server."""
        return os.path.isdir(self.name)

    def names(self) -> list[str] | None:
        """The names in the folder, sorted; None if it is not a folder, or the server does not list."""
        if not os.path.isdir(self.name):
            return None
        with file_errors(self.name, "cannot list"):
            try:
                return sorted(os.listdir(self.name))
            except (FileNotFoundError, NotADirectoryError):  # gone meanwhile
                return None

    def names_with(self, wanted: Iterable[str]) -> list[str] | None:
        """As `names`; from a server that does not list, those of the wanted ones that exist."""
        return self.names()

    def contents(self) -> dict[str, Item] | None:
        """As `names`, with what is known of each; links lead to what they name."""
        items = {}
        for name in self.names() or ():
            try:
                status = os.stat(os.path.join(self.name, name))
            except OSError:  # gone meanwhile, or a link to nothing
                continue
            items[name] = Item(status.st_size, status.st_mtime, stat.S_ISDIR(status.st_mode))
        return items or None

    def exists(self) -> bool:
        """Whether there is a file, or anything else, of that name."""
        return os.path.exists(self.name)

    def size(self) -> int:
        """Bytes of the file, or of the files in the folder and those in it; of a store only of those directly there."""
        with file_errors(self.name, "cannot open"):
            if not os.path.isdir(self.name):
                return os.path.getsize(self.name)
            return sum(
                os.path.getsize(path)
                for folder, folders, names in os.walk(self.name)
                for path in _paths_shown(folder, folders, names)
            )

    def real_paths(self, file: str) -> tuple[str, str]:
        """The folder and a file in it without symbolic links."""
        root = os.path.realpath(self.name or os.curdir)
        return root, os.path.realpath(os.path.join(root, file))

    def make_folder_above(self) -> None:
        """Make the folder that it lies in, and those above, where there are folders."""
        folder = os.path.dirname(self.name)
        with file_errors(folder, "cannot make the directory"):
            os.makedirs(folder or os.curdir, exist_ok=True)

    def remove(self) -> None:
        """Remove the file, or the folder with all that is in it."""
        if os.path.isdir(self.name):
            import shutil

            shutil.rmtree(self.name)
        else:
            os.remove(self.name)

    def publish(
        self, write: Write, *, overwrite: bool = True, fsync: bool = True, executor: Executor | None = None
    ) -> None:
        """Write the file whole or not at all; whatever `write` raises leaves the target as it was.

        On disk: a temporary file `.NAME.XXXXXXXX.tmp` in the same directory, fsync, rename over the target, fsync of
        the directory. A symbolic link is followed. In a store: an upload, which appears when it is complete. Without
        `overwrite` an existing target is an error, also one that appears meanwhile.
        """
        path = os.path.realpath(self.name)
        mode = _mode_to_keep(path, overwrite)
        directory, name = os.path.split(path)
        temporary = os.path.join(directory, _temporary(name))
        with file_errors(path, UNCHANGED):
            try:  # from here on, for an interrupt may come between any two lines
                with file_errors(path, f"cannot write into {directory or os.curdir}"):
                    file = Descriptor(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
                try:
                    write(FileSink(file, temporary, executor, fsync))
                    if mode is not None:
                        os.fchmod(file.fileno(), mode)
                    if fsync:
                        os.fsync(file.fileno())
                finally:
                    file.close()
                if overwrite:
                    os.replace(temporary, path)
                else:
                    os.link(temporary, path)  # unlike rename it refuses to replace
                    os.unlink(temporary)
            except BaseException as error:
                disk.discard(temporary)
                if isinstance(error, FileExistsError):
                    raise _exists_error(path) from error
                raise
        if fsync:
            disk.sync_directory(directory)

    def publish_folder(
        self,
        files: Mapping[str, Write],
        stale: Iterable[str] = (),
        *,
        overwrite: bool = True,
        fsync: bool = True,
        executor: Executor | None = None,
        nbytes: int = 0,
    ) -> None:
        """Write several files, of `nbytes` in all, into the folder; the last one should name the others.

        On disk: a new folder appears whole or not at all. In one that exists all files are written beside their
        places first and then renamed, the last one last; other files stay. In a store: if one upload fails, objects
        that are new are deleted again. A last one that exists is deleted before the others are replaced, so that it
        never names both old and new ones. At the end the `stale` files are removed.
        """
        folder = os.path.realpath(self.name)
        above, name = os.path.split(folder)
        new = not os.path.lexists(folder)
        if not new and not os.path.isdir(folder):
            raise FileError(f"{folder}: is a file; name a folder to write shards into")
        for file in () if overwrite else files:
            if os.path.lexists(os.path.join(folder, file)):
                raise _exists_error(os.path.join(folder, file))
        place = os.path.join(above, _temporary(name)) if new else folder
        written: dict[str, str] = {}
        with file_errors(folder, UNCHANGED):
            try:
                if new:
                    os.mkdir(place)
                check_space(place, nbytes)
                for file, write in files.items():
                    inner, last = os.path.split(file)
                    written[file] = os.path.join(place, inner, last if new else _temporary(last))
                    os.makedirs(os.path.dirname(written[file]), exist_ok=True)
                    Location(written[file]).publish(write, fsync=fsync, executor=executor)
                if new:
                    os.rename(place, folder)
                else:
                    for file, path in written.items():
                        os.replace(path, os.path.join(folder, file))
                    for file in stale:
                        disk.discard(os.path.join(folder, file))
            except BaseException:
                for path in [place] if new else written.values():
                    disk.discard(path)
                raise
        if fsync:
            disk.sync_directory(above if new else folder)


class _Stored(Location):
    __slots__ = ()

    workers = REMOTE_WORKERS
    has_folders = False

    @property
    def _remote(self) -> Remote:
        from statedict.io.remote import connect

        return connect(self.name)

    def absolute(self) -> str:
        return self.name

    def open(self) -> FileSource | RemoteSource:
        from statedict.io.remote import open_url

        return open_url(self.name)

    def is_folder(self) -> bool:
        return self.name.endswith("/")

    def names(self) -> list[str] | None:
        return sorted(self.contents() or ()) or None

    def names_with(self, wanted: Iterable[str]) -> list[str] | None:
        names = self.names()
        if names is None and self.name.startswith("http") and self.is_folder():  # a plain server does not list
            urls = {join(self.name, name): name for name in wanted}
            names = [urls[url] for url in _find_existing(urls)]
        return names

    def contents(self) -> dict[str, Item] | None:
        return self._remote.contents() or None

    def exists(self) -> bool:
        return self._remote.exists()

    def size(self) -> int:
        try:
            return self._remote.size()
        except MissingFileError:
            inside = _find_existing(join(self.name, name) for name in self.names() or ())
            return sum(location(url).size() for url in inside)

    def real_paths(self, file: str) -> tuple[str, str]:
        return self.name, join(self.name, file)

    def make_folder_above(self) -> None:
        pass

    def remove(self) -> None:
        self._remote.delete()

    def publish(self, write: Write, *, overwrite: bool = True, **_: Any) -> None:
        from statedict.io.remote import Upload

        remote = self._remote
        if not overwrite and remote.exists():
            raise _exists_error(remote.name)
        with Upload(remote) as upload:
            write(StreamSink(upload.write, upload.expect))

    def publish_folder(
        self,
        files: Mapping[str, Write],
        stale: Iterable[str] = (),
        *,
        overwrite: bool = True,
        executor: Executor | None = None,
        **_: Any,
    ) -> None:
        if executor is not None:
            check_spawned(executor)
        targets = {join(self.name, name): write for name, write in files.items()}
        existing = _find_existing(targets)
        if existing and not overwrite:
            raise _exists_error(min(existing))
        *first, last = targets.items()
        try:
            if first and last[0] in existing:
                location(last[0]).remove()
            list(parallel(_upload, first, executor, workers=1))
            _upload(last)
        except BaseException:
            for url in targets:
                if url not in existing:
                    with suppress(FileError):
                        location(url).remove()
            raise
        for name in stale:
            location(join(self.name, name)).remove()


def _paths_shown(folder: str, folders: list[str], names: list[str]) -> list[str]:
    """The files among names in a folder; `os.walk` does not enter hidden folders, such as that of git, afterwards."""
    folders[:] = [name for name in folders if not name.startswith(".")]
    return [path for name in names if os.path.isfile(path := os.path.join(folder, name))]


def _find_existing(urls: Iterable[str]) -> list[str]:
    urls = list(urls)
    exist = parallel(lambda url: location(url).exists(), urls, workers=REMOTE_WORKERS)
    return [url for url, exists in zip(urls, exist, strict=True) if exists]


def _upload(target: tuple[str, Write]) -> None:
    location(target[0]).publish(target[1])


def _mode_to_keep(path: str, overwrite: bool) -> int | None:
    """The permissions of the file that a new one replaces; None if there is none."""
    with file_errors(path, "cannot write"):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return None
    if not stat.S_ISREG(mode):
        raise FileError(f"{path}: is not a regular file; name a file to write to")
    if not overwrite:
        raise _exists_error(path)
    return stat.S_IMODE(mode)


def _temporary(name: str) -> str:
    return f".{name[:200]}.{os.urandom(4).hex()}.tmp"


def _exists_error(name: str) -> FileError:
    return ExistingFileError(f"{name}: exists and overwrite is off; choose another name or allow overwriting")
