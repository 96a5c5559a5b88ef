"""`git diff`, `git log` and `git show` on checkpoints, by real repositories set up as docs/comparing.md says."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict

from ..hollow import hollow
from ..hollow import run as measured
from .conftest import Run

Git = Callable[..., str]
Make = Callable[..., Git]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 1\n"


def ours(arguments: str) -> str:
    """A command line that calls this statedict."""
    program = "from statedict.cli import main; main()"
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {arguments}"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Where the repository is."""
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


@pytest.fixture
def repository(work: Path) -> Make:
    """Makes a git repository with a driver."""
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_PAGER": "cat"}

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=A", "-c", "user.email=a@b", *arguments],
            cwd=work, env=os.environ | quiet, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    def made(**config: str) -> Git:
        git("init", "-q")
        for key, value in config.items():
            git("config", f"diff.statedict.{key}", value)
        (work / ".gitattributes").write_text("*.safetensors diff=statedict\n*.pth diff=statedict\n")
        return git

    return made


def commit(git: Git, message: str = "one") -> None:
    git("add", ".")
    git("commit", "-qm", message)


def changed(shown: str) -> list[str]:
    """The lines that a diff takes away and adds, without their digests."""
    lines = [line for line in shown.splitlines() if line.startswith(("+", "-")) and line[:3] not in ("+++", "---")]
    return [line.partition("  xxh3_128")[0] for line in lines]


def trained(steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": steps}


def test_git_shows_our_diff(repository: Make, work: Path) -> None:
    git = repository(command=ours("diff --git"))
    statedict.save({"w": torch.ones(3), "epoch": 1}, work / "model.safetensors")
    commit(git)
    assert "1 tensor added, 1 value added" in git("log", "-p", "--ext-diff")
    statedict.save({"w": torch.ones(3) * 2, "epoch": 2}, work / "model.safetensors")
    shown = git("diff")
    assert "statedict diff model.safetensors\n1 tensor changed, 1 value changed\nchanged\n  w  rel 1.00e+00" in shown
    commit(git, "second")
    assert "1 tensor changed" in git("show", "--ext-diff")
    git("mv", "model.safetensors", "moved.safetensors")
    (work / "moved.safetensors").unlink()
    statedict.save({"w": torch.ones(3) * 2, "epoch": 3}, work / "moved.safetensors")
    git("add", ".")
    assert "epoch  2 → 3" in git("diff", "--cached", "-M10%")
    git("rm", "-qf", "moved.safetensors")
    assert "1 tensor removed, 1 value removed" in git("diff", "HEAD")


def test_git_goes_on_where_a_file_is_no_checkpoint(repository: Make, work: Path) -> None:
    git = repository(command=ours("diff --git"))
    (work / "a.pth").write_text(POINTER.format(0))
    statedict.save({"w": torch.ones(3)}, work / "b.pth")
    commit(git)
    shown = git("show", "--ext-diff")
    assert "statedict: " in shown
    assert "1 tensor added" in shown


@pytest.mark.parametrize(("name", "cached"), [("model.safetensors", "true"), ("model.pth", "false")])
def test_as_text_git_shows_the_lines_that_changed_everywhere(
    repository: Make, work: Path, name: str, cached: str
) -> None:
    git = repository(textconv=ours("show --textconv"), cachetextconv=cached)
    state = {"w": torch.ones(4), "b": torch.zeros(2), "epoch": 1}
    statedict.save(state, work / name)
    commit(git)
    added = ["+b = float32[2]  min 0  max 0  l2 0", "+epoch = 1", "+w = float32[4]  min 1  max 1  l2 2"]
    assert changed(git("show", "--", name)) == added
    statedict.save(state | {"w": torch.ones(4) * 2, "epoch": 2}, work / name)
    lines = ["-epoch = 1", "-w = float32[4]  min 1  max 1  l2 2", "+epoch = 2", "+w = float32[4]  min 2  max 2  l2 4"]
    assert changed(git("diff")) == lines
    commit(git, "two")
    for _ in range(2):  # the second time from git's cache, if there is one
        assert changed(git("show")) == lines
        assert changed(git("log", "-p", "-1")) == lines
    assert git("show", f"HEAD:{name}", "--textconv").splitlines()[1] == "epoch = 2"
    assert [line[:8] for line in git("blame", "-s", "--root", name).splitlines()] == [
        git("log", "-1", "--format=%H", *skip)[:8] for skip in (["--skip=1"], [], [])
    ]
    git("rm", "-q", name)
    assert [line[0] for line in changed(git("diff", "--cached"))] == ["-"] * 3


def test_as_text_an_optimizer_stands_under_the_names_of_its_parameters(repository: Make, work: Path) -> None:
    git = repository(textconv=ours("show --textconv"))
    torch.save(trained(1), work / "last.pth")
    commit(git)
    torch.save(trained(2), work / "last.pth")
    assert [line.split(" = ")[0] for line in changed(git("diff"))] == [
        "-epoch", "-model.weight", "+epoch", "+model.weight",
        "-optimizer.state.weight.momentum_buffer", "+optimizer.state.weight.momentum_buffer",
    ]  # fmt: skip
    state = trained(1)
    state["optimizer"]["param_groups"][0]["lr"] = 0.01
    torch.save(state, work / "last.pth")
    assert changed(git("diff")) == ["-optimizer.param_groups.0.lr = 0.1", "+optimizer.param_groups.0.lr = 0.01"]


def test_as_text_the_same_content_in_other_bytes_is_no_difference(repository: Make, work: Path) -> None:
    git = repository(textconv=ours("show --textconv"))
    torch.save(trained(1), work / "last.pth")
    commit(git)
    statedict.save(trained(1), work / "last.pth")
    assert changed(git("diff")) == []
    assert "last.pth" in git("diff", "--stat")


def test_as_text_what_is_no_checkpoint_is_one_line_and_git_goes_on(repository: Make, work: Path) -> None:
    git = repository(textconv=ours("show --textconv"))
    statedict.save({"w": torch.ones(3)}, work / "z.pth")
    for number, name in enumerate(("lfs.pth", "cut.pth", "text.safetensors", "empty.pth")):
        (work / name).write_bytes((work / "z.pth").read_bytes()[: 100 * number])
    (work / "lfs.pth").write_text(POINTER.format(0))
    (work / "empty.pth").write_bytes(b"")
    commit(git)
    shown = changed(git("show"))
    assert [line for line in shown if line.startswith("+w = float32[3]")]
    said = [line for line in shown if line.startswith("+statedict: ")]
    assert len(said) == 4
    assert not any(str(work) in line or "git-blob" in line or ".pth" in line for line in said)
    (work / "lfs.pth").write_text(POINTER.format(1))
    before, after = git("diff", "--", "lfs.pth").splitlines()[-2:]
    assert before.startswith("-statedict: is a git-LFS pointer, not the file")
    assert after.startswith("+statedict: is a git-LFS pointer, not the file")
    (work / "lfs.pth").write_bytes((work / "z.pth").read_bytes())
    assert "+w = float32[3]" in git("diff", "--", "lfs.pth")


def test_a_filter_such_as_that_of_lfs_is_applied_before(repository: Make, work: Path) -> None:
    git = repository(textconv=ours("show --textconv"))
    git("config", "filter.packed.clean", "gzip -n -c")
    git("config", "filter.packed.smudge", "gzip -d -c")
    (work / ".gitattributes").write_text("*.pth diff=statedict filter=packed\n")
    statedict.save({"epoch": 1}, work / "a.pth")
    commit(git)
    statedict.save({"epoch": 2}, work / "a.pth")
    assert changed(git("diff")) == ["-epoch = 1", "+epoch = 2"]
    commit(git, "two")
    assert changed(git("show")) == ["-epoch = 1", "+epoch = 2"]


def test_both_drivers_at_once_serve_each_command(repository: Make, work: Path) -> None:
    git = repository(command=ours("diff --git"), textconv=ours("show --textconv"))
    statedict.save({"epoch": 1}, work / "a.pth")
    commit(git)
    statedict.save({"epoch": 2}, work / "a.pth")
    assert "epoch  1 → 2" in git("diff")
    assert changed(git("diff", "--no-ext-diff")) == ["-epoch = 1", "+epoch = 2"]
    commit(git, "two")
    assert changed(git("show")) == ["-epoch = 1", "+epoch = 2"]


def test_a_gigabyte_becomes_text_in_little_memory(tmp_path: Path) -> None:
    hollow(tmp_path / "a.safetensors", {f"w{n}": ("BF16", [1 << 28], 1 << 29) for n in range(2)})
    taken = measured("show", tmp_path / "a.safetensors", "--textconv", room=640 << 20)
    assert taken.kilobytes < 150_000
    assert len(taken.printed.splitlines()) == 2


def test_names_cannot_steer_a_terminal_nor_forge_a_line(run: Run, tmp_path: Path) -> None:
    statedict.save({"\x1b[31mred\nepoch = 3": torch.ones(1), "n": "\x1b"}, tmp_path / "red.pth")
    done = run("show", "--textconv", "red.pth", torch=False)
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    "arguments", [("gone.pth",), ("checkpoint.pth", "--json"), ("checkpoint.pth", "--at", "epoch"), ("a", "--depth=1")]
)
def test_a_file_that_is_not_there_and_options_that_do_not_go_together_are_status_2(
    run: Run, arguments: tuple[str, ...]
) -> None:
    done = run("show", "--textconv", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
