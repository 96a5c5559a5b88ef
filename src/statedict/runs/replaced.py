"""What a run begun anew replaces: the old steps stop counting when its first checkpoint is committed.

    RUN/.replaced.json      {"by": 10, "marker": "…", "steps": {"50": "…"}, "before": {"40": "…"}}

The file is written before that checkpoint and holds its marker, so `steps` are replaced exactly if it exists. Steps
come with their markers too: a new checkpoint of an old number counts. The next writer removes what a process that died
left. Without `by` they are replaced for good: pinned ones stay, but belong to another course. `before`
is what was replaced when the file was written, and stays so whether or not that checkpoint is committed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from typing import Any

from statedict.errors import CorruptFileError, LimitError, MissingFileError, RunError
from statedict.io.disk import file_errors
from statedict.io.json import parse
from statedict.io.location import location
from statedict.io.pipeline import put_bytes
from statedict.io.urls import join, redact
from statedict.runs.directory import Directory, is_step, read
from statedict.runs.manifest import WHOLE, parse_whole

NAME = ".replaced.json"


def announce(files: Directory, step: int, steps: Iterable[int], marker: bytes) -> None:
    """Write down which steps a checkpoint replaces, before it is committed."""
    markers = {old: files.marker(old) for old in steps if old != step}
    replaced = {old: text for old, text in markers.items() if text is not None}
    before = _find(files, _read(files))
    _write(files, {"by": step, "marker": marker.hex(), "steps": replaced} | ({"before": before} if before else {}))


def find_superseded(files: Directory) -> set[int]:
    """The steps that are there and do not count."""
    return {*_find(files, _read(files))}


def check_needed(files: Directory, step: int, replaced: Iterable[int], level: str) -> None:
    """Refuse to replace what a pinned step is a delta to, or another sound one that is not `replaced` itself."""
    if not files.is_committed(step):
        return
    pins = files.pins()
    past = ({*replaced} | find_superseded(files)) - pins
    needing = files.bases(one for one in files.steps() if one not in past and one != step)
    for delta in sorted(delta for delta, base in needing.items() if base == step):
        if delta in pins or files.damage(delta, level) is None:
            pinned, remove = ("pinned ", "unpin") if delta in pins else ("", "remove")
            raise RunError(
                f"{files}: {pinned}step {delta} is a delta to step {step}, which would be replaced; write that out by "
                f"convert and {remove} it, or name another directory"
            )


def settle(files: Directory) -> None:
    """Remove what was replaced, except pinned steps; only the holder of the lock may."""
    replaced = _read(files)
    if replaced is None:
        return
    there, pins = _find(files, replaced), files.pins()
    pins |= {*files.bases(there.keys() & pins).values()}
    for step in sorted(there.keys() - pins, reverse=True):
        files.remove(step)
    pinned = {"steps": {step: there[step] for step in sorted(there.keys() & pins)}}
    if not pinned["steps"]:
        path = files.inner_path(NAME)
        with file_errors(path, "cannot remove"):
            try:
                location(path).remove()
            except FileNotFoundError:
                pass
    elif pinned != replaced:
        _write(files, pinned)


def _find(files: Directory, replaced: dict[str, Any] | None) -> dict[int, str]:
    """Step → marker of what is there and does not count."""
    if replaced is None:
        return {}
    markers = dict(replaced.get("before", {}))
    if "by" not in replaced or files.marker(replaced["by"]) == replaced["marker"]:
        markers |= replaced["steps"]
    return {step: text for step, text in markers.items() if files.marker(step) == text}


def _read(files: Directory) -> dict[str, Any] | None:
    """The fields of the file, with steps as numbers; None if there is none."""
    name = redact(join(files.path, NAME))
    try:
        data = read(files.inner_path(NAME))
    except MissingFileError:
        return None
    try:
        found = parse(data, name)
        fields: dict[str, Any] = {"steps": _parse_markers(found["steps"])}
        if "by" in found:
            fields |= {"by": parse_whole(found["by"]), "marker": str(found["marker"])}
            fields["before"] = _parse_markers(found.get("before", {}))
        return fields
    except LimitError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(
            f"{name}: not a list of replaced steps ({type(error).__name__}: {error}); remove it, and the steps "
            "of the run that was replaced"
        ) from None


def _parse_markers(found: Any) -> dict[int, str]:
    for step, text in found.items():
        if len(step) > len(str(WHOLE)) or not is_step(step) or not isinstance(text, str):
            raise ValueError(f"{step:.40}")
    return {parse_whole(int(step)): text for step, text in found.items()}


def _write(files: Directory, fields: dict[str, Any]) -> None:
    data = (json.dumps(fields) + "\n").encode()
    location(files.inner_path(NAME)).publish(partial(put_bytes, data))
