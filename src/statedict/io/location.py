"""Where a file or folder is, on disk or in a store: open, list, publish. Who has a Location never asks which."""

from __future__ import annotations

import os
from stat import S_ISDIR

from statedict.errors import MissingFileError, file_error
from statedict.io import atomic
from statedict.io.parallel import REMOTE_WORKERS, parallel
from statedict.io.source import FileSource
from statedict.io.urls import Item, is_url, join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Executor
    from typing import Any

    from statedict.io.remote import Remote, RemoteSource

    Write = Callable[[Any], None]


def location(name: str) -> Location:
    """The location of a name, as `urls.to_name` gives it.

    >>> "checkpoint.pth" in location("examples").names()
    True
    """
    return _Stored(name) if is_url(name) else Location(name)


class Location:
    """A file or folder on this machine.

    Attributes:
        name: its path, or its URL.
        workers: how many requests at a time are worth it.
    """

    __slots__ = ("name",)

    workers = 1

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self) -> FileSource | RemoteSource:
        """The file, opened.

        Raises:
            FileError: it is missing, or cannot be read.
            MissingExtraError: what a URL takes is not installed.
        """
        return FileSource(self.name)

    def is_folder(self) -> bool:
        """Whether it is a folder, as far as that is known without asking a server."""
        return os.path.isdir(self.name)

    def names(self) -> list[str] | None:
        """The names in the folder, sorted; None for what is none, or does not tell.

        Raises:
            FileError: it cannot be listed.
        """
        if not os.path.isdir(self.name):
            return None
        try:
            return sorted(os.listdir(self.name))
        except (FileNotFoundError, NotADirectoryError):  # gone meanwhile
            return None
        except OSError as error:
            raise file_error(self.name, "cannot list", error) from error

    def names_with(self, wanted: Iterable[str]) -> list[str] | None:
        """As `names`; those that are wanted and there, where a server does not list."""
        return self.names()

    def contents(self) -> dict[str, Item] | None:
        """As `names`, in the same order, with what is known of each; links lead to what they name.

        Raises:
            FileError: it cannot be listed.
        """
        found = {}
        for name in self.names() or ():
            try:
                one = os.stat(os.path.join(self.name, name))
            except OSError:  # gone meanwhile, or a link to nothing
                continue
            found[name] = Item(one.st_size, one.st_mtime, S_ISDIR(one.st_mode))
        return found or None

    def exists(self) -> bool:
        """Whether there is such a file, or something else of that name."""
        return os.path.exists(self.name)

    def size(self) -> int:
        """Bytes of the file, or of the files directly in the folder.

        Raises:
            FileError: it is missing, or cannot be read.
        """
        try:
            if not os.path.isdir(self.name):
                return os.path.getsize(self.name)
            with os.scandir(self.name) as found:
                return sum(item.stat().st_size for item in found if item.is_file())
        except OSError as error:
            raise file_error(self.name, "cannot open", error) from error

    def real_paths(self, file: str) -> tuple[str, str]:
        """The folder, and a file in it, without symbolic links: where what is opened really is."""
        root = os.path.realpath(self.name or os.curdir)
        return root, os.path.realpath(os.path.join(root, file))

    def make_folder_above(self) -> None:
        """Make the folder that it lies in, and those above, where there are folders.

        Raises:
            FileError: the file system refuses.
        """
        folder = os.path.dirname(self.name)
        try:
            os.makedirs(folder or os.curdir, exist_ok=True)
        except OSError as error:
            raise file_error(folder, "cannot make the directory", error) from error

    def remove(self) -> None:
        """Remove the file, or the folder with all that is in it.

        Raises:
            OSError: there is none, or the file system or the server refuses.
        """
        if os.path.isdir(self.name):
            import shutil

            shutil.rmtree(self.name)
        else:
            os.remove(self.name)

    def publish(
        self, write: Write, *, overwrite: bool = True, fsync: bool = True, executor: Executor | None = None
    ) -> None:
        """Make the file whole or not at all: see `atomic.publish` and `remote.publish`."""
        atomic.publish(self.name, write, overwrite=overwrite, fsync=fsync, executor=executor)

    def publish_folder(
        self,
        files: Mapping[str, Write],
        *,
        overwrite: bool = True,
        fsync: bool = True,
        executor: Executor | None = None,
        nbytes: int = 0,
    ) -> None:
        """Make the files of the folder, the last one last: see `atomic.publish_folder` and `remote.publish_folder`."""
        atomic.publish_folder(self.name, files, overwrite=overwrite, fsync=fsync, executor=executor, nbytes=nbytes)


class _Stored(Location):
    """A file or folder behind a URL."""

    __slots__ = ()

    workers = REMOTE_WORKERS

    def _remote(self) -> Remote:
        from statedict.io.remote import at

        return at(self.name)

    def open(self) -> FileSource | RemoteSource:
        from statedict.io.remote import open_url

        return open_url(self.name)

    def is_folder(self) -> bool:
        return self.name.endswith("/")

    def names(self) -> list[str] | None:
        return self._remote().names() or None

    def names_with(self, wanted: Iterable[str]) -> list[str] | None:
        names = self.names()
        if names is None and self.name.startswith("http") and self.is_folder():  # a plain server does not list
            every = list(wanted)
            there = parallel(_exists, (join(self.name, name) for name in every), workers=self.workers)
            names = [name for name, found in zip(every, there, strict=True) if found]
        return names

    def contents(self) -> dict[str, Item] | None:
        return self._remote().contents() or None

    def exists(self) -> bool:
        return self._remote().exists()

    def size(self) -> int:
        try:
            return self._remote().size()
        except MissingFileError:
            inside = [location(join(self.name, name)) for name in self.names() or ()]
            return sum(one.size() for one in inside if one.exists())

    def real_paths(self, file: str) -> tuple[str, str]:
        return self.name, join(self.name, file)

    def make_folder_above(self) -> None:
        pass

    def remove(self) -> None:
        self._remote().delete()

    def publish(
        self, write: Write, *, overwrite: bool = True, fsync: bool = True, executor: Executor | None = None
    ) -> None:
        from statedict.io import remote

        remote.publish(self.name, write, overwrite=overwrite)

    def publish_folder(
        self,
        files: Mapping[str, Write],
        *,
        overwrite: bool = True,
        fsync: bool = True,
        executor: Executor | None = None,
        nbytes: int = 0,
    ) -> None:
        from statedict.io import remote

        remote.publish_folder(self.name, files, overwrite=overwrite, executor=executor)


def _exists(url: str) -> bool:
    return location(url).exists()
