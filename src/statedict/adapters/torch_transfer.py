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
    """Fill live tensors; their shapes agree, their dtypes and devices may differ.

    Args:
        pairs: each tensor and the live one that takes its values. Nothing is cast that overflows in silence: that is
            for the plan to say.
    """
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
    """Fill live tensors of one device by way of two buffers.

    Args:
        pairs: as for `transfer`.
        pinned: whether the buffers are page-locked, which copies to an accelerator need to run beside the reading.
        block: bytes of a buffer, at most.
    """
    import torch

    block = min(block, max(tensor.nbytes for tensor, _ in pairs))
    lanes = [_Lane(block, pinned), _Lane(block, pinned)]
    turn = 0
    for tensor, target in pairs:
        item = tensor.dtype.itemsize
        if not item or not target.is_contiguous() or type(target) not in (torch.Tensor, torch.nn.Parameter):
            target.copy_(tensor.torch())
            continue
        source, flat = tensor.contiguous(), target.view(-1)
        step = max(block // item, 1)
        for start in range(0, tensor.numel(), step):
            count = min(step, tensor.numel() - start)
            lane = lanes[turn := 1 - turn]
            values = lane.read(source, start * item, count * item).view(tensor.dtype.torch)
            lane.send(values, flat[start : start + count])
    for lane in lanes:
        lane.wait()


class _Lane:
    """A buffer that is filled, and then copied on."""

    def __init__(self, size: int, pinned: bool) -> None:
        import torch

        self.buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self.sent: Any = None

    def read(self, tensor: LazyTensor, start: int, size: int) -> Any:
        """The next bytes of a tensor, as a view of the buffer."""
        self.wait()
        part = self.buffer[:size]
        view = address_view(part.data_ptr(), size, part)
        fill([(tensor.storage.source, tensor.storage.offset + tensor.offset + start, view)])
        return part

    def send(self, values: Any, target: Any) -> None:
        """Copy on; on an accelerator this returns before it is done."""
        import torch

        target.copy_(values, non_blocking=True)
        if target.device.type != "cpu":
            self.sent = torch.Event(target.device)
            self.sent.record()

    def wait(self) -> None:
        """Until what was sent has arrived."""
        if self.sent is not None:
            self.sent.synchronize()
            self.sent = None
