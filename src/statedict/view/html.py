"""The page: its text, style and program, plotly's program, and the data, in one file.

Names in files are hostile. The page has them only as JSON in a script that is data, without `<`, `>` or `&`, and puts
them into text nodes. Its policy allows its programs by their hashes, no others, and no network.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files

from statedict.errors import MissingExtraError

PROGRAM = ("base", "model", "head", "rows", "table", "detail", "treemap", "depth", "change", "run", "values", "main")
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def page(title: str, data: str) -> str:
    """The whole page; `data` is JSON in ASCII. Raises a MissingExtraError without plotly."""
    ours = "\n".join(["'use strict';", *(_part(f"{name}.js") for name in PROGRAM)])
    programs = {"plotly": plotly(), "program": ours}
    allowed = " ".join(f"'sha256-{_digest(program)}'" for program in programs.values())
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = programs | {
        "policy": policy,
        "title": escape(title.encode("utf-8", "replace").decode()),
        "style": _part("page.css"),
        "data": "".join(_ESCAPES.get(character, character) for character in data),
    }
    text = _part("page.html")
    pieces = text.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def plotly() -> str:
    """The program that plotly ships, or a MissingExtraError."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError("report needs plotly; pip install 'statedict[view]'") from error
    program: str = get_plotlyjs()
    return program.replace("</script", "<\\/script")


def _part(name: str) -> str:
    return (files("statedict.view") / "page" / name).read_text(encoding="utf-8")


def _digest(program: str) -> str:
    return b64encode(sha256(program.encode()).digest()).decode()
