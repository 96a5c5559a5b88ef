"""`statedict diff`."""

from __future__ import annotations

import os
from typing import Any

import click

from statedict.api.look import diff
from statedict.cli.output import echo_report, error_line
from statedict.cli.progress import progress
from statedict.errors import StateDictError
from statedict.render.diff_text import LIMIT, lines
from statedict.render.text import printable


@click.command()
@click.argument("files", metavar="A B", nargs=-1, required=True, type=click.Path())
@click.option("--only", metavar="GLOB", multiple=True, help="Compare only what matches; may be repeated.")
@click.option("--names-only", is_flag=True, help="Names, dtypes, shapes and values; no tensor is read.")
@click.option("--numeric", is_flag=True, help="Equality of numbers: 0.0 is -0.0, NaN is nothing, dtypes do not matter.")
@click.option("--rtol", type=click.FloatRange(min=0), default=0.0, help="Relative tolerance, as torch.allclose has it.")
@click.option("--atol", type=click.FloatRange(min=0), default=0.0, help="Absolute tolerance.")
@click.option("--deep", is_flag=True, help="The rank of each change, and whether a low-rank adapter explains it.")
@click.option("--rank", metavar="R", type=click.IntRange(min=1), help="With --deep: adapters of up to this rank.")
@click.option("--all", "everything", is_flag=True, help="Every line, not a screenful of each kind.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--git", is_flag=True, help="Be git's diff.*.command: take the arguments that git gives, exit with 0.")
def command(
    files: tuple[str, ...],
    only: tuple[str, ...],
    names_only: bool,
    numeric: bool,
    rtol: float,
    atol: float,
    deep: bool,
    rank: int | None,
    everything: bool,
    as_json: bool,
    git: bool,
) -> int:
    """Show how two checkpoints differ: tensors by name and content, optimizers by parameter, all other values.

    The two may have different formats, and each may be a URL. Exit status: 0 they are the same, 1 they differ, 2 one
    cannot be opened.
    """
    if deep and names_only:
        raise click.UsageError("--names-only reads no tensor, and --deep takes their numbers; leave one of them out")
    if rank is not None and not deep:
        raise click.UsageError("--rank is for --deep; add that")
    if not git and len(files) != 2:
        raise click.UsageError(f"diff takes two files, got {len(files)}")
    title, *sides = _of_git(files) if git else ("", *files)
    if git:
        click.echo(click.style(f"statedict diff {printable(title)}", bold=True))
    one, other = ({} if git and side == os.devnull else side for side in sides)
    how: dict[str, Any] = {"names_only": names_only, "numeric": numeric, "rtol": rtol, "atol": atol}
    try:
        with progress("comparing"):
            report = diff(one, other, only=only or None, deep=deep, rank=rank, **how)
    except StateDictError as error:
        if not git:  # which would give up on all files
            raise
        click.echo(error_line(error))
        return 0
    echo_report(report, lines(report, None if everything else LIMIT), as_json)
    return 0 if git else int(not report.same)


def _of_git(files: tuple[str, ...]) -> tuple[str, str, str]:
    """What is compared, the old file, the new one: of PATH OLD HEX MODE NEW HEX MODE, for renames NEW-PATH and more."""
    if len(files) == 1:
        return f"{files[0]} (not merged)", os.devnull, os.devnull
    if len(files) < 7:
        raise click.UsageError(f"--git is for git, which gives seven arguments, got {len(files)}")
    path, old, _, _, new, _, _, *rest = files
    return f"{path} → {rest[0]}" if rest else path, old, new
