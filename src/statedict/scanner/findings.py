"""What a scan has found so far."""

from __future__ import annotations

from dataclasses import replace

from statedict.errors import LimitError
from statedict.reports.scan import OPAQUE, WORST_FIRST, Finding, ScanReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.scanner.effects import Named

MAX_FINDINGS = 20_000


class Findings:
    """What a scan of one file or folder has found so far.

    Attributes:
        path: as the caller spells it.
        pickles: how many.
        found: by member, module, name and kind.
        notes, damage: lines of text.
    """

    def __init__(self, path: str) -> None:
        self.path, self.pickles = path, 0
        self.found: dict[tuple[str, str, str, str], Finding] = {}
        self.notes: list[str] = []
        self.damage: list[str] = []

    def report(self) -> ScanReport:
        """All of it."""
        if not self.pickles and not self.found and not self.damage:
            self.notes.append("no pickle in it")
        order = sorted(self.found.values(), key=lambda found: WORST_FIRST.index(found.verdict))
        return ScanReport(self.path, self.pickles, tuple(order), tuple(self.notes), tuple(dict.fromkeys(self.damage)))

    def add(self, member: str, offset: int, named: Named, verdict: str, why: str) -> None:
        """Note a global."""
        key = (member, named.module, named.name, named.kind)
        known = self.found.get(key)
        if known is not None:
            self.found[key] = replace(known, count=known.count + named.count, called=known.called + named.called)
            return
        if len(self.found) >= MAX_FINDINGS:
            raise LimitError(f"has more than {MAX_FINDINGS:,} findings")
        count = max(named.count, 1)  # what no opcode names stands once
        self.found[key] = Finding(member, offset, named.module, named.name, verdict, why, named.called, count)

    def add_unread(self, member: str, offset: int, what: str, why: str) -> None:
        """Note what was not looked into."""
        key = (member, "", what, why)
        self.found.setdefault(key, Finding(member, offset, "", what, OPAQUE, f"{why}: not looked into", 0, 1))

    def add_damage(self, member: str, text: str) -> None:
        """Note damage."""
        if len(self.damage) < MAX_FINDINGS:
            self.damage.append(f"{member}: {text}" if member else text)
