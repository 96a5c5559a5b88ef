"""VerifyReport: what `verify` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from statedict.shown import Shown
from statedict.tensor.checks import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


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
        """All of it, ready for `json.dumps`."""
        return {"file": self.file, "ok": self.ok} | asdict(self)

    def verdict(self) -> str:
        """In one line."""
        verdict = _number(len(self.problems), "problem") if self.problems else "fine"
        counts = f"{_number(self.tensors, 'tensor')} in {_number(self.parts, 'part')}"
        sums = f"CRC-32 of {self.crcs:,}, digests of {self.digests:,}"
        return f"{self.file}: {verdict} ({self.format}, {counts}, {sums})"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """As text, of which a line may hold a name with line breaks in it."""
        lines = [self.verdict()]
        lines += [f"  {problem}" for problem in self.problems]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [
            f"  {found.path}: {found.nan:,} NaN and {found.inf:,} infinite of {found.elements:,} elements"
            for found in self.nonfinite or ()
        ]
        return lines


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
