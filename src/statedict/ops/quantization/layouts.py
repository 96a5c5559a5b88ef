"""The shape of a quantized weight from the tensors that hold it: a function for each way to store one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from statedict.ops.quantization.layer import Layer, Layout, blocks_fit, ceil, format_shape, ratio


def lay_out_gptq(layer: Layer) -> Layout:
    """Words along the input, of which g_idx has the length."""
    rows, out = layer.numbers.shape
    scales, zeros, index = layer.shape(".scales", 2), layer.shape(".qzeros", 2), layer.shape(".g_idx", 1)
    groups = scales[0] if scales else zeros[0] if zeros else None
    votes = [ratio(rows * 32, index[0] if index else None), ratio(zeros[1] * 32 if zeros else None, out)]
    if not any(votes) and groups and layer.group and layer.group > 0:
        votes = [ratio(rows * 32, groups * layer.group)]
    found = layer.vote(*votes)
    bits = found or 4
    length = rows * 32 // bits
    size, count = layer.count_groups(length, groups)
    why = _describe(bits, out, length, size)
    layer.expect(".scales", (count, out), why=why)
    layer.expect(".qzeros", (count, ceil(out * bits, 32)), why=why)
    layer.expect(".g_idx", (length,), why=why)
    return Layout((out, length), bits, size, guessed=found is None)


def lay_out_awq(layer: Layer) -> Layout:
    """Words along the output; along the input in the version GEMV."""
    length, words = layer.numbers.shape
    scales, zeros = layer.shape(".scales", 2), layer.shape(".qzeros", 2)
    if _is_gemv(layer):
        bits, size = layer.bits or 4, layer.group
        return Layout((length, words * 32 // bits), bits, size, "GEMV", guessed=layer.bits is None)
    bits = layer.vote(ratio(words * 32, scales[1] if scales else None), 4) or 4  # the only ones of most loaders
    out = words * 32 // bits
    size, count = layer.count_groups(length, scales[0] if scales else zeros[0] if zeros else None)
    why = _describe(bits, out, length, size)
    layer.expect(".scales", (count, out), why=why)
    layer.expect(".qzeros", (count, words), why=why)
    return Layout((out, length), bits, size, guessed=layer.bits is None and scales is None)


def _describe(bits: int, out: int, length: int, group: int | None) -> str:
    return f"{bits} bits of {out}×{length}" + f" in groups of {group}" * (group is not None)


def _is_gemv(layer: Layer) -> bool:
    scales, zeros, (rows, words) = layer.shape(".scales", 2), layer.shape(".qzeros", 2), layer.numbers.shape
    alike = scales and zeros and rows == scales[0] == zeros[0] and words not in (scales[1], zeros[1])
    return bool(alike) or str(layer.config.get("version", "")).lower().startswith("gemv")


def is_awq(layer: Layer) -> bool:
    """Whether words run along the output, as GPTQ's never do; what most of the tensors and the configuration say."""
    if layer[".qweight"] is None or layer[".g_idx"] is not None or layer.numbers.ndim != 2:
        return False
    words = layer.numbers.shape[1]
    scales, zeros, method = layer.shape(".scales", 2), layer.shape(".qzeros", 2), layer.config.get("quant_method")
    signs = [zeros[1] == words] if zeros else []
    signs += [scales[1] > words] if scales else []
    signs += [method == "awq"] if method in ("awq", "gptq") else []
    return _is_gemv(layer) or 2 * sum(signs) > len(signs)


def is_gptq(layer: Layer) -> bool:
    """Whether words are of 32 bits, or missing."""
    return layer[".qweight"] is None or (layer.numbers.ndim == 2 and layer.numbers.dtype.name == "int32")


def lay_out_marlin(layer: Layer) -> Layout:
    """GPTQ's numbers in the order of the Marlin kernels, in tiles of 16 rows."""
    rows, _ = layer.numbers.shape
    scales = layer.shape(".s", 2) or (1, 0)
    bits = layer.vote(ratio(math.prod(layer.numbers.shape) * 32, rows * 16 * scales[1]))
    return Layout((scales[1], rows * 16), bits, layer.count_groups(rows * 16, scales[0])[0], "marlin")


def lay_out_bitsandbytes(layer: Layer) -> Layout:
    """A row of all numbers; the shape stands in JSON beside it."""
    kind = next((kind for kind in ("nf4", "fp4") if layer[STATE + kind] is not None), "")
    most = layer.numbers.nbytes * 2
    data = layer.read(STATE + kind)
    state = parse_state(data)
    shape = state.get("shape")
    if not isinstance(shape, list) or not shape or not all(type(size) is int and size > 0 for size in shape):
        if data is not None:
            layer.trouble(STATE + kind, "shape", "is not the JSON of a state with the weight's shape")
        return Layout(None, 4, None, kind, most)
    size, inner = state.get("blocksize"), state.get("nested_blocksize")
    count = math.prod(shape)
    if not count <= most <= count + 2 * layer.numbers.dtype.itemsize:
        layer.trouble("", "shape", f"has {most:,} numbers of 4 bits, and {STATE.strip('.')} says {shape}")
    if type(size) is int and size > 0:
        blocks = ceil(count, size)
        layer.expect(".absmax", (blocks,), why=f"{count:,} numbers in blocks of {size}")
        if type(inner) is int and inner > 0:
            layer.expect(".nested_absmax", (ceil(blocks, inner),), why=f"{blocks:,} scales in blocks of {inner}")
    layer.expect(".quant_map", (16,), why="4 bits")
    return Layout(tuple(shape), 4, size if type(size) is int else None, kind)


STATE = ".quant_state.bitsandbytes__"


def parse_state(data: bytes | None) -> dict[str, Any]:
    """The JSON beside a weight of bitsandbytes; empty if it is none."""
    try:
        found = json.loads(data or b"")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def lay_out_as_stored(layer: Layer) -> Layout:
    """Numbers of 8 bits each, with scales of all, of rows, or of blocks."""
    shape = tuple(layer.numbers.shape)
    bits = layer.bits if layer.bits is not None and layer.bits <= 8 else 8
    group = None
    block = layer.config.get("weight_block_size")
    for ending in ("_scale", "_scale_inv", ".SCB", ".scale", ".scale_weight"):
        scale = layer[ending]
        if scale is None:
            continue
        if ending == "_scale_inv" and _is_pair(block) and scale.ndim == len(shape) > 1:
            high, wide = block or (1, 1)
            counts = ceil(shape[-2], high), ceil(shape[-1], wide)
            layer.expect(ending, (*shape[:-2], *counts), why=f"{format_shape(shape)} in blocks of {high}×{wide}")
        elif not blocks_fit(shape, tuple(scale.shape)):
            layer.trouble(
                ending, "shape", f"is {format_shape(scale.shape)}, which cannot be the scales of {format_shape(shape)}"
            )
        elif len(shape) > 1 and scale.shape[:-1] == shape[:-1] and 1 < scale.shape[-1] < shape[-1]:
            group = ceil(shape[-1], scale.shape[-1])
    kind = ""
    if layer["_scale"] is not None:
        number = "float" if layer.numbers.dtype.kind == "float" else "int"
        kind = "mxfp8" if layer["_scale"].dtype.name in _EXPONENTS else f"{number}-quantized"
    return Layout(shape, bits, group, kind)


_EXPONENTS = ("uint8", "float8_e8m0fnu")


def _is_pair(block: Any) -> bool:
    return isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)


def lay_out_packed(layer: Layer) -> Layout:
    """Words of int32 in the order of rows, as compressed-tensors packs them; bytes of smaller floats."""
    if layer.numbers.dtype.itemsize == 1:
        return lay_out_bytes(layer)
    *rest, words = layer.numbers.shape
    scale, known = layer.shape("_scale"), layer.numbers_in("_shape")
    group = layer.group if layer.group is not None and layer.group > 0 else None
    if known is not None and len(known) == len(rest) + 1 and known[-1] > 0:
        length, fitting = known[-1], _bits_in(known[-1], words)
        if known[:-1] != tuple(rest) or not fitting:
            what = f"is {format_shape((*rest, words))}, and weight_shape says {format_shape(known)}"
            layer.trouble(layer.stored, "shape", what)
        bits = layer.bits if layer.bits in fitting or not fitting else layer.vote(fitting[0])
    elif scale and group:
        length = scale[-1] * group
        bits = layer.bits or next(iter(_bits_in(length, words)), None)
    else:
        bits, length = layer.bits, words * 32 // (layer.bits or 4)
    by_group = scale is not None and len(scale) == len(rest) + 1
    size, count = layer.count_groups(length, scale[-1] if scale and by_group else None)
    if scale and by_group and scale[-1] not in (1, count):
        what = f"is {format_shape(scale)}, and {length} numbers have {count} groups of {size}"
        layer.trouble("_scale", "shape", what)
    elif scale and not blocks_fit((*rest, length), scale):
        what = f"is {format_shape(scale)}, which cannot be the scales of {format_shape((*rest, length))}"
        layer.trouble("_scale", "shape", what)
    return Layout((*rest, length), bits or 4, size, "pack-quantized", guessed=bits is None)


def lay_out_marlin_24(layer: Layer) -> Layout:
    """Half of the numbers, two of every four in a row, in the order of the Marlin kernels, in tiles of 16 rows."""
    (rows, words), scales = layer.numbers.shape, layer.shape(".scale_packed", 2)
    length, bits = rows * 32, layer.vote(ratio(words * 2, scales[1] if scales else None))
    out = words * 2 // (bits or 4)
    size, count = layer.count_groups(length, scales[0] if scales else None)
    layer.expect(".scale_packed", (count, out), why=_describe(bits or 4, out, length, size))
    layer.expect(".meta", (rows, out * 2), why=f"two of four numbers of {out}×{length}")
    return Layout((out, length), bits or 4, size, "marlin-24", guessed=bits is None)


def lay_out_bitmask(layer: Layer) -> Layout:
    """The numbers that are not 0, and a bit for each number of the weight."""
    mask, shape = layer.shape(".bitmask", 2), layer.numbers_in(".shape")
    bits = layer.numbers.dtype.bits
    if shape is None or len(shape) != 2:
        return Layout(mask and (mask[0], mask[1] * 8), bits, None, "sparse-bitmask", elements=layer.numbers.numel())
    layer.expect(".bitmask", (shape[0], ceil(shape[1], 8)), why=f"a bit for each number of {format_shape(shape)}")
    layer.expect(".row_offsets", shape[:1], why=f"{shape[0]} rows")
    return Layout(shape, bits, None, "sparse-bitmask")


def is_bitmask(layer: Layer) -> bool:
    """Whether numbers have a mask in bytes."""
    mask = layer[".bitmask"]
    return layer.tensors.get(layer.stored) is not None and mask is not None and mask.dtype.name == "uint8"


def _bits_in(length: int, words: int) -> list[int]:
    """The bits with which numbers fill so many words: without gaps, or as older versions with a gap in each."""
    choice = (4, 8, 3, 2, 6, 5, 7, 1)
    dense = [bits for bits in choice if ceil(length * bits, 32) == words]
    return dense or [bits for bits in choice if ceil(length, 32 // bits) == words]


# bytes of numbers for each scale → bits, numbers that share a scale, format
_BYTES = {8: (4, 16, "nvfp4"), 16: (4, 32, "mxfp4"), 24: (6, 32, "mxfp6"), 32: (8, 32, "mxfp8")}


def lay_out_bytes(layer: Layer) -> Layout:
    """Floats of 4 or 6 bits in bytes, with a scale for every 16 or 32 in a row."""
    *rest, size = layer.numbers.shape
    ending = next((one for one in ("_scale", ".scales") if layer[one] is not None), "_scale")
    scale = layer.shape(ending)
    groups = scale[-1] if scale else 1
    row = _BYTES.get(size // groups if size % groups == 0 else 0)
    if row is None and scale and math.prod(scale) <= max(rest, default=1):  # for all, or for a row
        bits = layer.bits or 4
        return Layout((*rest, size * 8 // bits), bits, None, guessed=layer.bits is None)
    bits, group, kind = row or (4, 16, "nvfp4")
    if row is None and scale:
        what = f"expected one for every 16 or 32 of the {size * 2} numbers in a row"
        layer.trouble(ending, "shape", f"is {format_shape(scale)}, {what}")
    else:
        layer.expect(ending, (*rest, groups), why=f"{format_shape(rest)} rows")
    return Layout((*rest, size * 8 // bits), bits, group, kind, guessed=row is None)


def lay_out_bitnet(layer: Layer) -> Layout:
    """Four rows of -1, 0 and 1 in one of bytes."""
    *rest, rows, length = layer.numbers.shape
    return Layout((*rest, rows * 4, length), 2)


def is_bitnet(layer: Layer) -> bool:
    """Whether bytes have one scale, as no other scheme has."""
    scale = layer["_scale"]
    small = scale is not None and scale.numel() == 1
    return small and has_dtype("uint8")(layer) and layer.config.get("quant_method") in (None, "bitnet")


def lay_out_mlx(layer: Layer) -> Layout:
    """Words of uint32 along rows; scales of one byte belong to floats."""
    *rest, words = layer.numbers.shape
    scales, biases = layer.shape(".scales"), layer.first(".biases", ".qbiases")
    if scales is None:
        bits = layer.bits or 4
        return Layout((*rest, words * 32 // bits), bits, layer.group, guessed=layer.bits is None)
    product = ratio(words * 32, scales[-1])
    if biases is None and layer[".scales"].dtype.itemsize == 1:  # type: ignore[union-attr]
        kinds = {128: (4, 32, "mxfp4"), 64: (4, 16, "nvfp4"), 256: (8, 32, "mxfp8")}
        bits, group, kind = kinds.get(int(product or 0), (layer.bits or 4, layer.group or 32, "mxfp4"))
        why, guessed = f"{format_shape((*rest, words * 32 // bits))} in groups of {group}", False
    else:
        bits, group, guessed = pair_of(layer, product)
        kind, why = "affine", f"{bits} bits in groups of {group}"
    length = words * 32 // bits
    for ending in (".scales", ".biases", ".qbiases"):
        layer.expect(ending, (*rest, ceil(length, group)), why=why)
    return Layout((*rest, length), bits, group, kind, guessed=guessed)


def pairs_for(product: Fraction | None) -> list[tuple[int, int]]:
    """The bits and groups of MLX whose product is that, its defaults first."""
    return [(bits, group) for group in (64, 32, 128) for bits in (4, 8, 6, 5, 3, 2) if bits * group == product]


def pair_of(layer: Layer, product: Fraction | None) -> tuple[int, int, bool]:
    """Bits and group by the configuration, else by what fits other sizes of the model; whether that is a guess."""
    choice = pairs_for(product)
    if layer.bits is not None and layer.group is not None:
        if not choice or (layer.bits, layer.group) in choice:
            return layer.bits, layer.group, False
        fitting = " or ".join(f"{bits} bits in groups of {group}" for bits, group in choice)
        said = f"{layer.bits} bits in groups of {layer.group}"
        layer.trouble(layer.stored, "shape", f"fits {fitting}, and the configuration says {said}")
    known = layer.pairs.get(product) if product is not None else None
    return *(known or (choice[0] if choice else (4, 64))), len(choice) != 1


def lay_out_mxfp4(layer: Layer) -> Layout:
    """As gpt-oss: 16 bytes for 32 numbers; Hugging Face's modules have the weight transposed."""
    shape = tuple(layer.numbers.shape)
    if len(shape) < 2 or shape[-1] != 16:
        what = f"is {format_shape(shape)}, expected 16 bytes for each block of 32 numbers"
        layer.trouble(layer.stored, "shape", what)
        return Layout(None, 4, 32, elements=math.prod(shape) * 2)
    layer.expect(layer.stored.replace("blocks", "scales"), shape[:-1], why="one for each block of 32")
    *rest, out, blocks, _ = (1, *shape)[-max(len(shape), 3) :]
    swapped = layer.stored == "_blocks" and len(shape) > 3
    return Layout((*rest, *((blocks * 32, out) if swapped else (out, blocks * 32))), 4, 32)


def lay_out_exl2(layer: Layer) -> Layout:
    """Rows of different bits; the length of a row is that of its order."""
    rows, out = layer.numbers.shape
    length = (layer.shape(".q_invperm", 1) or layer.shape(".q_perm", 1) or (0,))[0]
    return Layout((out, length), rows * 32 / length) if length else Layout(None, None)


def lay_out_exl3(layer: Layer) -> Layout:
    """Tiles of 16×16 in words of 16 bits."""
    rows, columns, size = layer.numbers.shape
    layer.expect(".suh", (rows * 16,), why=f"{rows} tiles of 16")
    layer.expect(".svh", (columns * 16,), why=f"{columns} tiles of 16")
    return Layout((columns * 16, rows * 16), size / 16)


def lay_out_aqlm(layer: Layer) -> Layout:
    """Codes for groups of numbers, which stand in tables."""
    out, length, books = layer.numbers.shape
    table = layer.shape(".codebooks", 4)
    if table is None:
        return Layout(None, None)
    bits = books * math.log2(table[1]) / (table[2] * table[3])
    return Layout((out * table[2], length * table[3]), bits, table[3])


def lay_out_eetq(layer: Layer) -> Layout:
    """Bytes in the order of the transposed weight."""
    length, out = layer.numbers.shape
    layer.expect(".weight_scales", (out,), why=f"{out} columns")
    return Layout((out, length), 8)


def lay_out_torchao(layer: Layer) -> Layout:
    """Two numbers of 4 bits share a byte; their scales are [groups, out]."""
    shape, bits = tuple(layer.numbers.shape), 8
    scale = layer.first(".scale", "._weight_scale", ".tensor_impl.scale")
    by_column = scale is not None and scale.ndim == len(shape) == 2 and scale.shape[1] == shape[0] != scale.shape[0]
    if by_column or layer.numbers.dtype.name == "uint8":
        bits = 4
    return Layout((*shape[:-1], shape[-1] * 8 // bits), bits)


def lay_out_quanto(layer: Layer) -> Layout:
    """Rows of 2 or 4 bits in rows of bytes; a scale is for 128 numbers, fewer where a row is not a multiple."""
    rows, length = layer.numbers.shape
    scale, group = layer["._scale"], next((size for size in (128, 96, 64) if length % size == 0), 32)
    bits = layer.vote(ratio(rows * length * 8, scale.numel() * group if scale is not None else None))
    return Layout((rows * 8 // (bits or 4), length), bits or 4, group, guessed=bits is None)


def lay_out_hqq(layer: Layer) -> Layout:
    """Bytes whose shape, bits and group stand in tensors beside them."""
    shape, bits, group = layer.numbers_in(".shape"), layer.numbers_in(".nbits"), layer.numbers_in(".group_size")
    if bits is None or len(bits) != 1 or not 0 < bits[0] <= 8:
        return Layout(shape, layer.bits, layer.group, elements=layer.numbers.nbytes * 8 // (layer.bits or 4))
    if shape is not None and ceil(math.prod(shape) * bits[0], 8) > layer.numbers.nbytes:
        layer.trouble(layer.stored, "shape", f"has too few bytes for {format_shape(shape)} of {bits[0]} bits")
    size = group[0] if group is not None and len(group) == 1 else None
    return Layout(shape, bits[0], size, elements=layer.numbers.nbytes * 8 // bits[0])


def is_byte(layer: Layer) -> bool:
    """Whether the numbers are there and have 8 bits each."""
    return layer.tensors.get(layer.stored) is not None and layer.numbers.dtype.name in _BYTE


_BYTE = ("int8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
FLOATS = _BYTE[1:]


def missing_or(*names: str, ndim: int = 0) -> Callable[[Layer], bool]:
    """Whether the numbers are missing, or of one of some dtypes."""

    def fits(layer: Layer) -> bool:
        tensor = layer.tensors.get(layer.stored)
        return tensor is None or (tensor.dtype.name in names and tensor.ndim >= ndim)

    return fits


def has_dtype(*names: str) -> Callable[[Layer], bool]:
    """Whether the numbers are there, in one of some dtypes and two dimensions or more."""

    def fits(layer: Layer) -> bool:
        tensor = layer.tensors.get(layer.stored)
        return tensor is not None and tensor.dtype.name in names and tensor.ndim > 1

    return fits


def is_packed(layer: Layer) -> bool:
    """Whether words or bytes are there, or the shape and scales that they leave behind."""
    if layer.tensors.get(layer.stored) is None:
        return layer["_shape"] is not None and layer["_scale"] is not None
    return has_dtype("int32", "uint8")(layer)
