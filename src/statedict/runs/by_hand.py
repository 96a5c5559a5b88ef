"""What people change in a run's directory: they prune it by a policy, and pin what is never to be pruned."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from shlex import quote

from statedict.errors import RunError
from statedict.io.urls import named
from statedict.runs.directory import Directory
from statedict.runs.keep import Policy, keeping
from statedict.runs.listing import listing
from statedict.runs.lock import Lock
from statedict.runs.prune import Pruned, plan, remove


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
    files, policy = _of_ours(directory), keeping(keep)
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
    files = Directory(named(directory))
    if not files.steps():
        others = [one for one in listing(directory) if one.kind != "statedict"]
        what = f"its checkpoints are {others[0].kind}, which are only read" if others else "has no committed checkpoint"
        raise RunError(f"{files}: {what}")
    return files
