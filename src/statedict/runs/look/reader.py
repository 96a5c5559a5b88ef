"""What is in a run's directory: its steps, the newest sound one, the best, their trees."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from typing import TypeVar

from statedict.api.files import load
from statedict.errors import CorruptFileError, FileError, FormatError, MissingFileError
from statedict.runs.arguments import one_of, whole_step
from statedict.runs.directory import LEVELS, LOOKS, Directory, GoneError
from statedict.runs.keep import BestN, Policy, rank
from statedict.runs.manifest import MARKER, NAME
from statedict.runs.replaced import find_superseded
from statedict.tree.state_dict import StateDict

Chosen = TypeVar("Chosen")


class Reader:
    """The half of a manager that changes nothing."""

    def __init__(self, files: Directory, keep: Policy | None, verify: str) -> None:
        one_of("verify", verify, LEVELS)
        self._files, self._keep, self._verify = files, keep, verify
        self._known = False  # whether the caller knows what is there

    @property
    def directory(self) -> str:
        """Where the checkpoints are."""
        return self._files.path

    def steps(self) -> list[int]:
        """The steps that are committed, in order."""
        self._known = True
        return self._files.steps()

    def latest(self, verify: str | None = None) -> int | None:
        """The newest step that is committed and sound; None if there is none.

        A damaged one is passed over, with a warning that names the damage. What was found to be sound is not read
        again while its files stay as they are.

        Args:
            verify: as for the manager.
        """
        self._known = True
        level = self._verify if verify is None else verify
        one_of("verify", level, LEVELS)
        found, damaged = self._again(lambda: self._newest(level))
        for step, damage in damaged.items():
            warnings.warn(f"step {step} is passed over, it is damaged: {damage}", stacklevel=2)
        return found

    def _newest(self, level: str) -> tuple[int | None, dict[int, str]]:
        """The newest sound one, and what is wrong with those that come after it."""
        torn, damaged = self._files.torn(), dict[int, str]()
        steps = {*self._files.steps(), *torn}
        for step in sorted(steps - find_superseded(self._files), reverse=True):
            damage = f"{MARKER} or {NAME} is missing" if step in torn else self._files.damage(step, level)
            if damage is None:
                return step, damaged
            damaged[step] = damage
        return None, damaged

    def _again(self, choose: Callable[[], Chosen]) -> Chosen:
        """What a function chooses; it chooses again if that was removed meanwhile."""
        for _ in range(LOOKS):
            try:
                return choose()
            except GoneError:
                pass
        return choose()

    def best(self, metric: str, mode: str | None = None) -> int | None:
        """The step with the best value of a metric; None if none has it.

        Args:
            metric: its name.
            mode: `"min"` or `"max"`; by default that of the `BestN` in `keep`, and `"min"` if there is none.
        """
        self._known = True
        if mode is None:
            policies = getattr(self._keep, "policies", (self._keep,))
            mode = next((one.mode for one in policies if isinstance(one, BestN) and one.metric == metric), "min")

        def choose() -> int | None:
            readable, _ = self._files.manifests()
            past = find_superseded(self._files)
            found = [one.step for one in rank(readable, metric, mode) if one.step not in past]
            return next((step for step in found if self._files.damage(step, "quick") is None), None)

        return self._again(choose)

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics of a step.

        Raises:
            FileError: there is no such step.
        """
        return dict(self._files.brief(self._there(step)).metrics)

    def load(self, step: int | None = None) -> StateDict:
        """A checkpoint's tree, lazily; the newest sound one by default.

        Raises:
            FileError: there is none.
        """
        return self._opened(step, lambda chosen: load(self._files.data(chosen)))

    def _opened(self, step: int | None, use: Callable[[int], Chosen]) -> Chosen:
        """What a function makes of a checkpoint; of another one if that was removed meanwhile and none was named."""

        def choose() -> Chosen:
            chosen = self._chosen(step)
            before = self._files.seen(chosen)
            try:
                return use(chosen)
            except (FormatError, FileError):
                if step is None and (before is None or self._files.seen(chosen) != before):
                    raise GoneError(errno.ENOENT, f"step {chosen} was removed meanwhile", str(self._files)) from None
                raise

        return self._again(choose)

    def _chosen(self, step: int | None) -> int:
        self._known = True
        if step is None:
            found = self.latest()
            if found is None:
                raise MissingFileError(errno.ENOENT, "holds no sound checkpoint", str(self._files))
            return found
        step = self._there(step)
        damage = self._files.damage(step, self._verify)
        if damage is not None:
            raise CorruptFileError(f"step {step} is damaged: {damage}")
        return step

    def _there(self, step: int) -> int:
        step = whole_step(step)
        if not self._files.committed(step):
            there = self._files.steps()
            held = f"it has {', '.join(map(str, there[-5:]))}" if there else "it has none"
            raise MissingFileError(errno.ENOENT, f"step {step} is not committed there; {held}", str(self._files))
        return step
