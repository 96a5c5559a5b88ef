"""VerifyReport: what `verify` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from statedict.shown import Shown
from statedict.tensor.checks import Problem


@dataclass(frozen=True, slots=True)
class Nonfinite:
    """How many elements of a tensor are no finite numbers.

    Attributes:
        path: its path.
        elements: how many it has.
        nan: how many are NaN.
        inf: how many are infinite.
    """

    path: str
    elements: int
    nan: int
    inf: int


@dataclass(frozen=True, slots=True)
class VerifyReport(Shown):
    """What `verify` found in a file, or in the files of a checkpoint.

    Attributes:
        file: its path.
        format: what it is.
        tensors: how many it holds.
        parts: how many parts it has: records of an archive, or the header and each tensor.
        nbytes: bytes that were read.
        crcs: how many CRC-32 were compared.
        digests: how many digests were compared.
        problems: what is wrong; empty if nothing is.
        notes: what deserves a word and is no damage.
        nonfinite: tensors with NaN or infinities; None if these were not asked for.
    """

    file: str
    format: str
    tensors: int = 0
    parts: int = 0
    nbytes: int = 0
    crcs: int = 0
    digests: int = 0
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    nonfinite: tuple[Nonfinite, ...] | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. NaN and infinities are values, not damage."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {"file": self.file, "ok": self.ok} | asdict(self)
