"""What people do with the directory of a run, however much of it a stranger has written. See probe.py."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import warnings
from collections.abc import Callable
from typing import Any

# what steers a terminal; `runs best` prints paths for other programs, as they are
_CONTROL = re.compile(r"[\0-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
_COMMANDS = (
    "ls", "ls {} --json", "ls {} --sort loss --reverse", "show", "show {} 2", "show {} 2 --json", "verify",
    "verify {} --quick --json", "best {} loss --json", "best {} loss --mode max --json", "diff {} 1 2 --names-only",
    "diff {} 1 latest --json", "blame {} model.*", "blame {} * --json", "prune {} --keep latest:1 --dry-run",
    "prune {} --keep best:loss:1 --dry-run --json", "pin {} 2", "unpin {} 1",
)  # fmt: skip
_AT_A_TIME = 4
_CHANGING = ("prune {} --keep latest:1 --yes",)


def use(path: str, size: int, statedict: Any, attempt: Callable[..., Any]) -> bool:
    """Look at a run, restore from it, prune it and save into it; whether a checkpoint was restored.

    Of the commands a few are carried out; which ones depends on the size of the input.
    """
    import numpy

    from statedict import runs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for do in (
            lambda: [json.dumps(one.to_json(), allow_nan=False) for one in runs.listing(path)],
            lambda: json.dumps(_said(runs.verify_run(path))),
            lambda: json.dumps(_said(runs.blame(path, ["*"]))),
            lambda: _said(runs.bisect(path, lambda one: one.step is not None and one.step < 2)),
            lambda: repr(statedict.report(path)),
            lambda: statedict.load(path),
        ):
            attempt(do)
        for command in (_COMMANDS * 2)[size % len(_COMMANDS) :][:_AT_A_TIME]:
            attempt(lambda command=command: _run(command, path))
        tree = {"model": {"w": numpy.zeros((2, 3), "f4"), "b": numpy.zeros(3)}, "epoch": 0}
        manager = attempt(lambda: statedict.CheckpointManager(path, background=False, retries=0))
        restored = False
        for do in (
            manager.steps, manager.latest, lambda: manager.latest("quick"), lambda: manager.best("loss"),
            lambda: manager.metrics(2), lambda: manager.load(2).flatten(), lambda: manager.load().flatten(),
            lambda: manager.restore(tree, 2), lambda: manager.prune(dry_run=True),
        ) if manager is not None else ():  # fmt: skip
            attempt(do)
        if manager is not None:
            restored = attempt(lambda: manager.restore(tree)) is not None
            attempt(lambda: manager.save(99, tree, metrics={"loss": 1.0}))
            attempt(manager.close)
        for command in _CHANGING:
            attempt(lambda command=command: _run(command, path))
    return restored


def _said(report: Any) -> Any:
    str(report)
    return report.to_json()


def _run(command: str, path: str) -> None:
    """A command; what it prints steers no terminal."""
    import click

    from statedict.cli import cli

    name, _, rest = command.partition(" ")
    words = [path if word == "{}" else word for word in shlex.split(rest or "{}")]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            cli.main(["runs", name, *words], standalone_mode=False)
    except click.UsageError:
        pass
    found = _CONTROL.search(said.getvalue())
    assert not found, f"runs {name} prints {found[0]!r}" if found else ""
