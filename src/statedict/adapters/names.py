"""How the names of a state go together with those of its target.

Training wraps models, and each wrapper puts a key into all names below it: `module.` (DistributedDataParallel,
DeepSpeed), `_orig_mod.` (torch.compile), `_fsdp_wrapped_module.`, `_checkpoint_wrapped_module.`, nested in any order
and in the midst of names. Checkpoints hold a model under `model.`, `net.` or any other name. A reading says which
name of the state stands for which of the target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from statedict.adapters import join

WRAPPERS = frozenset((
    "module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """Which name of the state stands for which of the target."""

    pairs: dict[str, str]  # name in the target → name in the state, where there is one
    note: str = ""  # how they differ, empty where they do not
    other: str = ""  # another reading that is as good, empty if there is none
    above: str = ""  # what stands before the target's names in the state
    below: str = ""  # what stands before the state's names in the target
    literal: bool = False  # wrappers are names like others
    by: str = ""  # the keys that one side has and the other has not

    def module(self, path: str, places: Mapping[str, str]) -> str | None:
        """The path in the target of a module of the state; None if the target does not have it.

        `places` has the paths of the target's modules, by what is left of them without wrappers.
        """
        if not self.note:
            return path
        short = (path if self.literal else unwrap(path)) + "."
        if (short == "." and self.above) or (not short.startswith(self.above) and short != "."):
            return None
        inside = (self.below + short.removeprefix(self.above)).strip(".")
        return places.get(inside, inside if self.literal else None)

    def translate(self, name: str, places: Mapping[str, str]) -> str | None:
        """What a name of the state that has no pair would be called in the target; None if it lies outside of that."""
        short = name if self.literal else plain(name)
        if not short.startswith(self.above):
            return None
        if self.literal:
            return name.removeprefix(self.above)
        keys = (self.below + short.removeprefix(self.above)).split(".")
        for depth in range(len(keys) - 1, 0, -1):
            path = ".".join(keys[:depth])
            if path in places:
                return ".".join([places[path], *keys[depth:]])
        return join(places.get("", ""), ".".join(keys))


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


def align(target: Iterable[str], state: Iterable[str], prefix: str | None = None) -> Reading:
    """Read the names of a state as those of a target.

    `prefix` stands before the target's names in the state; None finds it, and takes wrappers away on both sides.

    >>> align(["conv.weight"], ["module.model.conv.weight", "epoch"]).pairs
    {'conv.weight': 'module.model.conv.weight'}
    """
    target, state = list(target), list(state)
    known = set(state)
    if prefix is not None:
        pairs = {name: prefix + name for name in target if prefix + name in known}
        return Reading(pairs, f"read below {prefix!r}" if prefix and pairs else "", above=prefix, literal=True)
    same = {name: name for name in target if name in known}
    if known.issuperset(target):
        return Reading(same)
    (ours, our_wrappers, ours_twice), (theirs, their_wrappers, theirs_twice) = _shorten(target), _shorten(state)
    for twice, what in ((ours_twice, "the target"), (theirs_twice, "the state")):
        if twice is not None:
            return Reading(same, "", "" if same else f"{what} has both {twice[0]!r} and {twice[1]!r}")
    counts = Counter(_prefixes(ours, theirs))
    counts["", ""] += sum(name in theirs for name in ours)
    if not any(counts.values()):  # each side below a name of its own, if nothing else differs
        above, below = _common(theirs), _common(ours)
        if all(above + name.removeprefix(below) in theirs for name in ours):
            counts[above, below] = len(ours)
    (above, below), most = max(counts.items(), key=lambda item: (item[1], item[0] == ("", "")))
    rivals = [key for key, count in counts.items() if count == most and key != (above, below)] if above or below else []
    pairs = {
        name: theirs[above + short.removeprefix(below)]
        for short, name in ours.items()
        if short.startswith(below) and above + short.removeprefix(below) in theirs
    }
    notes = [f"read below {above!r} of the state"] * bool(above) + [f"read as what lies below {below!r}"] * bool(below)
    by = [*filter(None, (above, below))]
    for wrappers, what in ((their_wrappers, "the state"), (our_wrappers, "the target")):
        by += wrappers
        if wrappers:
            notes.append(f"without {', '.join(wrappers)} of {what}")
    other = f"below {above or below!r} and below {rivals[0][0] or rivals[0][1]!r}" if rivals and most else ""
    return Reading(pairs, ", ".join(notes) if pairs else "", other, above, below, by=", ".join(by))


def _shorten(names: Iterable[str]) -> tuple[dict[str, str], dict[str, None], tuple[str, str] | None]:
    """The names by what is left of them without wrappers, those wrappers, and two that become one."""
    found: dict[str, str] = {}
    wrappers: dict[str, None] = {}
    twice = None
    for name in names:
        short = plain(name)
        if short != name:
            wrappers |= dict.fromkeys(key + "." for key in name.split(".") if key in WRAPPERS)
        if short in found:
            twice = found[short], name
        found[short] = name
    return found, wrappers, twice


def _common(names: Iterable[str]) -> str:
    """What all names begin with, up to a dot."""
    shared: list[str] = []
    for keys in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(keys)) > 1 or keys[0].isdecimal():
            break
        shared.append(keys[0] + ".")
    return "".join(shared)


def _prefixes(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """For each name that is another one behind a prefix, that prefix: of the state, of the target."""
    for one, other, turned in ((theirs, ours, False), (ours, theirs, True)):
        for name in one:
            begin, at = 0, name.find(".")
            while at >= 0 and not name[begin:at].isdecimal():  # a number is a place in a list, not a wrapper
                if name[at + 1 :] in other:
                    yield ("", name[: at + 1]) if turned else (name[: at + 1], "")
                begin, at = at + 1, name.find(".", at + 1)
