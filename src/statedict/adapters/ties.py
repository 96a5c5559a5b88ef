"""Which tensors are one, in a state and in its target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from statedict.io.pipeline import compute_sums
from statedict.tensor.arrays import live_region
from statedict.tensor.lazy import LazyTensor


class Ties:
    """The ties of live tensors, held against those of a state.

    >>> from statedict.tensor.lazy import as_lazy
    >>> import torch
    >>> weight = torch.ones(2)
    >>> found = Ties({"embed": weight, "head": weight}, ["embed"])
    >>> found.partner("head")
    'embed'
    """

    def __init__(self, live: Mapping[str, Any], held: Iterable[str]) -> None:
        seen: dict[Any, str] = {}
        self._first = {name: seen.setdefault(live_region(tensor), name) for name, tensor in live.items()}
        self._held: dict[str, str] = {}
        for name in held:
            self._held.setdefault(self._first.get(name, name), name)
        self._regions: dict[object, str] = {}
        self._tensors: dict[str, LazyTensor] = {}

    def partner(self, name: str) -> str | None:
        """The first name that the state has of the same live tensor."""
        return self._held.get(self._first.get(name, name))

    def judge(self, name: str, tensor: LazyTensor) -> tuple[str, str]:
        """What to say of an entry of the state beside those before it: an action and its reason, or nothing.

        `tie` is the action of what cannot be: one live tensor, and two values for it.
        """
        self._tensors[name] = tensor
        twin = self._regions.setdefault(tensor.region, name)
        if twin != name:
            if self.partner(twin) == self.partner(name):
                return "tied", f"shares its bytes with {twin}"
            return "untied", f"the state ties it to {twin}, the target has it apart"
        partner = self.partner(name)
        if partner is None or partner == name or partner not in self._tensors:
            return "", ""
        if same_bytes(tensor, self._tensors[partner]):
            return "tied", f"the target ties it to {partner}, the state has it twice"
        return "tie", f"the target ties it to {partner}, the state has other values for each"


def same_bytes(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes; both may be read."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and _digest(one) == _digest(other)


def _digest(tensor: LazyTensor) -> str:
    rows = tensor.contiguous()
    return compute_sums(rows.storage.source, rows.storage.offset + rows.offset, rows.nbytes, crc=False).digest
