"""Quantization: the quantized weights of a checkpoint, by what their tensors stand for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from statedict.shown import to_record


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something about a quantized weight that its scheme does not allow."""

    name: str  # the path of the tensor, or of the one that is missing
    # `missing` (a tensor), `shape` (which does not fit the others or the configuration), `range` (of indices or zero
    # points), `nan`, `inf`, `zeros`, `negative` (scales)
    kind: str
    what: str  # the finding, in words


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight whose numbers are quantized, and the tensors that hold it."""

    name: str  # its path without quantization: `model.layers.0.mlp.up_proj.weight`
    scheme: str  # `GPTQ`, `AWQ`, `bitsandbytes`, `compressed-tensors`, `MLX`, …
    format: str  # of several in the scheme, which: `nf4`, `pack-quantized`, `affine`; else empty
    stored: str | None  # the path of the tensor with its numbers; None if that is missing
    packed: bool  # whether an element of that tensor holds several numbers, or a part of one
    shape: tuple[int, ...] | None  # of the weight itself; None where only a tensor's bytes tell and were not read
    elements: int  # of the weight itself
    bits: float | None  # of each of its numbers; None if unknown
    group: int | None  # how many numbers in a row share a scale; None if a scale is for a row, a block or all
    parts: dict[str, str] = field(default_factory=dict)  # path of each further tensor → what it is: `scales`, …
    nbytes: int = 0  # of all its tensors
    guessed: bool = False  # whether other bits would fit as well, and no configuration says which
    troubles: tuple[Trouble, ...] = ()

    @property
    def kind(self) -> str:
        """Scheme, format and bits in words."""
        bits = "" if self.bits is None else f" {self.bits:.4g}-bit" + " (guessed)" * self.guessed
        return f"{self.scheme}{bits}" + f" {self.format}" * bool(self.format)

    def to_json(self) -> dict[str, Any]:
        """All fields, and the bits that each number takes with its share of scales and the like."""
        return to_record(self) | {"bits_per_weight": rate(self.nbytes, self.elements)}


@dataclass(frozen=True, slots=True)
class Quantization:
    """All quantized weights of a checkpoint."""

    weights: tuple[QuantizedWeight, ...] = ()
    others: dict[str, str] = field(default_factory=dict)  # path of a tensor of no weight → what it is: scales of inputs
    method: str | None = None  # what the configuration beside the file calls it
    notes: tuple[str, ...] = ()  # where tensors and configuration disagree

    def __bool__(self) -> bool:
        return bool(self.weights or self.notes)

    @property
    def troubles(self) -> list[Trouble]:
        """What is wrong, weight by weight."""
        return [trouble for weight in self.weights for trouble in weight.troubles]

    @property
    def kinds(self) -> dict[str, list[QuantizedWeight]]:
        """Scheme, format and bits in words → the weights of that kind."""
        found: dict[str, list[QuantizedWeight]] = {}
        for weight in self.weights:
            found.setdefault(weight.kind, []).append(weight)
        return found

    def to_json(self) -> dict[str, Any]:
        """The kinds with their sums, the weights, and what is wrong."""
        return {
            "method": self.method,
            "kinds": [{"kind": kind} | sums(weights) for kind, weights in self.kinds.items()],
            "weights": [weight.to_json() for weight in self.weights],
            "others": self.others,
            "notes": list(self.notes),
        }


UNQUANTIZED = Quantization()


def sums(weights: Iterable[QuantizedWeight]) -> dict[str, Any]:
    """How many weights, their parameters and bytes, and the bits for each parameter."""
    some = list(weights)
    elements, nbytes = sum(one.elements for one in some), sum(one.nbytes for one in some)
    return {
        "scheme": some[0].scheme,
        "format": some[0].format,
        "bits": some[0].bits,
        "weights": len(some),
        "parameters": elements,
        "nbytes": nbytes,
        "bits_per_weight": rate(nbytes, elements),
    }


def rate(nbytes: int, elements: int) -> float | None:
    """Bits for each element; None without any."""
    return round(8 * nbytes / elements, 4) if elements else None


def format_weight(weight: QuantizedWeight) -> str:
    """The shape of a weight, or how many numbers it has."""
    return f"{weight.elements:,}" if weight.shape is None else "×".join(map(str, weight.shape))
