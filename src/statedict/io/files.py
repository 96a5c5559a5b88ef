"""Files and folders by their names, on this machine or behind a URL: open, list, publish."""

from __future__ import annotations

import os
from stat import S_ISDIR

from statedict.errors import MissingFileError, file_error
from statedict.io import atomic
from statedict.io.source import FileSource
from statedict.io.urls import Item, is_url, joined

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor
    from typing import Any

    from statedict.io.remote import RemoteSource

    Write = Callable[[Any], None]


def open_source(name: str) -> FileSource | RemoteSource:
    """A file, opened.

    Raises:
        FileError: it is missing, or cannot be read.
        MissingExtraError: what a URL takes is not installed.
    """
    if not is_url(name):
        return FileSource(name)
    from statedict.io.remote import open_url

    return open_url(name)


def names_in(folder: str) -> list[str] | None:
    """The names in a folder, sorted; None for what is none, or does not tell.

    Raises:
        FileError: it cannot be listed.
    """
    if is_url(folder):
        from statedict.io.remote import at

        return at(folder).names() or None
    if not os.path.isdir(folder):
        return None
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):  # gone meanwhile
        return None
    except OSError as error:
        raise file_error(folder, "cannot list", error) from error


def contents(folder: str) -> dict[str, Item] | None:
    """As `names_in`, in the same order, with what is known of each; links lead to what they name.

    Raises:
        FileError: it cannot be listed.
    """
    if is_url(folder):
        from statedict.io.remote import at

        return at(folder).contents() or None
    found = {}
    for name in names_in(folder) or ():
        try:
            one = os.stat(os.path.join(folder, name))
        except OSError:  # gone meanwhile, or a link to nothing
            continue
        found[name] = Item(one.st_size, one.st_mtime, S_ISDIR(one.st_mode))
    return found or None


def exists(name: str) -> bool:
    """Whether there is such a file, or something else of that name."""
    if not is_url(name):
        return os.path.exists(name)
    from statedict.io.remote import at

    return at(name).exists()


def size_of(name: str) -> int:
    """Bytes of a file, or of the files directly in a folder.

    Raises:
        FileError: it is missing, or cannot be read.
    """
    if is_url(name):
        from statedict.io.remote import at

        try:
            return at(name).size()
        except MissingFileError:
            inside = [at(joined(name, one)) for one in names_in(name) or ()]
            return sum(one.size() for one in inside if one.exists())
    try:
        if not os.path.isdir(name):
            return os.path.getsize(name)
        with os.scandir(name) as found:
            return sum(item.stat().st_size for item in found if item.is_file())
    except OSError as error:
        raise file_error(name, "cannot open", error) from error


def publish(
    name: str, write: Write, *, overwrite: bool = True, fsync: bool = True, executor: Executor | None = None
) -> None:
    """Make a file whole or not at all: see `atomic.publish` and `remote.publish`."""
    if not is_url(name):
        atomic.publish(name, write, overwrite=overwrite, fsync=fsync, executor=executor)
        return
    from statedict.io import remote

    remote.publish(name, write, overwrite=overwrite)


def publish_folder(
    name: str,
    files: Mapping[str, Write],
    *,
    overwrite: bool = True,
    fsync: bool = True,
    executor: Executor | None = None,
    nbytes: int = 0,
) -> None:
    """Make the files of a folder, the last one last: see `atomic.publish_folder` and `remote.publish_folder`."""
    if not is_url(name):
        atomic.publish_folder(name, files, overwrite=overwrite, fsync=fsync, executor=executor, nbytes=nbytes)
        return
    from statedict.io import remote

    remote.publish_folder(name, files, overwrite=overwrite, executor=executor)
