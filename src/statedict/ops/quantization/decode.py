"""The numbers of a quantized weight, bit by bit as its library computes them: a function for each way to store one.

Each makes a tensor in the dtype in which its library ends, computed when it is read. Sums and products are rounded
where the library rounds them: to the dtype of the scales if it computes in that, at the end if it computes in float32.

Sources: `QuantLinear` of auto-round 0.15 (GPTQ), `dequantize_gemm` of AutoAWQ 0.2.9, `dequantize_4bit` and
`int8_vectorwise_dequant` of bitsandbytes 0.50, `decompress` of compressed-tensors 0.19, `mlx.core.dequantize` of MLX
0.32, `Fp8Dequantize` and `convert_moe_packed_tensors` of transformers 5.17, `QBitsTensor.dequantize` of Quanto 0.2.7,
`dequantize` of torchao's tensors 0.18.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from statedict.dtypes import BY_NAME, DType
from statedict.errors import UnsupportedError
from statedict.ops.quantization.decode_floats import (
    decode_small_floats,
    multiply,
    need,
    need_floats,
    need_powers,
    round_to,
    scale,
    scale_e2m1,
    spread_blocks,
)
from statedict.ops.quantization.layer import Layer, Layout, ceil
from statedict.ops.quantization.layouts import STATE, parse_state
from statedict.tensor.assembled import map_elements
from statedict.tensor.lazy import LazyTensor
from statedict.tensor.words import spread, turn, unpack

_FLOAT, _BFLOAT, _HALF = (BY_NAME[name] for name in ("float32", "bfloat16", "float16"))
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PER_127 = 7.874015718698502e-3  # as bitsandbytes writes 1 / 127


def decode_gptq(layer: Layer, layout: Layout) -> LazyTensor:
    """Scales × (numbers − zero points), with the zero points of the first version of the format one less."""
    (out, length), bits = _matrix(layout)
    scales, zeros = need_floats(layer, ".scales"), need(layer, ".qzeros", "int32")
    more = 0 if layer.config.get("checkpoint_format") == "gptq_v2" else 1
    index = layer[".g_idx"]
    group, shape = layout.group or length, (length, out)
    by = None if index is None else (0, index)
    numbers = unpack(layer.numbers, bits, 0, length)
    points = spread(unpack(zeros, bits, 1, out), shape, (group, 1), by)
    found = map_elements(
        numbers, scales.dtype, partial(_shift_and_scale, more), points, spread(scales, shape, (group, 1), by)
    )
    return turn(found, 1, 0)


def decode_awq(layer: Layer, layout: Layout) -> LazyTensor:
    """(Numbers − zero points) × scales; eight numbers in a word have an order of their own."""
    (out, length), bits = _matrix(layout)
    scales, zeros = need_floats(layer, ".scales"), need(layer, ".qzeros", "int32")
    if bits != 4 or layout.format:
        raise UnsupportedError(f"AutoAWQ dequantizes 4 bits in its version GEMM, not {bits} {layout.format}".rstrip())
    group, shape = layout.group or length, (length, out)
    numbers = unpack(layer.numbers, bits, 1, out, order=_AWQ_ORDER)
    points = spread(unpack(zeros, bits, 1, out, order=_AWQ_ORDER), shape, (group, 1))
    spread_scales = spread(scales, shape, (group, 1))
    return turn(map_elements(numbers, scales.dtype, partial(_shift_and_scale, 0), points, spread_scales), 1, 0)


def _shift_and_scale(more: int, numbers: Any, points: Any, scales: Any, out: Any) -> None:
    import numpy

    away = numbers.astype(numpy.int16)
    away -= points
    away -= more
    multiply(away.astype(numpy.float32), scales, out)


def decode_bitsandbytes_4(layer: Layer, layout: Layout) -> LazyTensor:
    """Values of a table × the scale of the block; the scales may be quantized themselves, in the same way."""
    state = parse_state(layer.read(STATE + layout.format))
    size, name = state.get("blocksize"), state.get("dtype")
    if type(size) is not int or size <= 0 or name not in ("float32", "float16", "bfloat16"):
        raise UnsupportedError("its quant_state has no size of blocks, or no dtype to dequantize to")
    shape = layout.shape or ()
    count, table = math.prod(shape), _read_table(layer, ".quant_map", 16)
    if layout.format == "fp4":
        table[8] = -0.0  # as the kernels have it; the stored table has 0.0
    scales = need(layer, ".absmax", "float32", "uint8")
    if scales.dtype.name == "uint8":
        scales = _decode_scales(layer, scales, state)
    stored = layer.numbers.contiguous()
    stored = stored.replace(dtype=BY_NAME["uint8"], shape=(stored.nbytes,))
    numbers = unpack(stored, 4, 0, count, high_first=True)
    found = map_elements(numbers, BY_NAME[name], partial(_look_up, table), spread(scales, (count,), (size,)))
    return found.replace(shape=shape)


def _decode_scales(layer: Layer, scales: LazyTensor, state: dict[str, Any]) -> LazyTensor:
    size, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(size) is not int or size <= 0 or not isinstance(offset, int | float) or scales.ndim != 1:
        raise UnsupportedError("its quant_state does not say how the scales are quantized")
    outer = spread(need(layer, ".nested_absmax", "float32"), scales.shape, (size,))
    table = _read_table(layer, ".nested_quant_map", 256)
    return map_elements(scales, _FLOAT, partial(_look_up, table, offset=offset), outer)


def _read_table(layer: Layer, ending: str, count: int) -> Any:
    import numpy

    data = layer.read(ending)
    if data is None or len(data) != 4 * count:
        raise UnsupportedError(f"its table {ending[1:]} does not have {count} values")
    return numpy.frombuffer(data, "<f4").copy()


def _look_up(table: Any, numbers: Any, scales: Any, out: Any, offset: float | None = None) -> None:
    import numpy

    found = table[numbers]
    with numpy.errstate(all="ignore"):
        found *= scales
        if offset is not None:
            found += numpy.float32(offset)
        out[...] = found


def decode_bitsandbytes_8(layer: Layer, layout: Layout) -> LazyTensor:
    """Numbers × the scale of the row × 1/127, in float32."""
    form = layer.read(".weight_format")
    if form not in (None, b"\0"):
        raise UnsupportedError("its numbers are in the order of a kernel, and not in rows")
    shape = layer.numbers.shape
    scales = spread(_column(need_floats(layer, ".SCB"), 2), shape, (1, shape[1]))
    return map_elements(layer.numbers, _FLOAT, _scale_by_127, scales)


def _scale_by_127(numbers: Any, scales: Any, out: Any) -> None:
    import numpy

    with numpy.errstate(all="ignore"):
        numpy.multiply(numbers, scales, out=out, dtype=numpy.float32)
        out *= numpy.float32(_PER_127)


def decode_packed(layer: Layer, layout: Layout) -> LazyTensor:
    """compressed-tensors' words of whole numbers, and its bytes of smaller floats."""
    if layer.numbers.dtype.itemsize == 1:
        return decode_small_floats(layer, layout)
    shape, bits = layout.shape or (), int(layout.bits or 0)
    words = layer.numbers.shape[-1]
    numbers = unpack(layer.numbers, bits, len(shape) - 1, shape[-1], gaps=words != ceil(shape[-1] * bits, 32))
    half = 1 << bits - 1
    scales, zeros = need_floats(layer, "_scale"), layer["_zero_point"]
    if zeros is not None and zeros.dtype.name == "int32" and len(shape) == 2:
        rows = shape[0]
        zeros = unpack(zeros, bits, 0, rows, gaps=zeros.shape[0] != ceil(rows * bits, 32))
        zeros = map_elements(zeros, BY_NAME["int8"], partial(_subtract, half))
    return _scale_blocks(map_elements(numbers, BY_NAME["int8"], partial(_subtract, half)), layer, layout, scales, zeros)


def _subtract(half: int, numbers: Any, out: Any) -> None:
    import numpy

    numpy.subtract(numbers, numpy.uint8(half), out=out.view(numpy.uint8))


def decode_as_stored(layer: Layer, layout: Layout) -> LazyTensor:
    """Numbers of 8 bits × scales of all, of rows, or of blocks, less zero points if there are any."""
    mx = layout.format == "mxfp8"
    scales = need_powers(layer, "_scale", _BFLOAT) if mx else need_floats(layer, "_scale")
    return _scale_blocks(layer.numbers, layer, layout, scales, layer["_zero_point"])


def _scale_blocks(
    numbers: LazyTensor, layer: Layer, layout: Layout, scales: LazyTensor, zeros: LazyTensor | None
) -> LazyTensor:
    """As `_dequantize` of compressed-tensors: each step is rounded to the dtype of the scales."""
    shape = tuple(numbers.shape)
    index = layer["_g_idx"]
    by = None if index is None or _is_unset(index) else (len(shape) - 1, index)
    parts = [spread_blocks(part, shape, layout.group, by) for part in (scales, zeros) if part is not None]
    return map_elements(numbers, scales.dtype, _subtract_and_scale, *parts)


def _is_unset(index: LazyTensor) -> bool:
    return bool(index.numel()) and int(index[:1].item()) == -1


def _subtract_and_scale(numbers: Any, scales: Any, *rest: Any, out: Any) -> None:
    import numpy

    values = numbers.astype(numpy.float32)
    with numpy.errstate(all="ignore"):
        for zeros in rest:
            values -= zeros.astype(scales.dtype).astype(numpy.float32)
            values = round_to(values, scales.dtype)
    multiply(values, scales, out)


def decode_mlx(layer: Layer, layout: Layout) -> LazyTensor:
    """Scales × numbers + biases in the dtype of the scales, and the modes that have no biases."""
    shape, bits = layout.shape or (), int(layout.bits or 0)
    biases = layer.first(".biases", ".qbiases")
    sizes = (*[1] * (len(shape) - 1), layout.group or shape[-1])
    if layout.format == "mxfp8":
        stored = layer.numbers.contiguous().replace(dtype=BY_NAME["float8_e4m3fn"], shape=shape)
        return map_elements(stored, _BFLOAT, scale, spread(need_powers(layer, ".scales", _BFLOAT), shape, sizes))
    numbers = unpack(layer.numbers, bits, len(shape) - 1, shape[-1])
    if layout.format == "affine":
        if biases is None:
            raise UnsupportedError("its biases are missing")
        scales = need_floats(layer, ".scales")
        parts = [spread(part, shape, sizes) for part in (scales, biases)]
        return map_elements(numbers, scales.dtype, _scale_and_add, *parts)
    if bits != 4:
        raise UnsupportedError(f"MLX has no {layout.format} of {bits} bits")
    if layout.format == "mxfp4":
        values = need_powers(layer, ".scales", _BFLOAT)
    else:
        values = map_elements(need(layer, ".scales", "uint8"), _BFLOAT, _as_float8)
    return map_elements(numbers, _BFLOAT, scale_e2m1, spread(values, shape, sizes))


def _as_float8(codes: Any, out: Any) -> None:
    out[...] = codes.view(BY_NAME["float8_e4m3fn"].numpy)


def _scale_and_add(numbers: Any, scales: Any, biases: Any, out: Any) -> None:
    import numpy

    with numpy.errstate(all="ignore"):
        values = numbers.astype(numpy.float32)
        values *= scales.astype(numpy.float32)
        values = round_to(values, scales.dtype)
        values += biases.astype(numpy.float32)
        out[...] = values


def decode_quanto(layer: Layer, layout: Layout) -> LazyTensor:
    """Scales × numbers − shifts, in the dtype of the scales; rows of numbers are runs of a row of the weight."""
    shape, bits = layout.shape or (), int(layout.bits or 0)
    stored, scales, shifts = layer.numbers, need_floats(layer, "._scale"), need(layer, "._shift")
    rows, length = stored.shape
    if shifts.dtype is not scales.dtype or scales.shape != (rows * 8 // bits, 1) or scales.shape != shifts.shape:
        raise UnsupportedError("its scales and shifts are not those of runs of its rows")
    # the numbers of the lowest bits come first, then those of the next ones
    numbers = unpack(stored.contiguous().replace(shape=(1, rows * length)), bits, 0, 8 // bits)
    numbers = numbers.replace(shape=(rows * 8 // bits, length))
    parts = [spread(part, numbers.shape, (1, length)) for part in (scales, shifts)]
    return map_elements(numbers, scales.dtype, _scale_less, *parts).replace(shape=shape)


def _scale_less(numbers: Any, scales: Any, shifts: Any, out: Any) -> None:
    import numpy

    with numpy.errstate(all="ignore"):
        values = round_to(numbers.astype(numpy.float32) * scales.astype(numpy.float32), scales.dtype)
        values -= shifts.astype(numpy.float32)
        out[...] = values


def decode_torchao(layer: Layer, layout: Layout) -> LazyTensor:
    """(Numbers − zero points) × scales; it ends in the dtype that the tensor stands for."""
    scales, numbers = layer.first(".scale", "._weight_scale"), layer.numbers
    zeros, name = layer.first(".zero_point", "._weight_zero_point"), layer.config.get("dtype")
    if layout.bits != 8 or scales is None:
        raise UnsupportedError("torchao packs its 4 bits for its kernels, and does not dequantize them itself")
    kind = BY_NAME.get(str(name), scales.dtype)
    if kind not in (_FLOAT, _BFLOAT, _HALF):
        raise UnsupportedError(f"its dtype is {kind}")
    shape = tuple(numbers.shape)
    parts = [spread_blocks(part, shape, None) for part in (scales, zeros) if part is not None]
    return map_elements(numbers, kind, partial(_shift_in, kind), *parts)


def _shift_in(kind: DType, numbers: Any, scales: Any, *rest: Any, out: Any) -> None:
    import numpy

    values = numbers.astype(numpy.float32)
    for zeros in rest:
        values = round_to(values - zeros.astype(kind.numpy).astype(numpy.float32), kind.numpy)
    with numpy.errstate(all="ignore"):
        out[...] = round_to(values * scales.astype(numpy.float32), scales.dtype)


def _column(part: LazyTensor, ndim: int) -> LazyTensor:
    return part.contiguous().replace(shape=(part.numel(), *[1] * (ndim - 1)))


def _matrix(layout: Layout) -> tuple[tuple[int, int], int]:
    shape = layout.shape or ()
    if len(shape) != 2 or layout.bits is None:
        raise UnsupportedError("its shape or its bits are not known")
    return (shape[0], shape[1]), int(layout.bits)
