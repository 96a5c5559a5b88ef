"""The documentation says what is true: its commands are run, its links followed, its lists compared with the code.

Blocks of `>>>` are pytest's own doctests (`testpaths` in pyproject.toml).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from statedict.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EVERY_PAGE = [*PAGES, *(page for page in sorted(ROOT.glob("*.md")) if page not in PAGES)]
DECISIONS = ROOT / "docs" / "decisions"

SKIPPED = re.compile(r"<!-- not run: \S.* -->$")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    page: Path
    line: int
    lines: tuple[str, ...]
    run: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class Step(NamedTuple):
    command: str
    expected: tuple[str, ...]


def console_blocks(page: Path) -> Iterator[Block]:
    """The ```console blocks of a page; the line above says whether they are run."""
    above, start, lines = "", 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if start:
            if line == "```":
                yield Block(page, start, tuple(lines), not SKIPPED.match(above))
                start, lines, above = 0, [], ""
            else:
                lines.append(line)
        elif line == "```console":
            start = number
        else:
            above = line


def steps(block: Block) -> list[Step]:
    """The commands of a block, each with the lines that it should print."""
    found: list[tuple[str, list[str]]] = []
    for line in block.lines:
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            assert found, f"{block}: output comes before the first command"
            found[-1][1].append(line)
    return [Step(command, tuple(lines)) for command, lines in found]


def matches(expected: list[str], printed: list[str]) -> bool:
    """Whether the lines agree; a line of three dots stands for any lines, three dots in a line for any text."""

    def pattern(line: str) -> str:
        return ".*".join(map(re.escape, line.rstrip().replace("...", "…").split("…"))) + r" *\n"

    whole = "".join(r"(?:.*\n)*" if line.strip() in ("…", "...") else pattern(line) for line in expected)
    return re.fullmatch(whole, "".join(f"{line}\n" for line in printed)) is not None


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `examples/short_run.py` leaves."""
    work = tmp_path_factory.mktemp("short")
    subprocess.run([sys.executable, ROOT / "examples" / "short_run.py"], cwd=work, check=True)
    return work / "run"


@pytest.fixture
def shell(tmp_path: Path, short_run: Path) -> Path:
    """A directory with the example checkpoint, its models and a run, and beside it a `statedict` of this Python."""
    work, programs = tmp_path / "work", tmp_path / "bin"
    (work / "examples").mkdir(parents=True)
    programs.mkdir()
    for copy in (work / "checkpoint.pth", work / "examples" / "checkpoint.pth"):
        shutil.copy(ROOT / "examples" / "checkpoint.pth", copy)
    for script in ("nets.py", "resume.py"):
        shutil.copy(ROOT / "examples" / script, work)
    shutil.copytree(short_run, work / "run")
    command = programs / "statedict"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m statedict "$@"\n')
    command.chmod(0o755)
    return work


def run(command: str, status: int, work: Path) -> tuple[int, list[str]]:
    """The exit status and what is printed, with `$?` set to the status of the command before."""
    path = os.pathsep.join([str(work.parent / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["sh", "-c", f"(exit {status})\n{command}"],
        cwd=work,
        env=os.environ | {"PATH": path, "PYTHONUTF8": "1", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


BLOCKS = [block for page in PAGES for block in console_blocks(page) if block.run]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_console_block_prints_what_the_page_shows(block: Block, shell: Path) -> None:
    status = 0
    for command, expected in steps(block):
        status, printed = run(command, status, shell)
        assert matches(list(expected), printed), "\n".join([f"{block}: $ {command}", *printed])


@pytest.mark.parametrize(
    ("expected", "printed", "agree"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a", "b"], ["a", "c"], False),
        (["a"], ["a", "b"], False),
        (["a", "…"], ["a"], True),
        (["a", "...", "d"], ["a", "b", "c", "d"], True),
        (["a", "…", "d"], ["a", "b"], False),
        (["at …/x.pth: gone"], ["at /some/where/x.pth: gone"], True),
        (["a.c"], ["abc"], False),
        ([], [], True),
        ([], ["a"], False),
    ],
)
def test_dots_stand_for_anything_and_nothing_else_does(expected: list[str], printed: list[str], agree: bool) -> None:
    assert matches(expected, printed) is agree


def test_a_block_is_skipped_only_with_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: installs -->\n```console\n$ a\n```\n\n"
        "<!-- not run: -->\n```console\n$ b\n```\n\n"
        "text\n```console\n$ c\nout\n```\n"
    )
    assert [(block.lines, block.run) for block in console_blocks(page)] == [
        (("$ a",), False),
        (("$ b",), True),
        (("$ c", "out"), True),
    ]


def commands(group: click.Group = cli, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """(name, command) of every command, those in groups as `runs ls`; of the whole the name is ''."""
    yield above, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        full = f"{above} {name}".strip()
        if isinstance(command, click.Group):
            yield from commands(command, full)
        else:
            yield full, command


def options() -> Iterator[tuple[str, str]]:
    """(command, option) for every option of the command line; the group's own have the command ''."""
    for name, command in commands():
        for parameter in command.get_params(click.Context(command)):
            if isinstance(parameter, click.Option):
                yield name, max(parameter.opts, key=len)


DOCUMENTED = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("name", [name for name, _ in commands() if name])
def test_every_command_is_documented(name: str) -> None:
    assert re.search(rf"\bstatedict {re.escape(name)}\b", DOCUMENTED)


@pytest.mark.parametrize(("command", "option"), list(options()))
def test_every_option_is_documented(command: str, option: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", DOCUMENTED), f"statedict {command} {option}"


def test_every_decision_is_listed_in_the_index() -> None:
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    listed = sorted(target for target in LINK.findall(index) if re.match(r"\d{4}-", target))
    assert listed == sorted(path.name for path in DECISIONS.glob("[0-9]*.md"))


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        if not found.exists() or (heading and heading not in headings(found)):
            broken.append(target)
    assert not broken


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual hosts make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
