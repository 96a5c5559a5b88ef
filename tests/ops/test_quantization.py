"""What is said of quantized models; tests/peers/quantizers.py made the files with the libraries that quantize."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import statedict
from statedict.cli import cli
from statedict.reports.quantization import QuantizedWeight

from ..work import assert_linear, bytes_read, steps

FILES = Path(__file__).parent / "data" / "quantized"
SHAPES: dict[str, dict[str, list[int]]] = json.loads((FILES / "models.json").read_text())
MODELS = sorted(path.name for path in FILES.iterdir() if path.is_dir())
# what the kinds of a model's weights are called, each once
KINDS = {
    "awq": ["AWQ 4-bit"],
    "bitsandbytes-fp4-bfloat16": ["bitsandbytes 4-bit fp4"],
    "bitsandbytes-int8": ["bitsandbytes 8-bit"],
    "bitsandbytes-nf4": ["bitsandbytes 4-bit nf4"],
    "bitsandbytes-nf4-double": ["bitsandbytes 4-bit nf4"],
    "compressed-float8": ["compressed-tensors 8-bit float-quantized"],
    "compressed-int3": ["compressed-tensors 3-bit pack-quantized"],
    "compressed-int4": ["compressed-tensors 4-bit pack-quantized"],
    "compressed-int4-zero-points": ["compressed-tensors 4-bit pack-quantized"],
    "compressed-int8": ["compressed-tensors 8-bit int-quantized"],
    "compressed-mxfp4": ["compressed-tensors 4-bit mxfp4"],
    "compressed-mxfp8": ["compressed-tensors 8-bit mxfp8"],
    "compressed-nvfp4": ["compressed-tensors 4-bit nvfp4"],
    "float8-blocks": ["FP8 8-bit"],
    "gpt-oss-mxfp4": ["MXFP4 4-bit"],
    "gptq-3": ["GPTQ 3-bit"],
    "gptq-4": ["GPTQ 4-bit"],
    "gptq-4-symmetric": ["GPTQ 4-bit"],
    "gptq-8-rows": ["GPTQ 8-bit"],
    **{f"mlx-{bits}": [f"MLX {bits}-bit affine"] for bits in (2, 3, 4, 5, 6, 8)},
    "mlx-mixed": ["MLX 3-bit affine", "MLX 6-bit affine"],
    "mlx-mxfp4": ["MLX 4-bit mxfp4"],
    "mlx-mxfp8": ["MLX 8-bit mxfp8"],
    "mlx-nvfp4": ["MLX 4-bit nvfp4"],
    "quanto-int4": ["Quanto 4-bit"],
    "torchao-int8": ["torchao 8-bit"],
}


def shapes_of(model: str) -> dict[str, list[int]]:
    """The parameters of a model before it was quantized."""
    return SHAPES["gpt-oss" if model.startswith("gpt-oss") else "llama"]


def copy(model: str, folder: Path, config: bool = True) -> Path:
    """A copy of a model, of whose files tests may change something."""
    target = folder / model
    shutil.copytree(FILES / model, target, ignore=None if config else shutil.ignore_patterns("*.json"))
    return target


def change(folder: Path, alter: Callable[[dict[str, Any]], object]) -> Path:
    """Alter the tensors of a model."""
    state = load_file(folder / "model.safetensors")
    alter(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


def test_every_model_has_a_kind() -> None:
    assert sorted(KINDS) == MODELS


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_parameters_and_shapes_are_those_of_the_model_before(model: str, config: bool, tmp_path: Path) -> None:
    summary = statedict.inspect(copy(model, tmp_path, config))
    assert summary.parameters == sum(map(math.prod, shapes_of(model).values()))
    weights = {weight.name: list(weight.shape or ()) for weight in summary.quantization.weights}
    plain = {one.path: list(one.shape) for one in summary.tensors if one.role == "parameter" and one.quantized is None}
    assert weights | plain == shapes_of(model)
    assert len(weights) >= 2
    kinds = sorted(kind.replace(" (guessed)", "") for kind in summary.quantization.kinds)
    assert kinds == KINDS[model]
    assert not summary.quantization.troubles
    assert not summary.quantization.notes


@pytest.mark.parametrize("model", MODELS)
def test_with_a_configuration_nothing_is_guessed(model: str) -> None:
    assert not any(weight.guessed for weight in statedict.inspect(FILES / model).quantization.weights)


@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_flagged_in_what_the_libraries_made(model: str) -> None:
    report = statedict.stats(FILES / model)
    odd = [flag for flag in report.flags if not flag.name.endswith("norm.weight")]  # all 1 before the training
    odd = [flag for flag in odd if not flag.name.endswith((".bias", ".sinks", "_bias"))]  # all 0
    assert odd == []
    left_out = {one.name: one.dtype for one in report.tensors if not one.computed}
    packed = {weight.stored for weight in report.quantization.weights if weight.packed}
    assert packed <= left_out.keys()
    points = [path for weight in report.quantization.weights for path, what in weight.parts.items() if "zero" in what]
    assert left_out.keys() - packed == {path for path in points if report[path].dtype == "int32"}


@pytest.mark.parametrize("model", MODELS)
def test_tensors_beside_the_numbers_are_no_parameters(model: str) -> None:
    summary = statedict.inspect(FILES / model)
    roles = {one.path: one.role for one in summary.tensors}
    for weight in summary.quantization.weights:
        assert weight.stored is not None
        assert roles[weight.stored] == "parameter"
        assert {roles[path] for path in weight.parts} == {"quantization"}
        sizes = {one.path: one.nbytes for one in summary.tensors}
        assert weight.nbytes == sizes[weight.stored] + sum(sizes[path] for path in weight.parts)
    assert summary.roles["parameter"].elements == summary.parameters


@pytest.mark.parametrize("model", MODELS)
def test_only_tiny_tensors_are_read(model: str) -> None:
    file = FILES / model / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    state = [bytes_read(lambda: statedict.load(file)), bytes_read(lambda: statedict.inspect(file))]
    tiny = [one for one in statedict.inspect(file).tensors if "shape" in one.path or "quant_state" in one.path]
    assert state[0] >= header
    config = FILES / model / "config.json"
    assert state[1] <= state[0] + sum(one.nbytes for one in tiny) + (config.stat().st_size if config.exists() else 0)


def test_show_names_the_scheme_the_shapes_and_the_parameters() -> None:
    shown = CliRunner().invoke(cli, ["show", str(FILES / "awq")])
    assert shown.exit_code == 0
    assert "11,360 parameters" in shown.output.splitlines()[0]
    assert "AWQ 4-bit of 32×64" in shown.output
    assert "AWQ 4-bit in groups of 32: 7 weights, 10,240 parameters in 5.9 kB, 4.62 bits each" in shown.output
    assert "parameters 11,360 (7.4 kB), quantization 360 (800 B)" in shown.output


def test_the_json_has_both_counts() -> None:
    shown = CliRunner().invoke(cli, ["show", "--json", str(FILES / "awq")])
    found = json.loads(shown.output)
    (kind,) = found["quantization"]["kinds"]
    assert (found["parameters"], kind["scheme"], kind["bits"], kind["parameters"]) == (11_360, "AWQ", 4, 10_240)
    assert found["total"]["elements"] < found["parameters"]
    weights = {one["name"]: (one["shape"], one["bits_per_weight"]) for one in found["quantization"]["weights"]}
    assert weights["model.layers.0.mlp.down_proj.weight"] == ([32, 64], 4.625)
    tensors = {one["name"]: one["quantized"] for one in found["tensors"] if one["quantized"]}
    assert tensors["model.layers.0.mlp.down_proj.qweight"] == {"kind": "AWQ 4-bit", "shape": [32, 64]}


def test_a_notebook_shows_the_kinds_and_what_is_wrong(tmp_path: Path) -> None:
    folder = change(copy("mlx-mixed", tmp_path), lambda state: state.pop(f"{LAYER}.scales"))
    shown = statedict.inspect(folder)._repr_html_()
    assert "<td>MLX 6-bit affine</td>" in shown
    assert f"{LAYER}.scales: MLX: scales are missing" in shown


def test_a_part_of_a_model_says_the_same_of_its_weights() -> None:
    folder, at = str(FILES / "gptq-4"), "model.layers.0.mlp"
    shown = CliRunner().invoke(cli, ["show", "--json", "--at", at, folder])
    names = [weight["name"] for weight in json.loads(shown.output)["quantization"]["weights"]]
    assert names == [f"{at}.{name}_proj.weight" for name in ("down", "gate", "up")]
    alone = CliRunner().invoke(cli, ["show", "--at", f"{at}.down_proj.qweight", folder])
    assert alone.exit_code == 0
    assert "missing" not in alone.output


def test_stats_of_some_tensors_know_the_others() -> None:
    report = statedict.stats(FILES / "gptq-4", only="*.down_proj.qweight")
    assert [(one.name.rpartition(".")[2], one.computed) for one in report.tensors] == [("qweight", False)]
    assert report.flags == ()


def test_an_unquantized_model_has_no_quantization() -> None:
    state = {
        "fc.weight": np.ones((3, 2), "float32"),
        "logit_scale": np.ones(1),
        "x.scales": np.ones(2),
        "l.SCB": np.ones(3),
    }
    summary = statedict.inspect(state)
    assert summary.to_json()["quantization"] is None
    assert {one.role for one in summary.tensors} == {"parameter"}


LAYER = "model.layers.0.mlp.down_proj"
# model, what is done to a tensor of the layer, and the flag that this makes: tensor, kind
FAULTS: dict[str, tuple[str, str, Callable[[Any], Any], str]] = {
    "a scale is NaN": ("gptq-4", "scales", lambda t: t.index_fill(0, index(0), math.nan), "nan"),
    "a scale is infinite": ("awq", "scales", lambda t: t.index_fill(1, index(3), math.inf), "inf"),
    "a scale is 0": ("gptq-4", "scales", lambda t: t.index_fill(1, index(3), 0), "zeros"),
    "all scales are 0": ("bitsandbytes-int8", "SCB", lambda t: t * 0, "zeros"),
    "a scale of AWQ is negative": ("awq", "scales", lambda t: t.index_fill(1, index(3), -0.5), "negative"),
    "a scale of GPTQ is negative": ("gptq-4", "scales", lambda t: t.index_fill(1, index(3), -0.5), "negative"),
    "an index is too large": ("gptq-4", "g_idx", lambda t: t.index_fill(0, index(3), 99), "range"),
    "an index is negative": ("gptq-4", "g_idx", lambda t: t.index_fill(0, index(3), -1), "range"),
    "g_idx is too short": ("gptq-4", "g_idx", lambda t: t[:32], "shape"),
    "scales of too few groups": ("gptq-4", "scales", lambda t: t[:1], "shape"),
    "zero points of other rows": ("awq", "qzeros", lambda t: t[:, :2], "shape"),
    "absmax is NaN": ("bitsandbytes-nf4", "weight.absmax", lambda t: t * math.nan, "nan"),
    "absmax is negative": ("bitsandbytes-nf4", "weight.absmax", lambda t: -t, "negative"),
    "absmax is too short": ("bitsandbytes-nf4", "weight.absmax", lambda t: t[:5], "shape"),
    "nested absmax is infinite": ("bitsandbytes-nf4-double", "weight.nested_absmax", lambda t: t / 0, "inf"),
    "a quantization state that is no JSON": (
        "bitsandbytes-nf4", "weight.quant_state.bitsandbytes__nf4", lambda t: t * 0, "shape",
    ),
    "SCB of other rows": ("bitsandbytes-int8", "SCB", lambda t: t[:5], "shape"),
    "too few packed words": ("compressed-int4", "weight_packed", lambda t: t[:, :3], "shape"),
    "a scale of compressed-tensors is 0": ("compressed-int4", "weight_scale", lambda t: t * 0, "zeros"),
    "a scale of compressed-tensors is negative": ("compressed-float8", "weight_scale", lambda t: -t, "negative"),
    "a float8 scale is NaN": ("compressed-nvfp4", "weight_scale", lambda t: (t.float() * math.nan).to(t.dtype), "nan"),
    "a global scale is 0": ("compressed-nvfp4", "weight_global_scale", lambda t: t * 0, "zeros"),
    "an exponent is that of NaN": ("compressed-mxfp4", "weight_scale", lambda t: t * 0 + 255, "nan"),
    "scales for other blocks": ("float8-blocks", "weight_scale_inv", lambda t: t[:1], "shape"),
    "a block's scale is NaN": ("float8-blocks", "weight_scale_inv", lambda t: t * math.nan, "nan"),
    "a scale of MLX is 0": ("mlx-4", "scales", lambda t: t * 0, "zeros"),
    "a bias of MLX is NaN": ("mlx-4", "biases", lambda t: t * math.nan, "nan"),
    "biases of other groups": ("mlx-4", "biases", lambda t: t[:, :1], "shape"),
    "a scale of nvfp4 is NaN": ("mlx-nvfp4", "scales", lambda t: t * 0 + 127, "nan"),
    "an exponent of MLX is that of NaN": ("mlx-mxfp4", "scales", lambda t: t * 0 + 255, "nan"),
}  # fmt: skip


def index(*numbers: int) -> Any:
    import torch

    return torch.tensor(numbers)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_scheme_never_makes_is_flagged(fault: str, tmp_path: Path) -> None:
    model, name, alter, kind = FAULTS[fault]
    path = f"{LAYER}.{name}"
    folder = change(copy(model, tmp_path), lambda state: state.update({path: alter(state[path])}))
    flags = [flag for flag in statedict.stats(folder).flags if not flag.name.endswith("norm.weight")]
    assert (path, kind) in {(flag.name, flag.kind) for flag in flags}
    assert {flag.name.rpartition(".")[0].removesuffix(".weight") for flag in flags} <= {
        LAYER,
        f"{LAYER}.weight.quant_state",
    }
    if kind == "shape":
        troubles = statedict.inspect(folder).quantization.troubles
        assert (path, "shape") in {(one.name, one.kind) for one in troubles}


MISSING = [
    ("gptq-4", "scales"),
    ("gptq-4", "qweight"),
    ("awq", "scales"),
    ("bitsandbytes-nf4", "weight.absmax"),
    ("bitsandbytes-nf4", "weight"),
    ("bitsandbytes-int8", "SCB"),
    ("compressed-int4", "weight_scale"),
    ("compressed-int4", "weight_packed"),
    ("compressed-nvfp4", "weight_scale"),
    ("compressed-int8", "weight_scale"),
    ("compressed-float8", "weight_scale"),
    ("float8-blocks", "weight_scale_inv"),
    ("mlx-4", "scales"),
    ("mlx-mxfp4", "scales"),
    ("torchao-int8", "_weight_scale"),
]


@pytest.mark.parametrize(("model", "name"), MISSING)
def test_a_missing_companion_is_named(model: str, name: str, tmp_path: Path) -> None:
    folder = change(copy(model, tmp_path), lambda state: state.pop(f"{LAYER}.{name}"))
    missing = [one for one in statedict.inspect(folder).quantization.troubles if one.kind == "missing"]
    assert [one.name for one in missing] == [f"{LAYER}.{name}"]
    flags = [flag for flag in statedict.stats(folder).flags if flag.kind == "missing"]
    assert [flag.name for flag in flags] == [f"{LAYER}.{name}"]
    assert f"missing: {LAYER}.{name}: " in CliRunner().invoke(cli, ["show", str(folder)]).output


def test_the_scales_of_auto_round_may_be_negative(tmp_path: Path) -> None:
    folder = copy("gptq-4-symmetric", tmp_path)
    scales = load_file(folder / "model.safetensors")[f"{LAYER}.scales"]
    assert 0.2 < (scales < 0).float().mean() < 0.8
    assert not [flag for flag in statedict.stats(folder).flags if flag.kind == "negative"]
    config = json.loads((folder / "config.json").read_text())
    for key in ("autoround_version", "provider"):
        del config["quantization_config"][key]
    (folder / "config.json").write_text(json.dumps(config))
    assert [flag for flag in statedict.stats(folder).flags if flag.kind == "negative"]
    (folder / "config.json").unlink()
    assert not [flag for flag in statedict.stats(folder).flags if flag.kind == "negative"]


@pytest.mark.parametrize("model", ["gptq-4", "mlx-4", "awq"])
def test_other_bits_in_the_configuration_are_named(model: str, tmp_path: Path) -> None:
    folder = copy(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for key in config.keys() & {"quantization", "quantization_config"}:
        config[key]["bits"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    summary = statedict.inspect(folder)
    troubles = summary.quantization.troubles
    assert {one.kind for one in troubles} == {"shape"}
    assert all("the configuration says 8" in one.what for one in troubles)
    assert {one.name.rpartition(".")[0] for one in troubles} == {
        (weight.stored or "").rpartition(".")[0] for weight in summary.quantization.weights
    }


def test_a_configuration_of_another_scheme_is_named(tmp_path: Path) -> None:
    folder = copy("gptq-4", tmp_path)
    shutil.copy(FILES / "mlx-4" / "config.json", folder / "config.json")
    assert "says mlx, and the tensors are those of GPTQ" in CliRunner().invoke(cli, ["show", str(folder)]).output
    change(folder, lambda state: [state.pop(name) for name in list(state) if "_proj" in name])
    assert "no tensor is quantized" in CliRunner().invoke(cli, ["show", str(folder)]).output


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"quantization_config": 3}', '{"quantization_config": {"bits": "x"}}']
)
def test_a_configuration_that_says_nothing_is_none(text: str, tmp_path: Path) -> None:
    folder = copy("gptq-4", tmp_path)
    (folder / "config.json").write_text(text)
    assert list(statedict.inspect(folder).quantization.kinds) == ["GPTQ 4-bit"]


def test_a_configuration_can_be_given() -> None:
    state = statedict.load(FILES / "mlx-mixed" / "model.safetensors")
    config = json.loads((FILES / "mlx-mixed" / "config.json").read_text())["quantization"]
    assert sorted(statedict.inspect(state, config=config).quantization.kinds) == KINDS["mlx-mixed"]
    assert statedict.stats(state, config=config).quantization == statedict.inspect(state, config=config).quantization


def only(state: dict[str, Any], config: dict[str, Any] | None = None) -> QuantizedWeight:
    (weight,) = statedict.inspect(state, config=config).quantization.weights
    return weight


RNG = np.random.default_rng(0)
FP8 = ml_dtypes.float8_e4m3fn
# by the sources of the libraries, which need a GPU: tensors, configuration, then scheme, shape and bits
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, tuple[int, ...], float]]] = {
    "FP8 in blocks at an odd size": (
        {"q.weight": RNG.normal(size=(576, 300)).astype(FP8), "q.weight_scale_inv": np.ones((5, 3), "f4")},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        ("FP8", (576, 300), 8),
    ),
    "experts in FP8": (
        {"e.up_proj": RNG.normal(size=(2, 256, 128)).astype(FP8), "e.up_proj_scale_inv": np.ones((2, 2, 1), "f4")},
        {},
        ("FP8", (2, 256, 128), 8),
    ),
    "ModelOpt's nvfp4": (
        {
            "q.weight": RNG.integers(0, 256, (8, 32), "uint8"),
            "q.weight_scale": np.abs(RNG.normal(size=(8, 4))).astype(FP8),
            "q.weight_scale_2": np.ones((), "f4"),
            "q.input_scale": np.ones((), "f4"),
        },
        {},
        ("ModelOpt", (8, 64), 4),
    ),
    "ModelOpt's float8": (
        {"q.weight": RNG.normal(size=(8, 32)).astype(FP8), "q.weight_scale": np.ones((), "f4")},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        ("ModelOpt", (8, 32), 8),
    ),
    "FBGEMM": (
        {"e.up_proj": RNG.normal(size=(2, 32, 64)).astype(FP8), "e.up_proj_scale": np.ones((2, 1, 64), "f4")},
        {"quant_method": "fbgemm_fp8"},
        ("FBGEMM", (2, 32, 64), 8),
    ),
    "gpt-oss by OpenAI": (
        {
            "mlp1_weight.blocks": RNG.integers(0, 256, (2, 64, 3, 16), "uint8"),
            "mlp1_weight.scales": RNG.integers(110, 130, (2, 64, 3), "uint8"),
        },
        {},
        ("MXFP4", (2, 64, 96), 4),
    ),
    "AWQ for GEMV": (
        {
            "q.qweight": RNG.integers(-9, 9, (64, 16), "int32"),
            "q.scales": np.ones((64, 8), "f2"),
            "q.qzeros": np.ones((64, 1), "int32"),
        },
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"},
        ("AWQ", (64, 128), 4),
    ),
    "EETQ": (
        {"q.weight": RNG.integers(-127, 128, (32, 64), "int8"), "q.weight_scales": np.ones(64, "f2")},
        {},
        ("EETQ", (64, 32), 8),
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_schemes_are_told_by_their_tensors(case: str) -> None:
    state, config, expected = OTHERS[case]
    weight = only(state, config or None)
    assert (weight.scheme, weight.shape, weight.bits) == expected
    summary = statedict.inspect(state, config=config or None)
    assert summary.parameters == math.prod(expected[1])
    assert statedict.stats(state, config=config or None).flags == ()
    assert not summary.quantization.notes


@given(
    st.integers(1, 5).map(lambda n: n * 32),
    st.integers(1, 5).map(lambda n: n * 32),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([16, 32, 64, -1]),
)
def test_the_layout_of_gptq_is_reversed(length: int, out: int, bits: int, group: int) -> None:
    groups = 1 if group < 0 else -(-length // group)
    state = {
        "a.qweight": np.zeros((length * bits // 32, out), "int32"),
        "a.scales": np.ones((groups, out), "float16"),
        "a.qzeros": np.zeros((groups, out * bits // 32), "int32"),
    }
    expected = "GPTQ", (out, length), bits, ()
    weight = only(state)
    assert (weight.scheme, weight.shape, weight.bits, weight.troubles) == expected
    weight = only(state, {"quant_method": "gptq", "bits": bits, "group_size": group})
    assert (weight.scheme, weight.shape, weight.bits, weight.troubles) == expected


@given(
    st.integers(1, 300),
    st.integers(1, 5).map(lambda n: n * 32),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([16, 32, 128]),
)
def test_the_layout_of_awq_is_reversed(length: int, out: int, bits: int, group: int) -> None:
    groups = -(-length // group)
    words = out * bits // 32
    state = {
        "qweight": np.zeros((length, words), "int32"),
        "qzeros": np.zeros((groups, words), "int32"),
        "scales": np.ones((groups, out), "float16"),
    }
    weight = only(state, {"quant_method": "awq", "bits": bits, "group_size": group, "version": "gemm"})
    assert (weight.name, weight.scheme, weight.shape, weight.troubles) == ("weight", "AWQ", (out, length), ())


@given(st.data(), st.sampled_from([2, 3, 4, 5, 6, 8]), st.sampled_from([32, 64, 128]))
def test_the_layout_of_mlx_is_reversed(data: st.DataObject, bits: int, group: int) -> None:
    *rest, rows, groups = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    state = {
        "w.weight": np.zeros((*rest, rows, groups * group * bits // 32), "uint32"),
        "w.scales": np.ones((*rest, rows, groups), "float16"),
        "w.biases": np.ones((*rest, rows, groups), "float16"),
    }
    weight = only(state, {"quant_method": "mlx", "bits": bits, "group_size": group})
    assert (weight.shape, weight.bits, weight.group, weight.troubles) == (
        (*rest, rows, groups * group),
        bits,
        group,
        (),
    )


@pytest.mark.parametrize("tensors", [10, 3000])
def test_any_tensors_with_the_names_of_a_scheme_are_shown(tensors: int) -> None:
    names = ["qweight", "scales", "qzeros", "g_idx", "weight", "weight_scale", "weight_packed", "weight.absmax", "SCB"]
    names += [
        "weight_shape",
        "biases",
        "W_q",
        "x_blocks",
        "x_scales",
        "codes",
        "codebooks",
        "trellis",
        "B",
        "workspace",
    ]
    rng = np.random.default_rng(0)
    kinds = ["int32", "uint8", "float32", "uint32", "int64", "int8"]
    state = {
        f"{at // 6}.{rng.choice(names)}": np.ones(rng.integers(0, 4, rng.integers(0, 5)), rng.choice(kinds))
        for at in range(tensors)
    }
    statedict.inspect(state).to_json()
    statedict.stats(state).to_json()


def test_the_cost_grows_linearly_with_the_weights() -> None:
    def cost(count: int) -> int:
        state = {
            f"layers.{at}.{name}": np.zeros(shape, kind)
            for at in range(count)
            for name, shape, kind in (
                ("weight", (2, 8), "uint32"), ("scales", (2, 2), "float16"), ("biases", (2, 2), "float16"),
            )
        }  # fmt: skip
        return steps(lambda: statedict.inspect(state))

    assert_linear(cost, 300, 1_200)


def test_settings_of_single_modules_are_those_of_the_configuration() -> None:
    def state(*names: str) -> dict[str, Any]:
        return {
            f"{name}.{part}": value
            for name in names
            for part, value in (
                ("qweight", np.zeros((8, 32), "int32")),
                ("scales", np.ones((1, 32), "float16")),
            )
        }

    config = {"quant_method": "gptq", "bits": 4, "group_size": -1, "dynamic": {"+:a\\.(q|k)_proj$": {"bits": 8}}}
    found = statedict.inspect(state("a.q_proj", "a.v_proj"), config=config).quantization.weights
    assert [(weight.bits, weight.shape) for weight in found] == [(8, (32, 32)), (4, (32, 64))]
    weights = {"num_bits": 8, "group_size": None}
    groups = {
        "x": {"targets": ["re:.*q_proj"], "weights": weights},
        "y": {"targets": ["a.v_proj"], "weights": weights | {"num_bits": 4}},
    }
    packed = {
        f"a.{name}.{part}": value
        for name in ("q_proj", "v_proj")
        for part, value in (("weight_packed", np.zeros((2, 8), "int32")), ("weight_scale", np.ones((2, 1), "f4")))
    }
    config = {"quant_method": "compressed-tensors", "config_groups": groups}
    found = statedict.inspect(packed, config=config).quantization.weights
    assert [(weight.bits, weight.shape) for weight in found] == [(8, (2, 32)), (4, (2, 64))]


def test_a_pattern_in_a_configuration_takes_no_time() -> None:
    name = "a" * 200 + "!"
    state = {f"{name}.qweight": np.zeros((4, 32), "int32"), f"{name}.scales": np.ones((1, 32), "float16")}
    config = {"quant_method": "gptq", "bits": 4, "dynamic": {"(a+)+$": {"bits": 8}, "((a|a)*)*b": {"bits": 2}}}
    assert only(state, config).bits == 4


def test_the_cost_grows_linearly_with_settings_of_single_modules() -> None:
    def cost(count: int) -> int:
        state = {
            f"{at}.{name}": np.zeros(shape, kind)
            for at in range(count)
            for name, shape, kind in (("qweight", (4, 32), "int32"), ("scales", (1, 32), "float16"))
        }
        config = {"quant_method": "gptq", "bits": 4, "extra_config": {str(at): {"bits": 4} for at in range(count)}}
        return steps(lambda: statedict.inspect(state, config=config))

    assert_linear(cost, 300, 1_200)


# what `compress` of these classes of compressed-tensors 0.9.4 makes of a weight of 128×256
SPARSE: dict[str, dict[str, np.ndarray]] = {
    "sparse-bitmask": {  # BitmaskCompressor
        "l.shape": np.array([128, 256]),
        "l.compressed": np.ones(16384, "float16"),
        "l.bitmask": np.full((128, 32), 0x33, "uint8"),
        "l.row_offsets": np.arange(128) * 128,
    },
    "sparse-bitmask of 2:4": {  # Sparse24BitMaskCompressor
        "l.shape": np.array([[128], [256]]),
        "l.compressed": np.ones((128, 128), "float16"),
        "l.bitmask": np.full((128, 32), 0x33, "uint8"),
    },
    "marlin-24": {  # Marlin24Compressor of 4 bits in groups of 128, and of 8
        "l.scale_packed": np.ones((2, 128), "float16"),
        "l.weight_packed": np.ones((8, 256), "int32"),
        "l.meta": np.ones((8, 256), "int16"),
    },
    "marlin-24 of 8 bits": {
        "l.scale_packed": np.ones((2, 128), "float16"),
        "l.weight_packed": np.ones((8, 512), "int32"),
        "l.meta": np.ones((8, 256), "int16"),
    },
}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("what", SPARSE)
def test_sparse_weights_have_the_shape_that_they_had(what: str, backwards: bool) -> None:
    state = SPARSE[what]
    summary = statedict.inspect({name: state[name] for name in sorted(state, reverse=backwards)})
    (weight,) = summary.quantization.weights
    bits = 16 if "mask" in what else 8 if "8" in what else 4
    assert (weight.name, weight.shape, weight.format) == ("l.weight", (128, 256), what.split()[0])
    assert (weight.scheme, weight.bits, weight.troubles) == ("compressed-tensors", bits, ())
    assert summary.parameters == 128 * 256
    assert set(weight.parts) == set(state) - {weight.stored}


@pytest.mark.parametrize("part", ["l.bitmask", "l.row_offsets", "l.scale_packed", "l.meta"])
def test_parts_of_sparse_weights_that_do_not_fit_are_found(part: str) -> None:
    state = next(dict(state) for state in SPARSE.values() if part in state)
    state[part] = state[part][..., :-1] if "scale" in part else state[part][:-1]
    assert [(one.name, one.kind) for one in statedict.inspect(state).quantization.troubles] == [(part, "shape")]


@pytest.mark.parametrize("name", MODELS)
def test_a_cast_leaves_quantized_weights_alone_and_says_so(name: str, tmp_path: Path) -> None:
    source = FILES / name / "model.safetensors"
    before = statedict.load(source)
    report = statedict.edit(source, tmp_path / "x.safetensors", {"cast": "float64"})
    found = statedict.inspect(source).quantization
    assert found is not None
    belong = {path for weight in found.weights for path in (weight.stored, *weight.parts)} | {*found.others}
    floats = [path for path, tensor in before.flatten().items() if tensor.dtype.kind == "float"]
    kept = [path for path in floats if path in belong]
    assert set(report.changes[0].altered) == {*floats} - {*kept}
    assert ("quantized weights stays as it is" in " ".join(report.notes)) is bool(kept)
    after = statedict.load(tmp_path / "x.safetensors").flatten()
    assert all(after[path].dtype is tensor.dtype for path, tensor in before.flatten().items() if path in belong)
    for path in kept[:1]:
        named = statedict.edit(source, None, {"cast": "float32", "only": [path]}, dry_run=True)
        assert not named.notes
