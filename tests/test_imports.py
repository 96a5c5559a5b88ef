"""What a fresh process imports, and how much that is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import statedict

HEAVY = {
    "lightning",
    "transformers",
    "torch",
    "numpy",
    "ml_dtypes",
    "click",
    "rich",
    "safetensors",
    "msgspec",
    "hypothesis",
    "yaml",
    "jax",
    "tensorflow",
}


def modules_after(code: str) -> set[str]:
    """The heavy modules that a fresh process has imported after some code."""
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return HEAVY & set(done.stdout.split())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("imports")
    tree = {"model": {"w": np.ones((2, 3), "f4")}, "epoch": 3}
    found = {suffix: folder / f"checkpoint.{suffix}" for suffix in ("pth", "safetensors")}
    for path in found.values():
        statedict.save(tree, path)
    return found


def test_importing_statedict_imports_no_framework_and_no_dependency() -> None:
    assert modules_after("import statedict") == set()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_listing_a_file_imports_neither_numpy_nor_torch(files: dict[str, Path], suffix: str) -> None:
    code = f"""
import statedict
state = statedict.load({str(files[suffix])!r})
tensors = state.tensors()
assert [(p, str(t.dtype), t.shape, t.nbytes) for p, t in tensors.items()] == [("model.w", "float32", (2, 3), 24)]
assert state["epoch"] == 3 and repr(state) and state.flatten()
"""
    assert modules_after(code) == set()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_converting_a_file_imports_neither_numpy_nor_torch(files: dict[str, Path], suffix: str) -> None:
    target = files[suffix].with_name(f"converted-from-{suffix}")
    assert modules_after(f"import statedict\nstatedict.convert({str(files[suffix])!r}, {str(target)!r})") == set()


def test_reading_numbers_imports_numpy_and_no_torch(files: dict[str, Path]) -> None:
    code = f"import statedict\nassert statedict.load({str(files['pth'])!r}).at('model.w').numpy().sum() == 6"
    assert modules_after(code) == {"numpy"}


def test_every_public_name_is_importable_without_torch() -> None:
    assert "torch" not in modules_after("from statedict import *")


def test_importing_statedict_imports_few_modules() -> None:
    code = "import sys; before = set(sys.modules); import statedict; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert len(done.stdout.split()) <= 20, done.stdout


@pytest.mark.parametrize("missing", ["preadv", "preadv pread pwrite statvfs fchmod register_at_fork"])
def test_a_system_without_the_calls_of_posix_is_told_so_at_once(missing: str) -> None:
    code = f"import os\nfor name in {missing.split()!r}: delattr(os, name)\nimport statedict"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: statedict runs on Linux and macOS, and this system has no os.preadv; on Windows use WSL"
    )


def test_what_takes_torch_names_the_extra_where_torch_is_missing() -> None:
    program = """
import sys
sys.modules["torch"] = None
import statedict
state = statedict.load("examples/checkpoint.pth")
for call in (state.torch, state.at("model_state.fc3.bias").torch):
    try:
        call()
    except statedict.errors.MissingExtraError as error:
        print(error)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.count("pip install 'statedict[torch]'") == 2


def test_an_object_with_arrays_is_restored_where_torch_is_missing(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["torch"] = None
import numpy, statedict
class Counter:
    count = numpy.zeros(3)
    def state_dict(self):
        return {"count": self.count}
    def load_state_dict(self, state):
        self.count = state["count"]
one, other = Counter(), Counter()
one.count = numpy.arange(3.0)
statedict.save({"counter": one}, sys.argv[1])
statedict.restore({"counter": other}, sys.argv[1])
print(type(other.count).__name__, *other.count)
"""
    command = [sys.executable, "-c", program, tmp_path / "x.safetensors"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout == "ndarray 0.0 1.0 2.0\n"
