"""Quantized weights against the same weights in another form: both are compared by their dequantized numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from statedict.ops.diff.entries import Entries
from statedict.ops.quantization.described import add_settings
from statedict.ops.quantization.find import Found, decode_weights, find
from statedict.tree.state_dict import StateDict
from statedict.values import count

_CODES = ("int32", "uint32")

Config = Mapping[str, Any] | None


def match_quantized(
    sides: tuple[Entries, Entries], trees: tuple[Any, Any], configs: tuple[Config, Config]
) -> list[str]:
    """Dequantize the weights that the other side has in another form, and return notes on them.

    Those that both sides quantize in one way are left as they are: equal ones have equal tensors.
    """
    if not any(
        tensor.dtype.name in _CODES or tensor.dtype.bits <= 8 for one in sides for tensor in one.tensors.values()
    ):
        return []
    founds = [
        find(side.tensors, add_settings(tree if isinstance(tree, StateDict) else StateDict(), side.tensors, config))
        for side, tree, config in zip(sides, trees, configs, strict=True)
    ]
    kinds = [{weight.name: (weight.kind, weight.group) for weight in found.report.weights} for found in founds]
    plain = [dict.fromkeys(side.tensors, ("", None)) for side in sides]
    notes = []
    for at, label in enumerate("AB"):
        theirs = plain[1 - at] | kinds[1 - at]
        wanted = {name for name, kind in kinds[at].items() if theirs.get(name, kind) != kind}
        notes += _replace(sides[at], founds[at], wanted, label)
    return notes


def _replace(side: Entries, found: Found, wanted: set[str], label: str) -> list[str]:
    kinds: dict[str, int] = {}
    for name, one in decode_weights(found).items() if wanted else ():
        if name in wanted:
            for path in one.paths:
                del side.tensors[path]
            for path in [path for path in side.values if path == name or path.startswith(f"{name}.")]:
                del side.values[path]  # of an object that held it
            side.tensors[name] = one.tensor
            kinds[one.weight.kind] = kinds.get(one.weight.kind, 0) + 1
    return [
        f"{label}: {count(some, 'weight')} of {kind} compared by dequantized numbers" for kind, some in kinds.items()
    ]
