r"""Rules that rename the entries of a state_dict.

    {"layers.{n}.attn.*": "blocks.{n}.attention.*",      each * and {name} stands for the same text on both sides
     "head": "classifier.0",                             a path, and all below it
     "stage2.{n}.*": "layers.{n+6}.*",                   numbers may be counted on
     "re:^(\w+)\.gamma$": "\1.weight"}                regular expressions, as for re.sub

    *        any text, of several keys as well; as little as possible, from the left
    {name}   one key, that is text without a dot; the same text wherever the name stands
    {n+1}    a number; {2*n}, {n-3} and {2*n+1} likewise. On the left it stands for the n that it gives

A rule must match a whole path, or the beginning of one up to a dot: then the rest is kept. Of several rules the first
that matches is applied, and no other. Every rule must match something, and no two entries may end up with one path.
Rules without regular expressions have an inverse: the same with both sides exchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from statedict.errors import RenameError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_TOKEN = re.compile(r"\*|\{([^{}]*)\}")
_TERM = re.compile(r"(?:(\d+)\*)?([A-Za-z_]\w*)(?:([+-])(\d+))?")
_REGEX = "re:"


@dataclass(frozen=True, slots=True)
class Renaming:
    """What rules make of a list of paths.

    Attributes:
        paths: old path → new path, for every path in their order.
        matched: for each rule, `"OLD → NEW"`, how many paths it renamed.
    """

    paths: dict[str, str]
    matched: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Term:
    """`{factor*name+shift}`; plain text of one key where `number` is false, any text where the name begins with `*`."""

    name: str
    factor: int = 1
    shift: int = 0
    number: bool = False


class Rules:
    """Rules ready to be applied, one path after another.

    Attributes:
        matched: for each rule, `"OLD → NEW"`, how many paths it renamed so far.
    """

    def __init__(self, rules: Mapping[str, str]) -> None:
        self._steps = [(f"{old} → {new}", _step(old, new)) for old, new in rules.items()]
        self.matched = dict.fromkeys((text for text, _ in self._steps), 0)

    def __call__(self, path: str) -> str:
        """The path as the first rule that matches makes it, or as it is."""
        for text, step in self._steps:
            if (new := step(path)) is not None:
                self.matched[text] += 1
                return new
        return path

    def matches(self, path: str) -> bool:
        """Whether a rule matches the path; it is not counted."""
        return any(step(path) is not None for _, step in self._steps)

    def idle(self) -> list[str]:
        """The rules that have matched nothing."""
        return [text for text, count in self.matched.items() if not count]


def rename(rules: Mapping[str, str], paths: Iterable[str]) -> Renaming:
    """Apply rules to paths.

    Args:
        rules: old → new, in the language above.
        paths: of the entries of a state_dict, each one once.

    Raises:
        RenameError: a rule is malformed or matches nothing, or two paths become one; the message names it.

    >>> rename({"layers.{n}.attn.*": "blocks.{n+1}.attention.*"}, ["layers.0.attn.q.weight", "head.bias"]).paths
    {'layers.0.attn.q.weight': 'blocks.1.attention.q.weight', 'head.bias': 'head.bias'}
    """
    apply = Rules(rules)
    result: dict[str, str] = {}
    taken: dict[str, str] = {}
    for path in paths:
        new = result[path] = apply(path)
        if taken.setdefault(new, path) is not path:
            raise RenameError(f"{taken[new]!r} and {path!r} both become {new!r}; change the rules so that they differ")
    if apply.idle():
        example = f", such as {next(iter(result))!r}" if result else ""
        raise RenameError(
            f"no entry of {len(result):,}{example}, matches the rule {apply.idle()[0]!r}; fix or remove it"
        )
    return Renaming(result, apply.matched)


def modules(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """What modules are called after their entries were renamed, as far as the names around an entry tell.

    >>> modules([("layers.0.fc.weight", "blocks.0.fc.weight")])
    {'layers.0.fc': ['blocks.0.fc'], 'layers.0': ['blocks.0'], 'layers': ['blocks']}
    """
    found: dict[str, dict[str, None]] = {}
    for before, now in pairs:
        old, new = before.split(".")[:-1], now.split(".")[:-1]
        while old and new:  # the modules around them are renamed as far as they differ
            found.setdefault(".".join(old), {})[".".join(new)] = None
            if old.pop() != new.pop():
                break
    return {old: list(names) for old, names in found.items()}


def inverse(rules: Mapping[str, str]) -> dict[str, str]:
    """The rules that undo these.

    Raises:
        RenameError: a rule is a regular expression, or forgets something that its left side stands for.

    >>> inverse({"layers.{n}.attn.*": "blocks.{n+1}.attention.*"})
    {'blocks.{n+1}.attention.*': 'layers.{n}.attn.*'}
    """
    for old, new in rules.items():
        if old.startswith(_REGEX):
            raise RenameError(f"{old!r} → {new!r}: a regular expression has no inverse; write it as * and {{name}}")
        left, right = _tokens(old), _tokens(new)
        if _names(left) != _names(right):
            raise RenameError(f"{old!r} → {new!r}: the new path forgets a part of the old one, so there is no inverse")
    if len(set(rules.values())) != len(rules):
        raise RenameError("two rules have the same right side, so there is no inverse")
    return {new: old for old, new in rules.items()}


def _tokens(pattern: str) -> list[str | _Term]:
    """Literal text and terms; those of `*` are called `*1`, `*2` and so on."""
    tokens: list[str | _Term] = []
    at = stars = 0
    for hit in _TOKEN.finditer(pattern):
        tokens.append(pattern[at : hit.start()])
        at = hit.end()
        if hit[0] == "*":
            stars += 1
            tokens.append(_Term(f"*{stars}"))
            continue
        term = _TERM.fullmatch(hit[1].replace(" ", ""))
        if term is None:
            raise RenameError(f"{pattern!r}: {hit[0]} is neither {{name}} nor such as {{n+1}} or {{2*n}}")
        factor, name, sign, shift = term.groups()
        number = factor is not None or sign is not None
        tokens.append(_Term(name, int(factor or 1), int(f"{sign or '+'}{shift or 0}"), number))
    return [*tokens, pattern[at:]]


def _names(tokens: list[str | _Term]) -> set[str]:
    return {token.name for token in tokens if isinstance(token, _Term)}


def _step(old: str, new: str) -> Callable[[str], str | None]:
    """A function that renames a path, or returns None where the rule does not match."""
    if old.startswith(_REGEX):
        return _regex_step(old, new)
    left, right = _tokens(old), _tokens(new)
    if not _names(right) <= _names(left):
        raise RenameError(f"{old!r} → {new!r}: the new path has a * or a {{name}} that the old one lacks")
    numbers = {token.name for token in (*left, *right) if isinstance(token, _Term) and token.number}
    regex = "".join(
        re.escape(token) if isinstance(token, str)
        else "(.*?)" if token.name[0] == "*"
        else r"(0|[1-9]\d*)" if token.name in numbers
        else r"([^.]+)"
        for token in left
    )  # fmt: skip
    match = re.compile(regex + r"((?:\..*)?)", re.DOTALL).fullmatch
    groups, parts = ([token for token in side if isinstance(token, _Term)] for side in (left, right))
    template = "".join(token.replace("%", "%%") if isinstance(token, str) else "%s" for token in right) + "%s"
    names = [term.name for term in groups]
    rest = len(groups) + 1
    picked = (*(1 + names.index(term.name) for term in parts), rest)
    plain = not numbers and len(set(names)) == len(names)

    def step(path: str) -> str | None:
        hit = match(path)
        if hit is None:
            return None
        values = hit.group(*picked) if plain else _solve(hit.groups(), groups, parts, numbers)
        if values is None:
            return None
        name = template % values
        return name if name != hit[rest] else name[1:]

    return step


def _solve(
    values: tuple[str, ...], groups: list[_Term], parts: list[_Term], numbers: set[str]
) -> tuple[str | int, ...] | None:
    """What stands for the terms of the new path and the rest; None if a name has two values, or a number cannot be."""
    bound: dict[str, str | int] = {}
    for term, value in zip(groups, values, strict=False):
        known: str | int = value
        if term.name in numbers:
            known, left_over = divmod(int(value) - term.shift, term.factor or 1)
            if left_over or known < 0:
                return None
        if bound.setdefault(term.name, known) != known:
            return None
    results = [n if isinstance(n := bound[term.name], str) else term.factor * n + term.shift for term in parts]
    return None if any(isinstance(result, int) and result < 0 for result in results) else (*results, values[-1])


def _regex_step(old: str, new: str) -> Callable[[str], str | None]:
    try:
        pattern = re.compile(old.removeprefix(_REGEX))
        pattern.sub(new, "")
    except re.error as error:
        raise RenameError(f"{old!r} → {new!r}: not a regular expression ({error})") from error

    def step(path: str) -> str | None:
        return pattern.sub(new, path) if pattern.search(path) else None

    return step
