"""What a training process does to a run's directory while a fault happens, and what must hold afterwards."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy

import statedict
from statedict.io.location import location
from statedict.io.pipeline import put_bytes
from statedict.runs import background as retry
from statedict.runs.directory import Directory
from statedict.runs.manifest import DATA, MARKER, NAME

retry._PAUSE = 0.002  # instead of half a second: what is tested is that it is tried again, not how long that takes

Place = Path | str  # a directory, or the URL of one
Manager = statedict.CheckpointManager
NOISE = "step .* is passed over"


@dataclass(frozen=True, slots=True)
class Mode:
    """How a job saves.

    Attributes:
        format: of the file.
        background: whether in a thread.
        large: 20 MB of torch tensors, which several threads write in blocks, instead of three small arrays.
        exchange: whether the file system can exchange two names in one step.
        overlay: whether what is there is in a lower layer of overlayfs, where directories cannot be renamed.
    """

    format: str = "safetensors"
    background: bool = False
    large: bool = False
    exchange: bool = True
    overlay: bool = False

    def __str__(self) -> str:
        size = ", 20 MB of torch" if self.large else ""
        names = ("" if self.exchange else ", no exchange of names") + (", overlayfs" if self.overlay else "")
        return f"{self.format}{', background' if self.background else ''}{size}{names}"


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What a process does.

    Attributes:
        name: in words.
        there: step → the seed of its values, committed before.
        act: what goes on while the fault happens.
        latest: which (step, seed) may be the newest afterwards; None that there is none.
        held: step → seeds which that step may hold.
        options: of the manager.
        begin: what the process does before.
        prepare: what is done to the directory before the process begins.
        damaged: steps that were damaged before.
        patient: whether errors that may pass are tried again.
    """

    name: str
    there: dict[int, int]
    act: Callable[[Manager, Mode], None]
    latest: tuple[tuple[int, int] | None, ...]
    held: dict[int, set[int]]
    options: dict[str, Any] = field(default_factory=dict)
    begin: Callable[[Manager, Mode], None] | None = None
    prepare: Callable[[Place], None] = lambda folder: None
    damaged: tuple[int, ...] = ()
    patient: bool = True

    def manager(self, folder: Place, mode: Mode, **more: Any) -> Manager:
        """The manager of the training process."""
        options = {"keep": 2, "existing": "continue"} | self.options | more
        if options.get("check"):
            options["check"] = tree(0, mode.large)
        format = "safetensors" if "compress" in options else mode.format
        return Manager(folder, format=format, background=mode.background, **options)


def tree(seed: int, large: bool = False) -> dict[str, Any]:
    """What is saved; all of it depends on the seed."""
    if large:
        import torch

        parts = [torch.arange(1 << 19, dtype=torch.float32).mul_(seed + 0.1 * n) for n in range(10)]
        return {"model": dict(zip("abcde", parts[:5], strict=True)), "average": parts[5:], "step": seed}
    return {
        "model": {"w": numpy.arange(15, dtype="f4").reshape(3, 5) * seed, "b": numpy.full(7, seed / 3)},
        "table": numpy.random.default_rng(0).standard_normal(500) + seed / (1 << 40),  # worth a delta
        "order": numpy.arange(4) + seed,
        "step": seed,
        "notes": ["seed", str(seed)],
    }


def save(step: int, seed: int | None = None, **options: Any) -> Callable[[Manager, Mode], None]:
    """Save a step, and wait."""

    def act(manager: Manager, mode: Mode) -> None:
        manager.save(step, tree(step if seed is None else seed, mode.large), {"loss": 1 / (step + 1)}, **options)
        manager.wait()

    return act


def fill(folder: Place, job: Job, mode: Mode) -> None:
    """The directory as the job finds it."""
    if job.there:
        with Manager(folder, format=mode.format, background=False) as manager:
            for step, seed in job.there.items():
                manager.save(step, tree(seed, mode.large), {"loss": 1 / (step + 1)})
    job.prepare(folder)


def _break(step: int) -> Callable[[Place], None]:
    def prepare(folder: Place) -> None:
        file = Directory(str(folder)).data(step)
        source = location(file).open()
        data = bytearray(source.read(0, source.size))
        data[len(data) // 2] ^= 1
        location(file).publish(lambda sink: put_bytes(bytes(data), sink))

    return prepare


def _litter(folder: Place) -> None:
    """What a save, a replacement and a removal leave when their process dies."""
    if isinstance(folder, str):
        for name in ("0/checkpoint.pth", f"0/{NAME}", "3/checkpoint.safetensors", f"4/{MARKER}"):
            location(f"{folder}/{name}").publish(lambda sink: put_bytes(b"half", sink))
        return
    for name, files in (
        (".3.0011aabb.tmp", [".x.0011aabb.tmp"]),
        (".2.0011aabb.new", [NAME]),
        (".1.0011aabb.gone", []),
    ):
        (folder / name).mkdir()
        for file in files:
            (folder / name / file).write_bytes(b"half")
    shutil.copytree(folder / "2", folder / ".0.ffffffff.gone")


def _pin(manager: Manager, mode: Mode) -> None:
    Directory(manager.directory).pin({1})


def _chain(manager: Manager, mode: Mode) -> None:
    for step in (1, 2, 3):
        save(step)(manager, mode)


JOBS = (
    Job("the first save of a run", {}, save(1), (None, (1, 1)), {1: {1}}),
    Job("a save, and the oldest goes", {1: 1, 2: 2}, save(3), ((2, 2), (3, 3)), {1: {1}, 2: {2}, 3: {3}}),
    Job(
        "a save over the newest (`overwrite`)", {1: 1, 2: 2}, save(3, 9, overwrite=True), ((3, 3), (3, 9)),
        {1: {1}, 2: {2}, 3: {3, 9}}, begin=save(3),
    ),
    Job(
        "a save over a damaged step", {1: 1, 2: 2, 3: 3}, save(3, 9), ((2, 2), (3, 9)), {1: {1}, 2: {2}, 3: {9}},
        prepare=_break(3), damaged=(3,),
    ),
    Job(
        "a run anew (`existing=\"replace\"`)", {1: 1, 2: 2}, save(1, 9), ((2, 2), (1, 9)), {1: {1, 9}, 2: {2}},
        {"existing": "replace"},
    ),
    Job(
        "a save where a process had died", {1: 1, 2: 2}, save(3), ((2, 2), (3, 3)), {1: {1}, 2: {2}, 3: {3}},
        prepare=_litter,
    ),
    Job("the rehearsal (`check`)", {1: 1, 2: 2}, lambda *_: None, ((2, 2),), {1: {1}, 2: {2}}, {"check": True}),
    Job(
        "`prune`", {1: 1, 2: 2, 3: 3}, lambda manager, mode: manager.prune() and None, ((3, 3),),
        {1: {1}, 2: {2}, 3: {3}}, {"keep": 1},
    ),
    Job(
        "a save as a delta (`compress`)", {1: 1, 2: 2}, save(4), ((3, 3), (4, 4)), {2: {2}, 3: {3}, 4: {4}},
        {"compress": "delta"}, begin=save(3),
    ),
    Job(
        "a whole save, and a chain of deltas goes (`compress`)", {}, save(4), ((3, 3), (4, 4)),
        {1: {1}, 2: {2}, 3: {3}, 4: {4}}, {"compress": "delta", "full_every": 3, "keep": 1}, begin=_chain,
    ),
    Job("a pin", {1: 1, 2: 2}, _pin, ((2, 2),), {1: {1}, 2: {2}}, patient=False),
)  # fmt: skip
MODES = tuple(Mode(*way) for way in product(("safetensors", "torch"), (False, True)))
LARGE = (Mode("safetensors", False, True), Mode("torch", True, True))


class FaultError(AssertionError):
    """Something that must hold does not."""


def look(folder: Place, job: Job, mode: Mode) -> tuple[int, int] | None:
    """What must hold after any fault; returns the newest step and its seed."""
    with _strict(job):
        manager = Manager(folder, background=False)
        newest = manager.latest()
        steps = manager.steps()
        for step in steps:
            if step not in job.held:
                raise FaultError(f"step {step} is listed and was never saved")
            if step not in job.damaged:
                _seed_of(folder, step, job.held[step], mode)
        if newest is None:
            if None not in job.latest:
                raise FaultError(
                    f"no sound checkpoint is left; listed are {steps}, there are {location(str(folder)).names()}"
                )
            return None
        seed = _seed_of(folder, newest, job.held[newest], mode)
        done = job.latest[-1]
        other = done is not None and done != (newest, seed) and done[0] in steps and done[0] not in job.damaged
        if done and other and _seed_of(folder, done[0], job.held[done[0]], mode) == done[1]:
            raise FaultError(f"the newest is step {newest} with the values {seed}, and {done} is committed")
        if (newest, seed) not in job.latest:
            raise FaultError(f"the newest is step {newest} with the values {seed}, none of {job.latest}")
        target = tree(0, mode.large)
        report = manager.restore(target)
        if report.step != newest or not _same(target, tree(seed, mode.large)):
            raise FaultError(f"step {newest} was restored, and is not bit for bit what was saved")
        manager.close()
        return newest, seed


def go_on(folder: Place, job: Job, mode: Mode, manager: Manager | None = None) -> None:
    """Afterwards the next save works, in a new process or in the same, and nothing is left over."""
    with _strict(job):
        found = Manager(folder, background=False).latest()
        step = max([*job.held, found or 0]) + 1
        if manager is None:
            manager = Manager(folder, format=mode.format, background=False, keep=2, existing="continue")
        manager.save(step, tree(step, mode.large), force=True)
        manager.close()
        if manager.latest() != step:
            raise FaultError(f"step {step} was saved afterwards, and the newest is {manager.latest()}")
        _seed_of(folder, step, {step}, mode)
        tidy(folder, job.damaged)


def tidy(folder: Place, damaged: tuple[int, ...] = ()) -> None:
    """Nothing is there but checkpoints, pins and the lock."""
    for name in location(str(folder)).names() or ():
        if name in (".lock", "pins.json"):
            continue
        if not name.isdecimal():
            raise FaultError(f"{name} is left over")
        if int(name) in damaged:
            continue
        inside = {*(location(f"{folder}/{name}").names() or ())}
        if inside - {*DATA.values()} != {NAME, MARKER} or len(inside) != 3:
            raise FaultError(f"step {name} holds {sorted(inside)}")


@contextmanager
def _strict(job: Job) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if job.damaged:
            warnings.filterwarnings("ignore", NOISE)
        try:
            yield
        except FaultError:
            raise
        except Exception as error:
            raise FaultError(f"{type(error).__name__}: {error}") from error


def _seed_of(folder: Place, step: int, seeds: set[int], mode: Mode) -> int:
    """Which of some seeds the values of a step are of."""
    found = statedict.load(Directory(str(folder)).data(step))
    for seed in seeds:
        if _same(found, tree(seed, mode.large)):
            return seed
    raise FaultError(f"step {step} is listed, and holds none of the values that were saved, {sorted(seeds)}")


def _same(one: Any, other: Any) -> bool:
    if isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in other)
    if isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if hasattr(other, "shape"):
        left, right = numpy.asarray(one), numpy.asarray(other)
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    return type(one) is type(other) and one == other
