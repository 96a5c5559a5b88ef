"""The checkpoints of a run, in order, and what became of them from step to step."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from statedict.errors import UnknownFormatError
from statedict.formats.places import entry
from statedict.io.location import location
from statedict.io.urls import to_name
from statedict.reports.stats import StatsReport
from statedict.runs.look.listing import listing
from statedict.view.source import Opened, number

_MODULES = 400
_FIRST = 3


def expand(sources: Sequence[Any]) -> list[Any]:
    """The sources, with the checkpoints of a run in the place of its directory, whoever wrote them."""
    found: list[Any] = []
    for source in sources:
        found += (_steps(to_name(source)) if isinstance(source, str | os.PathLike) else []) or [source]
    return found


def _steps(name: str) -> list[str]:
    """The checkpoints of a run; none if it is a checkpoint itself."""
    if not location(name).is_folder():
        return []
    try:
        entry(name)
    except UnknownFormatError:
        return [one.path for one in listing(name) if one.usable and one.step is not None]
    return []


def order(things: Sequence[Any], sources: Sequence[Any]) -> list[tuple[int | None, Any]]:
    """Each thing with its step; of more than two in the order of steps, if the names of all sources have one."""
    steps = [step_of(source) for source in sources]
    pairs = list(zip(steps, things, strict=True))
    if len(pairs) < 3 or None in steps or len(set(steps)) < len(steps):
        return [(None, thing) for thing in things]
    return sorted(pairs, key=lambda pair: pair[0] or 0)


def step_of(source: Any) -> int | None:
    """The last number in the name of a file, or of the nearest folder with one.

    >>> step_of("run1/epoch=3-step=1500.ckpt"), step_of("out/checkpoint-500/model.safetensors"), step_of("a.pt")
    (1500, 500, None)
    """
    if not isinstance(source, str | os.PathLike):
        return None
    *folders, last = [part for part in os.fspath(source).split("/") if part]
    for name in (re.sub(r"(\.[A-Za-z]\w*)+$", "", last), *reversed(folders)):
        found = re.findall(r"\d+", name)
        if found:
            return int(found[-1])
    return None


def point(step: int | None, at: int, one: Opened, found: StatsReport) -> dict[str, Any]:
    """What the page says of one step, and the norms of its modules."""
    inside = tuple(f"{optimizer.path}.state.".lstrip(".") for optimizer in one.summary.optimizers) or "\0"
    kinds = Counter(flag.kind for flag in found.flags)
    return {
        "step": at if step is None else step,
        "name": one.name,
        "size": one.size,
        "bytes": one.summary.total.nbytes,
        "tensors": len(found.tensors),
        "l2": number(found.total.l2),
        "nan": found.total.nan,
        "inf": found.total.inf,
        "flags": dict(sorted(kinds.items())),
        "bad": [one.at.get(flag.name, flag.name) for flag in found.flags if flag.kind in ("nan", "inf")][:_FIRST],
        "norms": {m.name: number(m.l2) for m in found.modules if not m.name.startswith(inside)},
    }


def history(points: Sequence[dict[str, Any]], numbered: bool) -> dict[str, Any]:
    """Bytes, flags and norms, step by step."""
    names = dict.fromkeys(name for one in points for name in one["norms"])
    kept = set(sorted(names, key=lambda name: name.count("."))[:_MODULES])
    modules = [name for name in names if name in kept]
    return {
        "steps": [{key: value for key, value in one.items() if key != "norms"} for one in points],
        "numbered": numbered,
        "modules": modules,
        "l2": [[one["norms"].get(name) for one in points] for name in modules],
    }
