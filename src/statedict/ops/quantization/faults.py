"""What is wrong with the values of a quantized weight: scales, indices and zero points that its scheme never makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from statedict.ops.quantization.find import Found
from statedict.ops.quantization.layer import Layer
from statedict.ops.quantization.schemes import INDEX, ZEROS, Part
from statedict.reports.quantization import QuantizedWeight, Trouble
from statedict.reports.stats import TensorStats

_BOTH_SIGNS = 0.1  # of the scales negative: auto-round's symmetric ones, where no configuration says who made them


def list_faults(found: Found, figures: Mapping[str, TensorStats]) -> Iterator[Trouble]:
    """What is wrong with quantized weights, and with the figures of their tensors.

    Args:
        found: the weights.
        figures: by path, of those that are to be looked at.
    """
    for weight in found.report.weights:
        if weight.stored in figures or any(path in figures for path in weight.parts):
            yield from weight.troubles
    for path, (weight, part) in found.parts.items():
        one = figures.get(path)
        if one is not None and one.computed and one.tied is None:
            for kind, what in _odd(found, weight, part, one):
                yield Trouble(path, kind, f"{weight.scheme}: {what}")


def _odd(found: Found, weight: QuantizedWeight, part: Part, one: TensorStats) -> Iterator[tuple[str, str]]:
    def some(count: int, what: str) -> str:
        return f"{count:,} of {one.elements:,} {part.kind} are {what}"

    layer = found.layers[weight.name]
    if one.nan:
        yield "nan", some(one.nan, "NaN")
    if one.inf:
        yield "inf", some(one.inf, "infinite")
    if part.kind == "scales" and one.dtype == "uint8":
        yield from _odd_codes(weight, one)
    elif part is INDEX:
        yield from _odd_index(layer, one)
    elif part is ZEROS:
        yield from _odd_zero_points(weight, one)
    elif one.finite:
        every = one.zeros == one.elements and part.kind in ("scales", "global scale")
        if one.zeros and (every or not part.zero):
            yield "zeros", f"all {one.elements:,} {part.kind} are 0" if every else some(one.zeros, "0")
        negative = _count_negative(one)
        if negative and not part.negative and not _is_signed(found, weight, negative / one.elements):
            yield "negative", some(negative, "negative, as it never makes them")


def _count_negative(one: TensorStats) -> int:
    return sum(one.histogram.negative) if one.min is not None and one.min < 0 else 0


def _is_signed(found: Found, weight: QuantizedWeight, share: float) -> bool:
    """Whether scales may be negative: those of auto-round are, where it quantizes symmetrically."""
    if weight.scheme not in ("GPTQ", "AWQ") or found.config.values.get("sym") is False:
        return False
    return found.config.by_auto_round or (not found.config.values and share > _BOTH_SIGNS)


def _odd_codes(weight: QuantizedWeight, one: TensorStats) -> Iterator[tuple[str, str]]:
    """Scales in bytes: powers of two, of which 255 is NaN, or float8_e4m3 without a sign."""
    if weight.format.startswith("mx") or weight.scheme == "MXFP4":
        if one.max == 255:
            yield "nan", "scales of 255, which stands for NaN"
    elif weight.format == "nvfp4" and one.max is not None and one.max >= 127:
        yield "nan", "scales of 127 or more, which stand for NaN or negative numbers"


def _odd_index(layer: Layer, one: TensorStats) -> Iterator[tuple[str, str]]:
    scales = layer.first(".scales", "_scale", ".s")
    if scales is None or one.min is None or one.max is None or scales.ndim < 2:
        return
    groups = scales.shape[-1] if "_scale" in layer.tensors else scales.shape[0]
    unset = one.min == one.max == -1  # compressed-tensors begins with it
    if not unset and (one.min < 0 or one.max >= groups):
        yield "range", f"indices from {one.min:g} to {one.max:g}, and there are {groups:,} groups"


def _odd_zero_points(weight: QuantizedWeight, one: TensorStats) -> Iterator[tuple[str, str]]:
    if one.dtype != "int8" or weight.bits is None or one.min is None or one.max is None or weight.bits > 8:
        return
    least, most = -(1 << int(weight.bits) - 1), (1 << int(weight.bits) - 1) - 1
    if one.min < least or one.max > most:
        yield "range", f"zero points from {one.min:g} to {one.max:g}; {weight.bits:g} bits have {least} to {most}"
