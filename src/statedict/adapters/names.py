"""How the names of a state go together with those of its target.

Training wraps models, and each wrapper puts a key into all names below it: `module.` (DistributedDataParallel,
DeepSpeed), `_orig_mod.` (torch.compile), `_fsdp_wrapped_module.`, `_checkpoint_wrapped_module.`, nested in any order
and in the midst of names. Checkpoints hold a model under `model.`, `net.` or any other name. A reading says which
name of the state stands for which of the target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

WRAPPERS = frozenset((
    "module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """Which name of the state stands for which of the target.

    Attributes:
        pairs: name in the target → name in the state, where there is one.
        note: how they differ, empty where they do not.
        other: another reading that is as good, empty if there is none.
        above: what stands before the target's names in the state.
        below: what stands before the state's names in the target.
        literal: wrappers are names like others.
        by: the keys that one side has and the other has not.
    """

    pairs: dict[str, str]
    note: str = ""
    other: str = ""
    above: str = ""
    below: str = ""
    literal: bool = False
    by: str = ""

    def module(self, path: str, places: Mapping[str, str]) -> str | None:
        """The path in the target of a module of the state; None if it is none of its modules.

        Args:
            path: its path in the state.
            places: paths of the target's modules, without wrappers → as they are.
        """
        if not self.note:
            return path
        short = (path if self.literal else unwrap(path)) + "."
        if not short.startswith(self.above) and short != ".":
            return None
        if short == "." and self.above:
            return None
        inside = (self.below + short.removeprefix(self.above)).strip(".")
        return places.get(inside, inside if self.literal else None)

    def translate(self, name: str, modules: Mapping[str, str]) -> str | None:
        """What a name of the state that has no pair would be called in the target; None if it is none of its names.

        Args:
            name: the name.
            modules: paths of the target's modules, without wrappers → as they are.
        """
        short = name if self.literal else plain(name)
        if not short.startswith(self.above):
            return None
        if self.literal:
            return name.removeprefix(self.above)
        keys = (self.below + short.removeprefix(self.above)).split(".")
        for depth in range(len(keys) - 1, 0, -1):
            path = ".".join(keys[:depth])
            if path in modules:
                return ".".join([modules[path], *keys[depth:]])
        return ".".join(([modules[""]] if modules.get("") else []) + keys)


def plain(name: str) -> str:
    """A name without the keys that wrappers put into it.

    >>> plain("module.encoder._orig_mod.weight")
    'encoder.weight'
    """
    keys = name.split(".")
    return name if WRAPPERS.isdisjoint(keys) else unwrap(name) or name


def unwrap(path: str) -> str:
    """A module's path without wrappers; that of a module which is only wrapped is empty."""
    return ".".join(key for key in path.split(".") if key not in WRAPPERS)


@dataclass(slots=True)
class _Side:
    """The names of one side by what is left of them without wrappers."""

    names: dict[str, str] = field(default_factory=dict)
    wrappers: dict[str, None] = field(default_factory=dict)
    twice: tuple[str, str] | None = None

    @classmethod
    def of(cls, names: Iterable[str]) -> _Side:
        side = cls()
        for name in names:
            short = plain(name)
            if short != name:
                side.wrappers |= dict.fromkeys(key for key in name.split(".") if key in WRAPPERS)
            if short in side.names:
                side.twice = side.names[short], name
            side.names[short] = name
        return side


def align(target: Iterable[str], state: Iterable[str], prefix: str | None = None) -> Reading:
    """Read the names of a state as those of a target.

    Args:
        target: the names of the target.
        state: those of the state.
        prefix: what stands before the target's names in the state; None finds it, and takes wrappers away on both
            sides.

    >>> align(["conv.weight"], ["module.model.conv.weight", "epoch"]).pairs
    {'conv.weight': 'module.model.conv.weight'}
    """
    target, state = list(target), list(state)
    known = set(state)
    if prefix is not None:
        pairs = {name: prefix + name for name in target if prefix + name in known}
        return Reading(pairs, f"read below {prefix!r}" if prefix and pairs else "", above=prefix, literal=True)
    if known.issuperset(target):
        return Reading({name: name for name in target})
    ours, theirs = _Side.of(target), _Side.of(state)
    for side, what in ((ours, "the target"), (theirs, "the state")):
        if side.twice is not None:
            same = {name: name for name in target if name in known}
            return Reading(same, "", f"{what} has both {side.twice[0]!r} and {side.twice[1]!r}" if not same else "")
    counts = Counter(_readings(ours.names, theirs.names))
    counts["", ""] += sum(name in theirs.names for name in ours.names)
    if not any(counts.values()):  # each side below a name of its own, if nothing else differs
        above, below = _common(theirs.names), _common(ours.names)
        if all(above + name.removeprefix(below) in theirs.names for name in ours.names):
            counts[above, below] = len(ours.names)
    (above, below), most = max(counts.items(), key=lambda item: (item[1], item[0] == ("", "")))
    rivals = [key for key, count in counts.items() if count == most and key != (above, below)] if above or below else []
    pairs = {
        name: theirs.names[above + short.removeprefix(below)]
        for short, name in ours.names.items()
        if short.startswith(below) and above + short.removeprefix(below) in theirs.names
    }
    notes = [f"read below {above!r} of the state"] * bool(above) + [f"read as what lies below {below!r}"] * bool(below)
    for side, what in ((theirs, "the state"), (ours, "the target")):
        if side.wrappers:
            notes.append(f"without {', '.join(key + '.' for key in side.wrappers)} of {what}")
    other = f"below {above or below!r} and below {rivals[0][0] or rivals[0][1]!r}" if rivals and most else ""
    by = [*filter(None, (above, below)), *(key + "." for side in (theirs, ours) for key in side.wrappers)]
    return Reading(pairs, ", ".join(notes) if pairs else "", other, above, below, by=", ".join(by))


def _common(names: Iterable[str]) -> str:
    """What all names begin with, up to a dot."""
    shared: list[str] = []
    for keys in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(keys)) > 1 or keys[0].isdecimal():
            break
        shared.append(keys[0] + ".")
    return "".join(shared)


def _readings(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """For each name that is another one behind a prefix, that prefix: of the state, of the target."""
    for one, other, turned in ((theirs, ours, False), (ours, theirs, True)):
        for name in one:
            begin, at = 0, name.find(".")
            while at >= 0 and not name[begin:at].isdecimal():  # a number is a place in a list, not a wrapper
                if name[at + 1 :] in other:
                    yield ("", name[: at + 1]) if turned else (name[: at + 1], "")
                begin, at = at + 1, name.find(".", at + 1)
