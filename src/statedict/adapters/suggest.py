"""Which missing and unexpected entries look like one another under another name, as rules ready to copy.

Entries are paired if dtype and shape agree: those whose last keys agree first, then the others; in their order, which
renaming seldom changes. Numbers that pairs have in common become `{n}`, and the last keys that they share are left to
the rule for their parent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from statedict.rename import Rules

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_LETTERS = "nmkpqr"
_MOST = 50  # rules; more are no pattern


def rules(missing: Mapping[str, Any], unexpected: Mapping[str, Any]) -> dict[str, str]:
    """Rules that make names of unexpected entries those of missing ones; empty where nothing agrees.

    Args:
        missing: name → what it is, such as its dtype and shape.
        unexpected: the same of the entries that the target lacks.

    >>> rules({"blocks.0.w": 1, "blocks.1.w": 1}, {"layers.0.w": 1, "layers.1.w": 1})
    {'layers': 'blocks'}
    """
    pairs = dict(_pairs(missing, unexpected))
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
    right = sum(made[old] == new for old, new in pairs.items())
    return found if found and right == len(pairs) and len(set(made.values())) == len(made) else {}


def _pairs(missing: Mapping[str, Any], unexpected: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    left, right = dict(unexpected), dict(missing)
    for kind in (lambda name, what: (what, name.rpartition(".")[2]), lambda name, what: what):
        groups: dict[Any, list[str]] = {}
        for name, what in right.items():
            groups.setdefault(kind(name, what), []).append(name)
        turned: dict[Any, list[str]] = {}
        for name, what in left.items():
            turned.setdefault(kind(name, what), []).append(name)
        for key, olds in turned.items():
            news = groups.get(key, [])
            if len(olds) == len(news):
                yield from zip(olds, news, strict=True)
                for old, new in zip(olds, news, strict=True):
                    del left[old], right[new]


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
    letters, shifts = iter(_LETTERS), iter(zip(_LETTERS, ours, theirs, strict=False))
    old = _NUMBER.sub(lambda _: f"{{{next(letters)}}}", old)

    def shifted(_: re.Match[str]) -> str:
        letter, one, other = next(shifts)
        shift = int(other) - int(one)
        return f"{{{letter}{shift:+}}}" if shift else f"{{{letter}}}"

    return old, _NUMBER.sub(shifted, new)
