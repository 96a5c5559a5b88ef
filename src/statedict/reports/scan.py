"""ScanReport: every global that the pickles in a file name, with a verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from statedict.shown import Shown

VERDICTS = DATA, OPAQUE, UNREADABLE, DANGEROUS = "data", "opaque", "unreadable", "dangerous"


WORST_FIRST = (DANGEROUS, OPAQUE, UNREADABLE, DATA)


@dataclass(frozen=True, slots=True)
class Finding:
    """One global that a pickle names, or a part that was not looked into.

    Attributes:
        member: where the pickle is: the archive's member, or empty for the file itself.
        offset: of the opcode that names it first, in that member.
        module: as the pickle spells it; empty for a part that was not looked into.
        name: as the pickle spells it.
        verdict: `data`, `opaque` or `dangerous`.
        why: the reason, in a few words.
        called: how many opcodes call it, make an instance of it, or give it a state; 0 where it is only named.
        count: how many opcodes name it.
    """

    member: str
    offset: int
    module: str
    name: str
    verdict: str
    why: str
    called: int
    count: int

    @property
    def qualified(self) -> str:
        """Module and name, joined by a dot."""
        return f"{self.module}.{self.name}" if self.module else self.name


@dataclass(frozen=True, slots=True)
class ScanReport(Shown):
    """What `scan` found in a file or a folder.

    Attributes:
        file: its path.
        pickles: how many pickles there are in it.
        globals: what they name, the worst first.
        notes: what else is to be said.
        damage: parts that could not be read to their end.
    """

    file: str
    pickles: int
    globals: tuple[Finding, ...]
    notes: tuple[str, ...]
    damage: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The worst that there is: `dangerous`, `opaque`, `unreadable` or `data`."""
        verdicts = {found.verdict for found in self.globals} | ({UNREADABLE} if self.damage else set())
        return next((verdict for verdict in WORST_FIRST if verdict in verdicts), DATA)

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        found = asdict(self)
        return {"file": found.pop("file"), "verdict": self.verdict, **found}
