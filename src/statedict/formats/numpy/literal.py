"""The Python literals in headers of NumPy, read without Python's compiler: dicts, lists, tuples, texts, integers."""

from __future__ import annotations

import re
from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")|(?P<number>-?\d+)L?\b|(?P<word>[A-Z][a-z]+)|(?P<mark>.))""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)", re.DOTALL)
_PLAIN = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"True": True, "False": False, "None": None}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_MAX_DEPTH = 50


@lru_cache(1024)
def parse_literal(text: str) -> Any:
    """The value of a literal, to be left as it is; many arrays have one header.

    Raises:
        ValueError: it is not one.

    >>> parse_literal("{'descr': [('x', '<f4', (2,))], 'fortran_order': False, 'shape': (3L, 4), }")
    {'descr': [('x', '<f4', (2,))], 'fortran_order': False, 'shape': (3, 4)}
    """
    tokens = [(str(match.lastgroup), match[match.lastgroup or 0]) for match in _TOKEN.finditer(text.strip())]
    value, end = _parse(tokens, 0, 0)
    if end != len(tokens):
        raise ValueError(f"{tokens[end][1]!r} follows")
    return value


def _parse(tokens: list[tuple[str, str]], at: int, depth: int) -> tuple[Any, int]:
    """The value that begins at a token, and the token after it."""
    if at >= len(tokens) or depth > _MAX_DEPTH:
        raise ValueError("ends early" if at >= len(tokens) else "is nested too deep")
    kind, token = tokens[at]
    if kind == "text":
        return _ESCAPE.sub(_unescape, token[1:-1]), at + 1
    if kind == "number" and len(token) <= 20:
        return int(token), at + 1
    if token in _WORDS:
        return _WORDS[token], at + 1
    if token not in _CLOSING:
        raise ValueError(f"{token[:20]!r} is not a value")
    items: list[Any] = []
    at, commas = at + 1, 0
    while at < len(tokens) and tokens[at][1] != _CLOSING[token]:
        item, at = _parse(tokens, at, depth + 1)
        if token == "{":
            if tokens[at : at + 1] != [("mark", ":")]:
                raise ValueError("a key without a value")
            value, at = _parse(tokens, at + 1, depth + 1)
            item = item, value
        items.append(item)
        if tokens[at : at + 1] == [("mark", ",")]:
            at, commas = at + 1, commas + 1
        elif at >= len(tokens) or tokens[at][1] != _CLOSING[token]:
            raise ValueError("two values without a comma")
    if at >= len(tokens):
        raise ValueError("ends early")
    if token == "(":
        return (tuple(items) if commas or not items else items[0]), at + 1
    if token == "[":
        return items, at + 1
    if len({key for key, _ in items}) != len(items):  # unhashable keys are a TypeError
        raise ValueError("a key stands twice")
    return dict(items), at + 1


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    if code in _PLAIN:
        return _PLAIN[code]
    if len(code) == 1:
        raise ValueError(f"the escape \\{code}")
    return chr(int(code[1:], 16))
