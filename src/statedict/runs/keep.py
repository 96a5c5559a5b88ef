"""Policies: which checkpoints of a run stay, and when to save the next. Also checks of steps and metrics."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from statedict.errors import ArgumentError
from statedict.reports.runs import Checkpoint
from statedict.runs.manifest import WHOLE, Manifest

Ranked = TypeVar("Ranked", Manifest, Checkpoint)


class Policy(Protocol):
    """Decides which checkpoints stay."""

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """The steps that stay; the checkpoints come in the order of steps."""


class Schedule(Protocol):
    """Decides when to save."""

    def due(self, step: int, last: int | None, seconds: float) -> bool:
        """Whether to save at a step, given the step that was saved last and the seconds since then."""


@dataclass(frozen=True, slots=True)
class LatestN:
    """Keep the latest n.

    >>> LatestN(0)
    Traceback (most recent call last):
        ...
    statedict.errors.ArgumentError: LatestN(n=0): n must be 1 or more
    """

    n: int

    def __post_init__(self) -> None:
        _check_positive(self, "n", self.n)

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """The latest n."""
        return {one.step for one in checkpoints[-self.n :]}


@dataclass(frozen=True, slots=True)
class BestN:
    """Keep the n with the best value of a metric, ignoring those without it and NaN.

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
        check_choice("mode", self.mode, ("min", "max"))

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """The best n."""
        return {one.step for one in rank(checkpoints, self.metric, self.mode)[: self.n]}


@dataclass(frozen=True, slots=True)
class EveryNSteps:
    """Keep the steps that are multiples of n, or save at them."""

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
    """Keep checkpoints that are at least so far apart in time, or save after so many seconds."""

    seconds: float | timedelta

    def __post_init__(self) -> None:
        _check_positive(self, "seconds", self.length)

    @property
    def length(self) -> float:
        """In seconds."""
        return self.seconds.total_seconds() if isinstance(self.seconds, timedelta) else self.seconds

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """The first, then each that is so much later than the one before; a clock that was set back begins anew."""
        steps, before = set[int](), -math.inf
        for one in checkpoints:
            if not 0 <= one.time - before < self.length:
                steps.add(one.step)
                before = one.time
        return steps

    def due(self, step: int, last: int | None, seconds: float) -> bool:
        """So long after the last one, or after the start."""
        return seconds >= self.length


@dataclass(frozen=True, slots=True)
class CustomSteps:
    """Keep the given steps, or save at them."""

    steps: frozenset[int]

    def __init__(self, steps: Iterable[int]) -> None:
        object.__setattr__(self, "steps", frozenset(check_step(step) for step in steps))

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """These steps."""
        return {one.step for one in checkpoints} & self.steps

    def due(self, step: int, last: int | None, seconds: float) -> bool:
        """At these steps."""
        return step in self.steps


@dataclass(frozen=True, slots=True)
class AnyPolicy:
    """Keep what any of several policies keeps, or save when any of them does.

    >>> AnyPolicy([LatestN(2), BestN("loss")]).policies[0]
    LatestN(n=2)
    """

    policies: tuple[Policy | Schedule, ...]

    def __init__(self, policies: Iterable[Policy | Schedule]) -> None:
        object.__setattr__(self, "policies", tuple(policies))

    def kept(self, checkpoints: Sequence[Manifest]) -> set[int]:
        """What any of them keeps."""
        return {step for policy in self.policies for step in policy.kept(checkpoints)}  # type: ignore[union-attr]

    def due(self, step: int, last: int | None, seconds: float) -> bool:
        """Whether any of them saves."""
        return any(policy.due(step, last, seconds) for policy in self.policies)  # type: ignore[union-attr]


def split_policy(keep: Policy | None) -> tuple[Any, ...]:
    """The parts of an `AnyPolicy`, or the one policy; empty for None."""
    return () if keep is None else keep.policies if isinstance(keep, AnyPolicy) else (keep,)


def to_policy(given: object) -> Policy | None:
    """The policy that `keep` means: an int means `LatestN`, a list means any-of, None keeps everything."""
    return None if given is None else _to_policy(given, "keep", LatestN, "kept")


def to_schedule(given: object) -> Schedule | None:
    """The schedule that `save_every` means: an int means steps, a timedelta means seconds, a list means any-of."""
    return None if given is None else _to_policy(given, "save_every", EveryNSteps, "due")


def _to_policy(given: Any, name: str, number: type, method: str) -> Any:
    if hasattr(given, "__index__") and not isinstance(given, bool):
        return number(operator.index(given))
    if isinstance(given, timedelta) and method == "due":
        return EveryNSeconds(given)
    if isinstance(given, list | tuple) and given:
        return AnyPolicy([_to_policy(one, name, number, method) for one in given])
    parts = given.policies if isinstance(given, AnyPolicy) else (given,)
    if isinstance(given, type) or not parts or not all(callable(getattr(part, method, None)) for part in parts):
        raise ArgumentError(
            f"{name}={given!r:.80}: expected a number, a policy with the method {method}(), or a list of them"
        )
    return given


def parse_policy(text: str) -> Policy:
    """Parse a policy of the command line.

    Args:
        text: `3` or `latest:3`; `best:METRIC`, `best:METRIC:2` or `best:METRIC:2:max`; `every:1000`; `seconds:3600`;
            `steps:100,200`.

    Raises:
        ArgumentError: it is malformed.

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
        raise ArgumentError(
            f"{text!r:.60}: not a policy; expected N, latest:N, best:METRIC[:N][:min|:max], every:N, seconds:N "
            "or steps:A,B"
        ) from None


_WORDS: dict[str, Callable[[str], Policy]] = {
    "latest": lambda rest: LatestN(int(rest)),
    "every": lambda rest: EveryNSteps(int(rest)),
    "seconds": lambda rest: EveryNSeconds(float(rest)),
    "steps": lambda rest: CustomSteps(map(int, rest.split(","))),
}


def rank(checkpoints: Iterable[Ranked], metric: str, mode: str) -> list[Ranked]:
    """The checkpoints that have a metric, the best first; of equal ones the later first."""
    check_choice("mode", mode, ("min", "max"))
    sign = 1 if mode == "min" else -1
    having = [one for one in checkpoints if not math.isnan(one.metrics.get(metric, math.nan))]
    return sorted(having, key=lambda one: (sign * one.metrics[metric], 1 if one.step is None else -one.step))


def _check_positive(policy: object, name: str, number: float) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0 or math.isinf(number):
        raise ArgumentError(f"{type(policy).__name__}({name}={number!r}): {name} must be 1 or more")
    if name == "n" and not isinstance(number, int):
        raise ArgumentError(f"{type(policy).__name__}({name}={number!r}): {name} must be a whole number")


def check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    """Check that an argument is one of the known words."""
    if given not in allowed:
        raise ArgumentError(f"{name}={given!r}: expected {' or '.join(map(repr, allowed))}")


def check_step(given: Any) -> int:
    """A step as an int: a whole number from 0 to 2⁶³-1, numpy's too."""
    try:
        step = operator.index(given)
    except TypeError:
        step = -1
    if not 0 <= step < WHOLE or isinstance(given, bool):
        shown = repr(given) if abs(step) < WHOLE else f"{step:#x}"  # repr refuses thousands of digits
        raise ArgumentError(f"step={shown:.40}: expected a whole number of 0 or more, below 2**63")
    return step


def to_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as floats; arrays of one element count as numbers."""
    if not isinstance(metrics, Mapping):
        raise ArgumentError(f"metrics={metrics!r:.40}: expected a dict of numbers by name")
    found = {}
    for name, value in metrics.items():
        try:
            str(name).encode()
        except UnicodeEncodeError:
            raise ArgumentError(
                f"metrics: the name {name!r:.80} has half of a surrogate pair; it is not text"
            ) from None
        try:
            found[str(name)] = float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ArgumentError(f"metrics[{name!r}]={value!r:.40}: expected a number") from None
    return found
