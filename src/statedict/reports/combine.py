"""What `average` reports."""

from __future__ import annotations

from dataclasses import dataclass

from statedict.shown import Shown


@dataclass(frozen=True, slots=True)
class CombineReport(Shown):
    """How states were combined, or with `dry_run` would be."""

    sources: tuple[tuple[str, float], ...]  # the name and the share of each
    tensors: int  # how many were combined
    nbytes: int  # of the result
    rules: tuple[tuple[str, str], ...]  # path of a tensor that is no average → what it is: "equal", "max"
    left_out: tuple[tuple[str, str], ...]  # path in the first source → why
    notes: tuple[str, ...]
    written: bool  # whether a file was written
