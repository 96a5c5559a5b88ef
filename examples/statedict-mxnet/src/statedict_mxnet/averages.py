"""An object of this package, and the adapter by which statedict captures and restores it."""

from __future__ import annotations

from typing import Any

import numpy

from statedict.plugins import Capture, Plan, stateful

STAGE = 0


class RunningAverage:
    """The mean of arrays of one shape."""

    def __init__(self, *shape: int) -> None:
        self.mean, self.seen = numpy.zeros(shape), 0

    def add(self, array: Any) -> None:
        """Take one more array into the mean."""
        self.seen += 1
        self.mean = self.mean + (array - self.mean) / self.seen


class _Stateful:
    """A running average with the two methods of PyTorch's objects."""

    def __init__(self, average: RunningAverage) -> None:
        self.average = average

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.average.mean, "seen": self.average.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.mean, self.average.seen = state["mean"], state["seen"]


def accepts(value: Any) -> bool:
    """Whether it is a running average."""
    return isinstance(value, RunningAverage)


def capture(value: RunningAverage, context: Capture, path: str) -> Any:
    """Its state, live."""
    return stateful.capture(_Stateful(value), context, path)


def plan(value: RunningAverage, state: Any, plan: Plan, path: str) -> None:
    """Plan to put a state back."""
    stateful.plan(_Stateful(value), state, plan, path)
