"""A run that begins anew in the directory of another one, found out before training and not at the first save."""

from __future__ import annotations

from typing import Any

from statedict.errors import RunError
from statedict.runs.directory import Directory


def refuse_over(directory: str, options: dict[str, Any], remedy: str) -> None:
    """Refuse to begin where there are checkpoints, unless `existing` of `CheckpointManager` allows it.

    Args:
        directory: of the run.
        options: those of its manager.
        remedy: how to go on from what is there.

    Raises:
        RunError: there are checkpoints.
    """
    there = Directory(directory).steps() if options.get("existing", "error") == "error" else []
    if there:
        raise RunError(
            f"{directory}: has {len(there):,} checkpoints, up to step {there[-1]}, and training begins anew; {remedy} "
            "to go on, existing='replace' to begin anew, or name another directory"
        )
