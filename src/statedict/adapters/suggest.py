"""Which missing and unexpected entries look like one another under another name, as rules ready to copy.

Names that differ in numbers only are one pattern, such as `layers.{n}.attn.q.weight`. A pattern that is unexpected is
paired with one that is missing if as many entries belong to it and they have, in the order of their numbers, the same
dtypes and shapes; of several, with the one whose name is most like it. What pairs have in common becomes `{n}`, and
the last keys that they share are left to the rule for their parent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from statedict.tree.rename import Rules

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_LETTERS = "nmkpqr"
_MOST = 50  # rules; more are not a pattern
_COMPARED = 200  # patterns of one kind; comparing names costs their square


def rules(missing: Mapping[str, Any], unexpected: Mapping[str, Any]) -> dict[str, str]:
    """Rules that make names of unexpected entries those of missing ones; empty where nothing agrees.

    Both are by name, with what must agree, such as dtype and shape.

    >>> rules({"blocks.0.w": 1, "blocks.1.w": 1}, {"layers.0.w": 1, "layers.1.w": 1})
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
