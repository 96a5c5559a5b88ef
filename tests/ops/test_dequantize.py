"""Quantized weights as numbers, against what tests/peers/dequantizers.py recorded of the libraries."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import statedict
from statedict import alter
from statedict.api.companions import find_config
from statedict.cli import cli
from statedict.errors import AlterError, CorruptFileError
from statedict.tensor.lazy import LazyTensor, as_lazy
from statedict.tensor.words import spread, unpack

from .. import operators  # noqa: F401 - before transformers imports torchvision

FILES = Path(__file__).parent / "data" / "quantized"
TORCHAO = Path(__file__).parents[1] / "formats" / "data" / "torchao" / "0.18.pth"
RECORD: dict[str, dict[str, list[str]]] = json.loads((FILES / "dequantized.json").read_text())
SHAPES: dict[str, dict[str, list[int]]] = json.loads((FILES / "models.json").read_text())
MODELS = [name for name in RECORD if name != TORCHAO.name]
LAYER = "model.layers.0.mlp.down_proj"


def digest(tensor: LazyTensor) -> str:
    return hashlib.sha256(bytes(tensor.contiguous().raw())).hexdigest()[:16]


def dequantize(path: Path, kind: str) -> statedict.StateDict:
    return alter.dequantize(statedict.load(path), kind, config=find_config(path))


@pytest.mark.parametrize("model", MODELS)
def test_the_numbers_are_those_of_the_library_bit_by_bit(model: str) -> None:
    found = dequantize(FILES / model, RECORD[model][next(iter(RECORD[model]))][0])
    shapes = SHAPES["gpt-oss" if model.startswith("gpt-oss") else "llama"]
    assert {name: list(tensor.shape) for name, tensor in found.flatten().items()} == shapes
    assert {name: [found[name].dtype.name, digest(found[name])] for name in RECORD[model]} == RECORD[model]


def test_objects_of_torchao_become_tensors_and_what_it_cannot_dequantize_stays() -> None:
    state = statedict.load(TORCHAO)
    found = alter.dequantize(state, "bf16")
    record = RECORD[TORCHAO.name]
    assert {name: [found[name].dtype.name, digest(found[name])] for name in record} == record
    assert list(found) == list(state)
    assert found["int4"] is state["int4"]


@pytest.mark.parametrize("model", ["gptq-3", "awq", "mlx-5", "bitsandbytes-nf4-double", "gpt-oss-mxfp4", "quanto-int4"])
def test_any_part_is_read_alone(model: str) -> None:
    tensor = dequantize(FILES / model, "float32")[next(iter(RECORD[model]))]
    whole = tensor.numpy()
    for index in [(slice(3, 9), slice(5, 31)), (slice(None), 7), (slice(1, None, 3), slice(2, 30, 7))]:
        assert np.array_equal(tensor[(..., *index)].numpy(), whole[(..., *index)])
    flat = tensor.storage.source.read(4 * 37 + 2, 400)
    assert bytes(flat) == whole.tobytes()[4 * 37 + 2 :][:400]


@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32"])
def test_the_dtype_is_a_choice(kind: str) -> None:
    wanted = statedict.dtype(kind)
    own, found = dequantize(FILES / "gptq-4", "fp16"), dequantize(FILES / "gptq-4", kind)
    name = f"{LAYER}.weight"
    assert found[name].dtype is wanted
    assert np.array_equal(found[name].numpy(), own[name].numpy().astype(wanted.numpy))


@pytest.mark.parametrize("model", ["gptq-4", "bitsandbytes-fp4-bfloat16", "mlx-mixed", "compressed-int4-zero-points"])
def test_transformers_loads_a_folder_that_was_dequantized(model: str, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    (shutil.copytree(FILES / model, tmp_path / "x") / "quantize_config.json").write_text('{"bits": 4}')
    report = statedict.edit(tmp_path / "x", tmp_path / "y", {"dequantize": "bf16"})
    assert {path.name for path in (tmp_path / "y").iterdir()} == {"config.json", "model.safetensors"}
    assert report.files.left == {"quantize_config.json": "of the quantization"}
    config = json.loads((tmp_path / "y" / "config.json").read_text())
    assert not {"quantization_config", "quantization"} & config.keys()
    assert config["dtype"] == "bfloat16"
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "y", dtype="auto").state_dict()
    assert statedict.diff(loaded, dequantize(FILES / model, "bf16")).same


def test_the_report_says_what_was_dequantized_and_what_was_not(tmp_path: Path) -> None:
    state = statedict.load(FILES / "gptq-4" / "model.safetensors")
    del state[f"{LAYER}.scales"]
    state |= {"x.trellis": np.zeros((2, 2, 64), "int16"), "x.suh": np.ones(32, "float16")}
    report = statedict.edit(state, tmp_path / "x.safetensors", {"dequantize": "bf16"})
    assert list(report.notes) == [
        "dequantized: 6 weights of 8,192 parameters, GPTQ 4-bit",
        f"not dequantized: {LAYER}.weight: {LAYER}.scales GPTQ: scales are missing",
        "not dequantized: x.weight: statedict does not decode EXL3 4-bit",
    ]
    left = statedict.load(tmp_path / "x.safetensors")
    assert {f"{LAYER}.qweight", "x.trellis"} <= left.keys()


def test_a_part_of_the_weights_leaves_the_configuration(tmp_path: Path) -> None:
    for only in (f"{LAYER}.weight", LAYER, f"{LAYER}.qweight"):
        step = {"dequantize": "bf16", "only": only}
        statedict.edit(FILES / "gptq-4", tmp_path / "x", step, overwrite=True)
        found = statedict.inspect(tmp_path / "x")
        assert len(found.quantization.weights) == 6
        assert found.quantization.method == "gptq"
        assert statedict.load(tmp_path / "x")[f"{LAYER}.weight"].shape == (32, 64)


def test_scales_of_inputs_go_with_the_last_weight() -> None:
    state = statedict.load(FILES / "quanto-int4" / "model.safetensors")
    assert f"{LAYER}.input_scale" in alter.dequantize(state, "bf16", LAYER)
    assert f"{LAYER}.input_scale" not in alter.dequantize(state, "bf16")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w": np.ones((2, 2), "float32")}, "none of 1 tensors is quantized"),
        ({"w.qweight": np.zeros((4, 32), "int32"), "w.qzeros": np.zeros((1, 4), "int32")}, "scales are missing"),
        (
            {"w.codes": np.zeros((2, 2, 1), "int8"), "w.codebooks": np.ones((1, 256, 1, 8), "float16")},
            "does not decode AQLM",
        ),
    ],
)
def test_nothing_to_dequantize_is_an_error(state: dict[str, Any], message: str) -> None:
    with pytest.raises(AlterError, match=message):
        alter.dequantize(statedict.StateDict(state), "bf16")


def test_numbers_do_not_become_integers() -> None:
    with pytest.raises(AlterError, match="int8: dequantized numbers are no integers"):
        alter.dequantize(statedict.load(FILES / "awq" / "model.safetensors"), "int8")


@pytest.mark.parametrize("model", MODELS)
def test_tensors_that_do_not_fit_are_left_and_never_break(model: str) -> None:
    name = next(iter(RECORD[model]))
    stem = name.removesuffix(".weight")
    state = {path: tensor for path, tensor in statedict.load(FILES / model).items() if path.startswith(stem)}
    for path, tensor in state.items():
        array = tensor.numpy()
        others = [array[..., :-1], array[:-1], array.reshape(-1), array[None], array[..., :0]] if array.ndim else []
        with np.errstate(all="ignore"):
            others += [array.astype("int64"), array.astype("float16")]
        for other in others:
            try:
                found = alter.dequantize(
                    statedict.StateDict(state | {path: other}), "fp32", config=find_config(FILES / model)
                )
                found.get(name, np.ones(1)).__array__()
            except (AlterError, CorruptFileError):
                continue


def test_an_index_beyond_the_groups_is_damage_that_is_named(tmp_path: Path) -> None:
    state = statedict.load(FILES / "gptq-4" / "model.safetensors")
    arrays = {name: tensor.numpy() for name, tensor in state.items() if LAYER in name}
    arrays[f"{LAYER}.g_idx"] = arrays[f"{LAYER}.g_idx"] + 1
    save_file(arrays, tmp_path / "x.safetensors")
    with pytest.raises(CorruptFileError, match=r"x.safetensors: an index of groups has 1 to 2, and there are 2 groups"):
        alter.dequantize(statedict.load(tmp_path / "x.safetensors"), "bf16")[f"{LAYER}.weight"].numpy()
    with pytest.raises(CorruptFileError, match="an index of groups"):
        statedict.edit(tmp_path / "x.safetensors", tmp_path / "y.safetensors", {"dequantize": "bf16"})
    assert not (tmp_path / "y.safetensors").exists()


def test_a_name_that_is_taken_is_not_written_over() -> None:
    state = statedict.load(FILES / "gptq-4" / "model.safetensors")
    state[f"{LAYER}.weight"] = np.ones(3)
    found = alter.dequantize(state, "bf16")
    assert found[f"{LAYER}.weight"].shape == (3,)
    assert f"{LAYER}.qweight" in found


@pytest.mark.parametrize(("one", "other"), [("gptq-4", "awq"), ("bitsandbytes-nf4", "mlx-8")])
def test_diff_compares_the_numbers_of_weights_in_two_forms(one: str, other: str) -> None:
    found = statedict.diff(FILES / one, FILES / other, numeric=True, atol=0.1)
    assert {tensor.path for tensor in found.tensors} == SHAPES["llama"].keys()
    assert {tensor.kind for tensor in found.tensors} <= {"identical", "close"}
    assert any("compared by dequantized numbers" in note for note in found.notes)
    assert statedict.diff(FILES / "gptq-4", FILES / "awq").same  # auto-round rounds alike for both


def test_diff_compares_a_quantized_weight_with_what_it_was_made_into(tmp_path: Path) -> None:
    statedict.edit(FILES / "mlx-4", tmp_path / "x", {"dequantize": "bf16"})
    found = statedict.diff(FILES / "mlx-4", tmp_path / "x")
    assert found.same
    assert found.notes == ("A: 9 weights of MLX 4-bit affine compared by dequantized numbers",)
    assert not statedict.diff(FILES / "mlx-4", FILES / "mlx-4").notes
    objects, tensors = statedict.load(TORCHAO), alter.dequantize(statedict.load(TORCHAO), "bf16")
    assert statedict.diff(objects, tensors).same


def test_diff_measures_weights_in_one_form_by_their_numbers(tmp_path: Path) -> None:
    found = statedict.diff(FILES / "gptq-4", FILES / "gptq-4-symmetric")
    assert {one.path for one in found.changed} == RECORD["gptq-4"].keys()
    one, other = (dequantize(FILES / name, "fp16")[f"{LAYER}.weight"] for name in ("gptq-4", "gptq-4-symmetric"))
    direct = statedict.diff({f"{LAYER}.weight": one}, {f"{LAYER}.weight": other}).changed[0]
    assert next(each for each in found.changed if each.path == f"{LAYER}.weight") == direct
    assert found.notes == ("7 weights of GPTQ 4-bit compared by dequantized numbers",)
    assert statedict.diff(FILES / "gptq-4", FILES / "gptq-4-symmetric", atol=0.1).same
    state = statedict.load(FILES / "gptq-4" / "model.safetensors")
    with_zeros = {**state, f"{LAYER}.g_idx": state[f"{LAYER}.g_idx"].numpy() * 0}
    assert [one.path for one in statedict.diff(state, with_zeros).changed] == [f"{LAYER}.weight"]


def test_square_experts_are_turned_too() -> None:
    rng = np.random.default_rng(0)
    blocks, scales = rng.integers(0, 256, (2, 32, 1, 16), "uint8"), rng.integers(120, 130, (2, 32, 1), "uint8")
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    numbers = table[np.stack([blocks & 15, blocks >> 4], -1).reshape(2, 32, 32)] * 2.0 ** (scales.astype("i4") - 127)
    found = alter.dequantize(statedict.StateDict({"e_blocks": blocks, "e_scales": scales}), "fp32")["e"].numpy()
    assert np.array_equal(found, numbers.transpose(0, 2, 1))
    plain = alter.dequantize(statedict.StateDict({"e.blocks": blocks, "e.scales": scales}), "fp32")
    assert np.array_equal(next(iter(plain.values())).numpy(), numbers)


@pytest.mark.parametrize("config", [None, {"quant_method": "fp8", "weight_block_size": [128, 128]}])
def test_the_last_blocks_of_float8_may_be_smaller(config: dict[str, Any] | None) -> None:
    rng = np.random.default_rng(0)
    numbers, scales = rng.normal(size=(192, 300)).astype(ml_dtypes.float8_e4m3fn), rng.random((2, 3), "float32")
    state = statedict.StateDict({"a.weight": numbers, "a.weight_scale_inv": scales})
    found = alter.dequantize(state, "fp32", config=config)["a.weight"].numpy()
    assert np.array_equal(found, numbers.astype("f4") * scales.repeat(128, 0)[:192].repeat(128, 1)[:, :300])


def gptq(index: np.ndarray, numbers: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> statedict.StateDict:
    """A weight of 4 bits as the second version of the format packs it."""
    shifts = 4 * np.arange(8, dtype="uint32")
    rows = (numbers.reshape(-1, 8, numbers.shape[1]).astype("uint32") << shifts[:, None]).sum(1, dtype="uint32")
    columns = (zeros.reshape(len(zeros), -1, 8).astype("uint32") << shifts).sum(2, dtype="uint32")
    words = {"qweight": rows.view("int32"), "qzeros": columns.view("int32"), "scales": scales, "g_idx": index}
    return statedict.StateDict({f"a.{name}": array for name, array in words.items()})


def test_groups_in_any_order_and_both_versions_of_gptq() -> None:
    rng = np.random.default_rng(0)
    index, numbers = rng.permutation(np.repeat(np.arange(4), 16)).astype("int32"), rng.integers(0, 16, (64, 24))
    zeros, scales = rng.integers(0, 15, (4, 24)), rng.normal(size=(4, 24)).astype("float16")
    state, about = gptq(index, numbers, zeros, scales), {"quant_method": "gptq", "bits": 4, "group_size": 16}
    for version, more in (("gptq_v2", 0), ("gptq", 1)):
        found = alter.dequantize(state, "fp16", config=about | {"checkpoint_format": version})["a.weight"].numpy()
        expected = scales[index] * (numbers - zeros[index] - more).astype("float16")
        assert np.array_equal(found, expected.T)


def test_stats_have_the_figures_of_the_dequantized_numbers() -> None:
    report = statedict.stats(FILES / "gptq-4")
    whole = dequantize(FILES / "gptq-4", "fp16")
    assert len(report.weights) == 7
    for weight in report.weights:
        values = whole[weight.name].numpy().astype("f8")
        assert (weight.quantized, weight.max, weight.zeros) == ("GPTQ 4-bit", values.max(), (values == 0).sum())
    assert report.total.elements == 11_360
    assert report["model.layers.0.mlp"].elements == 3 * 2048
    assert [one.name for one in report.dtypes] == ["bfloat16", "GPTQ 4-bit"]
    shown = CliRunner().invoke(cli, ["stats", str(FILES / "gptq-4"), "--only", f"{LAYER}.weight"])
    assert "GPTQ 4-bit, dequantized" in shown.output


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("axis", [0, 1])
def test_packed_numbers_come_out_as_they_went_in(bits: int, axis: int) -> None:
    numbers = np.random.default_rng(bits).integers(0, 1 << bits, (70, 70))
    planes = np.moveaxis(numbers, axis, 0)[:, None] >> np.arange(bits)[:, None] & 1  # (number, bit, rest)
    stream = planes.reshape(-1, 70)
    stream = np.pad(stream, ((0, -len(stream) % 32), (0, 0))).reshape(-1, 32, 70).astype("uint32")
    words = np.moveaxis((stream << np.arange(32, dtype="uint32")[:, None]).sum(1, dtype="uint32"), 0, axis)
    found = unpack(as_lazy(np.ascontiguousarray(words)), bits, axis, 70)
    assert np.array_equal(found.numpy(), numbers)
    assert np.array_equal(found[11:53, 13:].numpy(), numbers[11:53, 13:])


def test_what_is_spread_follows_sizes_or_an_index() -> None:
    few = as_lazy(np.arange(6).reshape(2, 3))
    assert (
        spread(few, (5, 6), (3, 2)).numpy().tolist()
        == np.arange(6).reshape(2, 3).repeat(3, 0)[:5].repeat(2, 1).tolist()
    )
    index = as_lazy(np.array([2, 0, 1, 1]))
    assert spread(few, (2, 4), (1, 1), (1, index)).numpy().tolist() == [[2, 0, 1, 1], [5, 3, 4, 4]]
