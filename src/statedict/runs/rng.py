"""The states of the random generators that a process shares: Python's, NumPy's, PyTorch's."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

from statedict.adapters import to_framework
from statedict.adapters.generators import faults, read, write
from statedict.errors import RestoreError
from statedict.tree.state_dict import StateDict


class Rng:
    """The random generators that a process shares, as an object with a state to save and restore in a tree.

    Python's `random`, NumPy's global generator, PyTorch's on the CPU and on each accelerator. Other generators
    (`torch.Generator`, `numpy.random.Generator`) can stand in the tree themselves.

    >>> import random, statedict
    >>> state = statedict.capture({"rng": statedict.rng()})
    >>> first = random.random()
    >>> _ = statedict.restore({"rng": statedict.rng()}, state)
    >>> random.random() == first
    True
    """

    def state_dict(self) -> StateDict:
        """The state of each generator; nothing for an accelerator that is not in use yet."""
        state = StateDict({name: read(generator) for name, generator in shared_generators().items()})
        name, module = _find_accelerator()
        if name:
            state[name] = _read_devices(module)
        return state

    def check_state_dict(self, state: Any) -> Iterator[str]:
        """Why the generators here cannot take a state."""
        for key, generator in shared_generators().items():
            for action, path, detail in faults(read(generator), state.get(key), key) if key in state else ():
                if action != "unexpected":
                    yield f"{path}: {detail}"
        name, module = _find_accelerator()
        count = module.device_count() if name else 0
        if state.get(name) and len(state[name]) != count:
            yield (
                f"{name}: the state is that of {len(state[name])} devices, here are {count}; leave the rng out of the "
                "tree, and seed the devices yourself"
            )

    def load_state_dict(self, state: Any) -> None:
        """Set each generator to its state.

        Raises:
            RestoreError: the state is that of other generators, or of another number of devices.
        """
        for fault in self.check_state_dict(state):
            raise RestoreError(fault)
        for key, generator in shared_generators().items():
            if key in state:
                write(generator, state[key])
        name, module = _find_accelerator()
        if state.get(name):
            states = to_framework(state[name])
            if hasattr(module, "set_rng_state_all"):
                module.set_rng_state_all(states)
            else:
                module.set_rng_state(states[0])


def rng() -> Rng:
    """The random generators that the process shares; see `Rng`."""
    return Rng()


def shared_generators() -> dict[str, Any]:
    """The generators behind `random`, `numpy.random`, and `torch` if it is loaded."""
    import numpy

    torch = sys.modules.get("torch")
    frameworks = {} if torch is None else {"torch": torch.default_generator}
    return {"python": random._inst, "numpy": numpy.random.mtrand._rand} | frameworks


def _find_accelerator() -> tuple[str, Any]:
    """The name and the module of the accelerator, such as `torch.cuda`; an empty name without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.accelerator.is_available():
        return "", None
    name = torch.accelerator.current_accelerator().type
    module = torch.get_device_module(name)
    return (name, module) if hasattr(module, "get_rng_state") else ("", None)


def _read_devices(module: Any) -> list[Any]:
    if hasattr(module, "is_initialized") and not module.is_initialized():
        return []  # reading a state would initialize the devices
    return list(module.get_rng_state_all()) if hasattr(module, "get_rng_state_all") else [module.get_rng_state()]
