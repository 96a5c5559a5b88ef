"""Text for terminals: the one table, number and shape."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any


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


def table(
    rows: Iterable[Sequence[str]],
    right: Container[int] = (),
    style: Callable[[int, list[str]], list[str]] | None = None,
) -> Iterator[str]:
    r"""Rows of cells as lines with aligned columns; nothing wraps, and no cell can begin a line.

    Columns in `right` are aligned to the right; `style` colours the padded cells of a row, given its number.

    >>> print(*table([("a", "1"), ("bcd", "200")], right=(1,)), sep="\n")
    a      1
    bcd  200
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for at, row in enumerate(cells):
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        while padded and not padded[-1].strip():
            padded.pop()
        padded[-1:] = [cell.rstrip() for cell in padded[-1:]]
        yield "  ".join(style(at, padded) if style else padded)


def limit_lines(lines: Iterable[str], count: int, limit: int | None) -> Iterator[str]:
    """Lines of the first items, and how many more there are."""
    yield from lines
    if limit is not None and count > limit:
        yield f"… and {count - limit:,} more"
