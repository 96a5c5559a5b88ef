"""Tensors of a state into live tensors, straight from where their bytes are.

Row-major tensors of the same dtype on the CPU are read into their place, many at a time. All others, on an
accelerator or of another dtype, go through two buffers of fixed size: while one is copied on, the other is filled.
For an accelerator the buffers are pinned, so that the copies run beside the reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from statedict.io.pipeline import fill
from statedict.io.source import AddressSource, address_view
from statedict.tensor.arrays import mark_written, writable_memory
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.segments import copy_tensors

BLOCK = 32 << 20


def transfer(pairs: Iterable[tuple[LazyTensor, Any]]) -> None:
    """Fill live tensors of the same shapes; dtypes and devices may differ, and nothing is said of overflow."""
    import torch

    direct: list[tuple[LazyTensor, Any, Any]] = []
    staged: dict[Any, list[tuple[LazyTensor, Any]]] = {}
    pairs = _separate(list(pairs))
    with torch.no_grad():
        for tensor, target in pairs:
            memory = writable_memory(target)
            if memory is not None and memory.dtype is tensor.dtype and tensor.strides is None:
                direct.append((tensor, target, address_view(memory.address + memory.offset, tensor.nbytes, target)))
            else:
                staged.setdefault(target.device, []).append((tensor, target))
        fill((t.storage.source, t.storage.offset + t.offset, view) for t, _, view in direct if t.nbytes)
        for _, target, _ in direct:
            mark_written(target)
        for device, some in staged.items():
            stage(some, pinned=device.type != "cpu")


def _separate(pairs: list[tuple[LazyTensor, Any]]) -> list[tuple[LazyTensor, Any]]:
    """The pairs with copies of what lies where another target is filled, such as a live state under other names."""
    places = {target.data_ptr(): target for _, target in pairs if target.device.type == "cpu" and target.numel()}
    result = []
    for tensor, target in pairs:
        source = tensor.storage.source
        at = source.address + tensor.storage.offset + tensor.offset if isinstance(source, AddressSource) else None
        clash = at in places and places[at] is not target
        result.append((copy_tensors([tensor])[0] if clash else tensor, target))
    return result


def stage(pairs: Sequence[tuple[LazyTensor, Any]], *, pinned: bool, block: int = BLOCK) -> None:
    """Fill live tensors of one device by way of two buffers of at most `block` bytes; `pinned` ones are page-locked."""
    import torch

    block = min(block, max(tensor.nbytes for tensor, _ in pairs))
    buffers = [torch.empty(block, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
    copied: list[Any] = [None, None]  # events: a copy to an accelerator returns before it is done
    turn = 0
    for tensor, target in pairs:
        item = tensor.dtype.itemsize
        if not item or not target.is_contiguous() or type(target) not in (torch.Tensor, torch.nn.Parameter):
            target.copy_(tensor.torch())
            continue
        source, flat, step = tensor.contiguous(), target.view(-1), max(block // item, 1)
        begin = source.storage.offset + source.offset
        for start in range(0, tensor.numel(), step):
            turn = 1 - turn
            if copied[turn] is not None:
                copied[turn].synchronize()
            part = buffers[turn][: min(step, tensor.numel() - start) * item]
            fill([(source.storage.source, begin + start * item, address_view(part.data_ptr(), part.numel(), part))])
            flat[start : start + step].copy_(part.view(tensor.dtype.torch), non_blocking=True)
            if target.device.type != "cpu":
                copied[turn] = torch.Event(target.device)
                copied[turn].record()
    for event in copied:
        if event is not None:
            event.synchronize()
