"""Which checkpoints of a run are damaged: their bytes are read and compared with their digests."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from statedict.errors import FileError, FormatError
from statedict.io.urls import named, shown
from statedict.reports import verify
from statedict.runs.directory import LOOKS, Directory, GoneError
from statedict.runs.listing import UNFINISHED, Checkpoint, find, listing, look_again


@dataclass(frozen=True, slots=True)
class RunVerified:
    """What is wrong with the checkpoints of a run.

    Attributes:
        directory: of the run.
        damage: name → what is wrong, in words; empty for one that is sound. In the order of the steps.
        unfinished: names of what was never committed; it is no checkpoint, and no damage.
        quick: whether the bytes of tensors were left unread.
    """

    directory: str
    damage: dict[str, str]
    unfinished: tuple[str, ...] = ()
    quick: bool = False

    @property
    def ok(self) -> bool:
        """Whether none is damaged."""
        return not any(self.damage.values())

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for `json.dumps`."""
        return {
            "directory": self.directory,
            "ok": self.ok,
            "quick": self.quick,
            "checkpoints": [
                {"checkpoint": name, "ok": not damage, "damage": damage or None} for name, damage in self.damage.items()
            ],
            "unfinished": list(self.unfinished),
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """As text, of which a line may hold a name with line breaks in it."""
        bad = sum(map(bool, self.damage.values()))
        head = f"{self.directory}: {len(self.damage):,} checkpoints, {bad or 'none'} damaged"
        lines = [head + (", by headers and sizes" if self.quick else "")]
        lines += [f"  {name}  {damage or 'fine'}" for name, damage in self.damage.items()]
        lines += [f"  {name}  unfinished" for name in self.unfinished]
        return lines


def verify_run(
    directory: str | os.PathLike[str], which: Iterable[str | int] = (), *, quick: bool = False
) -> RunVerified:
    """Look for damage in the checkpoints of a run. What is removed while they are looked at is left out.

    Args:
        directory: of the run, or its URL; whoever wrote it.
        which: steps or names; by default all.
        quick: manifests, headers and sizes only; no tensor is read.

    Raises:
        RunError: there is no such checkpoint.
        StateDictError: what `listing` raises.

    >>> import numpy, tempfile
    >>> from statedict import CheckpointManager
    >>> from statedict.runs import verify_run
    >>> with CheckpointManager(tempfile.mkdtemp()) as manager:
    ...     _ = manager.save(7, {"w": numpy.ones((4, 5))})
    >>> verify_run(manager.directory).damage
    {'7': ''}
    """
    files, found = Directory(named(directory)), listing(directory)
    chosen = [find(found, one, shown(files.path)) for one in which] or found
    looked = {one.name: _steady_damage(files, one, quick) for one in chosen if one.state != UNFINISHED}
    damage = {name: damage for name, damage in looked.items() if damage is not None}
    return RunVerified(shown(files.path), damage, tuple(one.name for one in chosen if one.state == UNFINISHED), quick)


def _steady_damage(files: Directory, one: Checkpoint, quick: bool) -> str | None:
    """What is wrong with one that stays what it is while it is looked at; None if it is gone."""
    for _ in range(LOOKS):
        try:
            damage = _damage(files, one, quick)
        except GoneError:
            damage = "gone"
        if not damage:
            return ""
        now = look_again(files.path, one)
        if now is None:
            return None
        if now == one:
            return damage
        one = now
    return None


def _damage(files: Directory, one: Checkpoint, quick: bool) -> str:
    if one.kind == "statedict" and one.step is not None:
        return files.damage(one.step, "quick" if quick else "full") or ""
    if one.damage:
        return one.damage
    try:
        problems = verify(one.path, quick=quick).problems
    except (FormatError, FileError) as error:
        return str(error)
    return str(problems[0]) if problems else ""
