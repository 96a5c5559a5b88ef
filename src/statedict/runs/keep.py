"""Policies: which checkpoints of a run stay, and when the next one is due. The names are Orbax's where it has them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from statedict.errors import RunError
from statedict.runs.arguments import whole_step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.runs.manifest import Manifest


class Policy(Protocol):
    """What says which checkpoints stay."""

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """The steps that stay, of checkpoints in the order of their steps."""


class Schedule(Protocol):
    """What says when a checkpoint is due."""

    def due(self, step: int, last: int | None, seconds: float) -> bool:
        """Whether to save at a step, the one saved last being `last`, and so many seconds ago."""


@dataclass(frozen=True, slots=True)
class LatestN:
    """The latest n stay.

    >>> LatestN(0)
    Traceback (most recent call last):
        ...
    statedict.errors.RunError: LatestN(n=0): n must be 1 or more
    """

    n: int

    def __post_init__(self) -> None:
        _check_positive(self, "n", self.n)

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """The latest n."""
        return {one.step for one in checkpoints[-self.n :]}


@dataclass(frozen=True, slots=True)
class BestN:
    """The n with the best value of a metric stay; one without the metric, or with NaN, is none of them.

    Attributes:
        metric: its name, as given to `save`.
        n: how many; of equal ones the later.
        mode: `"min"` if less is better, `"max"` if more is.
    """

    metric: str
    n: int = 1
    mode: str = "min"

    def __post_init__(self) -> None:
        _check_positive(self, "n", self.n)
        check_mode(self.mode)

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """The best n."""
        return {one.step for one in rank(checkpoints, self.metric, self.mode)[: self.n]}


@dataclass(frozen=True, slots=True)
class EveryNSteps:
    """Those stay whose step is a multiple of n; or: one is due at each of these."""

    n: int

    def __post_init__(self) -> None:
        _check_positive(self, "n", self.n)

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """Multiples of n."""
        return {one.step for one in checkpoints if one.step % self.n == 0}

    def due(self, step: int, last: int | None, seconds: float) -> bool:
        """At multiples of n."""
        return step % self.n == 0


@dataclass(frozen=True, slots=True)
class EveryNSeconds:
    """Those stay that are at least so far apart in time; or: one is due after so many seconds.

    Attributes:
        seconds: or a `datetime.timedelta`.
    """

    seconds: float | timedelta

    def __post_init__(self) -> None:
        _check_positive(self, "seconds", self.length)

    @property
    def length(self) -> float:
        """In seconds."""
        return self.seconds.total_seconds() if isinstance(self.seconds, timedelta) else self.seconds

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """The first, then each that is so much later than the one before; a clock that was set back begins anew."""
        found: set[int] = set()
        before: float | None = None
        for one in checkpoints:
            if before is None or not 0 <= one.time - before < self.length:
                found.add(one.step)
                before = one.time
        return found

    def due(self, step: int, last: int | None, seconds: float) -> bool:
        """So long after the last one, or after the start."""
        return seconds >= self.length


@dataclass(frozen=True, slots=True)
class CustomSteps:
    """Those of some steps stay; or: one is due at each of these."""

    steps: frozenset[int]

    def __init__(self, steps: Iterable[int]) -> None:
        object.__setattr__(self, "steps", frozenset(whole_step(step) for step in steps))

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """These steps."""
        return {one.step for one in checkpoints} & self.steps

    def due(self, step: int, last: int | None, seconds: float) -> bool:
        """At these steps."""
        return step in self.steps


@dataclass(frozen=True, slots=True)
class AnyPolicy:
    """What any of several policies keeps, stays; or: one is due if it is by any of them.

    >>> AnyPolicy([LatestN(2), BestN("loss")]).policies[0]
    LatestN(n=2)
    """

    policies: tuple[Policy | Schedule, ...]

    def __init__(self, policies: Iterable[Policy | Schedule]) -> None:
        object.__setattr__(self, "policies", tuple(policies))

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """What any of them keeps."""
        found: set[int] = set()
        for policy in self.policies:
            found |= policy.kept(checkpoints)  # type: ignore[union-attr]
        return found

    def due(self, step: int, last: int | None, seconds: float) -> bool:
        """Whether it is by any of them."""
        return any(policy.due(step, last, seconds) for policy in self.policies)  # type: ignore[union-attr]


def to_policy(given: object) -> Policy | None:
    """What `keep` means: a number is that of the latest ones, a list any of them, None everything.

    Raises:
        RunError: it is none of these.
    """
    if given is None:
        return None
    return _policy(given, "keep", LatestN, "kept")  # type: ignore[return-value]


def parse_policy(text: str) -> Policy:
    """The policy that a word means, as the command line takes it.

    Args:
        text: `3` or `latest:3`; `best:METRIC`, `best:METRIC:2` or `best:METRIC:2:max`; `every:1000`; `seconds:3600`;
            `steps:100,200`.

    Raises:
        RunError: it means none.

    >>> parse_policy("3"), parse_policy("best:val:acc:2:max"), parse_policy("every:1000")
    (LatestN(n=3), BestN(metric='val:acc', n=2, mode='max'), EveryNSteps(n=1000))
    >>> parse_policy("best:loss:max:2")
    BestN(metric='loss', n=2, mode='max')
    """
    head, _, rest = ("latest:" + text if text.isdecimal() else text).partition(":")
    try:
        if head == "best" and rest:
            metric, n, mode = rest.split(":"), "", ""
            while len(metric) > 1:  # behind the name, in any order
                if metric[-1] in ("min", "max") and not mode:
                    mode = metric.pop()
                elif metric[-1].isdecimal() and not n:
                    n = metric.pop()
                else:
                    break
            return BestN(":".join(metric), int(n or 1), mode or "min")
        return _WORDS[head](rest)
    except (KeyError, ValueError):
        raise RunError(
            f"{text!r:.60}: is no policy; expected N, latest:N, best:METRIC[:N][:min|:max], every:N, seconds:N "
            "or steps:A,B"
        ) from None


_WORDS: dict[str, Callable[[str], Policy]] = {
    "latest": lambda rest: LatestN(int(rest)),
    "every": lambda rest: EveryNSteps(int(rest)),
    "seconds": lambda rest: EveryNSeconds(float(rest)),
    "steps": lambda rest: CustomSteps(map(int, rest.split(","))),
}


def to_schedule(given: object) -> Schedule | None:
    """What `save_every` means: a number is that of steps, a timedelta that of seconds, a list any of them.

    Raises:
        RunError: it is none of these.
    """
    if given is None:
        return None
    return _policy(given, "save_every", EveryNSteps, "due")  # type: ignore[return-value]


def _policy(given: object, name: str, number: type, method: str) -> object:
    if hasattr(given, "__index__") and not isinstance(given, bool):
        return number(operator.index(given))
    if isinstance(given, timedelta) and method == "due":
        return EveryNSeconds(given)
    if isinstance(given, list | tuple) and given:
        return AnyPolicy([_policy(one, name, number, method) for one in given])  # type: ignore[misc]
    parts = given.policies if isinstance(given, AnyPolicy) else (given,)
    if isinstance(given, type) or not parts or not all(callable(getattr(part, method, None)) for part in parts):
        raise RunError(f"{name}={given!r:.80}: is no number, no policy that can be used for it, and no list of them")
    return given


def rank(checkpoints: Iterable[Manifest], metric: str, mode: str) -> list[Manifest]:
    """Those that have a metric, the best first; of equal ones the later first."""
    check_mode(mode)
    sign = 1 if mode == "min" else -1
    having = [one for one in checkpoints if not math.isnan(one.metrics.get(metric, math.nan))]
    return sorted(having, key=lambda one: (sign * one.metrics[metric], -one.step))


def check_mode(mode: str) -> None:
    """Refuse what is neither `"min"` nor `"max"`."""
    if mode not in ("min", "max"):
        raise RunError(f"mode={mode!r}: is neither 'min' nor 'max'")


def _check_positive(policy: object, name: str, number: float) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0 or math.isinf(number):
        raise RunError(f"{type(policy).__name__}({name}={number!r}): {name} must be 1 or more")
    if name == "n" and not isinstance(number, int):
        raise RunError(f"{type(policy).__name__}({name}={number!r}): {name} must be a whole number")
