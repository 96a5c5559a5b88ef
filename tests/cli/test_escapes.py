"""No name steers a terminal or begins a line of its own, whether it comes from a file or is that of a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import statedict
from statedict.cli import main

EVIL = "\x1b[2J\r\x07\u202e\nforged: fine\n"
TREE = {
    "model": {f"{EVIL}.w": torch.tensor([1.0, float("nan")]), "w": torch.ones(2)},
    "optimizer": {
        "state": {0: {f"{EVIL}exp_avg": torch.ones(2)}, 1: {EVIL: EVIL}},
        "param_groups": [{"lr": 0.1, EVIL: EVIL, "params": [0, 1]}],
        EVIL: EVIL,
    },
    EVIL: [EVIL],
    "note": EVIL,
}
COMMANDS = (
    "show {}", "show {} --depth 1", "show {} --recipe", "show {} --textconv", "show {} --at EVIL", "show {} --at model",
    "stats {}", "stats {} --csv", "verify {} --values", "verify {}.not", "scan {}", "scan folder", "convert {} out.pth",
    "convert {} {}.pth", "convert {}.not out.pth", "edit {} --drop *w --dry-run", "edit {} out.safetensors --drop w",
    "diff {} other.pth --all", "diff {} other.pth --names-only", "diff {} {}", "report {} -o out.html",
    "report {} -o {}.html", "check {} --model torch.nn:Identity", "check {} --model torch.nn:Flatten --at optimizer",
    "verify index.json", "show index.json", "runs ls folder", "runs verify folder", "runs show folder",
    "runs blame folder *",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files with names that are not nice."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder", f"{EVIL}-step=3.pkl").write_bytes(b"\x80\x02chostile\x1b[2J\nname\rforged\n)R.")
    for step in (1, 2):
        torch.save({EVIL: torch.ones(2) / step}, f"folder/{EVIL}-step={step}.pt")
    Path("index.json").write_text('{"weight_map":{"w":"\\u001b[2J\\nforged: fine\\n"}}')
    return tmp_path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_steers_a_terminal(
    command: str, suffix: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = f"{EVIL.replace('/', '')}{suffix}"
    statedict.save(TREE, name)
    statedict.save({"model": {"w": torch.zeros(2)}}, "other.pth")
    words = [word.replace("{}", name).replace("EVIL", f"model.{EVIL}.w") for word in command.split()]
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code in (0, 1, 2)
    said = "".join(capfd.readouterr())
    assert said
    assert not re.search(r"[\0-\x09\x0b-\x1f\x7f-\x9f\u202e]", said.replace(" \t ", "")), repr(said)
    assert not re.search(r"^\s*forged", said, re.MULTILINE), said
