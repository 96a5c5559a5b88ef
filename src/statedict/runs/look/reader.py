"""The read-only base of `CheckpointManager`."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable

from statedict.api.files import load
from statedict.errors import CorruptFileError, FileError, FormatError, MissingFileError
from statedict.runs.directory import LEVELS, LOOKS, Directory, GoneError, Result
from statedict.runs.keep import BestN, Policy, check_choice, check_step, rank, split_policy
from statedict.runs.manifest import MARKER, NAME
from statedict.runs.replaced import find_superseded
from statedict.tree.state_dict import StateDict


class Reader:
    """Read-only base of `CheckpointManager`."""

    def __init__(self, files: Directory, keep: Policy | None, verify: str) -> None:
        check_choice("verify", verify, LEVELS)
        self._files, self._keep, self._verify = files, keep, verify
        self._known = False  # whether the caller knows what is there

    @property
    def directory(self) -> str:
        """Where the checkpoints are."""
        return self._files.path

    def steps(self) -> list[int]:
        """The committed steps, in order."""
        self._known = True
        return self._files.steps()

    def latest(self, verify: str | None = None) -> int | None:
        """The newest step that is committed and sound; None if there is none.

        A damaged one is passed over with a warning. Sound files are not read again while they stay the same. `verify`
        is as for the manager.
        """
        self._known = True
        level = self._verify if verify is None else verify
        check_choice("verify", level, LEVELS)
        found, damaged = _retry(lambda: self._find_newest(level))
        for step, damage in damaged.items():
            warnings.warn(f"step {step} is passed over, it is damaged: {damage}", stacklevel=2)
        return found

    def _find_newest(self, level: str) -> tuple[int | None, dict[int, str]]:
        """The newest sound step, and what is wrong with those after it."""
        torn, damaged = self._files.torn_steps(), dict[int, str]()
        steps = {*self._files.steps(), *torn}
        for step in sorted(steps - find_superseded(self._files), reverse=True):
            damage = f"{MARKER} or {NAME} is missing" if step in torn else self._files.damage(step, level)
            if damage is None:
                return step, damaged
            damaged[step] = damage
        return None, damaged

    def best(self, metric: str, mode: str | None = None) -> int | None:
        """The step with the best value of a metric; None if none has it.

        Args:
            metric: its name.
            mode: `"min"` or `"max"`; by default that of the `BestN` in `keep`, else `"min"`.
        """
        self._known = True
        if mode is None:
            policies = [one for one in split_policy(self._keep) if isinstance(one, BestN)]
            mode = next((one.mode for one in policies if one.metric == metric), "min")

        def choose() -> int | None:
            readable, _ = self._files.manifests()
            past = find_superseded(self._files)
            steps = (one.step for one in rank(readable, metric, mode) if one.step not in past)
            return next((step for step in steps if self._files.damage(step, "quick") is None), None)

        return _retry(choose)

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics of a step.

        Raises:
            FileError: there is no such step.
        """
        return dict(self._files.brief_manifest(self._check_step(step)).metrics)

    def load(self, step: int | None = None) -> StateDict:
        """Load a checkpoint lazily; the newest sound one by default.

        Raises:
            FileError: there is none.
        """
        return self._open(step, lambda chosen: load(self._files.data(chosen)))

    def _open(self, step: int | None, use: Callable[[int], Result]) -> Result:
        """Call a function with a checkpoint; with another if that was removed meanwhile and the caller named none."""

        def attempt() -> Result:
            chosen = self._choose(step)
            before = self._files.identity(chosen)
            try:
                return use(chosen)
            except (FormatError, FileError):
                if step is None and (before is None or self._files.identity(chosen) != before):
                    raise GoneError(errno.ENOENT, f"step {chosen} was removed meanwhile", str(self._files)) from None
                raise

        return _retry(attempt)

    def _choose(self, step: int | None) -> int:
        self._known = True
        if step is None:
            found = self.latest()
            if found is None:
                raise MissingFileError(errno.ENOENT, "holds no sound checkpoint", str(self._files))
            return found
        step = self._check_step(step)
        damage = self._files.damage(step, self._verify)
        if damage is not None:
            raise CorruptFileError(f"step {step} is damaged: {damage}")
        return step

    def _check_step(self, step: int) -> int:
        step = check_step(step)
        if not self._files.is_committed(step):
            there = self._files.steps()
            held = f"it has {', '.join(map(str, there[-5:]))}" if there else "it has none"
            raise MissingFileError(errno.ENOENT, f"step {step} is not committed there; {held}", str(self._files))
        return step


def _retry(choose: Callable[[], Result]) -> Result:
    """Call a function again if what it chose was removed meanwhile."""
    for _ in range(LOOKS):
        try:
            return choose()
        except GoneError:
            pass
    return choose()
