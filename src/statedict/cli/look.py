"""`statedict show`, `stats`, `report` and `diff`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from statedict.api.delta import base_of
from statedict.api.files import load
from statedict.api.names import split
from statedict.cli.commands import (
    FILE,
    JSON,
    READ_AS,
    echo_json,
    echo_lines,
    echo_report,
    error_line,
    only_option,
    progress,
    title,
)
from statedict.cli.terminal import ALL, all_option, echo, write
from statedict.errors import PathError, StateDictError
from statedict.io.location import location
from statedict.io.urls import redact, to_name
from statedict.render.text import printable, shape
from statedict.tree.state_dict import StateDict
from statedict.values import count, human_bytes


@click.command()
@FILE
@click.option("--at", metavar="PATH", help="Show only this entry, such as model.layers.0.")
@click.option("--depth", type=click.IntRange(min=1), help="Fold the tree below this many levels.")
@ALL
@READ_AS
@JSON
@click.option("--recipe", is_flag=True, help="Print as the loops of PyTorch's state_dict recipe do.")
@click.option("--textconv", is_flag=True, help="Be git's diff.*.textconv: a line for each entry, with digests.")
def show(
    file: str, at: str | None, depth: int | None, as_json: bool, recipe: bool, textconv: bool, format: str | None
) -> None:
    """Show what is in a checkpoint: its tree, dtypes, shapes, sizes and values. No tensor is read.

    With --textconv every tensor is read, for its digest, and a file that is not a checkpoint is one line and no error.
    """
    if recipe + as_json + textconv > 1:
        raise click.UsageError("--recipe, --json and --textconv exclude one another")
    if textconv:
        if at or depth:
            raise click.UsageError("--textconv shows the whole file, without --at and --depth")
        write("".join(f"{printable(line)}\n" for line in _textconv_lines(file, format)), nl=False)
        return
    state = load(file, format=format)
    try:
        part = state.at(at) if at else state
    except PathError as error:
        raise PathError(f"{redact(file)}: {error}") from error
    above = at or ""
    if not isinstance(part, StateDict):
        above, _, key = above.rpartition(".")
        part = StateDict({key: part})
    if recipe:
        from statedict.render.tree_text import recipe_lines

        echo(recipe_lines(part))
        return
    from statedict.api.companions import find_config
    from statedict.api.look import inspect

    summary, size = inspect(part, above, config=find_config(file) or {}), location(split(file)[0]).size()
    base = base_of(file)
    if as_json:
        echo_json({"file": redact(file), "size": size, "base": base, **summary.to_json()})
        return
    from statedict.render.tree_text import summary_lines

    total = summary.total
    text = f"{human_bytes(size)}  {count(total.tensors, 'tensor')}, {total.elements:,} elements"
    if summary.quantization.weights:
        text += f", {summary.parameters:,} parameters"
    head = title(file, text if base is None else f"{text}, a delta to {base}")
    echo([*head, *summary_lines(summary, depth)])


def _textconv_lines(file: str, format: str | None) -> list[str]:
    """What git compares; one line for a file that is not a checkpoint, because git would give up on all files."""
    from statedict.formats import places
    from statedict.io.pipeline import compute_sums
    from statedict.render.textconv import lines

    source = places.open_checkpoint(split(file)[0])
    try:
        return lines(load(file, format=format))
    except (StateDictError, RecursionError, MemoryError) as error:
        what = " ".join(str(error).removeprefix(f"{redact(file)}: ").split()) or type(error).__name__
        digest = compute_sums(source, 0, source.size, crc=False).digest
        return [f"statedict: {what} ({source.size} bytes, xxh3_128 {digest})"]


@click.command()
@FILE
@only_option("Only what matches, such as '*.attn.*'.")
@click.option("--depth", type=click.IntRange(min=1), help="Fold modules below this many levels to one row.")
@ALL
@READ_AS
@JSON
@click.option("--log", is_flag=True, help="Histograms by powers of two.")
@click.option("--csv", "as_csv", is_flag=True, help="Print one line for each tensor.")
def stats(file: str, depth: int | None, log: bool, as_json: bool, as_csv: bool, **options: Any) -> None:
    """Compute min, max, mean, std, norm, zeros, NaN, Inf and a histogram of every tensor, and flag what is odd.

    Every tensor is read once, in blocks. The exit status is 0 whatever is flagged: to fail on it, look at the JSON.
    """
    from statedict.api import look
    from statedict.render.tree_text import stats_lines

    if as_json + as_csv + (depth is not None) > 1:
        raise click.UsageError("--json, --csv and --depth exclude one another")
    with progress("reading"):
        report = look.stats(file, **options)
    if as_json:
        echo_json({"file": redact(file), **report.to_json()})
    elif as_csv:
        write(_csv(report.tensors), nl=False)
    else:
        head = title(file, f"{count(len(report.tensors), 'tensor')}, {report.total.elements:,} elements")
        echo_lines(stats_lines(report, depth, log), head)


def _csv(tensors: Sequence[Any]) -> str:
    import csv
    import io

    text = io.StringIO()
    names = ("name", "dtype", "shape", "elements", "min", "max", "mean", "std", "l2", "zeros", "nan", "inf")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*names, "denormal", "edge", "dead_rows", "tied", "parameter", "inferred"))
    for tensor in tensors:
        record = tensor.to_json()
        del record["histogram"]
        record["shape"] = shape(tensor.shape) if tensor.shape else ""
        if isinstance(record["mean"], list):
            record["mean"] = str(tensor.mean).strip("()")
        writer.writerow(printable(value) if isinstance(value, str) else value for value in record.values())
    return text.getvalue()


@click.command()
@click.argument("files", metavar="FILE [FILE2]...", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", metavar="PAGE", required=True, type=click.Path(), help="Write the page here.")
@only_option("Only what matches, such as 'model.*'.")
@click.option("--title", help="The title of the page, by default the names of the files.")
@click.option("--overwrite", is_flag=True, help="Replace PAGE if it exists.")
@READ_AS
@JSON
def report(files: tuple[str, ...], output: str, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Write one web page that shows a checkpoint, a pair and what changed, or the checkpoints of a run.

    The page is one file that asks no network. Three files and more, or the directory of a run, are its
    steps.
    """
    from statedict.view.report import report

    with progress("reading"):
        page = report(*files, **options)
    page.save(output, overwrite=overwrite)
    where, size = redact(output), location(to_name(output)).size()
    line = f"{printable(page.title)} → {printable(where)} ({human_bytes(size)})"
    echo_report({"page": where, "title": page.title, "bytes": size}, as_json, [line])


@click.command()
@click.argument("files", metavar="A B", nargs=-1, required=True, type=click.Path())
@only_option("Compare only what matches; may be repeated.")
@click.option("--names-only", is_flag=True, help="Names, dtypes, shapes and values; no tensor is read.")
@click.option("--numeric", is_flag=True, help="Equality of numbers: 0.0 is -0.0, NaN is nothing, dtypes do not matter.")
@click.option("--rtol", type=click.FloatRange(min=0), default=0.0, help="Relative tolerance, as torch.allclose has it.")
@click.option("--atol", type=click.FloatRange(min=0), default=0.0, help="Absolute tolerance.")
@click.option("--deep", is_flag=True, help="The rank of each change, and whether a low-rank adapter explains it.")
@click.option("--rank", metavar="R", type=click.IntRange(min=1), help="With --deep: adapters of up to this rank.")
@click.option("--map", metavar="NAME", help="Compare by PyTorch's names: keras, flax, nnx, consolidated or gguf.")
@all_option("Every line, not a screenful of each kind.")
@READ_AS
@JSON
@click.option("--git", is_flag=True, help="Be git's diff.*.command: take the arguments that git gives, exit with 0.")
def diff(files: tuple[str, ...], all: bool, as_json: bool, git: bool, **options: Any) -> int:
    """Show how two checkpoints differ: tensors by name and content, optimizers by parameter, all other values.

    The two may have different formats, and each may be a URL. Exit status: 0 they are the same, 1 they differ, 2 one
    cannot be opened.
    """
    from statedict.api import look
    from statedict.render.diff_text import LIMIT, lines

    if options["deep"] and options["names_only"]:
        raise click.UsageError("--names-only reads no tensor, and --deep takes their numbers; leave one of them out")
    if options["rank"] is not None and not options["deep"]:
        raise click.UsageError("--rank is for --deep; add that")
    if not git and len(files) != 2:
        raise click.UsageError(f"diff takes two files, got {len(files)}")
    title, *sides = _git_arguments(files) if git else ("", *files)
    if git:
        write(click.style(f"statedict diff {printable(title)}", bold=True))
    one, other = ({} if git and side == os.devnull else side for side in sides)
    try:
        with progress("comparing"):
            report = look.diff(one, other, **options)
    except StateDictError as error:
        if not git:  # git would give up on all files
            raise
        write(error_line(error))
        return 0
    echo_report(report, as_json, lines(report, None if all else LIMIT))
    return 0 if git else int(not report.same)


def _git_arguments(files: tuple[str, ...]) -> tuple[str, str, str]:
    """Title, old file and new file of PATH OLD HEX MODE NEW HEX MODE; after a rename NEW-PATH and more follow."""
    if len(files) == 1:
        return f"{files[0]} (not merged)", os.devnull, os.devnull
    if len(files) < 7:
        raise click.UsageError(f"--git is for git, which gives seven arguments, got {len(files)}")
    path, old, _, _, new, _, _, *rest = files
    return f"{path} → {rest[0]}" if rest else path, old, new
