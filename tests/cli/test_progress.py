"""What a person at a terminal sees, and what an interruption leaves."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy
import pytest

import statedict

from ..remote.servers import WithRanges, serving

COMMAND = [sys.executable, "-m", "statedict"]


class Slow(WithRanges):
    """A server that takes its time."""

    def do_GET(self) -> None:  # noqa: N802
        if self.headers.get("Range") != "bytes=0-65535":
            time.sleep(0.4)
        super().do_GET()


def at_a_terminal(arguments: list[str], folder: Path) -> tuple[str, str]:
    """What a command prints on standard output, and on a terminal that is its standard error."""
    ours, theirs = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                seen.append(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    done = subprocess.run(
        COMMAND + arguments, stdout=subprocess.PIPE, stderr=theirs, text=True, cwd=folder, env=env, check=True
    )
    os.close(theirs)
    reader.join()
    os.close(ours)
    return done.stdout, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(seen).decode())


@pytest.fixture
def large(tmp_path: Path) -> None:
    """A file of 100 MB."""
    statedict.save({f"w{i}": numpy.zeros(4 << 18) for i in range(12)}, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("arguments", "doing"),
    [
        (["convert", "URL", "b.pth"], "converting"),
        (["edit", "URL", "b.pth", "--prefix", "x."], "editing"),
        (["verify", "URL"], "checking"),
    ],
)
def test_what_takes_longer_than_a_second_shows_bytes_rate_and_time_left(
    tmp_path: Path, large: None, arguments: list[str], doing: str
) -> None:
    with serving(tmp_path, Slow) as server:
        arguments = [part.replace("URL", f"{server.url}/a.safetensors") for part in arguments]
        out, seen = at_a_terminal(arguments, tmp_path)
    assert "a.safetensors" in out or "w0" in out
    assert doing not in out
    assert re.search(rf"{doing} +\[[#-]+\] .*[\d.]+ MB of 100.7 MB, [\d.]+ MB/s, \d+ s left", seen), seen[-500:]


def test_what_is_quick_shows_nothing(tmp_path: Path) -> None:
    statedict.save({"w": numpy.zeros(4)}, tmp_path / "a.pth")
    assert at_a_terminal(["convert", "a.pth", "b.safetensors"], tmp_path)[1] == ""


def test_without_a_terminal_nothing_is_shown(tmp_path: Path, large: None) -> None:
    with serving(tmp_path, Slow) as server:
        command = [*COMMAND, "convert", f"{server.url}/a.safetensors", "b.pth"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["b.pth", "--overwrite"], ["shards", "--max-shard-size", "20MB"]])
def test_ctrl_c_leaves_the_old_file_and_no_rubbish(tmp_path: Path, large: None, arguments: list[str]) -> None:
    (tmp_path / "b.pth").write_bytes(b"old")
    with serving(tmp_path, Slow) as server:
        process = subprocess.Popen(
            [*COMMAND, "convert", f"{server.url}/a.safetensors", *arguments],
            stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
        while len(server.requests) < 12:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        assert len(list(tmp_path.glob(".*.tmp"))) == 1
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == (None, "\n")
    assert process.returncode == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.pth"]
    assert (tmp_path / "b.pth").read_bytes() == b"old"
