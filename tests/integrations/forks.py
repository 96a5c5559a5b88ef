"""Runs of training, each in a process that really dies; the libraries are imported once, and then forked.

python -m tests.integrations.forks tests.integrations.lightning_run
"""

from __future__ import annotations

import doctest
import hashlib
import importlib
import os
import pickle
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests import operators as operators

torch.set_num_threads(1)  # which a process that forks needs


def forked(job: Callable[[], Any]) -> Any:
    """What a job returns, done in a process of its own; its wait status if it does not return."""
    file = tempfile.mktemp()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            found = job()
            with open(file, "wb") as stream:
                pickle.dump(found, stream)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if not os.path.exists(file):
        return os.waitstatus_to_exitcode(status)
    with open(file, "rb") as stream:
        found = pickle.load(stream)
    os.remove(file)
    return found


def digest(model: torch.nn.Module) -> str:
    """Of all weights and buffers."""
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()


def page(heading: str, names: dict[str, Any]) -> None:
    """Carry out the blocks of a section of docs/training.md."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)


def examples_hold(*modules: str) -> None:
    """The doctests of some modules."""
    for name in modules:
        found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
        assert found.attempted
        assert not found.failed


def run_all(program: str) -> None:
    """Each function of a module whose name begins with `test_`, in a directory of its own."""
    for name, check in [*vars(importlib.import_module(program)).items()]:
        if name.startswith("test_"):
            with tempfile.TemporaryDirectory() as folder:
                check(folder)
            print(name, flush=True)


if __name__ == "__main__":
    run_all(sys.argv[1])
