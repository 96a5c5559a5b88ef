"""ScanReport: every global that the pickles in a file name, with a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from statedict.shown import Shown, to_record

VERDICTS = DATA, OPAQUE, UNREADABLE, DANGEROUS = "data", "opaque", "unreadable", "dangerous"
WORST_FIRST = (DANGEROUS, OPAQUE, UNREADABLE, DATA)


@dataclass(frozen=True, slots=True)
class Finding:
    """One global that a pickle names, or a part that was not read."""

    member: str  # the archive's member that holds the pickle; empty for the file itself
    offset: int  # of the opcode that names it first, in that member
    module: str  # as the pickle spells it; empty for a part that was not read
    name: str  # as the pickle spells it
    verdict: str  # `data`, `opaque` or `dangerous`
    why: str  # the reason, in a few words
    called: int  # how many opcodes call it, instantiate it or set its state; 0 if it is only named
    count: int  # how many opcodes name it

    @property
    def qualified(self) -> str:
        """Module and name, joined by a dot."""
        return f"{self.module}.{self.name}" if self.module else self.name


@dataclass(frozen=True, slots=True)
class ScanReport(Shown):
    """What `scan` found in a file or a folder."""

    file: str
    pickles: int
    globals: tuple[Finding, ...]  # what they name, the worst first
    notes: tuple[str, ...]  # remarks
    damage: tuple[str, ...]  # parts that could not be read to their end

    @property
    def verdict(self) -> str:
        """The worst verdict: `dangerous`, `opaque`, `unreadable` or `data`."""
        verdicts = {found.verdict for found in self.globals} | ({UNREADABLE} if self.damage else set())
        return next((verdict for verdict in WORST_FIRST if verdict in verdicts), DATA)

    def to_json(self) -> dict[str, Any]:
        """All fields, and the verdict, ready for `json.dumps`."""
        return {"file": self.file, "verdict": self.verdict} | to_record(self)
