"""The guard of what `convert` and `edit` read."""

from __future__ import annotations

from statedict import formats
from statedict.api.names import is_path, split
from statedict.errors import CorruptFileError
from statedict.formats import places
from statedict.formats.guard import REMEDY, Guard
from statedict.io.urls import redact
from statedict.tensor.checks import tensors_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from statedict.tree.state_dict import StateDict


def open_guard(src: Any, read_as: str | None, needed: Any, written: Any) -> Guard | None:
    """What guards the bytes that are copied from a file; None for a tree.

    Tensors of the tree `needed` that are not in the one that is `written`, bit for bit, are read and checked here.

    Raises:
        CorruptFileError: one of them is damaged.
    """
    from statedict.ops.verify import examine

    if not is_path(src):
        return None
    file = split(src)[0]
    guard = Guard(formats.checks(places.open_checkpoint(file), read_as)[1])
    copied = [tensor for _, tensor in tensors_of(written)]
    if needed is written:  # then only parts of storages are not copied whole
        read = [tensor for tensor in copied if tensor.nbytes != tensor.storage.nbytes]
    else:
        read = [tensor for _, tensor in tensors_of(needed)]
    if read and (problems := examine(redact(file), "", guard.rest(read, copied)).problems):
        raise CorruptFileError(f"{redact(file)}: {str(problems[0]).rpartition('; ')[0]}; {REMEDY}")
    return guard


def guard_edit(
    src: Any, read_as: str | None, before: StateDict, steps: Sequence[Any], after: StateDict
) -> Guard | None:
    """As `open_guard`, for what steps make of a tree; what the first ones drop is not needed."""
    from statedict.ops.alter.steps import apply_steps, until_computed

    return open_guard(src, read_as, apply_steps(before, until_computed(steps), False)[0], after)
