from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

Run = Callable[..., subprocess.CompletedProcess[str]]


class Evil:
    """Pickled, it is a call of os.system; no test ever unpickles it."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("exit 3",)


EVIL = pickle.dumps(Evil())


def test_a_checkpoint_of_data_exits_with_0(run: Run) -> None:
    done = run("scan", "checkpoint.pth", torch=False)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["data", "collections.OrderedDict", "called"]
    assert lines[-1] == "checkpoint.pth: data, 1 pickle: no pickle in it names what runs code"
    assert "\x1b" not in done.stdout


def test_what_is_dangerous_comes_first_and_exits_with_1(run: Run, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3), "net": torch.nn.Linear(1, 1), "x": Evil()}, tmp_path / "evil.pth")
    done = run("scan", "evil.pth")
    assert done.returncode == 1
    verdicts = [line.split()[0] for line in done.stdout.splitlines()[:-1]]
    assert verdicts == sorted(verdicts, key=["dangerous", "opaque", "data"].index)
    assert done.stdout.startswith("dangerous  posix.system ")
    assert "evil.pth: dangerous, 1 pickle" in done.stdout.splitlines()[-1]


def test_a_foreign_class_exits_with_1(run: Run, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "net.pth")
    done = run("scan", "net.pth")
    assert done.returncode == 1
    assert "net.pth: opaque" in done.stdout


def test_what_cannot_be_read_exits_with_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes((tmp_path / "checkpoint.pth").read_bytes()[:-500])
    assert run("scan", "cut.pth").returncode == 2
    missing = run("scan", "nothing.pth")
    assert missing.returncode == 2
    assert "No such file" in missing.stderr
    assert "damaged" not in missing.stdout + missing.stderr
    record = json.loads(run("scan", "nothing.pth", "checkpoint.pth", "--json").stdout)["files"]
    assert [one["verdict"] for one in record] == ["unreadable", "data"]
    assert "No such file" in record[0]["error"]


def test_of_several_files_a_finding_counts_more_than_an_unreadable_one_and_that_more_than_data(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "evil.pkl").write_bytes(EVIL)
    assert run("scan", "nothing.pth", "evil.pkl", "checkpoint.pth").returncode == 1
    assert run("scan", "evil.pkl", "nothing.pth").returncode == 1
    assert run("scan", "checkpoint.pth", "nothing.pth").returncode == 2
    (tmp_path / "broken.pkl").write_bytes(EVIL[:-1])
    assert run("scan", "broken.pkl").returncode == 1


def test_json_is_one_object_with_every_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(EVIL)
    done = run("scan", "checkpoint.pth", "evil.pkl", "nothing.pth", "--json")
    files = json.loads(done.stdout)["files"]
    assert [file["verdict"] for file in files] == ["data", "dangerous", "unreadable"]
    assert files[1]["globals"] == [
        {
            "member": "",
            "offset": EVIL.index(b"\x93"),
            "module": os.name if os.name == "nt" else "posix",
            "name": "system",
            "verdict": "dangerous",
            "why": "runs programs or code",
            "called": 1,
            "count": 1,
        }
    ]
    assert list(files[0]) == ["file", "verdict", "pickles", "globals", "notes", "damage"]


def test_control_characters_of_a_file_are_escaped(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J.pkl").write_bytes(b"\x80\x02cos\x1b[2J\nsys\rtem\n)R.")
    done = run("scan", "a\x1b[2J.pkl")
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    assert "os\\x1b[2J.sys\\rtem" in done.stdout
