"""What policies leave of a run: prune it, and pin what stays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from shlex import quote

from statedict.errors import RunError
from statedict.io.urls import to_name
from statedict.reports.runs import Pruned
from statedict.runs.directory import Directory, GoneError
from statedict.runs.keep import Policy, split_policy, to_policy
from statedict.runs.lock import Lock
from statedict.runs.look import listing as of_run
from statedict.runs.replaced import find_superseded


def plan(directory: Directory, keep: Policy | None, needed: set[int]) -> Pruned:
    """Decide what goes: neither what the policy keeps, nor the newest sound, pinned, unreadable and needed ones.

    What stays keeps the step that it is a delta to.
    """
    readable, unread = directory.manifests()
    past = find_superseded(directory)
    manifests = [one for one in readable if one.step not in directory.damaged | past]
    steps = {one.step for one in manifests}
    kept = {step: f"damaged: {why}" for step, why in unread.items()}
    kept |= {one.step: "damaged" for one in readable if one.step in directory.damaged - past}
    for policy in split_policy(keep):
        for step in policy.kept(manifests):
            kept.setdefault(step, str(policy))
    if keep is None or not steps & kept.keys():
        kept |= dict.fromkeys(steps, "all are kept" if keep is None else "the policy keeps none, so nothing is removed")
    pins = directory.pins()
    kept |= dict.fromkeys(steps & pins, "pinned")
    newest = needed & steps if needed else _find_newest(directory, sorted(steps, reverse=True))
    for step in newest:
        kept.setdefault(step, "the newest")
    old = [one for one in readable if one.step in past]  # of a run that was replaced
    kept |= {one.step: "pinned" for one in old if one.step in pins}
    there = {one.step for one in (*manifests, *old)}
    for one in (*manifests, *old):
        if one.base in there and one.step in kept:
            kept.setdefault(one.base, f"step {one.step} is a delta to it")
    gone = sorted((one for one in [*manifests, *old] if one.step not in kept), key=lambda one: one.step)
    return Pruned(dict(sorted(kept.items())), tuple(one.step for one in gone), sum(one.nbytes for one in gone))


def _find_newest(directory: Directory, steps: list[int]) -> set[int]:
    for step in steps:
        try:
            if directory.damage(step) is None:
                return {step}
        except GoneError:
            pass
    return set()


def remove(directory: Directory, found: Pruned) -> None:
    """Remove what goes, the oldest first, but deltas before what they need."""
    deltas = directory.bases(found.removed)
    for step in sorted(found.removed, key=lambda step: (step not in deltas, step)):
        try:
            directory.remove(step)
        except FileNotFoundError:
            # somebody may have moved it away; but if the run is gone, so is what was just saved
            if not os.path.isdir(directory.path) or os.path.lexists(directory.folder(step)):
                raise


def prune(
    directory: str | os.PathLike[str],
    keep: int | Policy | Iterable[int | Policy],
    *,
    dry_run: bool = False,
    agreed: Callable[[Pruned], bool] | None = None,
) -> Pruned:
    """Remove the checkpoints of a run that a policy does not keep; those of other writers always stay.

    Args:
        directory: the run, or its URL.
        keep: as for `CheckpointManager`.
        dry_run: remove nothing.
        agreed: confirms what is about to be removed; called again if that has grown meanwhile.

    Raises:
        RunError: another process writes there, or all checkpoints are of other writers.
        StateDictError: as `listing`.

    >>> import numpy, tempfile, statedict
    >>> with statedict.CheckpointManager(tempfile.mkdtemp()) as manager:
    ...     for step in (1, 2, 3):
    ...         _ = manager.save(step, {"w": numpy.ones(step)})
    >>> statedict.runs.prune(manager.directory, keep=1).removed
    (1, 2)
    """
    files, policy = _open_ours(directory), to_policy(keep)
    if dry_run:
        return plan(files, policy, set())
    try:
        lock = Lock(files.path)
    except RunError as error:
        raise RunError(_explain_room(files, error)) from None
    files.place.guard = lock.guard
    try:
        found = plan(files, policy, set())
        while found.removed and agreed is not None:
            before = found
            if not agreed(found):
                return found
            found = plan(files, policy, set())  # meanwhile people pin steps and move them away
            if {*found.removed} <= {*before.removed}:
                break
        remove(files, found)
    finally:
        lock.release()
    return found


def pin(directory: str | os.PathLike[str], steps: Iterable[int], *, pinned: bool = True) -> set[int]:
    """Pin checkpoints, so that they are never pruned, or unpin them; a run may go on meanwhile.

    Args:
        directory: the run, or its URL.
        steps: the steps.
        pinned: false to unpin.

    Returns:
        All pinned steps.

    Raises:
        RunError: such a step is not committed.
        StateDictError: as `listing`.
    """
    files, wanted = _open_ours(directory), {*steps}
    there = files.steps()
    missing = sorted(wanted - {*there})
    if missing and pinned:
        raise RunError(f"{files}: step {missing[0]} is not committed; there are {', '.join(map(str, there[-5:]))}")
    before = files.pins()
    now = before | wanted if pinned else before - wanted
    if now != before:
        files.pin(now)
    return now


def _explain_room(files: Directory, error: RunError) -> str:
    """How to make room in a run that goes on."""
    what, _, _ = str(error).partition(";")
    which = "is not the newest" + ", and not one that a delta needs" * bool(files.bases(files.steps()))
    if files.remote:
        aside = f"delete the objects of a step that {which}, COMMITTED first"
    else:
        gone = quote(f"{files.path}.gone")
        aside = f"`mv {quote(files.path)}/STEP {gone} && rm -r {gone}` of a step that {which}"
    return (
        f"{what}, and removes by its own `keep` after each save; to remove others, wait until it ends. To make room at "
        f"once: {aside}; it can go on meanwhile"
    )


def _open_ours(directory: str | os.PathLike[str]) -> Directory:
    files = Directory(to_name(directory))
    if not files.steps():
        others = [one for one in of_run.listing(directory) if one.kind != "statedict"]
        what = f"its checkpoints are {others[0].kind}, which are only read" if others else "has no committed checkpoint"
        raise RunError(f"{files}: {what}")
    return files
