"""A short run of the archives that are read by us and by others, and that it would notice a hole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fuzz.archives import forged, probe

from statedict.io.zip_table import Ends, find_ends
from statedict.scanner import archives

ROOT = Path(__file__).parents[1]


def test_no_other_reader_finds_in_an_archive_what_we_do_not() -> None:
    seed = "ci" if os.environ.get("CI") else os.urandom(4).hex()
    command = [sys.executable, "-m", "fuzz", "archives", "--programs", "400", "--seed", seed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    counts = {
        what: int(count.replace(",", ""))
        for what, count in re.findall(r"^(\S.*?) +([\d,]+)$", done.stdout, re.MULTILINE)
    }
    assert counts["zipfile: read"] > 100
    assert counts["PyTorch: read"] > 40
    assert counts["ours: read"] > 20
    assert counts["scan: opaque"] > 10


def failures(folder: Path) -> Iterator[str]:
    random = Random("a hole")
    for _ in range(4000):
        yield from probe(forged(random), folder / "archive", Counter())


def first_only(source: Any, end: int) -> Ends:
    """Only what Python's zipfile follows; what contradicts it is passed over."""
    readings = find_ends(source, end).readings[:1]
    return Ends([reading._replace(shift=0) for reading in readings], [])


def test_a_hole_in_reading_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statedict.io.zip.find_ends", first_only)
    assert any("PyTorch finds" in how and "scan says" not in how for how in failures(tmp_path))


def test_a_hole_in_scanning_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pass_over(*_: Any, **__: Any) -> None:
        """What is deflated is not looked into."""

    monkeypatch.setattr(archives, "look_into_packed", pass_over)
    assert any("scan says" in how for how in failures(tmp_path))
