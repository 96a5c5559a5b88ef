"""Summary: what is in a state_dict, as a tree with totals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from statedict.errors import UnsupportedError
from statedict.reports.quantization import UNQUANTIZED, Quantization, QuantizedWeight, rate
from statedict.shown import Shown, to_record
from statedict.tree.walk import label
from statedict.values import to_json

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer's state in a tree."""

    path: str
    model: str | None = None  # the path of the state that holds its parameters; None if unknown
    keys: tuple[Any, ...] = ()  # the keys of `state`
    names: dict[Any, str] = field(default_factory=dict)  # key → the name of its parameter in the model, where known
    inferred: bool = False  # whether the names are inferred from the model's order and shapes
    # for each group how many parameters it has, and its hyperparameters
    groups: tuple[tuple[int, dict[str, Any]], ...] = ()
    # what deserves a look: `missing state`, `stale state` or `steps` → in words
    troubles: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its path, or `optimizer` if it is the whole tree."""
        return self.path or "optimizer"

    def to_json(self) -> dict[str, Any]:
        """All fields but `keys`; a hyperparameter without a JSON form becomes a string."""
        groups = [
            {"parameters": count} | {label(key): _plain(value) for key, value in group.items()}
            for count, group in self.groups
        ]
        return {
            "path": self.path,
            "model": self.model,
            "names": {label(key): name for key, name in self.names.items()},
            "inferred": self.inferred,
            "groups": groups,
            "troubles": list(self.troubles.values()),
        }


def _plain(value: Any) -> Any:
    if type(value) in (tuple, list):
        return [_plain(item) for item in value]
    simple = value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
    return value if simple else repr(value)


def value_to_json(value: Any) -> Any:
    """The JSON of a value in a checkpoint; of an Opaque, or another without a JSON form, its `repr`."""
    if type(value) in (list, tuple):
        items = [value_to_json(item) for item in value]
        return items if type(value) is list else {"$tuple": items}
    if isinstance(value, dict) and type(value) is not Counter:
        return {str(key): value_to_json(item) for key, item in value.items()}
    try:
        return to_json(value)
    except UnsupportedError:
        return repr(value)


def mark_inferred(name: str | None, inferred: bool) -> str:
    """The name of a parameter, with a mark if it is inferred."""
    return f"{name} (inferred)" if name and inferred else name or ""


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
    """One tensor."""

    path: str  # its path in the tree
    dtype: str  # PyTorch's name; of a tensor stored as quantized blocks the name of these: `Q4_K`
    shape: tuple[int, ...]
    elements: int  # their product
    nbytes: int  # bytes of the elements, or of the blocks
    # `parameter`, `buffer`, `optimizer`, `generator` or `tensor`, by its place and name; `quantization` for the scales
    # of quantized weights and the like
    role: str
    parameter: str | None = None  # for optimizer state the name of its parameter, where known
    inferred: bool = False  # whether that name is inferred from the model's order and shapes
    tied: str | None = None  # the path of an earlier tensor with the same bytes
    # its Python attributes, as `LazyTensor.attributes`; None if it has none
    attributes: dict[Any, Any] | None = field(default=None, compare=False)
    quantized: QuantizedWeight | None = None  # the weight whose numbers it holds quantized

    @property
    def parameters(self) -> int:
        """How many parameters of a model it holds: its elements, or those of the weight that it holds quantized."""
        if self.role != "parameter" or self.tied is not None:
            return 0
        return self.elements if self.quantized is None else self.quantized.elements

    @property
    def total(self) -> Total:
        """What it adds to sums."""
        return Total(1, self.elements, self.nbytes) if self.tied is None else Total(1)

    def to_json(self) -> dict[str, Any]:
        """All fields, with `name` for the path; an attribute without a JSON form becomes a string."""
        attributes = self.attributes and {str(name): value_to_json(value) for name, value in self.attributes.items()}
        weight = self.quantized
        return to_record(replace(self, quantized=None), path="name") | {
            "attributes": attributes,
            "quantized": weight and {"kind": weight.kind, "shape": weight.shape and list(weight.shape)},
        }


def sum_by(name: str, tensors: Iterable[TensorInfo]) -> dict[str, Total]:
    """Sums over the tensors with the same value of a field."""
    sums: dict[str, Total] = {}
    for tensor in tensors:
        value = getattr(tensor, name)
        sums[value] = sums.get(value, Total()) + tensor.total
    return sums


@dataclass(frozen=True, slots=True)
class Node:
    """One row of the tree."""

    tensor: TensorInfo | None = None  # the tensor, if it is one
    value: str | None = None  # its text, if it is a plain value
    note: str = ""  # a remark, such as the parameter that an optimizer's entry belongs to
    children: tuple[tuple[str, Node], ...] = ()  # (key, row) of what is below it, by module as `tree.walk.nest`
    total: Total = Total()  # sums over the subtree


@dataclass(frozen=True, slots=True)
class Summary(Shown):
    """What `inspect` found."""

    root: Node  # the tree
    tensors: tuple[TensorInfo, ...]  # every tensor in the order of the file
    values: dict[str, Any]  # path → plain value
    dtypes: dict[str, Total]  # dtype of tensors → sums
    wasted: int  # bytes of storages that no tensor covers (a small view of a large storage)
    opaque: dict[str, int] = field(default_factory=dict)  # qualified name → how often, of objects that are not data
    optimizers: tuple[Optimizer, ...] = ()  # those in it, with their groups and troubles
    quantization: Quantization = UNQUANTIZED  # its quantized weights

    @property
    def parameters(self) -> int:
        """The parameters of models: of quantized weights those that they stand for, without scales and the like."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def bits_per_parameter(self) -> float | None:
        """The bits that each parameter takes, with its share of scales and the like; None without parameters."""
        sums = sum_by("role", self.tensors)
        nbytes = sum(sums[role].nbytes for role in ("parameter", "quantization") if role in sums)
        return rate(nbytes, self.parameters)

    @property
    def total(self) -> Total:
        """Sums over all tensors."""
        return self.root.total

    @property
    def roles(self) -> dict[str, Total]:
        """Sums by the role of tensors; the elements of parameters are those of the weights, quantized or not."""
        sums = sum_by("role", self.tensors)
        return sums | {role: replace(sums[role], elements=self.parameters) for role in ("parameter",) if role in sums}

    def to_json(self) -> dict[str, Any]:
        """All fields but the tree, the total and the parameters, ready for `json.dumps`."""
        return {
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "values": {path: value_to_json(value) for path, value in self.values.items()},
            "dtypes": {name: to_record(total) for name, total in self.dtypes.items()},
            "total": to_record(self.total),
            "parameters": self.parameters,
            "bits_per_parameter": self.bits_per_parameter,
            "quantization": self.quantization.to_json() if self.quantization else None,
            "wasted": self.wasted,
            "opaque": self.opaque,
            "optimizers": [one.to_json() for one in self.optimizers],
        }
