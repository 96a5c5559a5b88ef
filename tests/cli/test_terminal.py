"""What commands print to a terminal, a pseudo-terminal of some size: colours, characters, width, length, a pager."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

import statedict

COMMAND = [sys.executable, "-m", "statedict"]
TABLES = (
    "show long.pth", "show long.pth --depth 3", "stats long.pth", "stats long.pth --depth 3", "diff long.pth other.pth",
    "diff --deep long.pth other.pth", "scan long.pth", "verify long.pth", "runs ls run", "runs show run",
    "runs verify run", "runs blame run *weight", "edit long.pth --dry-run --only model",
)  # fmt: skip
Terminal = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints with long names, a run with metrics, and a file of many tensors."""
    folder = tmp_path_factory.mktemp("terminal")
    draw = numpy.random.default_rng(0).normal
    names = [
        f"model.layers.{i}.a_rather_long_name.attention.projection.{k}" for i in range(20) for k in ("weight", "bias")
    ]
    state = {name: draw(size=(8, 8)).astype("f4") for name in names}
    group = {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 0.01, "eps": 1e-8, "maximize": True, "params": [0]}
    optimizer = {"state": {0: {"exp_avg": draw(size=3)}}, "param_groups": [group]}
    statedict.save({"model": state, "optimizer": optimizer}, folder / "long.pth")
    changed = {name: value + draw(size=(8, 8)).astype("f4") for name, value in state.items()}
    statedict.save({"model": changed, "optimizer": optimizer}, folder / "other.pth")
    manager = statedict.CheckpointManager(folder / "run", keep=9)
    for step in range(3):
        manager.save(step, {"model": changed if step else state}, metrics={f"a_metric_number_{i}": i for i in range(6)})
    statedict.save({f"layers.{i}": numpy.zeros(1) for i in range(3_000)}, folder / "many.safetensors")
    return folder


@pytest.fixture
def terminal(folder: Path) -> Terminal:
    """Run a command with standard output on a terminal; what it shows."""

    def run(command: str, columns: int = 100, lines: int = 10_000, error: bool = False, **env: str | None) -> str:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        seen: list[bytes] = []

        def read() -> None:
            try:
                while data := os.read(ours, 1 << 16):
                    seen.append(data)
            except OSError:  # the other end is closed
                pass

        reader = threading.Thread(target=read)
        reader.start()
        for name in (
            "NO_COLOR",
            "FORCE_COLOR",
            "CLICOLOR",
            "CLICOLOR_FORCE",
            "COLUMNS",
            "LINES",
            "PAGER",
            "LC_ALL",
            "LESS",
        ):
            env.setdefault(name, None)
        every = os.environ | {"TERM": "xterm"} | env
        known = {name: value for name, value in every.items() if value is not None}
        other = theirs if error else subprocess.PIPE
        done = subprocess.run(
            COMMAND + command.split(), stdout=theirs, stderr=other, cwd=folder, check=False, env=known
        )
        os.close(theirs)
        reader.join()
        os.close(ours)
        assert done.returncode in (0, 1), done.stderr
        return b"".join(seen).decode().replace("\r\n", "\n")

    return run


def piped(command: str, folder: Path, **env: str) -> str:
    done = subprocess.run(COMMAND + command.split(), cwd=folder, capture_output=True, check=False, env=os.environ | env)
    return done.stdout.decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("command", TABLES)
def test_tables_fit_the_terminal(command: str, terminal: Terminal, folder: Path) -> None:
    columns = 80
    shown = plain(terminal(command, columns))
    table = [line for line in shown.splitlines() if re.search(r"  \S+  ", line)]
    assert [line for line in table if len(line) > columns and not line.startswith("denormal")] == []
    assert re.search(r"…|are too few|m\.l", shown) or max(map(len, piped(command, folder).splitlines())) <= columns


def test_a_narrow_table_keeps_the_numbers_of_layers_and_the_last_word(terminal: Terminal) -> None:
    shown = plain(terminal("stats long.pth", 80))
    layers = re.findall(r"^m\.m\.l\.(\d+)\.a\S*\.(weight|bias) ", shown, re.MULTILINE)
    assert {*layers} == {(f"{i}", word) for i in range(20) for word in ("weight", "bias")}


@pytest.mark.parametrize("command", TABLES)
def test_on_a_wide_terminal_as_in_a_pipe_nothing_is_left_out(command: str, terminal: Terminal, folder: Path) -> None:
    def words(text: str) -> list[str]:
        return re.sub(r"\d+ s ", "", text).split()  # not the age

    assert words(plain(terminal(command, 1_000))) == words(piped(command, folder, COLUMNS="20"))


def test_columns_that_do_not_fit_are_named(terminal: Terminal) -> None:
    shown = plain(terminal("stats long.pth", 80))
    head = next(line for line in shown.splitlines() if line.startswith("name"))
    left_out = re.search(r"\(without (.*): 80 columns are too few\)", shown)
    assert left_out
    for column in ("name", "dtype", "shape", "min", "max", "mean", "std", "l2", "zeros", "histogram"):
        assert (column in head.split()) is not (column in left_out[1].split(", "))


def test_the_variable_columns_wins_over_the_size_of_the_terminal(terminal: Terminal) -> None:
    assert terminal("show long.pth", 300, COLUMNS="70") == terminal("show long.pth", 70)


def test_a_tree_keeps_its_branches_and_both_ends_of_a_name(terminal: Terminal) -> None:
    shown = plain(terminal("show long.pth", 70))
    assert re.search(r"^ *├─ 10 ", shown, re.MULTILINE)
    assert re.search(r"└─ a_rat\S*…\S*name  ", shown)


@pytest.mark.parametrize(
    ("env", "coloured"),
    [
        ({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True), ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"FORCE_COLOR": "0"}, False), ({"CLICOLOR": "0"}, False), ({"CLICOLOR": "1"}, True),
        ({"CLICOLOR": "0", "CLICOLOR_FORCE": "1"}, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["show long.pth", "scan long.pth", "runs ls run"])
def test_colours_follow_the_conventions(command: str, env: dict[str, str], coloured: bool, terminal: Terminal) -> None:
    assert ("\x1b[" in terminal(command, **env)) is coloured


@pytest.mark.parametrize(
    ("env", "coloured"), [({}, False), ({"FORCE_COLOR": "1"}, True), ({"CLICOLOR_FORCE": "1"}, True)]
)
def test_a_pipe_has_colours_if_they_are_forced(env: dict[str, str], coloured: bool, folder: Path) -> None:
    assert ("\x1b[" in piped("show long.pth", folder, NO_COLOR="", **env)) is coloured


def test_a_dumb_terminal_shows_no_progress(terminal: Terminal) -> None:
    assert "\r" not in terminal("stats many.safetensors", error=True, TERM="dumb")


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"}])
@pytest.mark.parametrize(
    "command",
    [
        *TABLES,
        "show --recipe long.pth",
        "runs ls --help",
        "stats long.pth --csv",
        "convert long.pth out.pth --overwrite",
    ],
)
def test_what_an_encoding_lacks_has_stand_ins_in_ascii(command: str, env: dict[str, str], folder: Path) -> None:
    done = subprocess.run(COMMAND + command.split(), cwd=folder, capture_output=True, check=False, env=os.environ | env)
    assert done.returncode in (0, 1), done.stderr
    shown = done.stdout.decode(env.get("PYTHONIOENCODING", "ascii"))
    assert not re.search(r"\\[xuU]", shown)
    full = piped(command, folder)
    if "…" not in full and "→" not in full:  # others are as long as what they stand for
        assert [*map(len, shown.splitlines())] == [*map(len, full.splitlines())]


def test_columns_are_aligned_in_ascii_too(terminal: Terminal) -> None:
    shown = plain(terminal("show long.pth", 70, LC_ALL="C"))
    assert shown.isascii()
    rows = [line for line in shown.splitlines() if "8x8" in line]
    assert len({line.index("float32") for line in rows}) == 1
    assert "|- 10 " in shown
    assert re.search(r"`- a_r\S*\.\.\.\S*name ", shown)
    assert "8x8" in shown


def test_an_error_has_stand_ins_too(folder: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "show", "…→×.pth"], cwd=folder, capture_output=True, check=False, env=os.environ | {"LC_ALL": "C"}
    )
    assert done.returncode == 2
    assert done.stderr.isascii()


def test_many_lines_are_elided_in_the_middle_unless_all_are_asked_for(terminal: Terminal, folder: Path) -> None:
    full = piped("show many.safetensors", folder).splitlines()
    assert len(full) > 3_000
    shown = plain(terminal("show many.safetensors")).splitlines()
    assert len(shown) == 1_001
    assert shown[500] == f"… {len(full) - 1_000:,} more lines, --all shows them"
    assert shown[:500] == full[:500]
    assert shown[501:] == full[-500:]
    assert plain(terminal("show many.safetensors --all")).splitlines() == full


@pytest.mark.parametrize(
    "command", ["stats many.safetensors", "show --recipe many.safetensors", "diff many.safetensors none.pth"]
)
def test_other_long_tables_are_elided_too(command: str, terminal: Terminal, folder: Path) -> None:
    statedict.save({}, folder / "none.pth")
    assert len(terminal(command).splitlines()) < 1_010
    assert len(terminal(f"{command} --all").splitlines()) > 3_000


@pytest.fixture
def pager(tmp_path: Path) -> str:
    """A pager that keeps what it gets."""
    program = tmp_path / "page.py"
    program.write_text(f"""import os, sys
open({str(tmp_path / "got")!r}, "wb").write(sys.stdin.buffer.read())
open({str(tmp_path / "less")!r}, "w").write(os.environ.get("LESS", ""))
""")
    return f"{sys.executable} {program}"


def test_what_is_longer_than_the_terminal_goes_to_a_pager(
    pager: str, terminal: Terminal, tmp_path: Path, folder: Path
) -> None:
    assert terminal("show long.pth", 200, 30, PAGER=pager) == ""
    assert plain((tmp_path / "got").read_text()) == piped("show long.pth", folder)
    assert "\x1b[" in (tmp_path / "got").read_text()
    assert (tmp_path / "less").read_text() == "FRX"
    terminal("show long.pth", 200, 30, PAGER=pager, LESS="S", NO_COLOR="1")
    assert (tmp_path / "less").read_text() == "S"
    assert "\x1b[" not in (tmp_path / "got").read_text()


@pytest.mark.parametrize(
    ("command", "env"),
    [
        ("show long.pth --depth 1", {}), ("show long.pth --json", {}), ("show long.pth", {"PAGER": "cat"}),
        ("show long.pth", {"PAGER": ""}), ("show long.pth", {"TERM": "dumb"}),
        ("show long.pth", {"PAGER": "no-such-pager"}),
    ],
)  # fmt: skip
def test_there_is_no_pager_for_what_fits_for_json_or_where_none_is_wanted(
    command: str, env: dict[str, str], pager: str, terminal: Terminal, tmp_path: Path
) -> None:
    shown = terminal(command, 200, 30, **{"PAGER": pager} | env)
    assert len(shown.splitlines()) >= 1
    assert not (tmp_path / "got").exists()
    if "--json" in command:
        assert json.loads(shown)["total"]["tensors"] == 41


def test_a_pipe_has_no_pager_and_everything(pager: str, folder: Path, tmp_path: Path) -> None:
    assert len(piped("show many.safetensors", folder, PAGER=pager).splitlines()) > 3_000
    assert not (tmp_path / "got").exists()


def test_a_pager_that_ends_early_and_the_status_of_a_diff(terminal: Terminal, folder: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "diff", "long.pth", "other.pth"], stdout=theirs, stderr=subprocess.PIPE, cwd=folder, check=False,
        env=os.environ | {"PAGER": "true", "TERM": "xterm", "LINES": "5"},
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    assert (done.returncode, done.stderr) == (1, b"")
