"""Which step broke a run: a test is carried out at steps chosen by halves, as `git bisect run` does with commits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from statedict.errors import RunError
from statedict.io.location import location
from statedict.io.urls import is_url, redact, to_name
from statedict.runs.look.listing import Checkpoint, find, listing
from statedict.values import count

GOOD, BAD, SKIP = "good", "bad", "skip"
_SKIP = 125
_PLACE = re.compile(r"(?<!\$)\{(checkpoint|step|name)\}")


@dataclass(frozen=True, slots=True)
class Tried:
    """A checkpoint that was tested.

    Attributes:
        name: its name.
        step: its step.
        verdict: `good`, `bad` or `skip`.
        seconds: how long the test took.
    """

    name: str
    step: int | None
    verdict: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {"checkpoint": self.name, "step": self.step, "verdict": self.verdict, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class Bisection:
    """What `bisect` found.

    Attributes:
        directory: of the run.
        good: the last checkpoint that is known to be good.
        bad: the first one that is known to be bad.
        between: names of those between the two, which could not be tested; empty if `bad` is the first bad one.
        tried: what was tested, in that order.
    """

    directory: str
    good: Checkpoint
    bad: Checkpoint
    between: tuple[str, ...]
    tried: tuple[Tried, ...]

    @property
    def found(self) -> bool:
        """Whether `bad` is the first bad one for sure."""
        return not self.between

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {
            "directory": self.directory,
            "found": self.found,
            "good": self.good.to_json(),
            "bad": self.bad.to_json(),
            "between": list(self.between),
            "tried": [one.to_json() for one in self.tried],
        }

    def __str__(self) -> str:
        tests = count(len(self.tried), "test")
        if self.found:
            return f"{self.bad.name} is the first bad checkpoint, {self.good.name} the last good one ({tests})"
        names = ", ".join((*self.between, self.bad.name))
        return f"the first bad checkpoint is one of {names}; those before {self.bad.name} were skipped ({tests})"


def bisect(
    directory: str | os.PathLike[str],
    test: str | Callable[[Checkpoint], Any],
    *,
    good: str | int | None = None,
    bad: str | int | None = None,
    tell: Callable[[Tried, int], None] | None = None,
    stdout: Any = None,
) -> Bisection:
    """Find the first checkpoint for which a test fails, with as few tests as halving takes.

    Both ends are tested first. The checkpoints that are damaged or have no step are left out; of a run that goes on,
    those that are pruned meanwhile are skipped.

    Args:
        directory: of a run, or its URL; whoever wrote it.
        test: a command for the shell, with `{checkpoint}` (the path of its file or folder), `{step}` or `{name}` in it;
            they are also in the variables `STATEDICT_CHECKPOINT`, `STATEDICT_STEP` and `STATEDICT_NAME`. Its exit
            status means: 0 good, 125 cannot be tested, 1 to 127 bad, above: stop. Or a function of a `Checkpoint` that
            returns whether it is good, None if that cannot be told.
        good: a step or name that is good; the first one by default.
        bad: a later one that is bad; the last one by default.
        tell: called after each test with what it found and how many checkpoints are left between good and bad.
        stdout: where a command's output goes, as for `subprocess.run`.

    Raises:
        RunError: the good end is bad, the bad end is good, there are too few checkpoints, or the command says stop.
        StateDictError: what `listing` raises.

    >>> import numpy, tempfile
    >>> import statedict
    >>> from statedict.runs import bisect
    >>> with statedict.CheckpointManager(tempfile.mkdtemp(), background=False) as manager:
    ...     for step in range(10, 110, 10):
    ...         _ = manager.save(step, {"w": numpy.array([step, numpy.nan if step > 60 else 1])})
    >>> print(bisect(manager.directory, lambda one: not statedict.stats(one.path).total.nan))
    70 is the first bad checkpoint, 60 the last good one (5 tests)
    """
    where = redact(to_name(directory))
    everything = listing(directory)
    line = [one for one in everything if one.usable and one.step is not None]
    first, last = _end(everything, line, good, 0, where), _end(everything, line, bad, len(line) - 1, where)
    if first >= last:
        raise RunError(
            f"{where}: good is {line[first].name}, bad {line[last].name}; the good one has to come first"
            if line and (good is not None or bad is not None)
            else f"{where}: has {len(line)} checkpoints that can be tested, two are needed"
        )
    tried: list[Tried] = []
    skipped: set[int] = set()

    def verdict(at: int, left: int) -> str:
        began = time.monotonic()
        one = line[at]
        said = _ran(test, one, stdout) if isinstance(test, str) else _word(test(one))
        tried.append(Tried(one.name, one.step, said, time.monotonic() - began))
        if said == SKIP:
            skipped.add(at)
        if tell is not None:
            tell(tried[-1], left)
        return said

    low = _verify_end(verdict, line, first, last, GOOD, None if good is None else where)
    high = _verify_end(verdict, line, last, low, BAD, None if bad is None else where)
    while True:
        between = [at for at in range(low + 1, high) if at not in skipped]
        if not between:
            break
        middle = min(between, key=lambda at: abs(2 * at - low - high))
        said = verdict(middle, len(between) - 1)
        if said == GOOD:
            low = middle
        elif said == BAD:
            high = middle
    return Bisection(where, line[low], line[high], tuple(line[at].name for at in range(low + 1, high)), tuple(tried))


def _end(
    everything: Sequence[Checkpoint], line: list[Checkpoint], given: str | int | None, usual: int, where: str
) -> int:
    if given is None:
        return usual
    one = find(everything, given, where)
    if one not in line:
        raise RunError(
            f"{where}: {one.name} cannot be tested; it is {one.state}{' and has no step' * (one.step is None)}"
        )
    return line.index(one)


def _verify_end(
    verdict: Callable[[int, int], str], line: list[Checkpoint], end: int, other: int, wanted: str, given: str | None
) -> int:
    """The end that is what it has to be; one that was not named and cannot be tested is passed over."""
    towards = 1 if other > end else -1
    for at in range(end, other, towards):
        said = verdict(at, abs(other - at) - 1)
        if said == wanted:
            return at
        if said != SKIP:
            remedy = (
                "the test fails there, too: does it run at all?" if wanted == GOOD else "the test passes there, too"
            )
            raise RunError(f"{line[at].name} is {said}, expected it to be {wanted}; {remedy}")
        if given is not None:
            raise RunError(f"{line[at].name} was to be {wanted}, and the test skips it; name another one")
    raise RunError(f"the test skips all checkpoints from {line[end].name} to {line[other].name}")


def _word(answer: Any) -> str:
    return SKIP if answer is None else GOOD if answer else BAD


def _ran(command: str, one: Checkpoint, stdout: Any) -> str:
    words = {"checkpoint": one.path, "step": str(one.step), "name": one.name}
    variables = {_variable(name): word for name, word in words.items()}
    sys.stdout.flush()
    done = subprocess.run(
        ["/bin/sh", "-c", fill_command(command)], env=os.environ | variables, stdout=stdout, check=False
    )
    status = 128 - done.returncode if done.returncode < 0 else done.returncode
    if status >= 128:
        raise RunError(f"{one.name}: the test ended with status {status}, which means stop: {command}")
    return GOOD if status == 0 else SKIP if status == _SKIP or _is_gone(one) else BAD


def _is_gone(one: Checkpoint) -> bool:
    """Whether a run that goes on has pruned it meanwhile, so that the test could only fail."""
    if is_url(one.path):
        return one.kind == "statedict" and not location(one.path).exists()
    return not os.path.exists(one.path)


def fill_command(command: str) -> str:
    r"""A command for the shell with variables in the place of `{checkpoint}`, `{step}` and `{name}`, quoted as needed.

    What is in a variable is never read as a command, whatever a file is called.

    >>> print(fill_command("test {step} '{step}' \"{step}\" {other}"))
    test "${STATEDICT_STEP}" ''"${STATEDICT_STEP}"'' "${STATEDICT_STEP}" {other}
    """
    out: list[str] = []
    quote, at = "", 0
    while at < len(command):
        found = _PLACE.match(command, at)
        character = command[at]
        if found:
            before, after = _QUOTES[quote]
            out.append(f"{before}${{{_variable(found[1])}}}{after}")
            at = found.end()
        elif character == "\\" and quote != "'":
            out.append(command[at : at + 2])
            at += 2
        else:
            if character in "'\"" and quote in ("", character):
                quote = "" if quote else character
            out.append(character)
            at += 1
    return "".join(out)


# what stands around a variable within which quotes
_QUOTES = {"": ('"', '"'), '"': ("", ""), "'": ("'\"", "\"'")}


def _variable(name: str) -> str:
    return f"STATEDICT_{name.upper()}"
