"""The numbers of weights of small floats in blocks, and what all decoders share; see decode.py."""

from __future__ import annotations

from functools import partial
from typing import Any

from statedict.dtypes import BY_NAME, DType
from statedict.errors import UnsupportedError
from statedict.ops.quantization.layer import Layer, Layout, ceil
from statedict.tensor.assembled import map_elements
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.words import spread, turn, unpack

_FLOAT, _BFLOAT = BY_NAME["float32"], BY_NAME["bfloat16"]
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def decode_small_floats(layer: Layer, layout: Layout) -> LazyTensor:
    """Floats of 4 bits in bytes, the first in the lower half: nvfp4 and mxfp4."""
    if layout.format not in ("nvfp4", "mxfp4"):
        raise UnsupportedError(f"statedict does not decode {layout.format or 'floats of 4 bits of this layout'}")
    shape = layout.shape or ()
    numbers = unpack(layer.numbers, 4, len(shape) - 1, shape[-1])
    if layout.format == "mxfp4":
        blocks = spread_blocks(need_powers(layer, "_scale", _BFLOAT), shape, layout.group)
        return map_elements(numbers, _BFLOAT, scale_e2m1, blocks)
    scales = need(layer, "_scale", "float8_e4m3fn")
    outer, inverse = layer["_global_scale"], True
    if outer is None:
        outer, inverse = need(layer, "_scale_2"), False
    if outer.numel() != 1 or outer.dtype is not _FLOAT:
        raise UnsupportedError("its global scale is not one number of float32")
    outer = outer.contiguous().replace(shape=(1,) * scales.ndim)
    combined = map_elements(
        scales, _FLOAT, partial(_combine_scales, inverse), spread(outer, scales.shape, scales.shape)
    )
    return map_elements(numbers, _BFLOAT, scale_e2m1, spread_blocks(combined, shape, layout.group))


def _combine_scales(inverse: bool, scales: Any, outer: Any, out: Any) -> None:
    import numpy

    values = scales.astype(numpy.float32)
    with numpy.errstate(all="ignore"):
        (numpy.divide if inverse else numpy.multiply)(values, outer, out=out)


def scale_e2m1(numbers: Any, scales: Any, out: Any) -> None:
    """The floats of 4 bits × scales."""
    multiply(_table()[numbers], scales, out)


def _table() -> Any:
    import numpy

    return numpy.array(_E2M1, numpy.float32)


def decode_mxfp4(layer: Layer, layout: Layout) -> LazyTensor:
    """Blocks of 32 numbers with a power of two each; Hugging Face exchanges the last two dimensions."""
    stored = layer.numbers.contiguous()
    *rest, out, blocks, size = (1, *stored.shape)[-max(stored.ndim, 4) :]
    scales = need_powers(layer, layer.stored.replace("blocks", "scales"), _FLOAT)
    shape = (*rest, out, blocks * 32)
    numbers = unpack(stored.replace(shape=(*rest, out, blocks * size)), 4, len(shape) - 1, blocks * 32)
    powers = spread(scales.replace(shape=(*rest, out, blocks)), shape, (*[1] * (len(shape) - 1), 32))
    found = map_elements(numbers, _BFLOAT, scale_e2m1, powers)
    if layer.stored == "_blocks" and stored.ndim > 3:
        found = turn(found, *range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    return found.replace(shape=layout.shape)


def power_of_two(exponents: Any, out: Any) -> None:
    """The scales that exponents in bytes stand for."""
    import numpy

    with numpy.errstate(all="ignore"):
        out[...] = numpy.ldexp(numpy.float32(1), exponents.view(numpy.uint8).astype(numpy.int32) - 127)


def decode_float8(layer: Layer, layout: Layout) -> LazyTensor:
    """Numbers × the scale of their block, in float32."""
    ending = next(one for one in ("_scale_inv", ".scale", ".scale_weight") if layer[one] is not None)
    scales = need(layer, ending)
    if scales.dtype.itemsize == 1:
        scales = need_powers(layer, ending, _FLOAT)
    shape, block = tuple(layer.numbers.shape), layer.config.get("weight_block_size")
    sizes = tuple(block) if ending == "_scale_inv" and isinstance(block, list) and scales.ndim > 1 else None
    return map_elements(layer.numbers, _FLOAT, scale, spread_blocks(scales, shape, None, sizes=sizes))


def scale(numbers: Any, scales: Any, out: Any) -> None:
    """Numbers × scales."""
    import numpy

    multiply(numbers.astype(numpy.float32), scales, out)


def multiply(values: Any, scales: Any, out: Any) -> None:
    """Products in float32, rounded to the dtype of `out`."""
    import numpy

    with numpy.errstate(all="ignore"):
        values *= scales.astype(numpy.float32)
        out[...] = values


def round_to(values: Any, kind: Any) -> Any:
    """Float32 rounded to a dtype, as float32."""
    import numpy

    return values if kind == numpy.float32 else values.astype(kind).astype(numpy.float32)


def spread_blocks(
    part: LazyTensor,
    shape: tuple[int, ...],
    group: int | None,
    by: tuple[int, LazyTensor] | None = None,
    sizes: tuple[int, ...] | None = None,
) -> LazyTensor:
    """Scales of all, of rows, or of blocks, each as often as it has numbers."""
    part = part.contiguous()
    if part.numel() == 1:
        part = part.replace(shape=(1,) * len(shape))
    elif part.ndim == 1 and len(shape) == 2:
        part = part.replace(shape=(*part.shape, 1) if part.shape[0] == shape[0] else (1, *part.shape))
    if part.ndim != len(shape) or any(n > size for n, size in zip(part.shape, shape, strict=True)):
        raise UnsupportedError(f"its scales are {part.shape}, which are not those of blocks of {shape}")
    known = (*[1] * (len(shape) - len(sizes)), *sizes) if sizes else tuple(map(_block_size, shape, part.shape))
    if group is not None and part.shape[-1] > 1:
        known = (*known[:-1], group)
    return spread(part, shape, known, by)


def _block_size(length: int, parts: int) -> int:
    """The size of blocks that cut a length into parts: a power of two if one does, as all libraries have them."""
    least = ceil(length, parts)
    power = 1 << (least - 1).bit_length()
    return power if parts > 1 and ceil(length, power) == parts else least


def need(layer: Layer, ending: str, *dtypes: str) -> LazyTensor:
    """A tensor that must be there, in one of some dtypes if any are named."""
    tensor = layer[ending]
    if tensor is None:
        raise UnsupportedError(f"{layer.stem.lstrip('.')}{ending} is missing")
    if dtypes and tensor.dtype.name not in dtypes:
        raise UnsupportedError(f"{layer.stem.lstrip('.')}{ending} is {tensor.dtype}, expected {' or '.join(dtypes)}")
    return tensor


def need_floats(layer: Layer, ending: str) -> LazyTensor:
    """A tensor that must be there, in a dtype to compute in."""
    return need(layer, ending, "float32", "float16", "bfloat16")


def need_powers(layer: Layer, ending: str, kind: DType) -> LazyTensor:
    """Scales that stand as exponents in bytes."""
    return map_elements(need(layer, ending, "uint8", "float8_e8m0fnu"), kind, power_of_two)
