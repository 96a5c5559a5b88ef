"""What a policy leaves of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from statedict.html import Shown, fold, listing, page, table
from statedict.runs.directory import Directory, GoneError
from statedict.runs.keep import AnyPolicy, Policy
from statedict.runs.replaced import superseded

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
        """All of it, ready for `json.dumps`."""
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
    past = superseded(directory)
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
