"""What is tried again: errors that may pass, with pauses that grow."""

from __future__ import annotations

import errno
import time

from statedict.runs.background import LOG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Result = TypeVar("Result")

_TRANSIENT = {errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.ECONNRESET}
_TRANSIENT |= {errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH}
_PAUSE = 0.5  # seconds before the first retry; each pause is four times the one before


def tried(work: Callable[[], Result], retries: int, what: str) -> Result:
    """What a function returns; after an error that may pass it is called again.

    Args:
        work: leaves nothing behind that would keep it from being called again.
        retries: how often it is called again.
        what: could not be done, for the log.

    Raises:
        OSError: the error did not pass, or is of another kind.
    """
    pause = _PAUSE
    while True:
        try:
            return work()
        except OSError as error:
            if not retries or error.errno not in _TRANSIENT:
                raise
            LOG.warning("%s, which is tried again: %s", what, error)
        time.sleep(pause)
        retries, pause = retries - 1, pause * 4
