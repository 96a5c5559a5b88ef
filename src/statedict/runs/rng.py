"""The states of the generators of random numbers that a process shares: Python's, NumPy's, PyTorch's."""

from __future__ import annotations

import random
import sys
from typing import Any

from statedict.errors import RestoreError
from statedict.tree import StateDict


class Rng:
    """The generators that a process shares, as a thing with a state: put it into a tree that is saved and restored.

    Python's `random`, NumPy's global generator, PyTorch's on the CPU and on each accelerator. Generators of their own
    (`torch.Generator`, `numpy.random.Generator`) are not among them.

    >>> import random, statedict
    >>> state = statedict.capture({"rng": statedict.rng()})
    >>> first = random.random()
    >>> _ = statedict.restore({"rng": statedict.rng()}, state)
    >>> random.random() == first
    True
    """

    def state_dict(self) -> StateDict:
        """The state of each."""
        import numpy

        version, numbers, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = numpy.random.get_state()
        state = StateDict(
            {
                "python": {"version": version, "state": numpy.array(numbers, numpy.uint32), "gauss": gauss},
                "numpy": {
                    "kind": kind,
                    "state": numpy.array(keys),
                    "position": int(position),
                    "has_gauss": int(has_gauss),
                    "cached": float(cached),
                },
            }
        )
        torch = sys.modules.get("torch")
        if torch is not None:
            state["torch"] = torch.get_rng_state()
            module = _accelerator(torch)
            if module is not None:
                state[module.__name__.rpartition(".")[2]] = list(module.get_rng_state_all())
        return state

    def load_state_dict(self, state: Any) -> None:
        """Set each to its state.

        Raises:
            RestoreError: the state is that of more or other devices than there are.
        """
        import numpy

        one, other = state["python"], state["numpy"]
        random.setstate((one["version"], tuple(map(int, numpy.asarray(one["state"]))), one["gauss"]))
        keys = numpy.asarray(other["state"]).astype(numpy.uint32)
        numpy.random.set_state((other["kind"], keys, other["position"], other["has_gauss"], other["cached"]))
        if "torch" in state:
            import torch

            torch.set_rng_state(torch.as_tensor(state["torch"]))
            module = _accelerator(torch)
            name = module.__name__.rpartition(".")[2] if module is not None else ""
            if name in state:
                states, count = state[name], module.device_count()
                if len(states) != count:
                    raise RestoreError(
                        f"{name}: the state is that of {len(states)} devices, here are {count}; leave the rng out of "
                        "the tree, and seed the devices yourself"
                    )
                module.set_rng_state_all([torch.as_tensor(one) for one in states])


def rng() -> Rng:
    """The generators of random numbers that the process shares; see `Rng`."""
    return Rng()


def _accelerator(torch: Any) -> Any:
    """The module of the accelerator that is in use, such as `torch.cuda`; None without one."""
    if not torch.accelerator.is_available():
        return None
    module = torch.get_device_module(torch.accelerator.current_accelerator())
    return module if hasattr(module, "get_rng_state_all") and module.is_initialized() else None
