"""Bytes flipped, files cut, grown and deleted in a directory at rest."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from faults.calls import directory
from faults.work import JOBS, FaultError, Job, Manager, Mode, go_on, look, tree
from statedict.errors import CorruptFileError, MissingFileError

REST = next(job for job in JOBS if job.name == "`prune`")  # steps 1, 2 and 3, and no process
Damage = Callable[[Path, int], object]


def flip(file: Path, at: int) -> None:
    """One bit of a byte."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << at % 8
    file.write_bytes(data)


def cut(file: Path, at: int) -> None:
    """The file ends there."""
    file.write_bytes(file.read_bytes()[:at])


def grow(file: Path, at: int) -> None:
    """So many bytes more."""
    file.write_bytes(file.read_bytes() + bytes(at))


def delete(file: Path, at: int) -> None:
    """The file is gone, or all of them are."""
    if at:
        shutil.rmtree(file.parent)
    else:
        file.unlink()


DAMAGES: dict[str, Damage] = {
    "a bit of a byte is flipped": flip,
    "a file is cut": cut,
    "a file has grown": grow,
    "a file or its directory is deleted": delete,
}
EVERY_BYTE = ("a bit of a byte is flipped",)  # of the newest; elsewhere every sixteenth
MORE = (1, 7, 512, 4096)


def places(name: str, mode: Mode) -> list[tuple[int, str, int]]:
    """(step, file, where) of each damage of a kind."""
    with directory(REST, mode) as folder:
        files = [file for step in (3, 2) for file in sorted((folder / str(step)).iterdir())]
        found: list[tuple[int, str, int]] = []
        for file in files:
            size = file.stat().st_size
            few = {"a file has grown": MORE, "a file or its directory is deleted": (0, 1)}
            where = few.get(name, range(0, size, 1 if name in EVERY_BYTE and file.parent.name == "3" else 16))
            found += [(int(file.parent.name), file.name, at) for at in where]
    return found


def try_out(name: str, mode: Mode, step: int, file: str, at: int) -> str:
    """Damage a file of a step; "told", or "harmless" where the values are none the worse.

    Raises:
        FaultError: something does not hold.
    """
    with directory(REST, mode) as folder, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        DAMAGES[name](folder / str(step) / file, at)
        manager = Manager(folder, background=False)
        newest = manager.latest()
        sound = newest == 3 if step == 3 else _restores(manager, step)
        said = [str(one.message) for one in heard]
        if step == 3 and not sound and newest != 2:
            raise FaultError(f"the newest is {newest}")
        if step == 3 and not sound and (folder / "3").exists() and not any("step 3" in words for words in said):
            raise FaultError(f"step 3 is passed over, and nothing was said: {said}")
        if step == 3 and _restores(manager, 3) != sound:
            raise FaultError(f"the newest is {newest}, and restore(step=3) thinks otherwise")
        if step == 2 and newest != 3:
            raise FaultError(f"the newest is {newest}, and step 2 is what was damaged")
        target = tree(0)
        if manager.restore(target).step != newest or str(target) != str(tree(newest)):
            raise FaultError(f"step {newest} is not restored bit for bit")
        heard.clear()
        job = REST if sound else _without(step)
        look(folder, job, mode)
        go_on(folder, job, mode)
        return "harmless" if sound else "told"


def _restores(manager: Manager, step: int) -> bool:
    target = tree(0)
    try:
        manager.restore(target, step=step)
    except (CorruptFileError, MissingFileError) as error:
        if f"step {step}" not in str(error):
            raise FaultError(f"the error does not say which step: {error}") from error
        return False
    if str(target) != str(tree(step)):
        raise FaultError(f"step {step} is restored, and is not bit for bit what was saved")
    return True


def _without(step: int) -> Job:
    newest = 2 if step == 3 else 3
    return replace(REST, latest=((newest, newest),), damaged=(step,))
