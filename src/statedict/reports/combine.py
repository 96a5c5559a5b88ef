"""What `average`, `merge` and `delta` report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from statedict.reports.outcomes import SideFiles
from statedict.shown import Shown


@dataclass(frozen=True, slots=True)
class CombineReport(Shown):
    """How states were combined, or with `dry_run` would be."""

    method: str  # `average`, or one of `statedict.merge`
    sources: tuple[
        tuple[str, float | None], ...
    ]  # name and share or weight; None for a base, or if it varies by tensor
    tensors: int  # how many were combined
    nbytes: int  # of the result
    rules: tuple[tuple[str, str], ...]  # path of a tensor that the method did not make → what it is: "equal", "max"
    left_out: tuple[tuple[str, str], ...]  # path in the first source → why
    notes: tuple[str, ...]
    written: bool  # whether a file was written
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of the method, as they were given
    files: SideFiles = field(default_factory=SideFiles)  # what became of the files beside the first source


@dataclass(frozen=True, slots=True)
class DeltaReport(Shown):
    """What `delta.make` or `delta.apply` did, or with `dry_run` would do."""

    verb: str  # "make" or "apply"
    base: str  # its name
    digest: str  # of the base: XXH3-128 of names, dtypes, shapes and bytes of its tensors
    tensors: int  # how many are in the checkpoint
    deltas: int  # how many are differences; the others are stored by themselves
    nbytes: tuple[int, int]  # bytes before and after
    written: bool  # whether a file was written
    files: SideFiles = field(default_factory=SideFiles)  # what became of the files beside the base
