"""Whether there is room on a disk."""

from __future__ import annotations

import errno
import os


def check_space(fd: int, nbytes: int) -> None:
    """Whether so many bytes fit on the disk of an open file.

    The file that it will replace stays until then, so its bytes do not count.

    Raises:
        OSError: they do not; the message says how much is missing.
    """
    _check(os.fstatvfs(fd), nbytes)


def check_folder_space(folder: str, nbytes: int) -> None:
    """The same for the disk of a folder."""
    _check(os.statvfs(folder), nbytes)


def _check(found: os.statvfs_result, nbytes: int) -> None:
    free = found.f_bavail * found.f_frsize
    if nbytes > free:
        raise OSError(
            errno.ENOSPC,
            f"needs {nbytes:,} bytes and the disk has {free:,} free; make room for {nbytes - free:,} more, or name "
            "another disk",
        )
