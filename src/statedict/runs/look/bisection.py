"""Which step broke a run: halve the checkpoints and test, as `git bisect run` does with commits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from statedict.errors import RunError
from statedict.io.location import location
from statedict.io.urls import redact, to_name
from statedict.reports.runs import Bisection, Checkpoint, Tried
from statedict.runs.look.listing import find, listing

GOOD, BAD, SKIP = "good", "bad", "skip"
_SKIP = 125
_PLACE = re.compile(r"(?<!\$)\{(checkpoint|step|name)\}")
_QUOTES = {"": ('"', '"'), '"': ("", ""), "'": ("'\"", "\"'")}  # quote → what stands around a variable inside it


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

    Both ends are tested first. Damaged checkpoints and those without a step are left out; those that are pruned
    meanwhile are skipped.

    Args:
        directory: the run, or its URL, by any writer.
        test: a shell command with `{checkpoint}` (the path of its file or folder), `{step}` or `{name}` in it, which
            are also in `STATEDICT_CHECKPOINT`, `STATEDICT_STEP` and `STATEDICT_NAME`. Exit status: 0 good, 125 cannot
            be tested, 1 to 127 bad, above: stop. Or a function of a `Checkpoint` that returns whether it is good, None
            if it cannot tell.
        good: a step or name that is good; the first by default.
        bad: a later one that is bad; the last by default.
        tell: called after each test with the result and how many checkpoints are left between good and bad.
        stdout: where the command's output goes, as for `subprocess.run`.

    Raises:
        RunError: the good end is bad, the bad end is good, there are too few checkpoints, or the command says stop.
        StateDictError: as `listing`.

    >>> import numpy, tempfile, statedict
    >>> with statedict.CheckpointManager(tempfile.mkdtemp(), background=False) as manager:
    ...     for step in range(10, 110, 10):
    ...         _ = manager.save(step, {"w": numpy.array([step, numpy.nan if step > 60 else 1])})
    >>> print(statedict.runs.bisect(manager.directory, lambda one: not statedict.stats(one.path).total.nan))
    70 is the first bad checkpoint, 60 the last good one (5 tests)
    """
    where, every = redact(to_name(directory)), listing(directory)
    line = [one for one in every if one.usable and one.step is not None]
    first = 0 if good is None else _find_end(every, line, good, where)
    last = len(line) - 1 if bad is None else _find_end(every, line, bad, where)
    if first >= last:
        raise RunError(
            f"{where}: good is {line[first].name}, bad {line[last].name}; the good one has to come first"
            if line and (good is not None or bad is not None)
            else f"{where}: has {len(line)} checkpoints that can be tested, two are needed"
        )
    search = _Search(line, partial(_run, test, stdout=stdout) if isinstance(test, str) else test, tell)
    low = search.check_end(first, last, GOOD, good is not None)
    high = search.check_end(last, low, BAD, bad is not None)
    return search.halve(where, low, high)


def _find_end(every: Sequence[Checkpoint], line: list[Checkpoint], which: str | int, where: str) -> int:
    one = find(every, which, where)
    if one not in line:
        raise RunError(
            f"{where}: {one.name} cannot be tested; it is {one.state}{' and has no step' * (one.step is None)}"
        )
    return line.index(one)


@dataclass
class _Search:
    line: list[Checkpoint]
    test: Callable[[Checkpoint], Any]
    tell: Callable[[Tried, int], None] | None
    tried: dict[int, Tried] = field(default_factory=dict)  # index in the line → result

    def _try(self, at: int, left: int) -> str:
        began, one = time.monotonic(), self.line[at]
        answer = self.test(one)
        verdict = SKIP if answer is None else GOOD if answer else BAD
        self.tried[at] = Tried(one.name, one.step, verdict, time.monotonic() - began)
        if self.tell is not None:
            self.tell(self.tried[at], left)
        return verdict

    def check_end(self, end: int, other: int, wanted: str, named: bool) -> int:
        """Test an end; if it cannot be tested and the caller did not name it, try the next one towards the other."""
        line = self.line
        for at in range(end, other, 1 if other > end else -1):
            verdict = self._try(at, abs(other - at) - 1)
            if verdict == wanted:
                return at
            if verdict != SKIP:
                remedy = "fails there, too: does it run at all?" if wanted == GOOD else "passes there, too"
                raise RunError(f"{line[at].name} is {verdict}, expected it to be {wanted}; the test {remedy}")
            if named:
                raise RunError(f"{line[at].name} was to be {wanted}, and the test skips it; name another one")
        raise RunError(f"the test skips all checkpoints from {line[end].name} to {line[other].name}")

    def halve(self, where: str, low: int, high: int) -> Bisection:
        while between := [at for at in range(low + 1, high) if at not in self.tried]:  # else it was skipped
            middle = min(between, key=lambda at: abs(2 * at - low - high))
            verdict = self._try(middle, len(between) - 1)
            if verdict == GOOD:
                low = middle
            elif verdict == BAD:
                high = middle
        names = tuple(one.name for one in self.line[low + 1 : high])
        return Bisection(where, self.line[low], self.line[high], names, tuple(self.tried.values()))


def _run(command: str, one: Checkpoint, stdout: Any) -> bool | None:
    words = {"checkpoint": one.path, "step": str(one.step), "name": one.name}
    environment = os.environ | {_variable(name): word for name, word in words.items()}
    sys.stdout.flush()
    done = subprocess.run(["/bin/sh", "-c", fill_command(command)], env=environment, stdout=stdout, check=False)
    status = 128 - done.returncode if done.returncode < 0 else done.returncode
    if status >= 128:
        raise RunError(f"{one.name}: the test ended with status {status}, which means stop: {command}")
    place = location(one.path)
    # a checkpoint that was pruned meanwhile fails any test; of folders in a store only the list tells
    gone = status not in (0, _SKIP) and not place.exists() and place.names() is None
    return None if gone or status == _SKIP else status == 0


def fill_command(command: str) -> str:
    r"""Replace `{checkpoint}`, `{step}` and `{name}` in a shell command by variables, quoted as needed.

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


def _variable(name: str) -> str:
    return f"STATEDICT_{name.upper()}"
