"""`torch.optim.LBFGS` keeps one state for all parameters: vectors over their elements, in their order.

It stands under the first parameter (torch/optim/lbfgs.py, `_gather_flat_grad`). Where the order has changed, the
vectors are put into the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from statedict.adapters.state_checks import Fault, describe, is_one
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree.state_dict import StateDict


def accepts(optimizer: Any) -> bool:
    """Whether it is one."""
    import torch

    return isinstance(optimizer, torch.optim.LBFGS)


_NUMBERS = ("func_evals", "n_iter")
_LATER = ("d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss")
"""What is there after the first iteration; `al` follows after the second."""


def faults(entries: Any, length: int) -> Iterator[Fault]:
    """What is wrong with a state for parameters of so many elements in all."""
    count = entries.get("n_iter")
    count = float(as_lazy(count).torch()) if is_array(count) and is_one(count) else count if is_one(count) else 0
    for key in (*_NUMBERS, *_LATER * (count >= 1), *("al",) * (count > 1)):
        if key not in entries:
            yield Fault("missing", (key,), "LBFGS does not go on without it")
    pairs = entries.get("old_dirs")
    for key, value in entries.items():
        if key in ("old_dirs", "old_stps"):
            fine = isinstance(value, list) and all(_is_flat(item, length) for item in value)
        elif key in ("ro", "al"):
            fine = isinstance(value, list) and all(is_one(item) or (item is None and key == "al") for item in value)
        elif key in ("d", "prev_flat_grad"):
            fine = _is_flat(value, length)
        elif key in (*_NUMBERS, *_LATER):
            fine = is_one(value)
        else:
            yield Fault("unexpected", (key,), "the state is another optimizer's")
            continue
        if fine and key in ("old_stps", "ro", "al") and isinstance(pairs, list):
            fine = len(value) == len(pairs) or (key == "al" and len(value) > len(pairs))
        if not fine:
            yield Fault("kind", (key,), f"is not what LBFGS keeps for {length:,} elements; it has {describe(value)}")


def _is_flat(value: Any, length: int) -> bool:
    return is_array(value) and tuple(value.shape) == (length,)


def reorder(saved: Sequence[Any], live: Sequence[Any], sizes: dict[Any, int], entries: Any) -> StateDict:
    """The state in the order of the live parameters.

    Args:
        saved: the keys of the parameters in the state's order.
        live: the same keys in the live order.
        sizes: key → number of elements, twice as many for complex ones.
        entries: what the state has for its first parameter.

    >>> import torch
    >>> reorder(["a", "b"], ["b", "a"], {"a": 2, "b": 1}, {"d": torch.tensor([1, 2, 3])})["d"]
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
