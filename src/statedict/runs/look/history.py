"""When the tensors of a run changed, by how much, and since when they hold NaN.

Each tensor is compared with the same one in the last checkpoint before that has it. Of our checkpoints only tensors
whose digests in the manifests differ are read; those of other writers are compared byte by byte.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from statedict.api.files import load
from statedict.collector import Paused
from statedict.errors import FileError, FormatError, RunError
from statedict.io.urls import to_name
from statedict.ops.diff.compare import Rule, comparable, compare
from statedict.ops.stats.survey import survey
from statedict.render.text import shape
from statedict.reports.diff import Measures
from statedict.reports.runs import COMMITTED, Blame, Broken, Change, Checkpoint, History
from statedict.runs.directory import LOOKS, Directory
from statedict.runs.look.listing import listing, look_again
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import filter_paths, matches, to_patterns

_GONE = "was removed meanwhile"


def blame(
    directory: str | os.PathLike[str], patterns: Sequence[str] | str = "*", *, executor: Executor | None = None
) -> Blame:
    """Tell at which steps tensors changed, by how much, and when they got their first NaN or infinity.

    Args:
        directory: the run, or its URL, by any writer.
        patterns: which tensors, such as `layers.3.*`.
        executor: as for `save`.

    Raises:
        RunError: no checkpoint can be read.
        PatternError: a pattern matches no tensor.
        StateDictError: as `listing`.

    >>> import numpy, tempfile, statedict
    >>> with statedict.CheckpointManager(tempfile.mkdtemp(), background=False) as manager:
    ...     for step in (1, 2, 3):
    ...         _ = manager.save(step, {"w": numpy.ones(4) * step, "frozen": numpy.ones(4)})
    >>> print(statedict.runs.blame(manager.directory))
    2 tensors in 3 checkpoints, 1 to 3
    changed at every step
      w  float64  4
        2  rel 1.00e+00  max 1  100.0% of 4
        3  rel 5.00e-01  max 1  100.0% of 4
    never changed
      frozen  float64  4
    """
    globs = to_patterns(patterns)
    files = Directory(to_name(directory))
    for _ in range(LOOKS):
        looker = _Looker(executor)
        looker.look(files, globs)
        if looker.names or _GONE not in looker.skipped.values():  # else all were removed, and others may have come
            break
    if not looker.names:
        raise RunError(f"{files}: has no checkpoint with a step that can be read")
    filter_paths(looker.paths, globs, "tensor")
    return Blame(str(files), tuple(looker.names), looker.histories(), looker.skipped)


@dataclass(slots=True)
class _Last:
    """A tensor as it was seen last."""

    tensor: LazyTensor
    name: str = ""
    digest: str = ""
    there: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    broken: Broken | None = None


class _Looker:
    def __init__(self, executor: Executor | None) -> None:
        self._executor = executor
        self._known: dict[str, _Last] = {}
        self.names: list[str] = []
        self.paths: set[str] = set()  # of all tensors
        self.skipped: dict[str, str] = {}  # name → why

    def look(self, files: Directory, globs: Sequence[str]) -> None:
        for one in listing(files.path):
            if one.step is None:
                continue
            if not one.usable:
                self.skipped[one.name] = one.damage
                continue
            try:
                with Paused():
                    tensors = load(one.path).tensors()
                entries = files.manifest(one.step).entries if one.state == COMMITTED else ()
            except (FormatError, FileError) as error:
                self.skipped[one.name] = _GONE if look_again(files.path, one) != one else str(error)
                continue
            self.paths |= tensors.keys()
            wanted = {path: tensor for path, tensor in tensors.items() if matches(path, globs)}
            self._add(one, wanted, {entry.path: entry.digest for entry in entries})

    def histories(self) -> tuple[History, ...]:
        return tuple(
            History(
                path, one.tensor.dtype.name, tuple(one.tensor.shape), tuple(one.there), tuple(one.changes), one.broken
            )
            for path, one in self._known.items()
        )

    def _add(self, checkpoint: Checkpoint, tensors: dict[str, LazyTensor], digests: dict[str, str]) -> None:
        self.names.append(checkpoint.name)
        pairs: dict[str, tuple[LazyTensor, LazyTensor]] = {}
        whole: dict[str, LazyTensor] = {}  # those to search for NaN

        def note(one: _Last, measures: Measures | None, text: str) -> None:
            one.changes.append(Change(checkpoint.name, checkpoint.step, one.name, measures, text))

        for path, tensor in tensors.items():
            one = self._known.get(path)
            if one is None:
                self._known[path], whole[path] = _Last(tensor), tensor
                continue
            before, digest = one.tensor, digests.get(path, "")
            if before.dtype is not tensor.dtype or tuple(before.shape) != tuple(tensor.shape):
                whole[path] = tensor
                note(one, None, " → ".join(f"{each.dtype.name} {shape(each.shape)}" for each in (before, tensor)))
            elif not comparable(before.dtype, tensor.dtype):
                whole[path], pairs[path] = tensor, (before, tensor)
            elif not digest or digest != one.digest:
                pairs[path] = before, tensor
        tallies = compare([*pairs.values()], Rule(), self._executor)
        measured = {path: tally.measures() for path, tally in zip(pairs, tallies, strict=True) if tally is not None}
        for path, measures in measured.items():
            one = self._known[path]
            if not measures.elements:
                note(one, None, "other bytes")
            elif measures.changed:
                note(one, measures, "")
                if measures.nonfinite and one.broken is None:
                    whole[path] = tensors[path]
        self._find_nan(checkpoint, {path: one for path, one in whole.items() if not self._known[path].broken})
        for path, tensor in tensors.items():
            one = self._known[path]
            one.name, one.tensor, one.digest = checkpoint.name, tensor, digests.get(path, "")
            one.there.append(checkpoint.name)

    def _find_nan(self, checkpoint: Checkpoint, tensors: dict[str, LazyTensor]) -> None:
        floating = {path: tensor for path, tensor in tensors.items() if tensor.dtype.kind in ("float", "complex")}
        for one in survey(StateDict(floating), None, self._executor).tensors if floating else ():
            if one.nan or one.inf:
                known = self._known[one.name]
                known.broken = Broken(checkpoint.name, checkpoint.step, one.nan, one.inf, one.elements)
