"""The types of GGUF's tensors: one table.

A row has the type's number, its name, its PyTorch dtype if its elements are plain ones, and else how many elements a
block has, its bytes, and where in it lie the 16-bit numbers that `gguf-convert-endian` swaps (None: it refuses the
type).

Source: `ggml_type` in ggml.h; GGML_QUANT_SIZES of gguf 0.19.0. Its Q8_1, which holds intermediate results and never
stands in files, has 40 bytes there and 36 in ggml.
"""

from __future__ import annotations

import math
from collections import namedtuple
from functools import partial

from statedict.dtypes import BY_NAME, DType
from statedict.tensor.blocks import BlockType

_Row = namedtuple("_Row", "code name elements nbytes swapped")
_PLAIN = {
    0: ("F32", "float32"), 1: ("F16", "float16"), 24: ("I8", "int8"), 25: ("I16", "int16"), 26: ("I32", "int32"),
    27: ("I64", "int64"), 28: ("F64", "float64"), 30: ("BF16", "bfloat16"),
}  # fmt: skip
_BLOCKS = (
    _Row(2, "Q4_0", 32, 18, (0,)),
    _Row(3, "Q4_1", 32, 20, None),
    _Row(6, "Q5_0", 32, 22, None),
    _Row(7, "Q5_1", 32, 24, None),
    _Row(8, "Q8_0", 32, 34, (0,)),
    _Row(9, "Q8_1", 32, 40, None),
    _Row(10, "Q2_K", 256, 84, None),
    _Row(11, "Q3_K", 256, 110, None),
    _Row(12, "Q4_K", 256, 144, (0, 2)),
    _Row(13, "Q5_K", 256, 176, None),
    _Row(14, "Q6_K", 256, 210, (208,)),
    _Row(15, "Q8_K", 256, 292, None),
    _Row(16, "IQ2_XXS", 256, 66, None),
    _Row(17, "IQ2_XS", 256, 74, None),
    _Row(18, "IQ3_XXS", 256, 98, None),
    _Row(19, "IQ1_S", 256, 50, None),
    _Row(20, "IQ4_NL", 32, 18, None),
    _Row(21, "IQ3_S", 256, 110, None),
    _Row(22, "IQ2_S", 256, 82, None),
    _Row(23, "IQ4_XS", 256, 136, None),
    _Row(29, "IQ1_M", 256, 56, None),
    _Row(34, "TQ1_0", 256, 54, None),
    _Row(35, "TQ2_0", 256, 66, None),
    _Row(39, "MXFP4", 32, 17, ()),
    _Row(40, "NVFP4", 64, 36, ()),
    _Row(41, "Q1_0", 128, 18, None),
)
REMOVED = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}  # fmt: skip
"""Types of former versions of llama.cpp, whose files it refuses too."""


def _decode(row: _Row, data: bytes | bytearray, out: memoryview) -> None:
    from statedict.tensor.ggml.dequantize import decode  # with numpy, which listing does not need

    decode(row.name, row.elements, row.nbytes, data, out)


PLAIN: dict[int, DType] = {code: BY_NAME[dtype] for code, (_, dtype) in _PLAIN.items()}
BLOCKS: dict[int, BlockType] = {
    row.code: BlockType(row.name, row.elements, row.nbytes, partial(_decode, row)) for row in _BLOCKS
}
SWAPPED: dict[str, tuple[int, ...] | None] = {row.name: row.swapped for row in _BLOCKS}
CODES: dict[str, int] = {kind.name: code for code, kind in (PLAIN | BLOCKS).items()}
"""The number of a type, by the name of its dtype or block."""


def name_type(code: int) -> str:
    """What llama.cpp calls a type."""
    return _PLAIN[code][0] if code in _PLAIN else BLOCKS[code].name


def count_bytes(code: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of a type, whose rows are whole blocks."""
    numel = math.prod(shape)
    if code in PLAIN:
        return PLAIN[code].nbytes(numel)
    return int(numel // BLOCKS[code].elements * BLOCKS[code].nbytes)
