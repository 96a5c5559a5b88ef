"""Pieces of HTML for notebooks: a page, folds, tables, trees, histograms. Every text in them is inert.

Colours follow the surrounding text, so a page fits light and dark themes. Without styles and pictures, which viewers
strip from untrusted notebooks, folds and tables remain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from statedict.render.text import number
from statedict.values import shorten

ROWS = 200  # of a table
TREE_ROWS = 2000
TREE_CHILDREN = 500  # of one container
TREE_DEPTH = 200
_LONGEST = 300  # characters of a text

_STYLE = """<style>
.statedict{line-height:1.45;max-width:100%;overflow-x:auto}
.statedict p{margin:.2em 0;font-weight:600}
.statedict p.bad{border-left:4px solid #d33;padding-left:.5em}
.statedict p.look{border-left:4px solid #c80;padding-left:.5em}
.statedict p.fine{border-left:4px solid #292;padding-left:.5em}
.statedict details{margin:.15em 0}
.statedict summary{cursor:pointer}
.statedict ul{list-style:none;margin:0 0 0 .45em;padding:0 0 0 1em;border-left:1px solid rgba(128,128,128,.4)}
.statedict li{margin:0}
.statedict li>span{padding-left:1.05em}
.statedict table{border-collapse:collapse;margin:.2em 0 .5em 1em;background:none;font-size:.92em}
.statedict td,.statedict th{text-align:left;padding:.1em .7em .1em 0;border:0;background:none;white-space:nowrap;\
font-variant-numeric:tabular-nums;vertical-align:middle}
.statedict td.w{white-space:normal;min-width:12em}
.statedict td.n,.statedict th.n{text-align:right}
.statedict tr{background:none;border-bottom:1px solid rgba(128,128,128,.25)}
.statedict tr.bad td:first-child{box-shadow:inset 3px 0 #d33;padding-left:.5em}
.statedict tr.look td:first-child{box-shadow:inset 3px 0 #c80;padding-left:.5em}
.statedict small{opacity:.75}
.statedict svg{display:block;overflow:visible}
.statedict .axis{display:flex;justify-content:space-between;font-size:.8em;opacity:.75}
.statedict details details{margin-left:1em}
.statedict li details{margin-left:0}
</style>""".replace(".statedict", ".statedict" * 3)  # as specific as the styles of JupyterLab's outputs
_MARKS = {"fine": "✓ ", "look": "⚠ ", "bad": "✗ "}


class Safe(str):
    """HTML. Everything else is text, which a page escapes."""

    __slots__ = ()


class Wide(str):
    """A text that may wrap."""

    __slots__ = ()


def text(value: object, longest: int = _LONGEST) -> Safe:
    r"""A text as HTML, with unprintable characters escaped, and without its middle if it is long.

    >>> print(text("<b>\u202e"), text("n" * 20, 9))
    &lt;b&gt;\u202e nnnn…nnnn
    """
    if isinstance(value, Safe):
        return value
    from html import escape

    shown = shorten(str(value), longest)
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    return Safe(escape(shown))


def page(title: object, *parts: str, tone: str = "") -> str:
    """A whole output: the verdict, with its tone (`fine`, `look`, `bad` or nothing), then parts that are HTML."""
    head = f'<p class="{tone}">{_MARKS.get(tone, "")}{text(title, 2000)}</p>'
    # the classes keep MathJax from typesetting names
    return f'<div class="statedict tex2jax_ignore mathjax_ignore">{_STYLE}{head}{"".join(parts)}</div>'


def fold(title: object, body: str, opened: bool = False) -> Safe:
    """A body that opens at a click."""
    return Safe(f"<details{' open' * opened}><summary>{text(title)}</summary>{body}</details>" if body else "")


def table(
    head: Sequence[str],
    items: Sequence[Any],
    cells: Callable[[Any], Iterable[object]] = tuple,
    tone: Callable[[Any], str] | str = "",
) -> Safe:
    """A table of at most 200 items, and how many more there are; nothing without items.

    `cells` makes the row of an item, of texts, numbers, `Safe` HTML and None, by default the item's own; `tone` is
    `bad`, `look` or nothing, or makes it.
    """
    if not items:
        return Safe("")
    body = []
    right = [False] * len(head)
    for item in items[:ROWS]:
        row = list(cells(item))
        right = [was or _is_number(cell) for was, cell in zip(right, row, strict=True)]
        kind = tone if isinstance(tone, str) else tone(item)
        tag = f'<tr class="{kind}">' if kind else "<tr>"
        body.append(f"{tag}{''.join(map(_cell, row))}</tr>")
    if len(items) > ROWS:
        body.append(f'<tr><td colspan="{len(head)}">… {len(items) - ROWS:,} more</td></tr>')
    names = "".join(f"<th{' class=n' * at}>{text(name)}</th>" for name, at in zip(head, right, strict=True))
    top = f"<thead><tr>{names}</tr></thead>" if any(head) else ""
    return Safe(f"<table>{top}<tbody>{''.join(body)}</tbody></table>")


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float | complex)


def _cell(cell: object) -> str:
    if _is_number(cell):
        return f'<td class="n">{number(cell)}</td>'
    if isinstance(cell, Wide):
        return f'<td class="w">{text(cell)}</td>'
    return f"<td>{'–' if cell is None else text(cell)}</td>"


def listing(items: Sequence[object]) -> Safe:
    """A list of at most 200 lines; nothing without items."""
    more = [f"<li><span>… {len(items) - ROWS:,} more</span></li>"] if len(items) > ROWS else []
    lines = [f"<li><span>{text(item, 2000)}</span></li>" for item in items[:ROWS]]
    return Safe(f"<ul>{''.join(lines + more)}</ul>" if items else "")


def tree(
    node: Any,
    line: Callable[[str, Any], Safe],
    below: Callable[[Any], tuple[int, Sequence[tuple[str, Any]]]],
) -> Safe:
    """The children of a node as nested lists of at most 2,000 rows, 500 of one container.

    `line` makes the row of a key and a node; `below` counts the children of a node and lists at least the first 500.
    """
    left = TREE_ROWS

    def list_children(count: int, children: Sequence[tuple[str, Any]], depth: int) -> str:
        nonlocal left
        shown = children[: max(0, min(TREE_CHILDREN, left))]
        left -= len(shown)  # siblings first, so that a large one cannot hide the next
        rows = "".join(row(key, child, depth) for key, child in shown)
        missing = count - len(shown)
        return f"<ul>{rows}{f'<li><span>… {missing:,} more</span></li>' if missing else ''}</ul>"

    def row(key: str, child: Any, depth: int) -> str:
        count, children = below(child) if depth < TREE_DEPTH else (0, ())
        if not count:
            return f"<li><span>{line(key, child)}</span></li>"
        inner = list_children(count, children, depth + 1)
        return f"<li><details><summary>{line(key, child)}</summary>{inner}</details></li>"

    return Safe(list_children(*below(node), 0))


def entry(key: str, *facts: object) -> Safe:
    """A row of a tree: its name, then facts."""
    return Safe(f"<b>{text(key)}</b>" + "".join(f" <small>{text(fact)}</small>" for fact in facts if fact))


def histogram(counts: Sequence[int], label: str, width: int, height: int, names: Sequence[str] = ()) -> Safe:
    """Bars in proportion to the highest one, at least a pixel high; the names of bins show under the pointer."""
    most = max(counts, default=0)
    if not most:
        return Safe("")
    bars = []
    for at, count in enumerate(counts):
        tall = max(round(count / most * height), 1) if count else 0
        if names:
            tip = f"<title>{text(names[at])}: {count:,}</title>"
            hover = f'<path d="M{at} 0h1v{height}h-1z" opacity="0">{tip}</path>'
            bars.append(f'<path d="M{at}.1 {height}v-{tall}h.8v{tall}z">{tip}</path>{hover}')
        elif count:
            bars.append(f"M{at} {height}v-{tall}h.8v{tall}z")
    drawn = "".join(bars) if names else f'<path d="{"".join(bars)}"/>'
    box = f'viewBox="0 0 {len(counts)} {height}" width="{width}" height="{height}" preserveAspectRatio="none"'
    return Safe(f'<svg {box} fill="currentColor" role="img" aria-label="{text(label)}">{drawn}</svg>')
