"""Progress of a command for people: bytes, rate and time left, once it has taken a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import click

from statedict.io.progress import Meter
from statedict.values import human_bytes

_AFTER = 1.0  # seconds
_EVERY = 0.1


@contextmanager
def progress(doing: str) -> Iterator[None]:
    """Show the progress of the work within, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    over = Event()
    with Meter() as meter:
        thread = Thread(target=_show, args=(meter, doing, over), name="statedict-progress", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # no more threads: show nothing
            pass
        try:
            yield
        finally:
            over.set()
            if thread.ident is not None:
                thread.join()


def _show(meter: Meter, doing: str, over: Event) -> None:
    began = time.monotonic()
    if over.wait(_AFTER):
        return

    def describe(_: object) -> str:
        rate = meter.done / (time.monotonic() - began)
        ahead = max(meter.total - meter.done, 0)
        left = f"{ahead / rate:,.0f} s left" if ahead and rate else "waiting for the disk"
        return f"{human_bytes(meter.done)} of {human_bytes(meter.total)}, {human_bytes(int(rate))}/s, {left}"

    with click.progressbar(length=1, label=doing, file=sys.stderr, show_eta=False, item_show_func=describe) as bar:
        while True:
            finished = over.wait(_EVERY)
            bar.length = max(meter.total, 1)
            bar.update(min(meter.done, bar.length) - bar.pos, meter)
            if finished:
                return
