"""Remedies that commands print are what one types in a shell."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import torch

import statedict
from statedict.cli import COMMANDS, cli
from statedict.cli.commands import OPTIONS, shell

from .conftest import Run


@pytest.mark.parametrize(
    ("python", "typed"),
    [
        ("pass allow_missing=['x'] to accept it", "pass --allow-missing x to accept it"),
        ("allow_missing=['a', 'b.*'], allow_unexpected=['c']",
         "--allow-missing a --allow-missing 'b.*' --allow-unexpected c"),
        ("pass rename={'layers.{n}': 'h.{n}', \"it's\": 'b'}",
         "pass --rename 'layers.{n}=h.{n}' --rename 'it'\"'\"'s=b'"),
        ("pass cast=True to convert", "pass --cast '*' to convert"),
        ("pass rename=… or save it", "pass --rename OLD=NEW or save it"),
        ("pass prefix=… to choose", "pass --prefix PREFIX to choose"),
        ("pass overwrite=True to replace it", "pass --overwrite to replace it"),
        ("there is shapes=…", "there is --shapes [GLOB=]POLICY"),
        ("choose another name or allow overwriting", "choose another name or add --overwrite"),
        ("restore from load(path)['a']['b c']", "name it by --at 'a.b c'"),
        ("mode='x': is neither", "mode='x': is neither"),
        ("not_only='x'", "not_only='x'"),
    ],
)  # fmt: skip
def test_a_remedy_in_python_becomes_one_in_the_shell(python: str, typed: str) -> None:
    assert shell(python) == typed


def test_the_table_names_only_options_that_exist() -> None:
    def list_options(command: click.Command) -> set[str]:
        below = command.list_commands(context) if isinstance(command, click.Group) else ()
        commands = [command, *filter(None, (command.get_command(context, name) for name in below))]  # type: ignore[attr-defined]
        return {option for one in commands for param in one.params for option in param.opts}

    context = click.Context(cli)
    options = set().union(*(list_options(command) for name in COMMANDS if (command := cli.get_command(context, name))))
    assert {option for option, _ in OPTIONS.values()} <= options


def test_a_file_that_exists_is_named_with_the_option(run: Run) -> None:
    failed = run("convert", "checkpoint.pth", "checkpoint.pth")
    assert failed.stderr.endswith("choose another name or add --overwrite\n")
    assert run("convert", "checkpoint.pth", "checkpoint.pth", "--overwrite").returncode == 0


def test_another_dtype_is_named_with_the_option_and_that_helps(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("import torch\ndef net():\n    return torch.nn.Linear(2, 2)\n")
    statedict.save(torch.nn.Linear(2, 2).double().state_dict(), tmp_path / "wide.pth")
    failed = run("check", "wide.pth", "--model", "nets:net")
    assert failed.returncode == 1
    assert "pass --cast '*' to convert" in failed.stdout
    assert run("check", "wide.pth", "--model", "nets:net", "--cast", "*").returncode == 0
