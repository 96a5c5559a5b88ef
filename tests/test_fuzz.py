"""A short run of the fuzzing harness; `make fuzz` runs it for longer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import differential, readers

from statedict.pickles.machine import _Machine
from statedict.pickles.opcodes import LINES, OPCODES

ROOT = Path(__file__).parents[1]


def fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fuzz", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_no_forged_file_does_more_than_be_read_or_refused() -> None:
    seed = "ci" if os.environ.get("CI") else os.urandom(4).hex()
    done = fuzz("--seed", seed, "--inputs", "60", "--seconds", "12")
    assert done.returncode == 0, f"python -m fuzz --seed {seed} --inputs 60\n{done.stdout}\n{done.stderr}"
    together = re.search(r"^together +([\d,]+) .*? (\d+)%", done.stdout, re.MULTILINE)
    assert together, done.stdout
    assert int(together[1].replace(",", "")) > 100
    assert 1 < int(together[2]) < 90  # neither all damage nor none


def test_what_pickles_name_and_build_is_what_python_looks_up_and_builds() -> None:
    seed = "ci" if os.environ.get("CI") else os.urandom(4).hex()
    done = fuzz("differential", "--programs", "3000", "--seed", seed)
    assert done.returncode == 0, (
        f"python -m fuzz differential --programs 3000 --seed {seed}\n{done.stdout}\n{done.stderr}"
    )
    told = re.match(r"3,000 programs .*: ([\d,]+) read by .*; ([\d,]+) shown the same; ([\d,]+) look up", done.stdout)
    assert told, done.stdout
    read, shown, named = (int(number.replace(",", "")) for number in told.groups())
    assert min(read, named) > 600
    assert read / 3 < shown < read  # neither is all refused, nor nothing


ZEROS = b"\x80\x02Vhome\np1\n0Vcollections\np0\n0g" + b"0" * 20 + b"1\nVThing\n\x93."


def told(data: bytes) -> str:
    with readers.registered():
        return differential.check(data, "utf-8")[1]


def test_the_differential_fuzzer_notices_an_argument_that_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(ZEROS) == ""
    cut = LINES[0x67]._replace(read=lambda raw: int(raw[:20]))
    monkeypatch.setitem(LINES, 0x67, cut)
    monkeypatch.setitem(OPCODES, 0x67, cut)
    assert told(ZEROS) == "scan misses ('home', 'Thing')"
    monkeypatch.setattr(differential, "missing", lambda *any_of_it: set())
    assert told(ZEROS).startswith("load shows, beside C, value: collections.Thing for home.Thing")


def test_generated_pickles_tell_when_frames_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Machine, "enter_frame", lambda machine, frame, position: 0)
    failures = differential.run("frames", 3000).failures
    assert failures
    assert all(why.startswith("load shows, beside C") for why, _ in failures)


def test_a_target_that_does_not_exist_is_a_usage_error() -> None:
    done = fuzz("nothing")
    assert done.returncode == 2
    assert "there are torch, torchscript, legacy" in done.stderr
