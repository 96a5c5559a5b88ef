"""Summary: what is in a state_dict, as a tree with totals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from statedict.shown import Shown
from statedict.tree.walk import label
from statedict.values import KINDS, Opaque


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer's state in a tree.

    Attributes:
        path: its path.
        model: the path of the state that its parameters are in; None where that cannot be told.
        keys: those of the entries in `state`.
        names: key of such an entry → the name of its parameter in the model, where that can be told.
        inferred: whether the names come from the model's order and shapes and not from the file.
        groups: for each group how many parameters it has, and its hyperparameters.
        troubles: what deserves a look: `missing state`, `stale state`, `steps` → in words.
    """

    path: str
    model: str | None = None
    keys: tuple[Any, ...] = ()
    names: dict[Any, str] = field(default_factory=dict)
    inferred: bool = False
    groups: tuple[tuple[int, dict[str, Any]], ...] = ()
    troubles: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its path, or `optimizer` where it is the whole."""
        return self.path or "optimizer"

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON; a hyperparameter without a JSON form becomes a string."""
        return {
            "path": self.path,
            "model": self.model,
            "names": {label(key): name for key, name in self.names.items()},
            "inferred": self.inferred,
            "groups": [
                {"parameters": count} | {label(key): _plain(value) for key, value in group.items()}
                for count, group in self.groups
            ],
            "troubles": list(self.troubles.values()),
        }


def _plain(value: Any) -> Any:
    if type(value) in (tuple, list):
        return [_plain(item) for item in value]
    simple = value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
    return value if simple else repr(value)


def marked(name: str | None, inferred: bool) -> str:
    """The name of a parameter, marked if it is inferred."""
    return f"{name} (inferred)" if name and inferred else name or ""


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over some tensors: how many, their elements, their bytes (tied ones counted once)."""

    tensors: int = 0
    elements: int = 0
    nbytes: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(self.tensors + other.tensors, self.elements + other.elements, self.nbytes + other.nbytes)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor.

    Attributes:
        path: its path in the tree.
        dtype: PyTorch's name.
        shape: sizes.
        elements: their product.
        nbytes: bytes of the elements.
        role: `parameter`, `buffer`, `optimizer` or `tensor`, as its place and name show.
        parameter: for optimizer state the name of its parameter, where the file has names or they can be inferred.
        inferred: whether that name is inferred from the model's order and shapes.
        tied: the path of an earlier tensor with the same bytes.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    nbytes: int
    role: str
    parameter: str | None = None
    inferred: bool = False
    tied: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One row of the tree.

    Attributes:
        tensor: what it is, if it is a tensor.
        value: its text, if it is a plain value.
        note: what else is to be said, such as the parameter that an optimizer's entry belongs to.
        children: (key, row) of what is below it; keys with dots are nested by module.
        total: sums over the subtree.
    """

    tensor: TensorInfo | None = None
    value: str | None = None
    note: str = ""
    children: tuple[tuple[str, Node], ...] = ()
    total: Total = Total()


@dataclass(frozen=True, slots=True)
class Summary(Shown):
    """What `inspect` found.

    Attributes:
        root: the tree.
        tensors: every tensor in order.
        values: path → plain value.
        dtypes: PyTorch's name → sums.
        wasted: bytes of storages that no tensor covers (a small view of a large storage).
        opaque: qualified name → how often, of objects that are no data.
        optimizers: those in it, with their groups and what deserves a look.
    """

    root: Node
    tensors: tuple[TensorInfo, ...]
    values: dict[str, Any]
    dtypes: dict[str, Total]
    wasted: int
    opaque: dict[str, int] = field(default_factory=dict)
    optimizers: tuple[Optimizer, ...] = ()

    @property
    def total(self) -> Total:
        """Sums over all tensors."""
        return self.root.total

    @property
    def roles(self) -> dict[str, Total]:
        """Sums by the role of tensors."""
        sums: dict[str, Total] = {}
        for tensor in self.tensors:
            one = Total(1, tensor.elements, tensor.nbytes) if tensor.tied is None else Total(1)
            sums[tensor.role] = sums.get(tensor.role, Total()) + one
        return sums

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        from dataclasses import asdict

        from statedict.values import to_json

        def plain(value: Any) -> Any:
            return repr(value) if isinstance(value, Opaque) or type(value) not in KINDS else to_json(value)

        return {
            "tensors": [{"name": t.path} | {k: v for k, v in asdict(t).items() if k != "path"} for t in self.tensors],
            "values": {path: plain(value) for path, value in self.values.items()},
            "dtypes": {name: asdict(total) for name, total in self.dtypes.items()},
            "total": asdict(self.total),
            "wasted": self.wasted,
            "opaque": self.opaque,
            "optimizers": [one.to_json() for one in self.optimizers],
        }
