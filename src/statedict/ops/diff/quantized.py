"""Quantized weights against the same weights in another form: both are compared by their dequantized numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

from statedict.errors import UnsupportedError
from statedict.ops.diff.compare import Rule, compare
from statedict.ops.diff.entries import Entries
from statedict.ops.quantization.described import add_settings
from statedict.ops.quantization.find import Decoded, Found, decode_weights, find
from statedict.reports.diff import ADDED, CHANGED, CLOSE, REMOVED, RENAMED, RESHAPED, TensorDiff
from statedict.tree.state_dict import StateDict
from statedict.values import count

_CODES = ("int32", "uint32")
_CHANGES = (CLOSE, CHANGED, RESHAPED, RENAMED, ADDED, REMOVED)

Config = Mapping[str, Any] | None


class Quantized:
    """The quantized weights of two sides, in a comparison."""

    def __init__(self, sides: tuple[Entries, Entries], trees: tuple[Any, Any], configs: tuple[Config, Config]) -> None:
        self._sides, self._founds, self.notes = sides, list[Found](), list[str]()
        dtypes = {tensor.dtype for side in sides for tensor in side.tensors.values()}
        if any(dtype.name in _CODES or dtype.bits <= 8 for dtype in dtypes):
            self._founds = [
                find(
                    side.tensors,
                    add_settings(tree if isinstance(tree, StateDict) else StateDict(), side.tensors, config),
                )
                for side, tree, config in zip(sides, trees, configs, strict=True)
            ]

    def match(self) -> None:
        """Dequantize the weights that the other side has in another form."""
        kinds = [{one.name: (one.kind, one.group) for one in found.report.weights} for found in self._founds]
        plain = [dict.fromkeys(side.tensors, ("", None)) for side in self._sides]
        for at, found in enumerate(self._founds):
            theirs = plain[1 - at] | kinds[1 - at]
            wanted = {name for name, kind in kinds[at].items() if theirs.get(name, kind) != kind}
            self.notes += _replace(self._sides[at], found, wanted, "AB"[at])

    def measure(self, tensors: list[TensorDiff], rule: Rule, executor: Executor | None) -> list[TensorDiff]:
        """What became of each tensor, with the weights whose tensors differ, by their numbers, in the place of these.

        Those whose numbers are equal all the same keep their tensors.
        """
        by_path = {one.path: one for one in tensors if one.kind in _CHANGES}
        if not by_path or not self._founds:
            return tensors
        before, after = (found.report.weights for found in self._founds)
        touched = {one.name: one for one in before if not by_path.keys().isdisjoint((one.stored, *one.parts))}
        pairs: dict[str, tuple[Decoded, Decoded]] = {}
        for theirs in after:
            ours = touched.get(theirs.name)
            if ours is not None and (ours.kind, ours.shape) == (theirs.kind, theirs.shape):
                with suppress(UnsupportedError):
                    decoded = (found.decode(one) for found, one in zip(self._founds, (ours, theirs), strict=True))
                    pairs[ours.name] = tuple(map(Decoded, (ours, theirs), decoded))  # type: ignore[assignment]
        tallies = compare([(one.tensor, other.tensor) for one, other in pairs.values()], rule, executor)
        made: dict[str, TensorDiff | None] = {}  # path of a tensor → what stands in its place
        for (name, (one, other)), tally in zip(pairs.items(), tallies, strict=True):
            if tally is not None and one.tensor.dtype is other.tensor.dtype:
                for side, each in zip(self._sides, (one, other), strict=True):
                    side.tensors[name] = each.tensor
                near = not tally.outside and bool(rule.rtol or rule.atol)
                dtype, shape = one.tensor.dtype.name, tuple(one.tensor.shape)
                what: Any = {"dtypes": (dtype, dtype), "shapes": (shape, shape), "measures": tally.measures()}
                made |= dict.fromkeys((*one.paths, *other.paths))
                made[one.paths[0]] = TensorDiff(CLOSE if near else CHANGED, name, name, passed=near, **what)
        kinds = Counter(one.weight.kind for name, (one, _) in pairs.items() if made.get(one.paths[0]))
        self.notes += [f"{count(n, 'weight')} of {kind} compared by dequantized numbers" for kind, n in kinds.items()]
        placed = (made.get(one.path, one) for one in tensors)
        return [one for one in placed if one is not None]


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
