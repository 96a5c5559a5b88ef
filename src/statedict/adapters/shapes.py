"""What to do with a tensor whose shape is not its target's.

    error     nothing is written (the default)
    skip      the target's stays as it is
    slice     the state has more: its first entries along each dimension are taken
    pad       the state has fewer: zeros follow them
    overlap   what both have is taken, the rest stays as the target has it
    reshape   as many elements, in their row-major order

A bigger vocabulary or head keeps the old rows with `pad` or `overlap`. What an optimizer keeps for each element of a
parameter follows the parameter, with what the optimizer begins with for elements that the state does not have.

A live tensor may be a part of a larger one, which torch.distributed.checkpoint knows by four attributes. A part is
never captured as if it were the whole, nor is what an optimizer keeps for it. It is restored from the whole, of which
it takes its pieces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from statedict.adapters import join
from statedict.errors import UnsupportedError
from statedict.tensor.arrays import is_torch, part_of
from statedict.tensor.assembled import assemble
from statedict.tensor.lazy import LazyTensor, is_array
from statedict.tree.optimizer import COLUMNS, ONE, ROWS, Shape

POLICIES = ("error", "skip", "slice", "pad", "overlap", "reshape")


def repeats_elements(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements of an array share memory, as those of `expand()` do."""
    return any(size > 1 and not stride for size, stride in zip(shape, strides, strict=True))


def average(shape: Shape, role: str) -> Shape:
    """The shape of what an optimizer keeps of the rows or the columns of a parameter of this shape."""
    return (*shape[:-1], 1) if role == ROWS else (*shape[:-2], 1, *shape[-1:])


@dataclass(frozen=True, slots=True)
class Fit:
    """How a tensor of the state of the shape `old` is put into a target of the shape `new`."""

    policy: str
    old: Shape
    new: Shape

    def __str__(self) -> str:
        return f"{self.policy}: {self.old} → {self.new}"

    def reason(self) -> str:
        """Why the policy cannot do it; empty if it can."""
        if self.policy in ("error", "skip"):
            return ""
        if self.policy == "reshape":
            return "" if math.prod(self.old) == math.prod(self.new) else "has another number of elements"
        if len(self.old) != len(self.new):
            return "has another number of dimensions"
        pairs = list(zip(self.old, self.new, strict=True))
        if self.policy == "slice" and any(old < new for old, new in pairs):
            return "has fewer entries along a dimension; 'pad' or 'overlap' fills up"
        if self.policy == "pad" and any(old > new for old, new in pairs):
            return "has more entries along a dimension; 'slice' or 'overlap' cuts off"
        return ""

    def follow(self, shape: Shape, role: str) -> Shape | None:
        """The new shape of what has this one beside a tensor of the old one; None where it cannot follow.

        What a factored optimizer keeps has some dimensions of the parameter and 1 for the others. Where the parameter
        had 1 itself and that changes, only the role tells, a value of `KEPT` or empty.
        """
        if role == ONE:
            return shape
        if role in (ROWS, COLUMNS) and shape == average(self.old, role):
            return None if self.policy == "reshape" else average(self.new, role)
        if shape == self.old:
            return self.new
        if self.policy == "reshape" or len(shape) != len(self.old) or 0 in shape:
            pairs = zip(self.old, self.new, strict=False)
            unclear = 1 in self.old if self.policy == "reshape" else any(old == 1 != new for old, new in pairs)
            return shape if prod(shape) == 0 or (prod(shape) == 1 and not (shape and unclear)) else None
        sizes = list(zip(shape, self.old, self.new, strict=True))
        if any(own not in (1, old) or own == old == 1 != new for own, old, new in sizes):
            return None
        return tuple(1 if own == 1 else new for own, _, new in sizes)

    def part(self, tensor: LazyTensor) -> LazyTensor:
        """What is taken of a tensor of the state, in the shape that it has in the target."""
        if self.policy == "reshape":
            return tensor.contiguous().replace(shape=self.new)
        return tensor[tuple(slice(0, min(pair)) for pair in zip(tensor.shape, self.new, strict=True))]

    def apply(self, tensor: LazyTensor, base: Any = None, fill: float = 0) -> Any:
        """A tensor of the shape `old` as a torch tensor of the new shape and its own dtype.

        What the tensor does not have is as in `base`, of the new shape, or else `fill`.
        """
        import torch

        part = self.part(tensor)
        if base is None:
            result = torch.full(self.new, fill, dtype=tensor.dtype.torch)
        else:
            result = base.detach().to("cpu", tensor.dtype.torch, copy=True)
        result[tuple(slice(0, size) for size in part.shape)].copy_(part.torch())
        return result


# parts


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
