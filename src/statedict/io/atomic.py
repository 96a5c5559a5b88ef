"""Steps on names that a crash cannot leave half-done."""

from __future__ import annotations

import errno
import os

from statedict.errors import file_error

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_HERE = -100  # AT_FDCWD


def sync_directory(directory: str) -> None:
    """Make the names in a directory durable."""
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
    """Exchange two names in one step; a crash leaves both as they were, or both exchanged.

    Linux: renameat2(2) with RENAME_EXCHANGE. macOS: renamex_np(2) with RENAME_SWAP. False if the system or the file
    system cannot; overlayfs cannot with folders of its lower layers.
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
    """Remove a file or a folder as far as possible."""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil

        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        os.unlink(path)
    except OSError:
        pass
