"""Live tensors that are parts of larger ones, which torch.distributed.checkpoint knows by four attributes.

A part is never captured as if it were the whole, nor is what an optimizer keeps for it. It is restored from the whole,
of which it takes its pieces.
"""

from __future__ import annotations

from math import prod
from typing import Any

from statedict.adapters import join
from statedict.errors import UnsupportedError
from statedict.tensor.arrays import is_torch, part_of
from statedict.tensor.assembled import assemble
from statedict.tensor.lazy import LazyTensor, is_array


def refuse_parts(module: Any, own: Any, path: str) -> None:
    """Refuse live tensors that are parts and that `own` has as they are; those are detached, and do not say so."""
    live = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    for name, tensor in live.items():
        part = part_of(tensor)
        if part is not None and any(
            is_array(entry) and tuple(entry.shape) == tuple(tensor.shape)
            for key, entry in own.items()
            if key == name or (is_torch(entry) and entry.numel() and entry.data_ptr() == tensor.data_ptr())
        ):
            raise UnsupportedError(f"{join(path, name)}: {part.error()}")


def refuse_states_of_parts(optimizer: Any, path: str) -> None:
    """Refuse more than single numbers that an optimizer keeps for a part, for nothing in them says so."""
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            kept = optimizer.state.get(parameter) or {}
            part = part_of(parameter)
            if part is not None and not all(map(_is_small, kept.values())):
                where = join(path, f"param_groups.{number}.params.{index}")
                raise UnsupportedError(f"{where}: what the optimizer keeps for it: {part.error()}")


def _is_small(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | None) or (is_array(value) and prod(value.shape) <= 1)


def piece(target: Any, tensor: LazyTensor) -> LazyTensor:
    """What a target has of a tensor: all of it, or its pieces if the target is a part; 0 between them, as in padding.

    Raises:
        UnsupportedError: the target is a part, and the tensor is not its whole.
    """
    part = part_of(target) if is_torch(target) else None
    if part is None:
        return tensor
    if tensor.shape != part.shape:
        raise UnsupportedError(
            f"the target is a part ({part}), the state has a tensor of shape {tensor.shape}; restore from the whole"
        )
    chunks = [
        (place, tensor[tuple(slice(b, b + n) for b, n in zip(begin, sizes, strict=True))])
        for begin, place, sizes in part.pieces
        if 0 not in sizes
    ]
    return assemble(tensor.dtype, tuple(target.shape), chunks, tensor.storage.source.name)
