"""`torch.optim.LBFGS` keeps one state for all parameters: vectors over their elements, in their order.

It stands under the first parameter (torch/optim/lbfgs.py, `_gather_flat_grad`). Where the order has changed, the
vectors are put into the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree.state_dict import StateDict


def accepts(optimizer: Any) -> bool:
    """Whether it is one."""
    import torch

    return isinstance(optimizer, torch.optim.LBFGS)


def moved(saved: Sequence[Any], live: Sequence[Any], sizes: dict[Any, int], entries: Any) -> StateDict:
    """The state in the order of the live parameters.

    Args:
        saved: the keys of the parameters in the state's order.
        live: the same keys in the live order.
        sizes: key → number of elements, twice as many for complex ones.
        entries: what the state has for its first parameter.

    >>> import torch
    >>> moved(["a", "b"], ["b", "a"], {"a": 2, "b": 1}, {"d": torch.tensor([1, 2, 3])})["d"]
    tensor([3, 1, 2])
    """
    starts, start = {}, 0
    for key in saved:
        starts[key] = start
        start += sizes[key]

    def turned(value: Any) -> Any:
        if isinstance(value, list):
            return [turned(item) for item in value]
        if not is_array(value) or tuple(value.shape) != (start,):
            return value
        import torch

        flat = as_lazy(value).torch()
        return torch.cat([flat[starts[key] : starts[key] + sizes[key]] for key in live])

    return StateDict((key, turned(value)) for key, value in entries.items())
