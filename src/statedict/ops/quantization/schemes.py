"""What libraries call the tensors of a quantized weight, and how its shape follows: a row of `SCHEMES` for each way.

    GPTQ                  qweight int32 [in·b/32, out], scales [groups, out], qzeros [groups, out·b/32], g_idx [in]
    GPTQ, Marlin          B int32 [in/16, 16·out·b/32], s [groups, out], workspace
    AWQ (GEMM)            qweight int32 [in, out·b/32], scales [groups, out], qzeros int32 [groups, out·b/32]
    AWQ (GEMV)            qweight int32 [out, in·b/32], scales [out, padded groups], qzeros int32
    bitsandbytes, 4 bits  weight [n/2, 1], weight.absmax, weight.quant_map [16], weight.quant_state.… (JSON)
    bitsandbytes, 8 bits  weight int8 [out, in], SCB [out], weight_format
    compressed-tensors    weight_packed int32 [out, in·b/32], weight_scale, weight_zero_point, weight_shape int64 [2]
                          weight_packed uint8 [out, in·b/8] (nvfp4, mxfp4, mxfp6), weight_scale, weight_global_scale
                          weight int8 or float8 [out, in], weight_scale, weight_zero_point
      sparse              compressed [numbers that are not 0], bitmask uint8 [out, in/8], shape, row_offsets
      sparse, Marlin 2:4  weight_packed int32 [in/32, 16·out·b/32], scale_packed [groups, out], meta int16
    ModelOpt              weight uint8 [out, in/2], weight_scale [out, in/16], weight_scale_2
    FP8 in blocks         weight float8 [out, in], weight_scale_inv [out/128, in/128]
    MLX                   weight uint32 [out, in·b/32], scales [out, in/group], biases (affine only)
    MXFP4 of gpt-oss      …_blocks uint8 [E, out, in/32, 16], …_scales [E, out, in/32]; Hugging Face has [E, in, out]
    EXL2, EXL3, AQLM, EETQ, FP-Quant, Quanto, torchao: see their rows

Shapes are those of `torch.nn.Linear.weight`, [out, in]; b is bits, and a row has in / group scales. By names alone the
files of ModelOpt, FBGEMM and Quark with a weight_scale are those of compressed-tensors. Sources: the loaders in
transformers `integrations`, gptqmodel `nn_modules`, compressed_tensors `compressors`, mlx `nn.layers.quantized`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from statedict.ops.quantization import decode, decode_floats, layouts
from statedict.ops.quantization.layer import Layer, Layout
from statedict.tensor.lazy import LazyTensor


class Part(NamedTuple):
    """What a tensor beside the numbers is, and which of its values the scheme never makes."""

    kind: str
    zero: bool = True  # whether it may hold 0
    negative: bool = True


SCALES, BLOCK_SCALES, SIGNED = Part("scales", False, False), Part("scales", True, False), Part("scales", False)
GLOBAL, BIASES, ZEROS, INDEX = Part("global scale", False, False), Part("biases"), Part("zero points"), Part("index")
ANY_SCALES, TABLE, OTHER = Part("scales"), Part("table"), Part("layout")


class Scheme(NamedTuple):
    """How one way to quantize stores a weight. Endings follow what the paths of its tensors have in common."""

    name: str
    stored: str  # the ending of the tensor with the numbers
    parts: dict[str, Part]  # ending → what it is
    needs: tuple[str, ...]  # endings without which the numbers mean nothing
    layout: Callable[[Layer], Layout]
    fits: Callable[[Layer], bool] = lambda layer: True  # whether tensors of these names are this scheme's
    marks: tuple[str, ...] | None = None  # endings of which any one gives it away; by default `stored`
    packed: bool = True
    named: str = ""  # what the weight's path has after what they have in common
    decode: Callable[[Layer, Layout], LazyTensor] | None = None  # its numbers, as its library computes them


CT = {"_scale": SCALES, "_zero_point": ZEROS, "_shape": OTHER, "_g_idx": INDEX, "_global_scale": GLOBAL}
_BNB = {
    ".absmax": BLOCK_SCALES,
    ".quant_map": TABLE,
    ".nested_absmax": BLOCK_SCALES,
    ".nested_quant_map": TABLE,
    layouts.STATE + "nf4": OTHER,
    layouts.STATE + "fp4": OTHER,
}
_GPTQ = {".scales": SCALES, ".qzeros": ZEROS, ".g_idx": INDEX}
_QWEIGHT = (".qweight", ".qzeros", ".g_idx")
_EXL = {f".{name}": OTHER for name in ("q_scale", "q_scale_max", "q_groups", "q_group_map", "q_perm", "q_invperm")}

_HQQ = {".scale": ANY_SCALES, ".zero": BIASES} | {
    f".{name}": OTHER
    for name in (
        *("nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float", "quant_scale"),
        *("quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config"),
        *("channel_wise", "optimize", "round_zero"),
    )
}

_FP8 = (
    ("", "_scale_inv", {"_scale_inv": BLOCK_SCALES}),
    (".weight", ".scale", {".scale": BLOCK_SCALES}),
    (".weight", ".scale_weight", {".scale_weight": BLOCK_SCALES, ".scale_input": OTHER}),
)

SCHEMES = (
    Scheme(
        "AWQ",
        ".qweight",
        _GPTQ,
        (".scales",),
        layouts.lay_out_awq,
        layouts.is_awq,
        _QWEIGHT,
        named=".weight",
        decode=decode.decode_awq,
    ),
    Scheme(
        "GPTQ",
        ".qweight",
        _GPTQ,
        (".scales",),
        layouts.lay_out_gptq,
        layouts.is_gptq,
        _QWEIGHT,
        named=".weight",
        decode=decode.decode_gptq,
    ),
    Scheme(
        "FP-Quant",
        ".qweight",
        {".scales": BLOCK_SCALES, ".weight_global_scale": GLOBAL},
        (".scales",),
        layouts.lay_out_bytes,
        layouts.has_dtype("uint8"),
        named=".weight",
    ),
    Scheme(
        "GPTQ",
        ".B",
        {".s": SCALES, ".workspace": OTHER, ".g_idx": INDEX, ".perm": OTHER},
        (".s",),
        layouts.lay_out_marlin,
        layouts.has_dtype("int32"),
        (".workspace",),
        named=".weight",
    ),
    Scheme(
        "bitsandbytes",
        "",
        _BNB,
        (".absmax",),
        layouts.lay_out_bitsandbytes,
        marks=(".absmax", ".quant_map", *list(_BNB)[4:]),
        decode=decode.decode_bitsandbytes_4,
    ),
    Scheme(
        "bitsandbytes",
        ".weight",
        {".SCB": BLOCK_SCALES, ".weight_format": OTHER},
        (".SCB",),
        layouts.lay_out_as_stored,
        layouts.missing_or("int8", ndim=2),
        (".SCB", ".weight_format"),
        packed=False,
        named=".weight",
        decode=decode.decode_bitsandbytes_8,
    ),
    Scheme(
        "compressed-tensors",
        ".weight_packed",
        {".scale_packed": SCALES, ".meta": OTHER},
        (".scale_packed",),
        layouts.lay_out_marlin_24,
        layouts.has_dtype("int32"),
        (".scale_packed",),
        named=".weight",
    ),
    Scheme(
        "compressed-tensors",
        ".compressed",
        {
            ".bitmask": OTHER,
            ".shape": OTHER,
            ".row_offsets": OTHER,
            ".weight_scale": BLOCK_SCALES,
            ".weight_zero_point": ZEROS,
        },
        (".bitmask",),
        layouts.lay_out_bitmask,
        layouts.is_bitmask,
        (".bitmask",),
        packed=False,
        named=".weight",
    ),
    Scheme(
        "compressed-tensors",
        "_packed",
        CT,
        ("_scale",),
        layouts.lay_out_packed,
        layouts.is_packed,
        ("_packed", "_shape"),
        decode=decode.decode_packed,
    ),
    Scheme(
        "ModelOpt",
        "",
        {"_scale": BLOCK_SCALES, "_scale_2": GLOBAL},
        ("_scale",),
        layouts.lay_out_bytes,
        layouts.has_dtype("uint8"),
        ("_scale_2",),
        decode=decode_floats.decode_small_floats,
    ),
    Scheme(
        "compressed-tensors",
        "",
        CT,
        ("_scale",),
        layouts.lay_out_as_stored,
        layouts.is_byte,
        ("_scale",),
        packed=False,
        decode=decode.decode_as_stored,
    ),
    Scheme("BitNet", "", {"_scale": ANY_SCALES}, ("_scale",), layouts.lay_out_bitnet, layouts.is_bitnet, ("_scale",)),
    Scheme(
        "compressed-tensors",
        "",
        CT,
        ("_scale",),
        layouts.lay_out_bytes,
        layouts.has_dtype("uint8"),
        ("_scale",),
        decode=decode_floats.decode_small_floats,
    ),
    *(
        Scheme(
            "FP8",
            stored,
            parts,
            (scales,),
            layouts.lay_out_as_stored,
            layouts.has_dtype(*layouts.FLOATS),
            (scales,),
            packed=False,
            named=stored,
            decode=decode_floats.decode_float8,
        )
        for stored, scales, parts in _FP8
    ),
    Scheme(
        "EETQ",
        ".weight",
        {".weight_scales": SCALES},
        (".weight_scales",),
        layouts.lay_out_eetq,
        layouts.has_dtype("int8"),
        (".weight_scales",),
        packed=False,
        named=".weight",
    ),
    Scheme(
        "MLX",
        ".weight",
        {".scales": SIGNED, ".biases": BIASES, ".qbiases": BIASES},
        (".scales",),
        layouts.lay_out_mlx,
        layouts.has_dtype("uint32"),
        (".scales", ".biases", ".qbiases"),
        named=".weight",
        decode=decode.decode_mlx,
    ),
    Scheme(
        "MXFP4",
        "_blocks",
        {"_scales": SCALES},
        ("_scales",),
        layouts.lay_out_mxfp4,
        layouts.has_dtype("uint8"),
        ("_blocks",),
        decode=decode_floats.decode_mxfp4,
    ),
    Scheme(
        "MXFP4",
        ".blocks",
        {".scales": SCALES},
        (".scales",),
        layouts.lay_out_mxfp4,
        layouts.has_dtype("uint8"),
        (".blocks",),
        decode=decode_floats.decode_mxfp4,
    ),
    Scheme("EXL2", ".q_weight", _EXL, (".q_scale",), layouts.lay_out_exl2, layouts.has_dtype("int32"), named=".weight"),
    Scheme(
        "EXL3",
        ".trellis",
        {f".{name}": OTHER for name in ("suh", "svh", "su", "sv", "mcg", "mul1")},
        (),
        layouts.lay_out_exl3,
        named=".weight",
    ),
    Scheme(
        "AQLM",
        ".codes",
        {".codebooks": TABLE, ".scales": ANY_SCALES},
        (".codebooks", ".scales"),
        layouts.lay_out_aqlm,
        marks=(".codebooks",),
        named=".weight",
    ),
    Scheme(
        "Quanto",
        "._data",
        {"._scale": ANY_SCALES, "._shift": BIASES},
        ("._scale",),
        layouts.lay_out_as_stored,
        layouts.is_byte,
        packed=False,
    ),
    Scheme(
        "Quanto",
        "._data._data",
        {"._scale": ANY_SCALES, "._shift": BIASES},
        ("._scale",),
        layouts.lay_out_quanto,
        layouts.has_dtype("uint8"),
        decode=decode.decode_quanto,
    ),
    Scheme("HQQ", ".W_q", _HQQ, (".scale",), layouts.lay_out_hqq, named=".weight"),
    Scheme(
        "INT8",
        ".weight",
        {".scales": ANY_SCALES, ".scale": ANY_SCALES, ".zero_point": ZEROS},
        (),
        layouts.lay_out_as_stored,
        layouts.has_dtype("int8"),
        (".scales", ".scale"),
        packed=False,
        named=".weight",
    ),
    Scheme(
        "torchao",
        ".qdata",
        {".scale": ANY_SCALES, ".zero_point": BIASES},
        (".scale",),
        layouts.lay_out_torchao,
        packed=False,
        decode=decode.decode_torchao,
    ),
    Scheme(
        "torchao",
        "._weight_qdata",
        {"._weight_scale": ANY_SCALES, "._weight_zero_point": BIASES},
        ("._weight_scale",),
        layouts.lay_out_torchao,
        packed=False,
        decode=decode.decode_torchao,
        named=".weight",
    ),
)
