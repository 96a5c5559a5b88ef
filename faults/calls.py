"""One process for each call that changes the directory and each way in which that call can go wrong."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from faults.shim import QUIET, Call, Fault, Shim, read_trace
from faults.work import FaultError, Job, Mode, fill, go_on, look
from statedict.errors import StateDictError

WORDS = r"step \d|no step|\.lock: |pins\.json: |the directory of the run|names in it durable"
PATIENCE = 60  # seconds after which a process hangs
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


def apart(work: Callable[[], Any], beside: Callable[[], None] = lambda: None) -> Any:
    """What a function returns in a process of its own; None if that was killed.

    Args:
        work: the function.
        beside: called in this process once the other has begun.

    Raises:
        FaultError: it raised, or it hangs.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        signal.alarm(PATIENCE)
        logging.disable()
        warnings.simplefilter("ignore")
        try:
            answer: Any = work()
        except BaseException as error:
            answer = error if isinstance(error, FaultError) else FaultError(f"{type(error).__name__}: {error}")
        with open(writer, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    beside()
    with open(reader, "rb") as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        raise FaultError(f"the process died of {signal.Signals(os.WTERMSIG(status)).name}")
    answer = pickle.loads(said) if said else None
    if isinstance(answer, FaultError):
        raise answer
    return answer


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes again."""
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="faults-") as name:
        yield Path(name).resolve()


@contextmanager
def directory(job: Job, mode: Mode) -> Iterator[Path]:
    """A run's directory as the job finds it."""
    with scratch() as above:
        if job.there:
            shutil.copytree(_template(job, mode), above / "run")
        yield above / "run"


@cache
def _template(job: Job, mode: Mode) -> Path:
    folder = Path(tempfile.mkdtemp(dir=TEMPLATES[0])) / "run"
    fill(folder, job, mode)
    return folder


TEMPLATES: list[str] = []  # where they lie, set by the matrix


def count(job: Job, mode: Mode, fault: Fault) -> int:
    """How many calls there are at which a fault can happen."""
    return _count(job, mode, fault.kinds)


@cache
def _count(job: Job, mode: Mode, kinds: int) -> int:
    with directory(job, mode) as folder:
        return int(apart(lambda: _counted(job, mode, kinds, folder)))


def _counted(job: Job, mode: Mode, kinds: int, folder: Path) -> int:
    shim, manager = _begun(job, mode, folder, Fault("nothing", "nothing", kinds), 0)
    manager = manager or job.manager(folder, mode)
    job.act(manager, mode)
    manager.close()
    return shim.calls


def recorded(job: Job, mode: Mode) -> tuple[Path, list[Call]]:
    """The calls of a job that meets no fault."""
    with directory(job, mode) as folder:
        file = folder.with_name("trace")

        def work() -> None:
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            shim, manager = _begun(job, mode, folder, QUIET, 0)
            shim.arm(folder.parent)
            shim.trace(fd)
            manager = manager or job.manager(folder, mode)
            job.act(manager, mode)
            manager.close()
            shim.trace(-1)

        apart(work)
        return folder, list(read_trace(file))


def try_out(job: Job, mode: Mode, fault: Fault, n: int) -> str:
    """Let the n-th call of a job go wrong; "killed", "told", "in spite of it", or "not reached".

    Raises:
        FaultError: something does not hold.
    """
    with directory(job, mode) as folder:
        outcome = apart(lambda: _survived(job, mode, fault, n, folder))
        if not folder.exists():
            folder = folder.with_name("run.gone")
        if not fault.kills:
            if outcome is None:
                raise FaultError("the process was killed")
            return str(outcome)
        if folder.exists():
            look(folder, job, mode)
            go_on(folder, job, mode)
        elif None not in job.latest:
            raise FaultError("the directory is gone")
        return "not reached" if outcome else "killed"


def _begun(job: Job, mode: Mode, folder: Path, fault: Fault, n: int) -> tuple[Shim, Any]:
    shim = Shim()
    shim.exchanges(mode.exchange)
    manager = None
    if job.begin is not None:
        manager = job.manager(folder, mode)
        job.begin(manager, mode)
    if mode.overlay:
        shim.lower(folder)
    shim.arm(folder, fault, n)
    return shim, manager


def _survived(job: Job, mode: Mode, fault: Fault, n: int, folder: Path) -> str:
    """What a process does to which that happens: it is told, or has saved all the same; and it can go on."""
    shim, manager = _begun(job, mode, folder, fault, n)
    told: list[Exception] = []
    try:
        manager = manager or job.manager(folder, mode)
        job.act(manager, mode)
    except Exception as error:
        told.append(error)
    before = manager
    if not shim.fired and manager is not None:
        before = None  # it happens, if at all, at the end
        try:
            manager.close()
        except Exception as error:
            told.append(error)
    if not shim.fired:
        return "not reached"
    shim.disarm()
    if fault.action == "vanish":
        return _vanished(job, mode, folder, told)
    newest = look(folder, job, mode)
    for error in told:
        _check_words(error, folder)
    if not told and newest != job.latest[-1]:
        raise FaultError(f"nothing was said, and the newest is {newest}")
    if told and job.patient and fault.action == "once" and "EIO" in fault.name:
        raise FaultError(f"an error that passes was not tried again: {told[0]}")
    go_on(folder, job, mode, before)
    if before is not None:
        go_on(folder, job, mode)
    return "told" if told else "in spite of it"


def _check_words(error: Exception, folder: Path) -> None:
    if not isinstance(error, StateDictError):
        raise FaultError(f"the error is a bare {type(error).__name__}: {error}")
    if str(folder) not in str(error) or not re.search(WORDS, str(error)):
        raise FaultError(f"the error does not say which step and where: {error}")


def _vanished(job: Job, mode: Mode, folder: Path, told: list[Exception]) -> str:
    gone = folder.with_name("run.gone")
    newest = look(gone, job, mode) if gone.exists() else None
    for error in told:
        if not isinstance(error, StateDictError):
            raise FaultError(f"the error is a bare {type(error).__name__}: {error}")
    if not told and newest != job.latest[-1] and look(folder, job, mode) != job.latest[-1]:
        raise FaultError(f"nothing was said, and the newest is {newest}")
    if gone.exists():
        go_on(gone, job, mode)
    return "told" if told else "in spite of it"
