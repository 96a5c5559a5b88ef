"""report: one page of one checkpoint, of a pair, or of the checkpoints of a run, in one file that asks no network.

The file has the page's text, style and program, plotly's program, and the data. Names in files are hostile: the page
has them only as JSON in a script that is data, without `<`, `>` or `&`, and puts them into text nodes. Its policy
allows its programs by their hashes, no others, and no network.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from html import escape
from importlib import resources
from typing import Any

from statedict.collector import Paused
from statedict.errors import MissingExtraError, MissingFileError, RunError
from statedict.io.location import location
from statedict.io.pipeline import put_bytes
from statedict.io.urls import to_name
from statedict.runs.directory import LOOKS
from statedict.tree.walk import to_patterns
from statedict.values import human_bytes
from statedict.view.compared import changes, compare, expand, history, point
from statedict.view.source import Opened, Patterns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.api.names import Path

PROGRAM = ("base", "model", "head", "rows", "table", "detail", "treemap", "depth", "change", "run", "values", "main")
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


@dataclass(frozen=True, slots=True)
class Page:
    """A page of what is in checkpoints, in one file that asks no network.

    Attributes:
        title: its title.
        data: everything it shows, ready for `json.dumps`.
    """

    title: str
    data: dict[str, Any]

    def html(self) -> str:
        """The page: the same text for the same data.

        Raises:
            MissingExtraError: plotly, which draws, is not installed.
        """
        return render(self.title, json.dumps(self.data, allow_nan=False, separators=(",", ":")))

    def save(self, path: Path, *, overwrite: bool = True) -> None:
        """Write the page to a path or URL, whole or not at all.

        Raises:
            FileError: the file exists and `overwrite` is False, or it cannot be written.
            MissingExtraError: plotly is not installed.
        """
        location(to_name(path)).publish(partial(put_bytes, self.html().encode()), overwrite=overwrite)

    def __repr__(self) -> str:
        return f"Page({self.title!r})"

    def _repr_html_(self) -> str:
        from statedict.render import html

        data, names = self.data, ("name", "format", "size", "tensors", "elements")
        files = [(one["name"], one["format"], human_bytes(one["size"]), *one["total"][:2]) for one in data["files"]]
        steps = data.get("run", {}).get("steps", ())
        metrics = list(dict.fromkeys(name for step in steps for name in step["metrics"]))[:10]
        rows = [(step["step"], step["l2"], *(step["metrics"].get(name) for name in metrics)) for step in steps]
        flags = [(kind, name, html.Wide(what)) for name, kind, what in data["files"][-1]["flags"]]
        return html.page(
            self.title,
            html.table(names, files),
            html.listing([data["change"]["summary"]] if "change" in data else []),
            html.fold("steps", html.table(("step", "L2 norm", *metrics), rows), True),
            html.fold(f"deserves a look: {len(flags):,}", html.table(("", "tensor", ""), flags)),
            html.listing(['page.save("report.html") writes the page']),
        )


def report(
    *sources: Any,
    only: Sequence[str] | str | None = None,
    title: str | None = None,
    executor: Executor | None = None,
    format: str | None = None,
) -> Page:
    """Make a web page: bytes by module, figures and histogram of every tensor, norms by depth, what changed.

    It reads every tensor once, in blocks; to compare a pair, or the ends of a run, once more.

    Args:
        sources: paths or URLs as for `load`, or trees as for `save`. One is shown, two are compared, more are steps of
            a run in the order that `statedict runs ls` gives them; the page shows the last and compares it with the
            first. The directory of a run stands for its steps.
        only: patterns of the tensors to take.
        title: by default the names of the files.
        executor: as for `save`.
        format: read the files as this format, as for `load`.

    Returns:
        The page; `page.save("report.html")` writes it.

    Raises:
        PatternError: a pattern matches no tensor.
        StateDictError: what `load` raises.
        TypeError: no source.

    >>> import statedict
    >>> page = statedict.report("examples/checkpoint.pth")
    >>> page, len(page.data["tensors"])
    (Page('checkpoint.pth'), 20)
    """
    if not sources:
        raise TypeError("report takes a file, two to compare, or the checkpoints of a run; got none")
    globs = None if only is None else to_patterns(only)
    with Paused():
        for _ in range(LOOKS):
            page = _page(sources, Patterns(globs), title, executor, format)
            if page is not None:
                return page
    raise RunError("the checkpoints are removed before they can be read; try again")


def _page(
    sources: Sequence[Any], pick: Patterns, title: str | None, executor: Executor | None, format: str | None
) -> Page | None:
    """The page; None if all checkpoints were removed before they were opened."""
    steps = expand(sources)
    run = len(steps) > 2
    first: tuple[Opened, Any] | None = None
    points = []
    for number, step in enumerate(steps):
        try:
            checkpoint = Opened(step.source, format)
        except MissingFileError:
            if any(step.source is given for given in sources):
                raise
            continue  # a live run pruned it meanwhile
        end = checkpoint, pick.stats(checkpoint, executor)
        first = first or end
        if run:
            points.append(point(step, number, *end))
    if first is None:
        return None
    files, figures = map(list, zip(*([first, end] if first is not end else [first]), strict=True))
    pick.check()
    last, stats = files[-1], figures[-1]
    data: dict[str, Any] = {"kind": "run" if run else "pair" if len(files) == 2 else "one"}
    data["files"] = [file.head(found) for file, found in zip(files, figures, strict=True)]
    data |= last.tensors(stats)
    data["values"] = last.values()
    if len(files) == 2:
        difference = compare(files[0], files[1], pick, executor)
        data["change"] = changes(difference, files[0].tensors(figures[0]), data)
    if run:
        data["run"] = history(points, steps[0].step is not None)
    title = title or " → ".join(_short([file.name for file in files]))
    return Page(title, data | {"title": title})


def _short(names: list[str]) -> list[str]:
    """Names without the folders that do not distinguish them."""
    parts = [[part for part in name.split("/") if part] or [name] for name in names]
    most = max(map(len, parts))
    for size in range(1, most + 1):
        short = ["/".join(some[-size:]) for some in parts]
        if len({*short}) == len({*names}):
            break
    return short


def render(title: str, data: str) -> str:
    """The whole page; `data` is JSON in ASCII. Raises a MissingExtraError without plotly."""
    ours = "\n".join(["'use strict';", *(_part(f"{name}.js") for name in PROGRAM)])
    programs = {"plotly": plotly(), "program": ours}
    digests = (b64encode(sha256(program.encode()).digest()).decode() for program in programs.values())
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = programs | {
        "policy": policy,
        "title": escape(title.encode("utf-8", "replace").decode()),
        "style": _part("page.css"),
        "data": data.translate(_ESCAPES),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda field: parts[field[1]], _part("page.html"))


def plotly() -> str:
    """The program that plotly ships, or a MissingExtraError."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError("report needs plotly; pip install 'statedict[view]'") from error
    program: str = get_plotlyjs()
    return program.replace("</script", "<\\/script")


def _part(name: str) -> str:
    return (resources.files("statedict.view") / "page" / name).read_text(encoding="utf-8")
