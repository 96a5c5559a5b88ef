"""`statedict demo`: the main job on a real checkpoint, told as a story.

Each step is what a user would type. The Python lines that it shows are the lines that it runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from statedict.cli.terminal import write
from statedict.errors import MissingFileError

STORY = """
A checkpoint that plain torch.save wrote: the network of PyTorch's state_dict recipe, trained on real digits.
This is what is in it, as the recipe prints it. PyTorch need not be installed for any of this.

$ statedict show --recipe checkpoint.pth | head -24

The same as a tree, with sizes and totals. No tensor has been read yet.

$ statedict show checkpoint.pth

It is a dictionary, so altering it is altering a dictionary: rename a layer, drop the optimizer, update a value.

>>> import statedict
>>> checkpoint = statedict.load("checkpoint.pth")
>>> model = checkpoint["model_state"]
>>> model["classifier.weight"] = model.pop("fc3.weight")
>>> model["classifier.bias"] = model.pop("fc3.bias")
>>> del checkpoint["optimizer_state"]
>>> model["conv1.bias"] = model["conv1.bias"].numpy() * 2
>>> checkpoint["epoch"] += 1

Save it twice, for PyTorch and as safetensors. Each file appears whole or not at all.

>>> statedict.save(checkpoint, "altered.pth")
>>> statedict.save(checkpoint, "altered.safetensors")

Open both again, and the original, and compare every byte.

>>> before = {t.raw(): name for name, t in statedict.load("checkpoint.pth")["model_state"].tensors().items()}
>>> for file in ["altered.pth", "altered.safetensors"]:
...     after = statedict.load(file)
...     print(file, "epoch", after["epoch"], "optimizer" if "optimizer_state" in after else "no optimizer")
...     for name, tensor in after["model_state"].tensors().items():
...         was = before.get(tensor.raw(), "changed")
...         print("   ", name.ljust(18), "equal" if was == name else was if was == "changed" else "equal, was " + was)

The two files hold the same bytes in two formats, and one becomes the other with one command.

$ statedict convert altered.pth again.safetensors
>>> open("again.safetensors", "rb").read() == open("altered.safetensors", "rb").read()

$ statedict show altered.safetensors --depth 2

A run keeps several. Here each step moves the last layer, with some noise, as training does.

>>> import numpy
>>> draw = numpy.random.default_rng(0).normal
>>> with statedict.CheckpointManager("run", background=False) as manager:
...     for step in range(1, 5):
...         for name in ["classifier.weight", "classifier.bias"]:
...             model[name] = numpy.asarray(model[name]) + draw(0.01, 0.02, model[name].shape).astype("float32")
...         saved = manager.save(step, {"model": model, "step": step}, {"loss": 1 / step})

The average of the last three has less of the noise. This is what it changes of the last one.

$ statedict average run --last 3 --precision float64 -o average.safetensors
$ statedict diff run/4/checkpoint.safetensors::model average.safetensors::model
"""


@click.command()
def demo() -> None:
    """Show, alter, save and compare a real checkpoint, step by step."""
    here = Path(__file__).parent
    candidates = [here / "checkpoint.pth", here.parents[2] / "examples" / "checkpoint.pth"]
    source = next((path for path in candidates if path.exists()), None)
    if source is None:
        raise MissingFileError(f"{candidates[0]}: the example checkpoint is missing; install statedict again")
    # commands find the `statedict` beside this Python first
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    names: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        shutil.copy(source, directory)
        for kind, text in steps(STORY):
            if kind == "$":
                write(click.style(f"$ {text}", fg="green"))
                done = subprocess.run(text, shell=True, check=False, env=os.environ | {"PATH": path, "PAGER": "cat"})
                if done.returncode > 1:  # 1 is an answer: two files differ
                    raise click.ClickException(f"{text}: status {done.returncode}")
            elif kind == ">>>":
                typed = text.replace("\n", "\n... ")
                write(click.style(f">>> {typed}", fg="green"))
                exec(compile(text + "\n", "<demo>", "single"), names)
            else:
                write(click.style(text, bold=True))


def steps(story: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of each step: `$` a command, `>>>` Python with its continuation lines, or prose."""
    for text in re.split(r"\n(?!\.\.\. )", story.strip("\n")):
        if text.startswith(">>> "):
            yield ">>>", text.removeprefix(">>> ").replace("\n... ", "\n")
        elif text.startswith("$ "):
            yield "$", text.removeprefix("$ ")
        else:
            yield "", text
