"""`statedict runs diff`: `statedict diff` of two checkpoints of a run, with its options."""

from __future__ import annotations

from typing import Any

import click

from statedict.cli import diff
from statedict.errors import RunError
from statedict.io.urls import redact, to_name
from statedict.runs.look.listing import find, listing


def _compare(directory: str, step: str, other: str, **options: Any) -> Any:
    """Show how two checkpoints of a run differ; the options are those of `statedict diff`.

    Exit status: 0 they are the same, 1 they differ, 2 one cannot be opened.
    """
    found, where = listing(directory), redact(to_name(directory))
    chosen = [find(found, one, where) for one in (step, other)]
    for one in chosen:
        if not one.usable:  # its files may be others, or lie elsewhere
            raise RunError(f"{where}: {one.name} is {one.state}: {one.damage}; name the files to compare them even so")
    files = tuple(one.path for one in chosen)
    assert diff.command.callback is not None
    return diff.command.callback(files=files, git=False, **options)


command = click.Command(
    "diff",
    callback=_compare,
    help=_compare.__doc__,
    params=[
        click.Argument(["directory"], metavar="DIR", type=click.Path()),
        click.Argument(["step"]),
        click.Argument(["other"], metavar="STEP"),
        *(one for one in diff.command.params if one.name not in ("files", "git")),
    ],
)
