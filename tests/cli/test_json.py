"""Every `--json` document is one JSON object that says which schema it has."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

import statedict
from statedict.cli import cli

from .conftest import Run

COMMANDS = {
    "show": "checkpoint.pth",
    "stats": "checkpoint.pth",
    "report": "checkpoint.pth -o page.html",
    "check": "model.safetensors --model torch.nn:Flatten",
    "convert": "checkpoint.pth out.safetensors",
    "edit": "checkpoint.pth --strip --dry-run",
    "average": "checkpoint.pth checkpoint.pth --dry-run",
    "merge": "--method linear checkpoint.pth checkpoint.pth --dry-run",
    "lora show": "adapter.safetensors",
    "lora apply": "base.safetensors adapter.safetensors --dry-run",
    "lora extract": "base.safetensors tuned.safetensors --rank 1 --dry-run",
    "delta make": "checkpoint.pth checkpoint.pth --dry-run",
    "delta apply": "checkpoint.pth x.delta --dry-run",
    "diff": "checkpoint.pth model.safetensors",
    "scan": "checkpoint.pth missing.pth",
    "verify": "checkpoint.pth missing.pth",
    "runs ls": "run",
    "runs show": "run",
    "runs best": "run loss",
    "runs verify": "run",
    "runs prune": "run --keep 1 --dry-run",
    "runs pin": "run 1",
    "runs unpin": "run 1",
    "runs diff": "run 1 2",
    "runs blame": "run *",
    "runs bisect": "run --test 'test {step} -lt 2'",
}


def commands(group: click.Group = cli, above: str = "") -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} ")
        else:
            yield above + name, command


def test_every_command_with_the_option_is_tried() -> None:
    having = [name for name, command in commands() if any("--json" in param.opts for param in command.params)]
    assert having == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_document_says_its_schema(name: str, run: Run, tmp_path: Path) -> None:
    statedict.save({"w": np.ones(3)}, tmp_path / "model.safetensors")
    if name == "delta apply":
        statedict.delta.make(tmp_path / "checkpoint.pth", tmp_path / "checkpoint.pth", tmp_path / "x.delta")
    adapter = {"w.lora_down.weight": np.ones((1, 3)), "w.lora_up.weight": np.ones((3, 1))}
    statedict.save(adapter, tmp_path / "adapter.safetensors")
    for stem, value in (("base", 1.0), ("tuned", 2.0)):
        statedict.save({"w.weight": np.full((3, 3), value)}, tmp_path / f"{stem}.safetensors")
    with statedict.CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.full(3, float(step))}, metrics={"loss": 1 / step})
    done = run(*name.split(), *shlex.split(COMMANDS[name]), "--json")
    assert done.returncode in (0, 1, 2), done.stderr
    record = json.loads(done.stdout)
    assert next(iter(record)) == "schema"
    assert record["schema"] == 1
    assert len(record) > 1


def test_convert_and_report_say_what_they_wrote(run: Run, tmp_path: Path) -> None:
    record = json.loads(run("convert", "checkpoint.pth", "out.safetensors", "--json").stdout)
    sizes = [(tmp_path / name).stat().st_size for name in ("checkpoint.pth", "out.safetensors")]
    assert [record["src_bytes"], record["dst_bytes"]] == sizes
    assert (record["src"], record["dst"]) == ("checkpoint.pth", "out.safetensors")
    record = json.loads(run("report", "checkpoint.pth", "-o", "page.html", "--title", "T", "--json").stdout)
    assert record == {"schema": 1, "page": "page.html", "title": "T", "bytes": (tmp_path / "page.html").stat().st_size}
