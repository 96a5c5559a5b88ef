"""VerifyReport: what `verify` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from statedict.shown import Shown, to_record
from statedict.tensor.checks import Problem


@dataclass(frozen=True, slots=True)
class Nonfinite:
    """How many of the elements of a tensor are NaN, and how many infinite."""

    path: str
    elements: int
    nan: int
    inf: int


@dataclass(frozen=True, slots=True)
class VerifyReport(Shown):
    """What `verify` found in a file, or in the files of a checkpoint."""

    file: str
    format: str  # the name of its format
    tensors: int = 0  # how many it holds
    parts: int = 0  # how many parts it has: records of an archive, or the header and each tensor
    nbytes: int = 0  # bytes that were read
    crcs: int = 0  # how many CRC-32 were compared
    digests: int = 0  # how many digests were compared
    problems: tuple[Problem, ...] = ()  # what is wrong; empty if the file is fine
    notes: tuple[str, ...] = ()  # remarks, not damage
    nonfinite: tuple[Nonfinite, ...] | None = None  # tensors with NaN or infinities; None if these were not asked for

    @property
    def ok(self) -> bool:
        """Whether there are no problems. NaN and infinities are values, not damage."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """All fields, and `ok`, ready for `json.dumps`."""
        return {"file": self.file, "ok": self.ok} | to_record(self)
