"""Tensors of torchao's classes, by their parts; tests/peers/torchao.py made the files."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

import statedict
from statedict.cli import cli

FILES = Path(__file__).parent / "data" / "torchao"
PARTS = {
    "0.18.pth": {
        "int4.qdata": ("int8", (4, 16)),
        "int4.scale": ("bfloat16", (1, 4)),
        "int4.zero_point": ("bfloat16", (1, 4)),
        "dynamic.qdata": ("int8", (4, 32)),
        "dynamic.scale": ("float32", (4, 1)),
        "dynamic.zero_point": ("int8", (4, 1)),
        "int8.qdata": ("int8", (4, 32)),
        "int8.scale": ("float32", (4, 1)),
        "int8.zero_point": ("int8", (4, 1)),
        "float8.qdata": ("float8_e4m3fn", (4, 32)),
        "float8.scale": ("float32", (4, 1)),
    },
    "0.15.pth": {
        "int8.tensor_impl.int_data": ("int8", (4, 32)),
        "int8.tensor_impl.scale": ("bfloat16", (4,)),
        "int8.tensor_impl.zero_point": ("int64", (4,)),
        "dynamic.original_weight_tensor.tensor_impl.int_data": ("int8", (4, 32)),
        "dynamic.original_weight_tensor.tensor_impl.scale": ("bfloat16", (4,)),
    },
}
CLASSES = {
    "0.18.pth": ["Int4Tensor", "Int8Tensor", "Float8Tensor"],
    "0.15.pth": ["AffineQuantizedTensor", "LinearActivationQuantizedTensor"],
}


@pytest.mark.parametrize("name", list(PARTS))
def test_the_parts_of_a_tensor_stand_under_their_names_with_their_shapes(name: str, tmp_path: Path) -> None:
    state = statedict.load(FILES / name)
    assert {path: (str(part.dtype), part.shape) for path, part in state.tensors().items()} == PARTS[name]
    summary = statedict.inspect(FILES / name)
    assert {one.path: (one.dtype, one.shape) for one in summary.tensors} == PARTS[name]
    assert (state.at("int8.dtype"), state.at("int8.size")) == ("bfloat16", (4, 32))
    statedict.convert(FILES / name, tmp_path / "x.safetensors")
    assert {*load_file(tmp_path / "x.safetensors")} == {*PARTS[name]}
    assert statedict.diff(FILES / name, tmp_path / "x.safetensors").same


@pytest.mark.parametrize("name", list(PARTS))
def test_show_says_of_which_class_a_tensor_is_and_what_it_stands_for(name: str) -> None:
    shown = CliRunner().invoke(cli, ["show", str(FILES / name)])
    assert shown.exit_code == 0
    assert all("bfloat16 4×32, a tensor of torchao" in shown.output and kind in shown.output for kind in CLASSES[name])
