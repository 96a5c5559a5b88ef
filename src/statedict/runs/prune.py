"""What a policy leaves of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from shlex import quote
from typing import Any

from statedict.errors import RunError
from statedict.io.urls import to_name
from statedict.render.html import fold, listing, page, table
from statedict.runs.directory import Directory, GoneError
from statedict.runs.keep import AnyPolicy, Policy, to_policy
from statedict.runs.lock import Lock
from statedict.runs.look import listing as of_run
from statedict.runs.replaced import find_superseded
from statedict.shown import Shown

_SHORT = 30


@dataclass(frozen=True, slots=True)
class Pruned(Shown):
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
        """All fields, as JSON."""
        kept = [{"step": step, "why": why} for step, why in self.kept.items()]
        return {"kept": kept, "removed": list(self.removed), "bytes": self.nbytes}

    def __str__(self) -> str:
        lines = [self.headline()]
        lines += [f"  removed {step}" for step in self.removed]
        lines += [f"  {step} stays: {why}" for step, why in self.kept.items()]
        return "\n".join(lines)

    def headline(self) -> str:
        """How many of how many go."""
        return f"{len(self.removed):,} removed, {self.nbytes:,} bytes; {len(self.kept):,} stay"

    def _repr_html_(self) -> str:
        return page(
            self.headline(),
            fold("removed", listing(self.removed), len(self.removed) <= _SHORT),
            fold("stay", table(("step", "why"), [*self.kept.items()], lambda row: row), len(self.kept) <= _SHORT),
        )


def plan(directory: Directory, keep: Policy | None, needed: set[int]) -> Pruned:
    """What a policy keeps and what not.

    The newest sound one stays whatever the policy says, and so do pinned ones and those that cannot be read, for which
    nothing is known.

    Args:
        directory: of the run.
        keep: the policy; None keeps all.
        needed: steps that stay in any case.
    """
    readable, unread = directory.manifests()
    past = find_superseded(directory)
    manifests = [one for one in readable if one.step not in directory.damaged | past]
    kept = {step: f"damaged: {why}" for step, why in unread.items()}
    kept |= {one.step: "damaged" for one in readable if one.step in directory.damaged - past}
    for policy in _parts(keep):
        for step in policy.kept(manifests):
            kept.setdefault(step, str(policy))
    if manifests and keep is not None and not {one.step for one in manifests} & kept.keys():
        kept |= {one.step: "the policy keeps none, so nothing is removed" for one in manifests}
    if keep is None:
        kept |= {one.step: "all are kept" for one in manifests}
    pins = directory.pins()
    kept |= {one.step: "pinned" for one in manifests if one.step in pins}
    for step in needed & {one.step for one in manifests}:
        kept.setdefault(step, "the newest")
    if not needed:
        newest = next((one.step for one in reversed(manifests) if _is_sound(directory, one.step)), None)
        if newest is not None:
            kept.setdefault(newest, "the newest")
    old = [one for one in readable if one.step in past]  # of a run that another one has replaced
    kept |= {one.step: "pinned" for one in old if one.step in pins}
    gone = sorted((one for one in [*manifests, *old] if one.step not in kept), key=lambda one: one.step)
    return Pruned(dict(sorted(kept.items())), tuple(one.step for one in gone), sum(one.nbytes for one in gone))


def _is_sound(directory: Directory, step: int) -> bool:
    try:
        return directory.damage(step) is None
    except GoneError:
        return False


def remove(directory: Directory, found: Pruned) -> None:
    """Remove what goes, the oldest first."""
    for step in found.removed:
        try:
            directory.remove(step)
        except FileNotFoundError:
            # somebody has moved it away meanwhile; but if all is away, so is what was just saved
            if not os.path.isdir(directory.path) or os.path.lexists(directory.folder(step)):
                raise


def _parts(keep: Policy | None) -> list[Policy]:
    if keep is None:
        return []
    return list(keep.policies) if isinstance(keep, AnyPolicy) else [keep]  # type: ignore[arg-type]


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
        agreed: is asked before anything is removed; nothing is if it says no. It is asked again if more would be
            removed by then.

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
    files, policy = _of_ours(directory), to_policy(keep)
    if dry_run:
        return plan(files, policy, set())
    owner = _Person()
    try:
        lock = Lock(files.path, owner.settle)
    except RunError as error:
        raise RunError(_room(files, error)) from None
    files.guard = lock.guard
    try:
        found = plan(files, policy, set())
        while found.removed and agreed is not None:
            before = found
            if not agreed(found):
                return found
            found = plan(files, policy, set())  # people pin, and move steps away, while they are asked
            if {*found.removed} <= {*before.removed}:
                break
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


def _room(files: Directory, error: RunError) -> str:
    """What to do about a run that goes on and leaves no room."""
    what, _, _ = str(error).partition(";")
    if files.remote:
        aside = "delete the objects of a step that is not the newest, COMMITTED first"
    else:
        gone = quote(f"{files.path}.gone")
        aside = f"`mv {quote(files.path)}/STEP {gone} && rm -r {gone}` of a step that is not the newest"
    return (
        f"{what}, and removes by its own `keep` after each save; to remove others, wait until it ends. To make room at "
        f"once: {aside}; it can go on meanwhile"
    )


class _Person:
    """Who holds the lock; nothing is left of what people do when a manager of this process takes over."""

    def settle(self) -> None:
        """Do nothing."""


def _of_ours(directory: str | os.PathLike[str]) -> Directory:
    files = Directory(to_name(directory))
    if not files.steps():
        others = [one for one in of_run.listing(directory) if one.kind != "statedict"]
        what = f"its checkpoints are {others[0].kind}, which are only read" if others else "has no committed checkpoint"
        raise RunError(f"{files}: {what}")
    return files
