"""Publish a file whole or not at all.

The order is: a temporary file in the same directory, its bytes, fsync, rename over the target, fsync of the
directory. A reader sees the old file or the new one; after a crash the directory holds one of the two, and at
worst a temporary named `.NAME.XXXXXXXX.tmp`.
"""

from __future__ import annotations

import errno
import os
import stat

from statedict.errors import ExistingFileError, FileError, file_error
from statedict.io.descriptor import Descriptor
from statedict.io.sink import FileSink
from statedict.io.space import check_folder_space

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    Write = Callable[[FileSink], None]

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_HERE = -100  # AT_FDCWD


def publish(
    path: str, write: Write, *, overwrite: bool = True, fsync: bool = True, executor: Executor | None = None
) -> None:
    """Call `write(sink)` on a temporary file and put it at `path` when it returns.

    Args:
        path: the target. A symbolic link is followed: the file that it names is replaced.
        write: fills the file; whatever it raises leaves the target as it was.
        overwrite: if false, an existing target is an error, also one that appears meanwhile.
        fsync: wait until the bytes and the name are on the disk.
        executor: what the sink gives its work to.

    Raises:
        FileError: the target exists, is not a regular file, or the file system refuses.
    """
    path = os.path.realpath(path)
    directory, name = os.path.split(path)
    mode: int | None = None
    try:
        status = os.stat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise file_error(path, "cannot write", error) from error
    else:
        if not stat.S_ISREG(status.st_mode):
            raise FileError(f"{path}: is not a regular file; name a file to write to")
        if not overwrite:
            raise _exists(path)
        mode = stat.S_IMODE(status.st_mode)
    temporary = os.path.join(directory, f".{name[:200]}.{os.urandom(4).hex()}.tmp")
    try:  # from here on, for an interrupt may come between any two lines
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            file = Descriptor(os.open(temporary, flags, 0o666))
        except OSError as error:
            raise file_error(path, f"cannot write into {directory or os.curdir}", error) from error
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
        _remove(temporary, os.unlink)
        if isinstance(error, FileExistsError):
            raise _exists(path) from error
        if isinstance(error, OSError) and not isinstance(error, FileError):
            raise file_error(path, "cannot write (what was there is unchanged)", error) from error
        raise
    if fsync:
        sync_directory(directory)


def publish_folder(
    folder: str,
    files: Mapping[str, Write],
    *,
    overwrite: bool = True,
    fsync: bool = True,
    executor: Executor | None = None,
    nbytes: int = 0,
) -> None:
    """Write several files into a folder.

    A folder that is not there yet appears whole or not at all. In one that is there all files are written beside their
    places first; then they are put there one after the other, the last one last, and what else is in it stays. So the
    last file should be the one that names the others.

    Args:
        folder: the target.
        files: name → what fills the file.
        overwrite: if false, a file that exists is an error.
        fsync: wait until the bytes and the names are on the disk.
        executor: what the sinks give their work to.
        nbytes: how many bytes all of them will have, roughly; the disk is looked at before the first one.

    Raises:
        FileError: a file exists, the folder is a file, or the file system refuses.
    """
    folder = os.path.realpath(folder)
    above, name = os.path.split(folder)
    new = not os.path.lexists(folder)
    if not new and not os.path.isdir(folder):
        raise FileError(f"{folder}: is a file; name a folder to write shards into")
    for file in () if overwrite else files:
        if os.path.lexists(os.path.join(folder, file)):
            raise _exists(os.path.join(folder, file))
    place = os.path.join(above, f".{name[:200]}.{os.urandom(4).hex()}.tmp") if new else folder
    written: dict[str, str] = {}
    try:
        if new:
            os.mkdir(place)
        check_folder_space(place, nbytes)
        for file, write in files.items():
            beside = file if new else f".{file[:200]}.{os.urandom(4).hex()}.tmp"
            written[file] = os.path.join(place, beside)
            publish(written[file], write, fsync=fsync, executor=executor)
        if new:
            os.rename(place, folder)
        else:
            for file, path in written.items():
                os.replace(path, os.path.join(folder, file))
    except BaseException as error:
        for path in written.values():
            _remove(path, os.unlink)
        if new:
            _remove(place, os.rmdir)
        if isinstance(error, OSError) and not isinstance(error, FileError):
            raise file_error(folder, "cannot write (what was there is unchanged)", error) from error
        raise
    if fsync:
        sync_directory(above if new else folder)


def _remove(path: str, remove: Callable[[str], None]) -> None:
    try:
        remove(path)
    except OSError:
        pass


def sync_directory(directory: str) -> None:
    """Make the names in a directory durable.

    Raises:
        FileError: the file system refuses.
    """
    try:
        fd = os.open(directory, os.O_RDONLY)
    except OSError:  # a system that cannot open directories has nothing to sync
        return
    try:
        os.fsync(fd)
    except OSError as error:
        raise file_error(directory, "cannot make the names in it durable", error) from error
    finally:
        os.close(fd)


def exchange(one: str, other: str) -> bool:
    """Let each of two names be what the other was, in one step; a crash leaves both as they were, or both exchanged.

    Linux: renameat2(2) with RENAME_EXCHANGE. macOS: renamex_np(2) with RENAME_SWAP.

    Returns:
        Whether that was done; False where the system or the file system cannot, as overlayfs cannot with folders of
        its lower layers.

    Raises:
        OSError: the file system refuses.
    """
    import ctypes

    try:
        library = ctypes.CDLL(None, use_errno=True)
        if hasattr(library, "renameat2"):
            failed = library.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), ctypes.c_uint(_EXCHANGE))
        else:
            failed = library.renamex_np(os.fsencode(one), os.fsencode(other), ctypes.c_uint(_EXCHANGE))
    except (AttributeError, OSError, TypeError):  # neither is there
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(number, os.strerror(number), one)


def discard(path: str) -> None:
    """Remove a file or a folder as far as that is possible."""
    if not os.path.isdir(path) or os.path.islink(path):
        _remove(path, os.unlink)
        return
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _exists(path: str) -> FileError:
    return ExistingFileError(f"{path}: exists and overwrite is off; choose another name or allow overwriting")
