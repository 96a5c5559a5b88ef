"""A pause of Python's garbage collector while many objects are made that all stay.

It would scan all of them again for each new thousand: at 100,000 tensors that is half of the time.
"""

from __future__ import annotations

import gc


class Paused:
    """A context in which the collector is off; afterwards it is as before.

    >>> import gc
    >>> with Paused():
    ...     gc.isenabled()
    False
    """

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *error: object) -> None:
        if self._was_on:
            gc.enable()
