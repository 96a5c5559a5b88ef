"""Readers beside a process that saves, replaces and prunes as fast as it can: none of them may say a wrong word.

What a reader finds gone by the time it looks is gone, not damaged; who asks for the newest is given one that is there.
"""

from __future__ import annotations

import itertools
import os
import signal
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy

from faults.calls import apart, scratch
from faults.shim import Shim
from faults.work import MODES, FaultError, Manager, Mode, tree
from statedict import report, runs
from statedict.reports.runs import COMMITTED, UNFINISHED
from statedict.runs.look.listing import listing

ROUNDS = 25


def try_out(verb: Callable[[Path], None], mode: Mode) -> str:
    """Let a verb look at a run that goes on, again and again; how many rounds.

    Raises:
        FaultError: it said a wrong word.
    """
    return str(apart(partial(_beside, verb, mode)))


def _beside(verb: Callable[[Path], None], mode: Mode) -> str:
    with scratch() as folder:
        with Manager(folder, format=mode.format, background=False) as manager:
            for step in (1, 2):
                manager.save(step, tree(step), {"loss": 1 / step})
        Shim().exchanges(mode.exchange)
        writer = os.fork()
        if not writer:
            try:
                _train(folder, mode)
            finally:
                os._exit(1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for _ in range(ROUNDS):
                    verb(folder)
            if os.waitpid(writer, os.WNOHANG) != (0, 0):
                raise FaultError("the writer has ended")
        finally:
            os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        manager = Manager(folder, keep=2, existing="continue", format=mode.format, background=False)
        manager.save(1 << 40, tree(1))
        manager.close()
    return f"{ROUNDS} rounds"


def _train(folder: Path, mode: Mode) -> None:
    """Save as fast as it goes; every third step twice, the second time over the first."""
    warnings.simplefilter("ignore")
    with Manager(folder, keep=2, existing="continue", format=mode.format, background=mode.background) as manager:
        for step in itertools.count(3):
            manager.save(step, tree(step), {"loss": 1 / step})
            if step % 3 == 0:
                manager.wait()
                manager.save(step, tree(step), {"loss": 1 / step}, overwrite=True, force=True)


def _verify(folder: Path) -> None:
    found = runs.verify_run(folder)
    if not found.ok:
        raise FaultError(f"verify: {found}")


def _latest(folder: Path) -> None:
    if Manager(folder).latest() is None:
        raise FaultError("latest: there is none")


def _restore(folder: Path) -> None:
    target = tree(0)
    step = Manager(folder).restore(target).step
    if target["step"] != step or not numpy.array_equal(target["order"], tree(int(step or 0))["order"]):
        raise FaultError(f"restore: step {step} holds {target}")


def _best(folder: Path) -> None:
    if Manager(folder).best("loss") is None:
        raise FaultError("best: there is none")


def _list(folder: Path) -> None:
    for one in listing(folder):
        if one.state not in (COMMITTED, UNFINISHED) or (one.state == COMMITTED and one.name != str(one.step)):
            raise FaultError(f"ls: {one}")


def _plan(folder: Path) -> None:
    found = runs.prune(folder, 1, dry_run=True)
    if not found.kept or "damaged" in str(found):
        raise FaultError(f"prune: {found}")


def _about(folder: Path) -> None:
    runs.about(folder)


def _blame(folder: Path) -> None:
    for name, why in runs.blame(folder, "model.*").skipped.items():
        if why != "was removed meanwhile" and not why.startswith("was not committed"):
            raise FaultError(f"blame: {name}: {why}")


def _report(folder: Path) -> None:
    report(folder)


VERBS: tuple[Callable[[Path], None], ...] = (_verify, _latest, _restore, _list, _about, _best, _blame, _report, _plan)
WAYS = (MODES[0], MODES[3], Mode(exchange=False))
