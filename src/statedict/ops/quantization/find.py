"""Find the quantized weights among the tensors of a checkpoint, by their names, dtypes and shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from statedict.errors import UnsupportedError
from statedict.ops.quantization.config import ALIKE, METHODS, Config
from statedict.ops.quantization.layer import Layer, Layout, ratio
from statedict.ops.quantization.layouts import lay_out_mlx, pairs_for
from statedict.ops.quantization.schemes import CT, SCHEMES, ZEROS, Part, Scheme
from statedict.reports.quantization import Quantization, QuantizedWeight
from statedict.tensor.blocks import find_blocks
from statedict.tensor.lazy import LazyTensor

# tensors of quantized modules that belong to no weight: the scales of inputs, outputs and caches
_OTHERS = {
    f"{which}_{what}": f"{what.replace('_', ' ')} of {of}"
    for which, of in (
        ("input", "the input"), ("output", "the output"), ("activation", "the input"),
        ("input_activation", "the input"),
        ("output_activation", "the output"), ("k", "the keys"), ("v", "the values"), ("q", "the queries"),
        ("gate_up_proj_input", "the input"), ("down_proj_input", "the input"),
    )
    for what in ("scale", "zero_point", "global_scale")
}  # fmt: skip
_OTHERS |= {f"{name}_hadamard_matrix": "rotation" for name in ("forward", "backward")}
_MARKS: dict[str, list[int]] = {}  # ending → the schemes that it gives away, by number
for _number, _scheme in enumerate(SCHEMES):
    for _mark in _scheme.marks or (_scheme.stored,):
        _MARKS.setdefault(_mark, []).append(_number)


class Found:
    """The quantized weights of a checkpoint, and which tensors belong to them.

    Attributes:
        report: the weights as a report, with paths as they were given.
        stored: path of a tensor with numbers → its weight.
        parts: path of another tensor → its weight, and what it is.
        layers: name of each weight → the tensors, and what they may be.
    """

    def __init__(self, tensors: Mapping[str, LazyTensor], config: Config, prefix: str = "", ask: bool = False) -> None:
        self.config, self._prefix, self._ask = config, prefix, ask
        self._tensors = {"." + path: tensor for path, tensor in tensors.items()}
        self.stored: dict[str, QuantizedWeight] = {}
        self.parts: dict[str, tuple[QuantizedWeight, Part]] = {}
        self.layers: dict[str, Layer] = {}
        self._schemes: dict[str, Scheme] = {}
        self._layouts: dict[str, Layout] = {}
        weights = []
        layers = list(self._layers())
        sizes = {tensor.shape[0] for tensor in self._tensors.values() if tensor.ndim == 1}
        pairs = _choose_pairs([layer for scheme, layer in layers if scheme.layout is lay_out_mlx], sizes)
        for scheme, layer in layers:
            layer.pairs = pairs
            weights.append(self._describe(scheme, layer))
        self._find_alone(weights)
        weights += self._find_blocks()
        others = self._list_others() if weights else {}
        self.report = Quantization(tuple(weights), others, config.method, tuple(self._notes(weights)))

    def kind_of(self, path: str) -> str:
        """What a tensor beside the numbers of weights is; nothing for any other."""
        known = self.parts.get(path)
        return self.report.others.get(path, "") if known is None else known[1].kind

    def is_packed(self, path: str) -> bool:
        """Whether each element of a tensor holds several numbers or zero points, or a part of one."""
        weight, part = self.parts.get(path, (self.stored.get(path), None))
        word = part is None or (part is ZEROS and self._tensors["." + path[len(self._prefix) :]].dtype.name == "int32")
        return weight is not None and weight.packed and word

    def is_code(self, path: str) -> bool:
        """Whether the elements of a tensor beside the numbers are indices, zero points, a mask or the like."""
        return path in self.parts and self._tensors["." + path[len(self._prefix) :]].dtype.kind != "float"

    def around(self, path: str) -> tuple[str, ...]:
        """The name of the weight that a tensor belongs to, if there is one."""
        weight = self.stored.get(path) or self.parts.get(path, (None,))[0]
        return (path,) if weight is None else (path, weight.name)

    def _layers(self) -> Iterable[tuple[Scheme, Layer]]:
        stems: dict[str, set[int]] = {}
        for path in self._tensors:
            for mark in _marks_in(path[path.rindex(".") :]):
                if path.endswith(mark):
                    stems.setdefault(path.removesuffix(mark), set()).update(_MARKS[mark])
        chosen: dict[str, tuple[Scheme, Layer]] = {}
        taken: set[str] = set()
        # where two schemes could have the same tensors, the first one
        for number, stem in sorted(((n, stem) for stem, some in stems.items() for n in some), key=itemgetter(0)):
            if stem not in chosen:
                scheme = SCHEMES[number]
                layer = self._layer(stem, scheme)
                if layer is not None and taken.isdisjoint(layer.paths.values()) and scheme.fits(layer):
                    taken.update(layer.paths.values())
                    chosen[stem] = scheme, layer
        return [chosen[stem] for stem in stems if stem in chosen]

    def _layer(self, stem: str, scheme: Scheme) -> Layer | None:
        paths = {ending: stem + ending for ending in (scheme.stored, *scheme.parts) if stem + ending in self._tensors}
        tensors = {ending: self._tensors[path] for ending, path in paths.items()}
        if scheme.stored not in paths and len(paths) < 2:  # a single tensor may be anything
            return None
        module = (stem if scheme.named or scheme.stored else stem.rpartition(".")[0]).removeprefix(".")
        module = module.removesuffix(".weight")
        bits, group, settings = self.config.of(f"{self._prefix}{module}")
        return Layer(stem, scheme.stored, paths, tensors, bits, group, settings, ask=self._ask)

    def _describe(self, scheme: Scheme, layer: Layer) -> QuantizedWeight:
        numbers = layer.tensors.get(scheme.stored)
        name = ALIKE.get(self.config.method or "", scheme.name) if scheme.parts is CT else scheme.name
        layout = Layout(None, None)
        if numbers is None:
            layer.trouble(scheme.stored, "missing", f"{name}: the numbers of the weight are missing")
        else:
            layout = _lay_out(scheme, layer)
        for ending in scheme.needs:
            if ending not in layer.tensors:
                layer.trouble(ending, "missing", f"{name}: {scheme.parts[ending].kind} are missing")
        parts = {ending: scheme.parts[ending] for ending in layer.paths if ending != scheme.stored}
        shape = layout.shape
        elements = layout.elements if shape is None else math.prod(shape)
        stored = self._outer(layer.paths[scheme.stored]) if numbers is not None else None
        weight = QuantizedWeight(
            name=self._outer(layer.stem + scheme.named),
            scheme=name,
            format=layout.format,
            stored=stored,
            packed=scheme.packed,
            shape=shape,
            elements=elements or 0,
            bits=layout.bits,
            group=layout.group,
            parts={self._outer(layer.paths[ending]): part.kind for ending, part in parts.items()},
            nbytes=sum(tensor.nbytes for tensor in layer.tensors.values()),
            guessed=layout.guessed,
            troubles=tuple(replace(trouble, name=self._outer(trouble.name)) for trouble in layer.troubles),
        )
        if stored is not None:
            self.stored[stored] = weight
        self.parts |= {self._outer(layer.paths[ending]): (weight, part) for ending, part in parts.items()}
        self.layers[weight.name], self._schemes[weight.name] = layer, scheme
        self._layouts[weight.name] = layout
        return weight

    def decode(self, weight: QuantizedWeight) -> LazyTensor:
        """The numbers of a weight as its library computes them, when they are read.

        Raises:
            UnsupportedError: they cannot be computed; the message says why.
        """
        if (blocks := find_blocks(self._tensors.get("." + weight.name[len(self._prefix) :]))) is not None:
            return blocks.dequantized()
        scheme, layer, layout = self._schemes[weight.name], self.layers[weight.name], self._layouts[weight.name]
        if scheme.decode is None:
            raise UnsupportedError(f"statedict does not decode {weight.kind}")
        if weight.troubles:
            raise UnsupportedError(f"{weight.troubles[0].name} {weight.troubles[0].what}")
        if layout.shape is None or not layout.bits or 0 in layout.shape:
            raise UnsupportedError("its shape or its bits are not known")
        try:
            found = scheme.decode(layer, layout)
        except (ValueError, ZeroDivisionError) as error:  # of shapes that do not fit one another
            raise UnsupportedError(f"its tensors do not fit one another: {error}") from error
        if found.shape != layout.shape:
            raise UnsupportedError(f"its numbers are {found.shape}, expected {layout.shape}")
        return found

    def _outer(self, path: str) -> str:
        """A path as it was given, below what it stands in."""
        return self._prefix + path[1:]

    def _find_alone(self, weights: list[QuantizedWeight]) -> None:
        """Add those whose scales are missing: of the dtype and the last key of others."""
        kinds: dict[tuple[str, str, int], Scheme] = {}
        for weight in weights:
            if weight.stored is not None:
                tensor = self._tensors["." + weight.stored[len(self._prefix) :]]
                kinds.setdefault(_look(weight.stored, tensor), self._schemes[weight.name])
        for path, tensor in self._tensors.items():
            scheme, outer = kinds.get(_look(path, tensor)), self._outer(path)
            if scheme is not None and scheme.needs and outer not in self.stored and outer not in self.parts:
                layer = self._layer(path.removesuffix(scheme.stored), scheme)
                if layer is not None and tensor.dtype.name not in _PLAIN:
                    weights.append(self._describe(scheme, layer))

    def _find_blocks(self) -> Iterable[QuantizedWeight]:
        """The weights whose tensors are stored as blocks, as in GGUF: one tensor has numbers and scales."""
        for path, tensor in self._tensors.items():
            if (blocks := find_blocks(tensor)) is not None:
                outer, kind = self._outer(path), blocks.quantization
                bits = int(next(filter(str.isdigit, kind)))
                weight = QuantizedWeight(
                    name=outer,
                    scheme="GGUF",
                    format=kind,
                    stored=outer,
                    packed=False,
                    shape=tuple(tensor.shape),
                    elements=tensor.numel(),
                    bits=bits,
                    group=blocks.group,
                    nbytes=blocks.blocks.nbytes,
                )
                self.stored[outer] = weight
                yield weight

    def _list_others(self) -> dict[str, str]:
        names = {path: _OTHERS.get(path.rpartition(".")[2]) for path in self._tensors}
        outer = {self._outer(path): what for path, what in names.items() if what is not None}
        return {path: what for path, what in outer.items() if path not in self.parts and path not in self.stored}

    def _notes(self, weights: list[QuantizedWeight]) -> Iterable[str]:
        method = self.config.method
        if method is None or method not in METHODS:
            return
        schemes = dict.fromkeys(weight.scheme for weight in weights)
        if not schemes and self._tensors:
            yield f"the configuration says {method}, and no tensor is quantized"
        elif schemes and not any(scheme in METHODS[method] for scheme in schemes):
            yield f"the configuration says {method}, and the tensors are those of {', '.join(schemes)}"


def find(
    tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None = None, path: str = "", ask: bool = False
) -> Found:
    """Find the quantized weights among tensors.

    Args:
        tensors: by their paths.
        config: what the configuration beside them says, as `config.of_document` gives it.
        path: where they stand in a larger tree.
        ask: read tiny tensors, such as those with a shape, from servers too.
    """
    return Found(tensors, Config(config), path and path + ".", ask)


class Decoded(NamedTuple):
    """A quantized weight and its numbers, as its library computes them."""

    weight: QuantizedWeight
    tensor: LazyTensor

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the tensors that hold it."""
        stored = () if self.weight.stored is None else (self.weight.stored,)
        return (*stored, *self.weight.parts)


def decode_weights(found: Found) -> dict[str, Decoded]:
    """The quantized weights whose numbers can be computed, by name; not blocks of GGUF, which are read as floats."""
    decoded = {}
    for weight in found.report.weights:
        if weight.name in found.layers:
            with suppress(UnsupportedError):
                decoded[weight.name] = Decoded(weight, found.decode(weight))
    return decoded


def find_paths(tensors: Mapping[str, LazyTensor]) -> set[str]:
    """The paths of quantized weights and of what belongs to them; not those whose blocks are read as floats (GGUF)."""
    found = find(tensors)
    numbers = {path for path in found.stored if find_blocks(tensors[path]) is None}
    return {*found.parts, *found.report.others, *numbers}


def _lay_out(scheme: Scheme, layer: Layer) -> Layout:
    """The layout of a weight; without a shape, and noted, where its tensors have too few dimensions."""
    numbers = layer.numbers
    if 0 in numbers.shape or not numbers.ndim:
        return Layout(tuple(numbers.shape), layer.bits, elements=numbers.numel())
    try:
        return scheme.layout(layer)
    except (ValueError, ZeroDivisionError):  # it unpacks the dimensions that the scheme has
        shape = "×".join(map(str, numbers.shape))
        layer.trouble(scheme.stored, "shape", f"is {shape}, which {scheme.name} does not store")
        return Layout(None, layer.bits, elements=numbers.numel())


@lru_cache(1024)
def _marks_in(key: str) -> tuple[str, ...]:
    """The marks that a path may have whose last key, with its dot, is this one."""
    return tuple(mark for mark in _MARKS if key.endswith(mark) or mark.endswith(key))


def _look(path: str, tensor: LazyTensor) -> tuple[str, str, int]:
    return tensor.dtype.name, path.rpartition(".")[2], tensor.ndim


_PLAIN = ("float64", "float32", "float16", "bfloat16")  # of weights that are not quantized


def _choose_pairs(layers: list[Layer], sizes: set[int]) -> dict[Fraction, tuple[int, int]]:
    """For each product of bits and group of MLX the pair that fits most sizes of the model; its defaults at a tie."""
    votes: dict[Fraction, Counter[tuple[int, int]]] = {}
    known = sizes | {layer.numbers.shape[0] for layer in layers if layer.numbers.ndim}
    for layer in layers:
        scales, words = layer.shape(".scales"), layer.numbers.shape[-1] if layer.numbers.ndim else 0
        product = ratio(words * 32, scales[-1] if scales else None)
        for bits, group in pairs_for(product):
            count = votes.setdefault(product or Fraction(), Counter())
            count[bits, group] += words * 32 // bits in known
    return {product: max(count, key=count.__getitem__) for product, count in votes.items()}
