"""Text for terminals: the one table, number and shape."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from statedict.values import shorten


def printable(text: str) -> str:
    """Text from a file, with characters escaped that could steer a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def number(value: Any) -> str:
    """An integer whole, another number with four digits.

    >>> number(12345), number(1.23456), number(None)
    ('12,345', '1.235', '–')
    """
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**15 else f"{value:.4g}"


def shape(sizes: Iterable[int] | None) -> str:
    """`10×84`; `scalar` without dimensions."""
    return "×".join(map(str, sizes or ())) or "scalar"


@dataclass(frozen=True, slots=True)
class Screen:
    """What tables are for: how many columns there are, without end by default, and what can be printed."""

    width: int | None = None
    encoding: str = "utf-8"


_ENDLESS = Screen()
screen = ContextVar("screen", default=_ENDLESS)

_NARROW = 12  # the least characters of a column that loses its middle
_BARS = dict(zip("▁▂▃▄▅▆▇█", "_.-=+*%#", strict=True))
_ASCII = _BARS | dict(zip("│├└─×–—·", "||`-x--?", strict=True)) | {"…": "...", "→": "->", "≤": "<="}


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """ASCII for what this module prints, escapes for other characters that an encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


STAND_IN = "statedict"  # the name of the error handler
codecs.register_error(STAND_IN, _stand_in)


def _encode(text: str, encoding: str) -> str:
    return text if encoding == "utf-8" else text.encode(encoding, STAND_IN).decode(encoding)


def table(
    rows: Iterable[Sequence[str]],
    right: Container[int] = (),
    style: Callable[[int, list[str]], list[str]] | None = None,
    elide: Sequence[int] = (0,),
    optional: Sequence[int] = (),
    indent: int = 0,
) -> Iterator[str]:
    r"""Rows of cells as lines with aligned columns; nothing wraps, and no cell can begin a line.

    Args:
        rows: of as many cells each; the first one is the head if columns are `optional`.
        right: columns that are aligned to the right.
        style: colours the padded cells of a row, given its number.
        elide: columns that lose their middle where the screen is too narrow.
        optional: columns to leave out, in this order, if that is not enough. A last line names them.
        indent: spaces before each line.

    >>> print(*table([("a", "1"), ("bcd", "200")], right=(1,)), sep="\n")
    a      1
    bcd  200
    """
    width, encoding = screen.get().width, screen.get().encoding
    cells = [[_encode(printable(cell), encoding) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    kept = _fit(widths, elide, optional, width - indent) if width is not None else [*range(len(widths))]
    dots = _encode("…", encoding)
    for at, row in enumerate(cells):
        last = max((column for column in kept if row[column].strip()), default=-1)
        padded = []
        for column, (cell, size) in enumerate(zip(row, widths, strict=True)):
            short = cell if len(cell) <= size else _elide(cell, size, dots)
            padded.append(short.rjust(size) if column in right else short if column == last else short.ljust(size))
        line = style(at, padded) if style else padded
        yield " " * indent + "  ".join(line[column] for column in kept if column <= last)
    if missing := [cells[0][at] for at in range(len(widths)) if at not in kept]:
        yield " " * indent + f"(without {', '.join(missing)}: {width} columns are too few)"


def _elide(cell: str, size: int, dots: str) -> str:
    """A cell without its middle; that of a tree keeps its branches, a path of numbered modules its numbers.

    >>> _elide("│  │  │  └─ weight", 12, "…")
    '│  └─ weight'
    """
    name = cell.lstrip("│├└─ |`-")
    room = max(size - min(len(name), _NARROW), 0) // 3 * 3  # a branch takes three
    branches = cell[: len(cell) - len(name)]
    if len(branches) > room:  # the last one is that of the row itself
        branches = branches[: max(room - 3, 0)] + branches[-3:][:room]
    left = size - len(branches)
    return branches + shorten(_shorten_path(name, left), left - len(dots) + 1).replace("…", dots)


def _shorten_path(name: str, size: int) -> str:
    """A path with its words cut to their first letters, from the left, until it fits; the last word stays.

    >>> _shorten_path("model.layers.12.self_attn.q_proj.weight", 24)
    'm.l.12.s.q_proj.weight'
    """
    parts = name.split(".")
    if " " in name or not any(map(str.isdecimal, parts)):
        return name
    for at, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= size:
            break
        parts[at] = part if part.isdecimal() else part[:1]
    return ".".join(parts)


def _fit(widths: list[int], elide: Sequence[int], optional: Sequence[int], room: int) -> list[int]:
    """The columns to keep, of which those to `elide` shrink in `widths` to fit in the room, the widest first."""
    kept = [*range(len(widths))]
    for needless in (*optional, None):
        soft = [at for at in kept if at in elide]
        left = room - 2 * (len(kept) - 1) - sum(widths[at] for at in kept if at not in elide)
        least = _NARROW if needless is None else 2 * _NARROW
        for cap in range(max(min(max(widths, default=0), left), least), least - 1, -1):
            if sum(min(widths[at], cap) for at in soft) <= left or (needless is None and cap == least):
                for at in soft:
                    widths[at] = min(widths[at], cap)
                return kept
        if needless is not None:
            kept.remove(needless)
    return kept


def limit_lines(lines: Iterable[str], count: int, limit: int | None, indent: int = 0) -> Iterator[str]:
    """Lines of the first items, and how many more there are."""
    yield from lines
    if limit is not None and count > limit:
        yield " " * indent + f"… and {count - limit:,} more"
