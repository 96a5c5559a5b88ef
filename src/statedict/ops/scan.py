"""Whether a file is safe to unpickle: every global that any pickle in it names, with a verdict.

    data        in our allow-list: it builds data
    opaque      not in it; statedict keeps it inert, `pickle.load` would import and use it
    dangerous   known to run code, or named in a way that honest files do not use
    unreadable  a part could not be followed to its end, and what was found until there is only data

Nothing is built, imported or called, no suffix is trusted, and no tensor is read: of what does not begin as a pickle
or a container only the first bytes are. Bytes that belong to nothing (before, between and behind the parts) are
searched for pickles. Work and memory are bounded by 64 MB + 20 times the file's size.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from statedict.errors import StateDictError
from statedict.html import Shown
from statedict.io.urls import named
from statedict.pickles.alarms import DANGEROUS, DATA, OPAQUE

UNREADABLE = "unreadable"
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
        """All of it, ready for `json.dumps`."""
        found = asdict(self)
        return {"file": found.pop("file"), "verdict": self.verdict, **found}

    def __str__(self) -> str:
        found = (f"{one.verdict} {one.qualified}: {one.why}" for one in self.globals)
        return "\n  ".join([f"{self.file}: {self.verdict}", *found, *self.damage, *self.notes])

    def _repr_html_(self) -> str:
        from statedict.ops.html import scan

        return scan(self)


def scan(path: str | os.PathLike[str]) -> ScanReport:
    """List every global that any pickle in a file names, with a verdict. Nothing is unpickled.

    Args:
        path: a file, or a folder for all files in it. Symbolic links that lead out of the folder are not followed.

    Raises:
        FileError: there is no such file, or it cannot be opened.

    >>> import statedict
    >>> report = statedict.scan("examples/checkpoint.pth")
    >>> report.verdict, report.pickles
    ('data', 1)
    >>> report.globals[0].qualified, report.globals[0].why
    ('collections.OrderedDict', 'builds data')
    """
    from statedict.ops.scanner import Scan

    path = named(path)
    if not os.path.isdir(path):
        return Scan(path).file(path, "").report()
    found, root = Scan(path), os.path.realpath(path)
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted([*names, *(one for one in folders if os.path.islink(os.path.join(folder, one)))]):
            full = os.path.join(folder, name)
            label = os.path.relpath(full, path)
            target = os.path.realpath(full)
            if os.path.islink(full) and os.path.commonpath([root, target]) != root:
                found.damage.append(f"{label}: a symbolic link out of the folder; not followed")
            elif not os.path.isdir(target):
                try:
                    found.file(full, label)
                except StateDictError as error:
                    found.damage.append(f"{label}: {error}")
    return found.report()
