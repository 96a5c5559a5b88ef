"""`statedict runs`: the checkpoints in the directory of a run."""

from __future__ import annotations

import click

from statedict.cli.commands import Commands

TABLE = {
    "ls": "statedict.cli.runs.ls",
    "show": "statedict.cli.runs.show",
    "best": "statedict.cli.runs.best",
    "verify": "statedict.cli.runs.verify",
    "prune": "statedict.cli.runs.prune",
    "pin": "statedict.cli.runs.pin",
    "unpin": "statedict.cli.runs.pin:unpin",
    "diff": "statedict.cli.runs.diff",
    "blame": "statedict.cli.runs.blame",
    "bisect": "statedict.cli.runs.bisect",
}


@click.group(cls=Commands, table=TABLE)
def command() -> None:
    """List, check, prune and search the checkpoints of a training run.

    DIR is a directory or a URL of checkpoints, whoever wrote them; only those of statedict are ever changed. STEP is a
    step, a name as `ls` shows it, `latest`, `best:METRIC` or `best:METRIC:max`.
    """
