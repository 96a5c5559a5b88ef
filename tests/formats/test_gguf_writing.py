"""GGUF files that we write are those that the package gguf writes; what they cannot hold is an error before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from gguf.quants import dequantize, quantize

import statedict
from statedict import alter
from statedict.tensor.blocks import BlockTensor

from . import ggufs
from .test_gguf import BIG, DEQUANTIZED, FLOATS, PAIRS, PLAIN_ARRAYS

KINDS = gguf.GGMLQuantizationType


@pytest.mark.parametrize("alignment", [0, 8, 4096])
def test_a_file_by_gguf_is_written_again_byte_by_byte(alignment: int, tmp_path: Path) -> None:
    blocks = {name: (name, ggufs.random_blocks(name, 3, 5)) for name in DEQUANTIZED}
    for number, (tensors, pairs) in enumerate([(PLAIN_ARRAYS | blocks, PAIRS), ({}, PAIRS), (BIG, {})]):
        path = ggufs.write(tmp_path / f"{number}.gguf", tensors, pairs, alignment)
        statedict.convert(path, tmp_path / f"again-{number}.gguf")
        assert (tmp_path / f"again-{number}.gguf").read_bytes() == path.read_bytes()


def test_the_types_of_metadata_survive_another_format(tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "a.gguf", PLAIN_ARRAYS, PAIRS)
    statedict.convert(path, tmp_path / "a.safetensors")
    statedict.convert(tmp_path / "a.safetensors", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()


def test_blocks_become_their_numbers_in_other_formats(tmp_path: Path) -> None:
    raw = quantize(FLOATS, KINDS.Q5_0)
    path = ggufs.write(tmp_path / "a.gguf", {"w": ("Q5_0", raw)})
    for suffix in (".safetensors", ".pth"):
        statedict.convert(path, tmp_path / f"a{suffix}", only="w")
        assert numpy.array_equal(statedict.load(tmp_path / f"a{suffix}")["w"].numpy(), dequantize(raw, KINDS.Q5_0))
    assert torch.equal(torch.load(tmp_path / "a.pth")["w"], torch.from_numpy(dequantize(raw, KINDS.Q5_0)))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16", "float64"])
def test_numbers_are_quantized_bit_by_bit_as_gguf_does(kind: str, source: str, tmp_path: Path) -> None:
    generator = numpy.random.default_rng(7)
    numbers = generator.normal(0, 1, (50, 3200)) * numpy.exp2(generator.integers(-20, 4, (50, 1)))
    numbers[3] = 0
    numbers[4, ::7] = -numbers[4, ::7]
    numbers[5] = numpy.resize([0.5, -1.5, 127, 126.5, -127, 63.5, 1.5, 2.5], 3200)  # halves
    tensor = torch.from_numpy(numbers).to(getattr(torch, source))
    state = alter.quantize({"w": tensor, "b": tensor[0]}, kind)
    statedict.save(state, tmp_path / "a.gguf")
    expected = quantize(tensor.float().numpy(), KINDS[kind])
    found = {one.name: one for one in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert found["w"].tensor_type == KINDS[kind]
    assert found["w"].data.tobytes() == expected.tobytes()
    if source != "float64":
        assert found["b"].tensor_type.name == {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[source]
    numbers = dequantize(expected, KINDS[kind])
    assert state["w"].raw() == numbers.tobytes()  # as any format would have them
    assert state["w"][7, 100:133].numpy().tobytes() == numbers[7, 100:133].tobytes()


def test_not_every_tensor_can_be_quantized() -> None:
    state = {"w": torch.ones(4, 48), "i": torch.ones(4, 32, dtype=torch.int32), "m": torch.ones(4, 64)}
    made = alter.quantize(state, "q8_0")
    assert [type(one) is BlockTensor for one in made.values()] == [False, False, True]
    for pattern, message in (
        ("w", "is 4×48, and Q8_0 takes rows of a multiple of 32"),
        ("i", "int32 is not quantized"),
    ):
        with pytest.raises(statedict.errors.AlterError, match=message):
            alter.quantize(state, "Q8_0", pattern)
    with pytest.raises(statedict.errors.AlterError, match="Q4_K: is not a type of blocks that is made; take Q8_0 or"):
        alter.quantize(state, "Q4_K")
    with pytest.raises(statedict.errors.AlterError, match="no tensor is a matrix of floats"):
        alter.quantize({"w": torch.ones(32)}, "Q8_0")


def test_the_scales_of_another_scheme_are_not_quantized_without_a_pattern() -> None:
    fp8 = {"w": torch.ones(64, 64).to(torch.float8_e4m3fn), "w_scale_inv": torch.ones(2, 32)}
    made = alter.quantize(fp8 | {"m": torch.ones(4, 64)}, "Q8_0")
    assert [type(one) is BlockTensor for one in made.values()] == [False, False, True]


def test_blocks_are_dequantized_and_other_tensors_left(tmp_path: Path) -> None:
    raw = quantize(FLOATS, KINDS.Q4_0)
    tensors = {"w": ("Q4_0", raw), "half": FLOATS.astype(numpy.float16), "n": numpy.arange(3)}
    state = alter.dequantize(statedict.load(ggufs.write(tmp_path / "a.gguf", tensors)), "bf16")
    assert [str(tensor.dtype) for tensor in state.tensors().values()] == ["bfloat16", "float16", "int64"]
    assert torch.equal(state["w"].torch(), torch.from_numpy(dequantize(raw, KINDS.Q4_0)).bfloat16())
    with pytest.raises(statedict.errors.AlterError, match="none of 3 tensors is quantized"):
        alter.dequantize(state)


def test_a_cast_to_float32_stores_float32(tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "a.gguf", {"w": ("Q8_0", quantize(FLOATS, KINDS.Q8_0))})
    for name, step in (("cast", {"cast": "float32"}), ("dequantize", {"dequantize": "float32"})):
        statedict.edit(path, tmp_path / f"{name}.gguf", step)
        (tensor,) = gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors
        assert tensor.tensor_type == KINDS.F32


def test_untouched_blocks_go_as_they_are_and_are_renamed(tmp_path: Path) -> None:
    raw = ggufs.random_blocks("Q6_K", 3, 2)
    path = ggufs.write(tmp_path / "a.gguf", {"a.w": ("Q6_K", raw), "b.w": FLOATS})
    report = statedict.edit(path, tmp_path / "b.gguf", [{"rename": {"a": "c"}}, {"drop": "b"}])
    assert report.nbytes == (1260 + FLOATS.nbytes, 1260)
    (tensor,) = gguf.GGUFReader(tmp_path / "b.gguf").tensors
    assert (tensor.name, tensor.tensor_type.name, tensor.data.tobytes()) == ("c.w", "Q6_K", raw.tobytes())


def test_a_file_is_edited_in_place(tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "a.gguf", {"w": FLOATS}, {"general.name": ("string", "old")})
    statedict.edit(path, None, {"set": "metadata.general.name", "value": "new"})
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.name").contents() == "new"
    assert numpy.array_equal(reader.tensors[0].data, FLOATS)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"w": torch.ones(2, dtype=torch.bool)}, "^w: GGUF has no type for bool; cast it to one of float32, .*, or d"),
        ({"w": torch.ones(2, dtype=torch.uint8)}, "^w: GGUF has no type for uint8"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "^w: GGUF has no type for complex64"),
        ({"w": torch.ones(2).to(torch.float8_e4m3fn)}, "^w: GGUF has no type for float8_e4m3fn"),
        ({"epoch": 3}, "^epoch: a GGUF file holds plain values under metadata only"),
        ({"model": {"w": torch.ones(2)}}, "^model: a GGUF file holds no nested dicts"),
        ({3: torch.ones(2)}, "^3: a GGUF file names tensors by Unicode text"),
        ({"\ud800": torch.ones(2)}, "a GGUF file names tensors by Unicode text"),
        ({"metadata": {"a": None}}, r"^metadata\.a: None \(NoneType\) is no value of GGUF"),
        ({"metadata": {"a": 1 << 64}}, r"^metadata\.a: 18446744073709551616 \(int\) is no value"),
        ({"metadata": {"a": [1, "b"]}}, r"^metadata\.a: \[1, 'b'\] \(list\) is no value"),
        ({"metadata": {"a": b"x"}}, r"^metadata\.a: b'x' \(bytes\) is no value"),
        ({"metadata": {"a": {"b": 1}}}, r"^metadata\.a: .* is no value"),
        ({"metadata": {3: 1}}, "the keys of GGUF's metadata are Unicode text"),
        ({"metadata": {"a": "\ud800"}}, "is no value of GGUF"),
        ({"metadata": {"general.alignment": 48}}, "48 is no power of two"),
        ([torch.ones(2)], "a GGUF file holds a dict of tensors, not a list"),
    ],
)  # fmt: skip
def test_what_gguf_cannot_hold_is_an_error_before_anything_is_written(tree: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.UnsupportedError, match=message):
        statedict.save(tree, tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


def test_types_that_no_longer_fit_are_chosen_anew(tmp_path: Path) -> None:
    state = statedict.load(ggufs.write(tmp_path / "a.gguf", {"w": FLOATS}, PAIRS))
    state["metadata"] |= {"a.u8": 256, "a.i16": "text", "a.texts": [1 << 40], "a.new": [0.1], "a.none": []}
    state.metadata["author"] = "Ada"
    statedict.save(state, tmp_path / "b.gguf")
    reader = gguf.GGUFReader(tmp_path / "b.gguf")
    names = {key: [kind.name for kind in field.types] for key, field in reader.fields.items()}
    assert names["a.u8"] == ["UINT32"]
    assert names["a.i8"] == ["INT8"]
    assert names["a.i16"] == names["author"] == ["STRING"]
    assert names["a.texts"] == ["ARRAY", "INT64"]
    assert names["a.new"] == ["ARRAY", "FLOAT64"]
    again = statedict.load(tmp_path / "b.gguf")
    assert again["metadata"] == state["metadata"] | {"author": "Ada"}


def test_tied_tensors_are_written_twice(tmp_path: Path) -> None:
    weight = torch.ones(4, 4)
    statedict.save({"a": weight, "b": weight}, tmp_path / "a.gguf")
    assert [one.data.tolist() for one in gguf.GGUFReader(tmp_path / "a.gguf").tensors] == [weight.tolist()] * 2
