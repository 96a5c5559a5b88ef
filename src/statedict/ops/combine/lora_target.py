"""A tensor of a base that adapters change, and what the shapes of factors tell about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from statedict.errors import CombineError
from statedict.ops.alter.tensors import round_to
from statedict.ops.combine.elements import combine
from statedict.ops.combine.lora_factors import Low, add
from statedict.tensor.assembled import assemble, map_elements
from statedict.tensor.lazy import LazyTensor

Parts = Mapping[str, LazyTensor]


@dataclass(slots=True)
class Target:
    """A tensor of the base, and what becomes of it.

    Attributes:
        path: in the result.
        base: the tensor before; None if the base has none.
        whole: the tensor in its place, and the weight of the adapter that has it.
        copied: whether `whole` is only what the adapter took for the base.
        rows: numbers of rows, and the tensor that replaces them.
        factors: low-rank changes.
        magnitude: of DoRA.
        bias: whether the factors are those of a bias.
    """

    path: str
    base: LazyTensor | None
    whole: tuple[LazyTensor, float] | None = None
    copied: bool = False
    rows: tuple[list[int], LazyTensor] | None = None
    factors: list[Any] = field(default_factory=list)
    magnitude: LazyTensor | None = None
    bias: bool = False

    @property
    def how(self) -> str:
        """What happens to it, in a word."""
        if self.factors:
            return "DoRA" if self.magnitude is not None else "bias" if self.bias else "LoRA"
        return "rows replaced" if self.rows else "replaced" if self.base is not None else "added"

    @property
    def rank(self) -> int | None:
        """The rank of the change; None if it has none."""
        return sum(one.rank for one in self.factors) if self.factors and not self.bias else None

    def start(self) -> LazyTensor:
        """The tensor to which low-rank changes are added."""
        tensor = self.base
        if self.whole is not None:
            new, weight = self.whole
            if tensor is None:
                tensor = new
            elif weight == 1:
                flags = {"requires_grad": tensor.requires_grad, "parameter": tensor.parameter}
                kind = tensor.dtype
                made = new if new.dtype is kind else map_elements(new, kind, partial(round_to, kind))
                tensor = made.replace(**flags)
            else:
                tensor = combine(partial(_blend, weight), [tensor, new])
        assert tensor is not None
        if self.rows is not None:
            tensor = _replace_rows(tensor, *self.rows)
        return tensor

    def low(self) -> Low:
        """The low-rank part of the change."""
        return Low(self.start(), tuple(self.factors), self.magnitude)

    def make(self) -> LazyTensor:
        """The tensor afterwards."""
        if not self.factors:
            return self.start()
        low = self.low()
        return add(low, low.base.dtype)


def _blend(weight: float, one: Any, other: Any) -> Any:
    other -= one
    other *= weight
    other += one
    return other


def _replace_rows(tensor: LazyTensor, numbers: list[int], rows: LazyTensor) -> LazyTensor:
    kind = tensor.dtype
    new = rows if rows.dtype is kind else map_elements(rows, kind, partial(round_to, kind))
    zeros = (0,) * (tensor.ndim - 1)
    chunks: list[tuple[tuple[int, ...], LazyTensor]] = [((n, *zeros), new[k : k + 1]) for k, n in enumerate(numbers)]
    edges = sorted({-1, *numbers, tensor.shape[0]})
    chunks += [((a + 1, *zeros), tensor[a + 1 : b]) for a, b in pairwise(edges) if b > a + 1]
    made = assemble(kind, tensor.shape, chunks, tensor.storage.source.name)
    return made.replace(requires_grad=tensor.requires_grad, parameter=tensor.parameter)


def count_experts(shape: tuple[int, ...], parts: Parts) -> int:
    """How many matrices a weight has, one below the other: 1, or as many as it has experts."""
    stacked = len(shape) == 3 and "down" in parts and parts["down"].ndim == 2
    return shape[0] if stacked and "down2" not in parts else 1  # LoHa has flat factors for convolutions


@dataclass(frozen=True, slots=True)
class Orders:
    """Whether matrices are stored as in × out, as far as shapes tell."""

    flag: bool  # what the configuration says
    seen: frozenset[tuple[bool, bool]]  # of matrices whose shape tells: whether they are of experts, and the order

    def is_turned(self, where: str, shape: tuple[int, ...], experts: int, parts: Parts) -> bool:
        """Whether a weight is stored as in × out."""
        told = tell_order(shape, experts, parts)
        if told is not None:
            return told
        seen = {order for many, order in self.seen if many == (experts > 1)}
        if experts > 1 and len(seen) != 1:
            raise CombineError(f"{where}: its weights are square, so in × out cannot be told from out × in")
        return seen.pop() if len(seen) == 1 else self.flag


def tell_order(shape: tuple[int, ...], experts: int, parts: Parts) -> bool | None:
    """Whether a weight is stored as in × out; None if its shape does not tell."""
    if (len(shape) != 2 and experts == 1) or "up" not in parts:
        return False
    rows, columns = shape[-2:]
    made = parts["up"].shape[0], parts["down"].shape[-1]
    return None if rows == columns else (rows, columns) != made and (columns, rows) == made


def find_orders(flag: bool, weights: Iterable[tuple[tuple[int, ...], Parts]]) -> Orders:
    """What the shapes of weights and their factors tell; `flag` is what the configuration says."""
    seen = set()
    for shape, parts in weights:
        experts = count_experts(shape, parts)
        told = tell_order(shape, experts, parts) if len(shape) == 2 or experts > 1 else None
        if told is not None:
            seen.add((experts > 1, told))
    return Orders(flag, frozenset(seen))


def find_rows(where: str, config: Mapping[str, Any], name: str, rows: LazyTensor, base: LazyTensor) -> list[int]:
    """The numbers of the rows that trained tokens replace."""
    said = config.get("trainable_token_indices", config.get("token_indices"))
    if isinstance(said, dict):
        said = next((one for key, one in said.items() if f".{name}".endswith(f".{key}")), None)
    fine = isinstance(said, list) and all(type(n) is int and 0 <= n < base.shape[0] for n in said)
    if not fine or len({*said}) != len(said) or rows.shape != (len(said), *base.shape[1:]):
        raise CombineError(
            f"{where}: adapter_config.json says the tokens {said!r:.60}, which are not {rows.shape[0]:,} different "
            f"rows of {base.shape}; fetch both again"
        )
    return list(said)
