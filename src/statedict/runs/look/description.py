"""What one checkpoint of a run says of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from statedict.api.files import load
from statedict.api.look import inspect
from statedict.errors import FileError, FormatError, RunError
from statedict.io.location import location
from statedict.io.urls import Item, redact, to_name
from statedict.reports.summary import TensorInfo
from statedict.runs.directory import LOOKS, Directory
from statedict.runs.look.listing import COMMITTED, Checkpoint, find, listing, look_again

_BIGGEST = 10


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a checkpoint.

    Attributes:
        directory: of the run.
        checkpoint: as in the listing.
        files: name → bytes.
        libraries: name → version, of ours.
        not_captured: what its tree had and it has not, in words, of ours.
        tensors: how many it holds.
        elements: of all tensors.
        biggest: the tensors with the most bytes, these first.
    """

    directory: str
    checkpoint: Checkpoint
    files: Mapping[str, int]
    libraries: Mapping[str, str] = field(default_factory=dict)
    not_captured: tuple[str, ...] = ()
    tensors: int = 0
    elements: int = 0
    biggest: tuple[TensorInfo, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {
            "directory": self.directory,
            **self.checkpoint.to_json(),
            "files": dict(self.files),
            "libraries": dict(self.libraries),
            "not_captured": list(self.not_captured),
            "tensors": self.tensors,
            "elements": self.elements,
            "biggest": [
                {"name": one.path, "dtype": one.dtype, "shape": list(one.shape), "bytes": one.nbytes}
                for one in self.biggest
            ],
        }


def _contents(files: Directory, one: Checkpoint) -> dict[str, Item]:
    """What is in the folder of a checkpoint; nothing if it is a link out of the directory."""
    try:
        files.inner(*one.path.removeprefix(f"{files.path}/").split("/"))
    except FormatError:
        return {}
    return location(one.path).contents() or {}


def about(directory: str | os.PathLike[str], which: str | int = "latest", *, biggest: int = _BIGGEST) -> About:
    """What one checkpoint of a run says of itself; no tensor is read.

    Args:
        directory: of the run, or its URL; whoever wrote it.
        which: a step, a name, `latest`, `best:METRIC` or `best:METRIC:max`.
        biggest: how many of the biggest tensors to name.

    Raises:
        RunError: there is no such checkpoint.
        StateDictError: what `listing` and `load` raise.

    >>> import numpy, tempfile
    >>> from statedict import CheckpointManager
    >>> from statedict.runs import about
    >>> with CheckpointManager(tempfile.mkdtemp()) as manager:
    ...     _ = manager.save(7, {"w": numpy.ones((4, 5))})
    >>> found = about(manager.directory)
    >>> found.checkpoint.step, found.tensors, found.elements, [*found.files]
    (7, 1, 20, ['checkpoint.safetensors'])
    """
    files = Directory(to_name(directory))
    for _ in range(LOOKS):
        one = find(listing(directory), which, redact(files.path))
        try:
            return _about(files, one, biggest)
        except (FormatError, FileError):
            if look_again(directory, one) == one:
                raise
    raise RunError(f"{redact(files.path)}: {which} changes faster than it can be read; name a step, or try again")


def _about(files: Directory, one: Checkpoint, biggest: int) -> About:
    if one.state == COMMITTED and one.step is not None:
        manifest = files.manifest(one.step)
        held, libraries, left = manifest.files, manifest.libraries, manifest.not_captured
    else:
        inside = _contents(files, one)
        held = {name: item.size for name, item in inside.items() if not item.folder} or {one.name: one.nbytes}
        libraries, left = {}, ()
    if not one.usable:
        return About(redact(files.path), one, held)
    summary = inspect(load(one.path))
    most = sorted((tensor for tensor in summary.tensors if not tensor.tied), key=lambda tensor: -tensor.nbytes)
    total = summary.total
    return About(
        redact(files.path),
        one,
        held,
        libraries,
        left,
        total.tensors,
        total.elements,
        tuple(most[: max(biggest, 0)]),
    )
