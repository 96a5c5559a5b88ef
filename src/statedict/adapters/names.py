"""How the names of a state go together with those of its target.

Training wraps models, and each wrapper puts a key into all names below it: `module.` (DistributedDataParallel,
DeepSpeed), `_orig_mod.` (torch.compile), `_fsdp_wrapped_module.`, `_checkpoint_wrapped_module.`, nested in any order
and in the midst of names. Checkpoints hold a model under `model.`, `net.` or any other name. A reading says which
name of the state stands for which of the target.

Missing and unexpected entries that look like one another under another name become rules, ready to copy. Names that
differ in numbers only are one pattern, such as `layers.{n}.attn.q.weight`. A pattern that is unexpected is paired with
one that is missing if as many entries belong to it and they have, in the order of their numbers, the same dtypes and
shapes; of several, with the one whose name is most like it. What pairs have in common becomes `{n}`, and the last keys
that they share are left to the rule for their parent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from statedict.adapters import join
from statedict.tree.rename import Rules
from statedict.tree.roles import WRAPPERS, plain, unwrap

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_LETTERS = "nmkpqr"
_MOST = 50  # rules; more are not a pattern
_COMPARED = 200  # patterns of one kind; comparing names costs their square


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


# suggestions


def suggest_rules(missing: Mapping[str, Any], unexpected: Mapping[str, Any]) -> dict[str, str]:
    """Rules that make names of unexpected entries those of missing ones; empty where nothing agrees.

    Both are by name, with what must agree, such as dtype and shape.

    >>> suggest_rules({"blocks.0.w": 1, "blocks.1.w": 1}, {"layers.0.w": 1, "layers.1.w": 1})
    {'layers': 'blocks'}
    """
    ours, pairs = _group(missing), dict[str, str]()
    for kind, olds in _group(unexpected).items():
        news = ours.get(kind, {})
        for old, new in _pair([*olds], [*news]).items():
            pairs |= zip(olds[old], news[new], strict=True)
    found: dict[str, str] = {}
    apply = Rules(found)
    for old, new in pairs.items():
        rule = None if apply(old) == new else _rule(old, new)
        if rule is not None and rule[0] not in found:
            found[rule[0]] = rule[1]
            apply = Rules(found)
            if len(found) > _MOST:
                return {}
    made = {old: apply(old) for old in unexpected}
    right = all(made[old] == new for old, new in pairs.items())
    return found if found and right and len(set(made.values())) == len(made) else {}


def _group(entries: Mapping[str, Any]) -> dict[Any, dict[str, list[str]]]:
    """What the entries of a pattern are → the patterns of that kind, each with its names in the order of numbers."""
    patterns: dict[str, list[tuple[list[int], str]]] = {}
    for name in entries:
        numbers = [int(number) for number in _NUMBER.findall(name)]
        patterns.setdefault(_NUMBER.sub("{}", name), []).append((numbers, name))
    kinds: dict[Any, dict[str, list[str]]] = {}
    for pattern, members in patterns.items():
        names = [name for _, name in sorted(members)]
        kinds.setdefault(tuple(entries[name] for name in names), {})[pattern] = names
    return kinds


def _pair(olds: list[str], news: list[str]) -> dict[str, str]:
    """Patterns of one kind in pairs, the most alike first; where names tell nothing, in their order."""
    if len(olds) == len(news) == 1 or len(olds) * len(news) > _COMPARED**2:
        return dict(zip(olds, news, strict=False))
    scores = {(old, new): _likeness(old, new) for old in olds for new in news}
    found: dict[str, str] = {}
    for old, new in sorted(scores, key=scores.__getitem__, reverse=True):
        if old not in found and new not in found.values():
            found[old] = new
    return {old: found[old] for old in olds if old in found}


def _likeness(old: str, new: str) -> tuple[float, float, float]:
    """How much two names are alike: first their last key, then the one before, then all of it."""
    before, after = old.split("."), new.split(".")
    same_end = float(before[-1] == after[-1])
    keys = zip(reversed(before[:-1]), reversed(after[:-1]), strict=False)
    inner = sum(_ratio(one, other) / 2**depth for depth, (one, other) in enumerate(keys))
    return same_end, round(inner, 3), _ratio(old, new)


def _ratio(one: str, other: str) -> float:
    """1 for equal texts; a key that abbreviates another, as `q` does `query`, is nearly that."""
    if one == other:
        return 1.0
    if one and other and (one.startswith(other.split("_")[0]) or other.startswith(one.split("_")[0])):
        return 0.9
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _rule(old: str, new: str) -> tuple[str, str] | None:
    """The rule that a pair is an example of."""
    before, after = old.split("."), new.split(".")
    while len(before) > 1 and len(after) > 1 and before[-1] == after[-1]:
        del before[-1], after[-1]
    while before and after and before[-1].isdecimal() and before[-1] == after[-1]:
        del before[-1], after[-1]
    old, new = ".".join(before), ".".join(after)
    ours, theirs = _NUMBER.findall(old), _NUMBER.findall(new)
    if len(ours) != len(theirs) or len(ours) > len(_LETTERS):
        return (old, new) if old and new else None
    names = [f"{{{letter}}}" for letter, _ in zip(_LETTERS, ours, strict=False)]
    shifts = [int(other) - int(one) for one, other in zip(ours, theirs, strict=True)]
    terms = [f"{name[:-1]}{shift:+}}}" if shift else name for name, shift in zip(names, shifts, strict=True)]
    left, right = iter(names), iter(terms)
    return _NUMBER.sub(lambda _: next(left), old), _NUMBER.sub(lambda _: next(right), new)
