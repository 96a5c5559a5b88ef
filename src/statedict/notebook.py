"""Trees as a notebook shows them: nested lists that open at a click."""

from __future__ import annotations

from statedict.paths import MAX_DEPTH
from statedict.tensor import as_lazy, is_array
from statedict.values import Opaque, Size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HTML_ROWS = 10_000
_HTML_CHILDREN = 1000


def html(tree: Any, label: str) -> str:
    """Nested lists of a tree; at most 10,000 rows, 1,000 of one container."""
    return _list(tree, label, 0, [_HTML_ROWS])


def _list(node: Any, label: str, depth: int, left: list[int]) -> str:
    """A folded list of a container's entries, as long as `left`, the rows of the page, lasts."""
    from html import escape

    def row(key: Any, child: Any) -> str:
        if isinstance(child, dict | list | tuple | Opaque) and child.__class__ is not Size and depth < MAX_DEPTH:
            kind = repr(child) if isinstance(child, Opaque) else f"{len(child):,} entries"
            return f"<li>{_list(child, f'{key}: {kind}', depth + 1, left)}</li>"
        text = repr(as_lazy(child)) if is_array(child) else repr(child)
        return f"<li><b>{escape(str(key))}</b> <code>{escape(text[:200])}</code></li>"

    if isinstance(node, Opaque):
        held = ((slot, getattr(node, slot)) for slot in ("args", "state", "items", "entries"))
        pairs: list[tuple[Any, Any]] = [(slot, value) for slot, value in held if value is not None]
    elif isinstance(node, dict):
        pairs = list(node.items())
    else:
        pairs = list(enumerate(node))
    shown = pairs[: max(0, min(_HTML_CHILDREN, left[0]))]
    left[0] -= len(shown)
    rows = "".join(row(key, child) for key, child in shown)
    more = f"<li>… {len(pairs) - len(shown):,} more</li>" if len(pairs) > len(shown) else ""
    opened = " open" if depth == 0 else ""
    return f"<details{opened}><summary>{escape(label)}</summary><ul>{rows}{more}</ul></details>"
