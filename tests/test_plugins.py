"""Formats and adapters of other packages: examples/statedict-mxnet, installed as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import statedict
from statedict.plugins import lazy_tensor

PACKAGE = Path(__file__).parents[1] / "examples" / "statedict-mxnet"
FILE = PACKAGE / "tests" / "mxnet-1.9.1.params"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that find the package."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", folder, PACKAGE], check=True)
    path = os.pathsep.join([str(folder), str(Path(statedict.__file__).parents[1])])
    return {**os.environ, "PYTHONPATH": path}


def run(environment: dict[str, str], *arguments: object, check: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) is check, done.stderr
    return done.stdout if check else done.stderr


def test_a_package_runs_the_suites_for_what_it_adds(installed: dict[str, str], tmp_path: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", PACKAGE, "-W", "error", f"--basetemp={tmp_path}/suite"]
    assert " passed" in run(installed, "-m", "pytest", *options, PACKAGE / "tests")


def test_every_command_takes_the_files_of_a_format_that_was_added(installed: dict[str, str], tmp_path: Path) -> None:
    def statedict(*arguments: object, check: bool = True) -> str:
        return run(installed, "-m", "statedict", *arguments, check=check)

    shown = json.loads(statedict("show", FILE, "--json"))
    assert [(one["name"], one["dtype"]) for one in shown["tensors"]] == [
        ("arg:weight", "float32"), ("arg:bias", "float16"), ("aux:mean", "int64"),
    ]  # fmt: skip
    assert "mxnet" in statedict("verify", FILE)
    assert "arg:bias" in statedict("stats", FILE)
    statedict("convert", FILE, tmp_path / "a.safetensors")
    statedict("edit", tmp_path / "a.safetensors", tmp_path / "b.params", "--rename", "arg:weight=arg:w")
    assert "arg:w " in statedict("show", tmp_path / "b.params")
    statedict("convert", tmp_path / "a.safetensors", tmp_path / "c", "--format", "mxnet")
    assert (tmp_path / "c").read_bytes()[:8] == b"\x12\1\0\0\0\0\0\0"
    statedict("diff", tmp_path / "c", FILE)
    assert ": data, 0 pickles" in statedict("scan", FILE)
    assert "'nothing' is not one of" in statedict("convert", FILE, tmp_path / "d", "--format", "nothing", check=False)
    (tmp_path / "unknown").write_bytes(b"\1\2\3\xfe" * 9)
    assert "mxnet" in statedict("show", tmp_path / "unknown", check=False)


def test_a_package_that_cannot_be_imported_is_named_and_hinders_nothing(
    installed: dict[str, str], tmp_path: Path
) -> None:
    about = tmp_path / "broken-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: broken\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[statedict.formats]\nbroken = missing_module\ntorch = missing_module\n")
    code = "import statedict, sys; print(list(statedict.load(sys.argv[1])))"
    environment = {**installed, "PYTHONPATH": f"{tmp_path}{os.pathsep}{installed['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", code, FILE], env=environment, capture_output=True, text=True, check=True
    )
    assert "arg:weight" in done.stdout
    assert "the format 'broken' of missing_module cannot be used (ModuleNotFoundError" in done.stderr
    assert "the format 'torch' of missing_module is left out: there is one of that name" in done.stderr


def test_a_tensor_that_a_file_does_not_hold_is_an_error(tmp_path: Path) -> None:
    from statedict.io.source import BytesSource

    source = BytesSource(bytes(8), "x.mine")
    with pytest.raises(statedict.errors.TruncatedError, match=r"x.mine: a tensor of shape \(3,\) ends at byte 12"):
        lazy_tensor(source, 0, "float32", (3,))
    for offset, shape in ((0, (-1,)), (-4, (1,))):
        with pytest.raises(statedict.errors.CorruptFileError, match="the file is damaged"):
            lazy_tensor(source, offset, "float32", shape)
