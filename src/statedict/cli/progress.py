"""How far a command has come, for people: bytes, rate and time left, once it has taken a second."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from threading import Event, Thread

from statedict.io.progress import Meter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_AFTER = 1.0  # seconds
_EVERY = 0.1


@contextmanager
def progress(doing: str) -> Iterator[None]:
    """Show how far the work within has come, on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    over = Event()
    with Meter() as meter:
        thread = Thread(target=_show, args=(meter, doing, over), name="statedict-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _show(meter: Meter, doing: str, over: Event) -> None:
    if over.wait(_AFTER):
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(doing, total=None)
        while not over.wait(_EVERY):
            full = 0 < meter.total <= meter.done
            shown.update(
                task,
                completed=min(meter.done, meter.total),
                total=meter.total or None,
                description="waiting for the disk" if full else doing,
            )
