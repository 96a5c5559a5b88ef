"""GGUF files by the package gguf are read with all that is in them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from gguf.quants import dequantize, quantize

import statedict
from statedict.tensor.blocks import BlockTensor, find_blocks
from statedict.tensor.ggml.types import BLOCKS, PLAIN, SWAPPED, count_bytes

from .. import work
from . import ggufs

KINDS = gguf.GGMLQuantizationType
DEQUANTIZED = [name for name in SWAPPED if name not in ("Q8_1", "Q8_K", "Q1_0")]
FLOATS = numpy.random.default_rng(3).normal(0, 0.02, (8, 512)).astype(numpy.float32)


def test_the_table_has_every_type_of_gguf_with_its_size() -> None:
    assert {kind.value for kind in KINDS} == PLAIN.keys() | BLOCKS.keys()
    for kind, (elements, nbytes) in gguf.GGML_QUANT_SIZES.items():
        if kind.value in BLOCKS:
            assert BLOCKS[kind.value][:3] == (kind.name, elements, nbytes)
        else:
            assert count_bytes(kind.value, (1,)) == nbytes


PLAIN_ARRAYS = {
    name: numpy.arange(24).reshape(2, 3, 4).astype(name)
    for name in ("float64", "float32", "float16", "int8", "int16", "int32", "int64")
}


def test_plain_tensors_are_arrays_of_their_shape(tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "a.gguf", PLAIN_ARRAYS | {"BF16": ("BF16", quantize(FLOATS, KINDS.BF16))})
    state = statedict.load(path)
    assert list(state) == ["metadata", *PLAIN_ARRAYS, "BF16"]
    for name, array in PLAIN_ARRAYS.items():
        assert numpy.array_equal(state[name].numpy(), array)
        assert state[name].dtype == name
    assert torch.equal(state["BF16"].torch(), torch.from_numpy(FLOATS).bfloat16())


def test_tensors_of_no_and_of_many_dimensions_are_read(tmp_path: Path) -> None:
    arrays = {"scalar": numpy.array(3.5, numpy.float32), "five": numpy.arange(32.0).reshape(2, 2, 2, 2, 2)}
    state = statedict.load(ggufs.write(tmp_path / "a.gguf", arrays))
    assert state["scalar"].shape == ()
    assert state["scalar"].item() == 3.5
    assert numpy.array_equal(state["five"].numpy(), arrays["five"])


@pytest.mark.parametrize("kind", DEQUANTIZED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # gguf's, of infinite scales
def test_blocks_are_decoded_bit_by_bit_as_gguf_does(kind: str, tmp_path: Path) -> None:
    raw = ggufs.random_blocks(kind, 40, 16)
    path = ggufs.write(tmp_path / "a.gguf", {"w": (kind, raw)})
    expected = dequantize(raw, KINDS[kind])
    found = statedict.load(path)["w"]
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert found.raw() == expected.tobytes()
    assert found.numpy().tobytes() == found.torch().numpy().tobytes() == expected.tobytes()


def test_scales_of_blocks_that_gguf_cannot_decode_are_those_of_ggml(tmp_path: Path) -> None:
    ones = struct.pack("<e", 0.5) + bytes([0b0110, *[255] * 15])
    wide = struct.pack("<f", 0.25) + bytes(range(256)) + bytes(32)
    rows = {"Q1_0": ones, "Q8_K": wide, "Q8_1": bytes(40)}
    tensors = {name: (name, numpy.frombuffer(raw, numpy.uint8).reshape(1, -1)) for name, raw in rows.items()}
    state = statedict.load(ggufs.write(tmp_path / "a.gguf", tensors))
    assert state["Q1_0"].numpy()[0, :8].tolist() == [-0.5, 0.5, 0.5, -0.5, -0.5, -0.5, -0.5, -0.5]
    assert state["Q8_K"].numpy()[0].tolist() == [n / 4 if n < 128 else (n - 256) / 4 for n in range(256)]
    with pytest.raises(statedict.errors.UnsupportedError, match=r"Q8_1 cannot be dequantized: .*\.blocks"):
        state["Q8_1"].numpy()
    assert state["Q8_1"].blocks.raw() == bytes(40)
    report = statedict.verify(tmp_path / "a.gguf")
    assert (report.tensors, report.problems) == (3, ())


def test_parts_of_blocks_are_decoded_from_any_byte_on(tmp_path: Path) -> None:
    raw = quantize(FLOATS, KINDS.Q4_0)
    path = ggufs.write(tmp_path / "a.gguf", {"w": ("Q4_0", raw)})
    tensor, expected = statedict.load(path)["w"], dequantize(raw, KINDS.Q4_0)
    assert numpy.array_equal(tensor[3:5, 7:300:3].numpy(), expected[3:5, 7:300:3])
    assert numpy.array_equal(tensor[-1, 40].numpy(), expected[-1, 40])
    whole = expected.tobytes()
    for begin, end in ((0, 1), (3, 130), (127, 129), (5, len(whole)), (len(whole) - 1, len(whole))):
        assert tensor.storage.source.read(begin, end - begin) == whole[begin:end]


def test_an_empty_tensor_lies_anywhere(tmp_path: Path) -> None:
    entries = [ggufs.tensor(name, (0, 3), code, 1 << 40) for name, code in (("f", 0), ("q", 2))]
    state = statedict.load(ggufs.forge(tmp_path / "a.gguf", [], entries))
    assert [tensor.numpy().shape for tensor in state.values()] == [(3, 0), (3, 0)]
    assert state["q"].blocks.raw() == state["f"].raw() == b""
    statedict.convert(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert statedict.verify(tmp_path / "b.gguf").ok


def test_stored_blocks_are_bytes_of_each_row(tmp_path: Path) -> None:
    raw = ggufs.random_blocks("Q4_K", 3, 2)
    tensor = statedict.load(ggufs.write(tmp_path / "a.gguf", {"w": ("Q4_K", raw)}))["w"]
    assert isinstance(tensor, BlockTensor)
    assert (tensor.quantization, tensor.shape, tensor.blocks.shape) == ("Q4_K", (3, 512), (3, 288))
    assert numpy.array_equal(tensor.blocks.numpy(), raw)
    assert "864 B as Q4_K" in repr(tensor)
    assert find_blocks(tensor) is tensor
    assert find_blocks(tensor[1:]) is None


PAIRS: dict[str, tuple[str, Any]] = {
    "a.u8": ("uint8", 255), "a.i8": ("int8", -128), "a.u16": ("uint16", 65535), "a.i16": ("int16", -5),
    "a.u32": ("uint32", 1 << 31), "a.i32": ("int32", 7), "a.u64": ("uint64", (1 << 64) - 1), "a.i64": ("int64", 1),
    "a.f32": ("float32", 0.5), "a.f64": ("float64", 0.1), "a.bool": ("bool", True), "a.text": ("string", "λ\n"),
    "a.texts": ("array", ["", "one", "λ" * 300]), "a.ints": ("array", [1, -2]), "a.floats": ("array", [0.5, -1.0]),
    "a.bools": ("array", [True, False]), "a.nested": ("array", [["a"], ["b", "c"]]), "a.bytes": ("array", b"\0\xff"),
}  # fmt: skip


def test_metadata_comes_as_values_and_their_types_as_json(tmp_path: Path) -> None:
    state = statedict.load(ggufs.write(tmp_path / "a.gguf", {"w": FLOATS}, PAIRS))
    expected = {key: list(value) if isinstance(value, bytes) else value for key, (_, value) in PAIRS.items()}
    assert dict(state["metadata"]) == {"general.architecture": "llama"} | expected
    assert {type(state["metadata"][key]) for key in ("a.bool", "a.f32", "a.u8")} == {bool, float, int}
    types = json.loads(state.metadata["gguf.types"])
    assert types == {"a.u8": "uint8", "a.i8": "int8", "a.u16": "uint16", "a.i16": "int16", "a.i32": "int32",
                     "a.i64": "int64", "a.bytes": ["uint8"]}  # fmt: skip


def test_a_header_larger_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    tokens = [f"token {number} {'x' * (number % 50)}" for number in range(30_000)]
    pairs = {"tokens": ("array", tokens), "scores": ("array", [float(n) for n in range(30_000)])}
    state = statedict.load(ggufs.write(tmp_path / "a.gguf", {"w": FLOATS}, pairs))
    assert state["metadata"]["tokens"] == tokens
    assert state["metadata"]["scores"] == pairs["scores"][1]
    assert numpy.array_equal(state["w"].numpy(), FLOATS)


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_another_alignment_is_respected(alignment: int, tmp_path: Path) -> None:
    second = -(-12 // alignment) * alignment
    entries = [ggufs.tensor("a", (3,)), ggufs.tensor("b", (1,), offset=second)]
    data = struct.pack("<3f", 1, 2, 3).ljust(second, b"\0") + struct.pack("<f", 4)
    path = tmp_path / "a.gguf"
    pair = ggufs.pair("general.alignment", 4, struct.pack("<I", alignment))
    state = statedict.load(ggufs.forge(path, [pair], entries, data, alignment=alignment))
    assert state["a"].tolist() == [1, 2, 3]
    assert state["b"].tolist() == [4]
    if alignment > 4:
        assert [one.tolist() for one in (t.data for t in gguf.GGUFReader(path).tensors)] == [[1, 2, 3], [4]]


def test_equal_blocks_are_compared_without_decoding_and_others_by_their_numbers(tmp_path: Path) -> None:
    raw = quantize(FLOATS, KINDS.Q8_0)
    other = raw.copy()
    other[0, 2] += 1
    a, b, c = (
        ggufs.write(tmp_path / name, {"w": ("Q8_0", some), "v": ("Q8_1", ggufs.random_blocks("Q8_1", 2, 2))})
        for name, some in (("a.gguf", raw), ("b.gguf", raw), ("c.gguf", other))
    )
    assert statedict.diff(a, b).same  # Q8_1 cannot be decoded
    (changed,) = statedict.diff(a, c).changed
    assert (changed.before, changed.measures and changed.measures.changed) == ("w", 1)


def test_version_2_is_read_and_a_file_without_tensors(tmp_path: Path) -> None:
    path = ggufs.forge(tmp_path / "a.gguf", [ggufs.pair("a", 8, ggufs.text("b"))], version=2)
    assert statedict.load(path) == {"metadata": {"a": "b"}}


def test_opening_reads_the_header_alone(tmp_path: Path) -> None:
    large = numpy.zeros((64, 1 << 14), numpy.float32)
    path = ggufs.write(tmp_path / "a.gguf", {f"w{n}": large for n in range(4)})
    assert work.bytes_read(lambda: statedict.load(path)) < 400_000


BIG = {
    "f32": FLOATS, "i16": numpy.arange(-3, 5, dtype=numpy.int16), "bf16": ("BF16", quantize(FLOATS, KINDS.BF16)),
    "q8": ("Q8_0", quantize(FLOATS, KINDS.Q8_0)), "q4": ("Q4_0", quantize(FLOATS, KINDS.Q4_0)),
    "mx": ("MXFP4", quantize(FLOATS, KINDS.MXFP4)),
}  # fmt: skip


def _convert_endian(path: Path) -> None:
    """What gguf-convert-endian makes of a file."""
    from argparse import Namespace
    from unittest.mock import patch

    from gguf.scripts.gguf_convert_endian import convert_byteorder

    with patch("builtins.input", lambda _: "YES"):
        convert_byteorder(gguf.GGUFReader(path, "r+"), Namespace(order="big", dry_run=False))


@pytest.mark.parametrize("converted", [False, True])
def test_both_dialects_of_big_endian_files_are_read(converted: bool, tmp_path: Path, capfd: Any) -> None:
    tensors = {name: value for name, value in BIG.items() if name != "i16" or not converted}  # which it refuses
    expected = statedict.load(ggufs.write(tmp_path / "little.gguf", tensors, PAIRS))
    path = tmp_path / "big.gguf"
    if converted:
        ggufs.write(path, tensors, PAIRS)
        _convert_endian(path)
    else:
        ggufs.write(path, tensors, PAIRS, endianess=gguf.GGUFEndian.BIG)
    state = statedict.load(path)
    assert state["metadata"] == expected["metadata"]
    for name in tensors:
        assert state[name].raw() == expected[name].raw(), name
    assert state.metadata["gguf.big_endian"] == "BF16 and blocks " + ("too" if converted else "little-endian")
    assert any("big-endian" in note for note in statedict.verify(path).notes)
    assert any("a big-endian file: BF16 and blocks" in note for note in statedict.inspect(path).quantization.notes)


def test_blocks_of_a_big_endian_file_that_tell_no_order_are_refused_when_they_are_read(tmp_path: Path) -> None:
    few = {"w": ("Q8_0", quantize(FLOATS[:1, :32], KINDS.Q8_0)), "plain": FLOATS}
    state = statedict.load(ggufs.write(tmp_path / "a.gguf", few, endianess=gguf.GGUFEndian.BIG))
    assert numpy.array_equal(state["plain"].numpy(), FLOATS)
    with pytest.raises(statedict.errors.UnsupportedError, match="'w' is big-endian, and whether its BF16 and block"):
        state["w"].numpy()
