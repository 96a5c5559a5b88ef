"""`statedict check`, `convert`, `scan` and `verify`."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace
from typing import Any

import click

from statedict.api import files as api
from statedict.api.names import split
from statedict.cli.commands import (
    FILE,
    FILES,
    JSON,
    NO_VERIFY,
    READ_AS,
    READ_SOURCE_AS,
    echo_json,
    echo_lines,
    echo_report,
    error_line,
    only_option,
    progress,
    shell,
    shell_json,
    split_pair,
)
from statedict.cli.terminal import ALL, echo, write
from statedict.cli.writing import MAX_SHARD_SIZE, format_option
from statedict.errors import AlterError, PathError, StateDictError
from statedict.io.location import location
from statedict.io.urls import redact
from statedict.render.text import printable
from statedict.reports.outcomes import DANGEROUS, DATA, OPAQUE, UNREADABLE
from statedict.shown import to_record
from statedict.values import human_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_STATUS = {DANGEROUS: 1, OPAQUE: 1, UNREADABLE: 2, DATA: 0}


@click.command()
@FILE
@click.option("--model", required=True, metavar="MODULE:NAME", help="A class or function that makes the model.")
@click.option("--optimizer", metavar="MODULE:NAME", help="A function of the model, or a class of torch.optim.")
@click.option("--at", metavar="PATH", help="Where the model's state is in the file; found by default.")
@click.option("--optimizer-at", metavar="PATH", help="Where the optimizer's state is; found by default.")
@click.option("--allow-missing", metavar="GLOB", multiple=True, help="What the file may lack.")
@click.option("--allow-unexpected", metavar="GLOB", multiple=True, help="What the model may lack.")
@click.option("--shapes", metavar="[GLOB=]POLICY", multiple=True, help="Where shapes differ.")
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="A rule for names of the file.")
@click.option("--cast", metavar="GLOB", multiple=True, help="Where dtypes may differ.")
@click.option("--prefix", default="auto", metavar="PREFIX", help="What stands before the model's names in the file.")
@READ_AS
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as one JSON object.")
def check(file: str, model: str, optimizer: str | None, as_json: bool, **options: Any) -> int:
    """Check whether a file fits a model and an optimizer: the plan that restoring would follow. Nothing is written.

    MODULE:NAME is imported, also from the current directory, and called; an optimizer's with the model. The exit
    status is 0 if the file fits, 1 if not, 2 if the file or the model cannot be had.
    """
    from statedict.api.live import fit
    from statedict.render import report_text

    state, live = api.load(file, format=options.pop("format")), _make(model)
    wanted = [(options.pop("at"), live)]
    at = options.pop("optimizer_at")
    if optimizer is not None:
        wanted.append((at, _make(optimizer, live)))
    options["rename"] = dict(split_pair("rename", "OLD=NEW", text) for text in options["rename"])
    policies = (text.rpartition("=") for text in options["shapes"])
    options["shapes"] = {glob or "*": policy for glob, _, policy in policies}
    try:
        fitting = fit(state, wanted, **options)
    except (PathError, AlterError) as error:
        raise type(error)(f"{redact(file)}: {error}") from error
    if fitting is None:
        lack = "has no optimizer's state; if it has, name it by --optimizer-at"
        echo_report({"file": redact(file), "error": lack}, as_json, [f"{printable(file)}: {lack}"])
        return 1
    places, report = fitting
    where = " and ".join(filter(None, places))
    head, *rest = map(shell, report_text.restore(report))
    lines = [f"{file}{where and ' at ' + where}: {head}", *rest]
    echo_report(shell_json(report.to_json()) if as_json else {}, as_json, lines)
    return int(bool(report.problems))


def _make(name: str, *models: Any) -> Any:
    """Call the class or function MODULE:NAME, which makes a model, or an optimizer for models.

    Raises:
        click.ClickException: it cannot be imported or called, or makes something else.
    """
    module, sign, attribute = name.partition(":")
    if not sign:
        raise click.UsageError(f"{name!r}: expected MODULE:NAME, such as package.module:make_model")
    sys.path.insert(0, os.getcwd())
    try:
        factory: Any = importlib.import_module(module)
        for part in attribute.split("."):
            factory = getattr(factory, part)
        return _call(factory, models)
    except (Exception, SystemExit) as error:
        raise click.ClickException(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)


def _call(factory: Any, models: tuple[Any, ...]) -> Any:
    import torch

    kind = torch.optim.Optimizer if models else torch.nn.Module
    value = factory
    if isinstance(factory, type) and issubclass(factory, torch.optim.Optimizer):
        value = factory(*(model.parameters() for model in models))
    elif not isinstance(factory, torch.nn.Module | torch.optim.Optimizer):
        value = factory(*models)
    if not isinstance(value, kind):
        raise TypeError(f"makes a {type(value).__name__}, not a {kind.__module__}.{kind.__name__}")
    return value


@click.command()
@click.argument("src", type=click.Path())
@click.argument("dst", type=click.Path())
@format_option("DST")
@READ_SOURCE_AS
@only_option("Keep what matches.")
@MAX_SHARD_SIZE
@NO_VERIFY
@click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
@JSON
def convert(src: str, dst: str, as_json: bool, **options: Any) -> None:
    """Write the checkpoint SRC as DST, in the format of its suffix. Bytes are copied, whole or not at all."""
    with progress("converting"):
        files = api.write_converted(src, dst, fsync=True, **options)
    (one, before), (other, after) = ((redact(name), location(split(name)[0]).size()) for name in (src, dst))
    line = f"{printable(one)} ({human_bytes(before)}) → {printable(other)} ({human_bytes(after)})"
    record = {"src": one, "src_bytes": before, "dst": other, "dst_bytes": after, "files": to_record(files)}
    echo_report(record, as_json, [line, *files.lines()])


@click.command()
@FILES
@ALL
@JSON
def scan(files: tuple[str, ...], as_json: bool) -> int:
    """List every global that the pickles in a file name, with a verdict. Nothing is unpickled.

    A FILE may also be a folder. Data: statedict's list of what builds data has it. Opaque: the list lacks it.
    Dangerous: it is known to run code, or hides its name. Unreadable: a part breaks off, and what was found until
    there is data.

    Exit status: 0 only data (or no pickle at all), 1 something opaque or dangerous in any file, damaged or not,
    2 otherwise something unreadable in any file, or no such file.
    """
    from statedict.api import look
    from statedict.render.report_text import scan_table

    printed = False

    def read(file: str) -> tuple[int, dict[str, Any]]:
        nonlocal printed
        report = look.scan(file)
        report = replace(report, file=redact(report.file))
        if not as_json:
            echo(["\n" * printed + "\n".join(scan_table(report))], paged=len(files) == 1)
            printed = True
        return _STATUS[report.verdict], report.to_json()

    found = _each(files, read, as_json, {"verdict": UNREADABLE})
    return 1 if 1 in found else max(found)


def _each(
    files: tuple[str, ...], read: Callable[[str], tuple[int, dict[str, Any]]], as_json: bool, failed: dict[str, Any]
) -> set[int]:
    """Read each file, print the records as JSON if asked; the exit statuses: `read`'s, 2 where it raises.

    `read` returns a status and a record; `failed` is what the record of a file has that cannot be read.
    """
    found, records = set(), []
    for file in files:
        try:
            status, record = read(file)
        except StateDictError as error:
            status, record = 2, {"file": redact(file), **failed, "error": str(error)}
            if not as_json:
                write(error_line(error), err=True)
        found.add(status)
        records.append(record)
    if as_json:
        echo_json({"files": shell_json(records)})
    return found


@click.command()
@FILES
@click.option("--values", is_flag=True, help="Count NaN and infinities in each tensor, too.")
@click.option("--quick", is_flag=True, help="Headers, ranges and sizes only; no tensor is read.")
@READ_AS
@JSON
def verify(files: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Check files for damage: structure, CRC-32, digests, shards against their index.

    Every byte is read, except with --quick. The exit status is 0 if all files are fine, 1 if one is damaged, 2 if
    one cannot be opened or is not a checkpoint. NaN and infinities are not damage.
    """
    from statedict.api import look
    from statedict.render import report_text

    if options["values"] and options["quick"]:
        raise click.UsageError("--values reads every tensor, --quick none; give one of them")

    def read(file: str) -> tuple[int, dict[str, Any]]:
        with progress("checking"):
            report = look.verify(file, **options)
        if not as_json:
            echo_lines(map(shell, report_text.verify(report)), paged=len(files) == 1)
        return int(not report.ok), report.to_json()

    return max(_each(files, read, as_json, {"ok": False}))
