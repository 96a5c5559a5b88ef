"""Under a limit of memory things work with fewer threads, or fail with an error of ours that says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import pytest

import statedict

LIMIT = """
import os, re, resource, sys, threading
import numpy, statedict, xxhash, zlib_ng.zlib_ng
from statedict.io.parallel import parallel

folder = sys.argv[1]
tree = {f"w{i}": numpy.full(1 << 20, i, "f4") for i in range(4)}
work = lambda: WORK
if sys.argv[2] != "threads":
    work()  # what is imported at first use is not what is tried
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]),) * 2)
try:
    print(work())
except statedict.StateDictError as error:
    print(f"{type(error).__name__}: {error}")
except BaseException as error:
    print("bare", type(error).__name__, error)
sys.stdout.flush()
os._exit(0)
"""
WORK = {
    "threads": "set(parallel(lambda _: threading.get_ident() == threading.main_thread().ident, range(9), workers=2))",
    "map": "[value.numpy().sum() for value in statedict.load(folder + '/a.pth').values()]",
    "copy": "[value.numpy(copy=True).sum() for value in statedict.load(folder + '/a.safetensors').values()]",
    "save": "statedict.save(tree, folder + '/b.safetensors')",
    "convert": "statedict.convert(folder + '/a.pth', folder + '/c.safetensors')",
    "verify": "str(statedict.verify(folder + '/a.pth'))",
    "capture": "len(statedict.capture(tree))",
    "manager": "statedict.CheckpointManager(folder + '/run', retries=0, existing='replace')._save_and_close(tree)",
}
SAVE = """
def _save_and_close(self, tree):
    with self:
        self.save(1, tree, force=True, overwrite=True)
statedict.CheckpointManager._save_and_close = _save_and_close
"""


def limited(folder: Path, what: str, spare: int) -> str:
    code = LIMIT.replace("WORK", WORK[what]).replace("folder = ", SAVE + "folder = ")
    command = [sys.executable, "-c", code, str(folder), what, str(spare)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limited")
    for name in ("a.pth", "a.safetensors"):
        statedict.save({f"w{i}": numpy.full(1 << 20, i, "f4") for i in range(4)}, folder / name)
    return folder


def test_where_no_thread_can_be_had_the_caller_works(folder: Path) -> None:
    assert limited(folder, "threads", 1 << 20) == "{True}\n"


@pytest.mark.parametrize("spare", [0, 1 << 20, 3 << 20, 9 << 20])
@pytest.mark.parametrize("what", [what for what in WORK if what != "threads"])
def test_what_fails_says_that_memory_is_short(what: str, spare: int, folder: Path) -> None:
    out = limited(folder, what, spare)
    assert not out.startswith("bare"), out
    if "Error" in out:
        assert out.startswith("OutOfMemoryError: ")
        assert "bytes of memory; free some" in out


def test_a_checkpoint_that_memory_is_too_short_to_check_is_not_called_damaged(folder: Path) -> None:
    with statedict.CheckpointManager(folder / "sound") as manager:
        manager.save(1, {f"w{i}": numpy.full(1 << 20, i, "f4") for i in range(4)})
    WORK["latest"] = "statedict.CheckpointManager(folder + '/sound').latest()"
    out = limited(folder, "latest", 0)
    assert out.startswith(("OutOfMemoryError", "1\n")) or "cannot list: Cannot allocate memory" in out
