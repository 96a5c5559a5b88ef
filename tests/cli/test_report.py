"""`statedict report`: what it writes, and says."""

from __future__ import annotations

import pickle
from pathlib import Path

from .conftest import Run


def test_it_writes_a_page_and_says_where(run: Run, tmp_path: Path) -> None:
    done = run("report", "checkpoint.pth", "-o", "report.html", torch=False)
    assert done.returncode == 0
    assert done.stdout.startswith("checkpoint.pth → report.html (")
    text = (tmp_path / "report.html").read_text()
    assert "<title>checkpoint.pth</title>" in text
    done = run("report", "checkpoint.pth", "-o", "report.html")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert run("report", "checkpoint.pth", "checkpoint.pth", "-o", "report.html", "--overwrite").returncode == 0


def test_it_takes_a_title_and_patterns(run: Run, tmp_path: Path) -> None:
    done = run("report", "checkpoint.pth", "--output", "a.html", "--only", "*.fc3", "--title", "The <third>")
    assert done.returncode == 0
    text = (tmp_path / "a.html").read_text()
    assert "<title>The &lt;third&gt;</title>" in text
    assert "model_state.conv1" not in text.partition("<script>")[0].partition('"tensors"')[2].partition('"values"')[0]
    done = run("report", "checkpoint.pth", "-o", "b.html", "--only", "nothing")
    assert done.returncode == 2
    assert "matches 'nothing'; fix or remove the pattern" in done.stderr
    assert not (tmp_path / "b.html").exists()


def test_it_reads_files_as_the_format_that_it_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps([1, 2]))
    assert run("report", "plain.pkl", "-o", "page.html").returncode == 2
    assert run("report", "plain.pkl", "-o", "page.html", "--format", "pickle").returncode == 0
    assert '"format":"pickle"' in (tmp_path / "page.html").read_text()


def test_a_file_that_cannot_be_read_writes_nothing(run: Run, tmp_path: Path) -> None:
    done = run("report", "gone.pth", "-o", "page.html")
    assert done.returncode == 2
    assert not (tmp_path / "page.html").exists()
    assert run("report", "-o", "page.html").returncode == 2
    assert run("report", "checkpoint.pth").returncode == 2
