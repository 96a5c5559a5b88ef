"""What a policy leaves of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from statedict.errors import FileError, FormatError, RunError
from statedict.io.urls import named
from statedict.runs.directory import Directory
from statedict.runs.keep import AnyPolicy, Policy, keeping
from statedict.runs.listing import listing
from statedict.runs.lock import Lock
from statedict.runs.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Pruned:
    """What stays of a run and what goes.

    Attributes:
        kept: step → why it stays.
        removed: the steps that go, in order.
        nbytes: how many bytes that frees.
    """

    kept: dict[int, str]
    removed: tuple[int, ...]
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for `json.dumps`."""
        kept = [{"step": step, "why": why} for step, why in self.kept.items()]
        return {"kept": kept, "removed": list(self.removed), "bytes": self.nbytes}

    def __str__(self) -> str:
        lines = [f"{len(self.removed):,} removed, {self.nbytes:,} bytes; {len(self.kept):,} stay"]
        lines += [f"  removed {step}" for step in self.removed]
        lines += [f"  {step} stays: {why}" for step, why in self.kept.items()]
        return "\n".join(lines)


def plan(directory: Directory, keep: Policy | None, needed: set[int]) -> Pruned:
    """What a policy keeps and what not.

    The newest sound one stays whatever the policy says, and so do pinned ones and those that cannot be read, for which
    nothing is known.

    Args:
        directory: of the run.
        keep: the policy; None keeps all.
        needed: steps that stay in any case.
    """
    manifests: list[Manifest] = []
    kept: dict[int, str] = {}
    for step in directory.steps():
        try:
            manifests.append(directory.manifest(step))
        except (FormatError, FileError) as error:
            kept[step] = f"damaged: {error}"
    for policy in _parts(keep):
        for step in policy.kept(manifests):
            kept.setdefault(step, str(policy))
    if keep is None:
        kept |= {one.step: "all are kept" for one in manifests}
    pins = directory.pins()
    kept |= {one.step: "pinned" for one in manifests if one.step in pins}
    for step in needed & {one.step for one in manifests}:
        kept.setdefault(step, "the newest")
    if not needed:
        newest = next((one.step for one in reversed(manifests) if directory.damage(one.step) is None), None)
        if newest is not None:
            kept.setdefault(newest, "the newest")
    gone = [one for one in manifests if one.step not in kept]
    return Pruned(dict(sorted(kept.items())), tuple(one.step for one in gone), sum(one.nbytes for one in gone))


def prune(
    directory: str | os.PathLike[str],
    keep: int | Policy | Iterable[int | Policy],
    *,
    dry_run: bool = False,
    agreed: Callable[[Pruned], bool] | None = None,
) -> Pruned:
    """Remove the checkpoints of a run that a policy does not keep; nobody else may write there meanwhile.

    Those of other writers are never touched.

    Args:
        directory: of a run, or its URL.
        keep: as for `CheckpointManager`.
        dry_run: remove nothing.
        agreed: is asked before anything is removed; nothing is if it says no.

    Returns:
        What stays, and why; what is removed, or would be.

    Raises:
        RunError: another process writes there, or there are only checkpoints of other writers.
        StateDictError: what `listing` raises.

    >>> import numpy, tempfile
    >>> from statedict import CheckpointManager
    >>> from statedict.runs import prune
    >>> with CheckpointManager(tempfile.mkdtemp()) as manager:
    ...     for step in (1, 2, 3):
    ...         _ = manager.save(step, {"w": numpy.ones(step)})
    >>> prune(manager.directory, keep=1).removed
    (1, 2)
    """
    files, policy = _of_ours(directory), keeping(keep)
    if dry_run:
        return plan(files, policy, set())
    lock = Lock(files.path)
    try:
        found = plan(files, policy, set())
        if found.removed and (agreed is None or agreed(found)):
            remove(files, found)
    finally:
        lock.release()
    return found


def pin(directory: str | os.PathLike[str], steps: Iterable[int], *, pinned: bool = True) -> set[int]:
    """Say that some checkpoints are never to be pruned, or that they may be; a run may go on meanwhile.

    Args:
        directory: of a run, or its URL.
        steps: which.
        pinned: false to take it back.

    Returns:
        All steps that are pinned now.

    Raises:
        RunError: such a step is not committed.
        StateDictError: what `listing` raises.
    """
    files, wanted = _of_ours(directory), {*steps}
    there = files.steps()
    missing = sorted(wanted - {*there})
    if missing and pinned:
        raise RunError(f"{files}: step {missing[0]} is not committed; there are {', '.join(map(str, there[-5:]))}")
    before = files.pins()
    now = before | wanted if pinned else before - wanted
    if now != before:
        files.pin(now)
    return now


def _of_ours(directory: str | os.PathLike[str]) -> Directory:
    files = Directory(named(directory))
    if not files.steps():
        others = [one for one in listing(directory) if one.kind != "statedict"]
        what = f"its checkpoints are {others[0].kind}, which are only read" if others else "has no committed checkpoint"
        raise RunError(f"{files}: {what}")
    return files


def remove(directory: Directory, found: Pruned) -> None:
    """Remove what goes, the oldest first."""
    for step in found.removed:
        directory.remove(step)


def _parts(keep: Policy | None) -> list[Policy]:
    if keep is None:
        return []
    return list(keep.policies) if isinstance(keep, AnyPolicy) else [keep]  # type: ignore[arg-type]
