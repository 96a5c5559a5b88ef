"""The dialects of adapters, by hand: names, scales, what is refused, and what the written file proves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict import lora
from statedict.api.lora import apply_files
from statedict.errors import CombineError, PatternError

RNG = np.random.default_rng(17)
DOWN, UP = RNG.standard_normal((2, 4)).astype("f4"), RNG.standard_normal((6, 2)).astype("f4")
BASE = {
    "down_blocks.0.attentions.0.to_q.weight": RNG.standard_normal((6, 4)).astype("f4"),
    "down_blocks.0.attentions.0.to_out.0.weight": RNG.standard_normal((6, 4)).astype("f4"),
    "mid_block.conv.weight": RNG.standard_normal((6, 4, 3, 3)).astype("f4"),
}
Q, OUT, CONV = BASE
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def pair(name: str, down: str, up: str) -> dict[str, Any]:
    return {f"{name}{down}": DOWN, f"{name}{up}": UP}


HADA = {f"lora_unet_down_blocks_0_attentions_0_to_q.hada_{name}": value for name, value in (
    ("w1_a", UP), ("w1_b", DOWN), ("w2_a", UP + 1), ("w2_b", DOWN - 1),
)}  # fmt: skip
DIALECTS: dict[str, tuple[dict[str, Any], float, str]] = {  # case → tensors, the scale that they say, the tensor
    "kohya": (
        pair("lora_unet_down_blocks_0_attentions_0_to_q", ".lora_down.weight", ".lora_up.weight")
        | {"lora_unet_down_blocks_0_attentions_0_to_q.alpha": np.array(1, "f4")},
        0.5,
        Q,
    ),
    "kohya without alpha": (
        pair("lora_unet_down_blocks_0_attentions_0_to_out_0", ".lora_down.weight", ".lora_up.weight"),
        1,
        OUT,
    ),
    "diffusers": (pair(f"unet.{Q[:-7]}", ".lora_A.weight", ".lora_B.weight"), 1, Q),
    "diffusers with alpha": (
        pair(f"transformer.{Q[:-7]}", ".lora_A.weight", ".lora_B.weight") | {f"transformer.{Q[:-7]}.alpha": 8.0},
        4,
        Q,
    ),
    "diffusers, layers": (pair(Q[:-7], ".lora.down.weight", ".lora.up.weight"), 1, Q),
    "diffusers, linear layers": (pair(Q[:-7], ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"), 1, Q),
    "diffusers, processors": (
        pair("unet.down_blocks.0.attentions.0.processor.to_out", "_lora.down.weight", "_lora.up.weight"),
        1,
        OUT,
    ),
}


@pytest.mark.parametrize("case", DIALECTS)
def test_every_dialect_names_the_tensor_and_the_scale(case: str) -> None:
    adapter, scale, path = DIALECTS[case]
    made = lora.apply(BASE, adapter)
    assert np.allclose(made[path].numpy(), BASE[path] + scale * UP @ DOWN, atol=1e-6)
    assert all(made[name].numpy().tobytes() == value.tobytes() for name, value in BASE.items() if name != path)


def test_the_configuration_in_the_metadata_of_diffusers_says_the_scale(tmp_path: Path) -> None:
    tree = statedict.StateDict(pair(f"unet.{Q[:-7]}", ".lora_A.weight", ".lora_B.weight"))
    about = {"unet.r": 2, "unet.lora_alpha": 2, "unet.alpha_pattern": {"to_q": 6}}
    tree.metadata = {"lora_adapter_metadata": json.dumps(about)}
    statedict.save(tree, tmp_path / "adapter.safetensors")
    made = lora.apply(BASE, tmp_path / "adapter.safetensors")
    assert np.allclose(made[Q].numpy(), BASE[Q] + 3 * UP @ DOWN, atol=1e-6)


def test_a_convolution_in_three_steps_is_added() -> None:
    down, mid = RNG.standard_normal((2, 4, 1, 1)).astype("f4"), RNG.standard_normal((2, 2, 3, 3)).astype("f4")
    name = "lora_unet_mid_block_conv"
    adapter = {f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": mid, f"{name}.lora_up.weight": UP}
    expected = BASE[CONV] + np.einsum("or,rshw,si->oihw", UP, mid, down[:, :, 0, 0])
    assert np.allclose(lora.apply(BASE, adapter)[CONV].numpy(), expected, atol=1e-5)


def test_names_that_underscores_make_one_are_refused() -> None:
    base = {"a.b_c.weight": BASE[Q], "a_b.c.weight": BASE[Q]}
    with pytest.raises(CombineError, match=r"a\.b_c, a_b\.c are one name with underscores for dots"):
        lora.apply(base, pair("lora_unet_a_b_c", ".lora_down.weight", ".lora_up.weight"))


def test_a_name_that_two_modules_could_have_is_refused() -> None:
    base = {"model": {"encoder.q.weight": BASE[Q], "decoder.q.weight": BASE[Q]}}
    with pytest.raises(CombineError, match=r"q could be decoder\.q, encoder\.q of the base"):
        lora.apply(base, pair("q", ".lora_down.weight", ".lora_up.weight"))


def test_a_part_of_an_adapter_is_applied_by_patterns() -> None:
    adapter = DIALECTS["diffusers"][0] | pair("text_encoder.fc", ".lora_A.weight", ".lora_B.weight")
    with pytest.raises(CombineError, match=r"the base lacks 1 module of its 2: text_encoder\.fc"):
        lora.apply(BASE, adapter)
    made = lora.apply(BASE, adapter, only="unet")
    assert np.allclose(made[Q].numpy(), BASE[Q] + UP @ DOWN, atol=1e-6)
    with pytest.raises(PatternError, match="vae"):
        lora.apply(BASE, adapter, only=["vae"])


OTHERS = {
    "LoHa with a core": {"m.hada_t1": DOWN, "m.hada_w1_a": DOWN, "m.hada_w1_b": UP, "m.alpha": np.array(1, "f4")},
    "LoKr": {"m.lokr_w1": DOWN, "m.lokr_w2": UP},
    "IA3": {"base_model.model.m.ia3_l": UP},
    "OFT": {"base_model.model.m.oft_R.weight": UP},
    "VeRA": {"base_model.model.m.vera_lambda_b": UP},
    "LyCORIS full": {"lora_unet_m.diff": UP},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_named_and_refused(kind: str) -> None:
    assert lora.show(OTHERS[kind]).kind == kind
    with pytest.raises(CombineError, match=f"is {kind}, which cannot be applied yet"):
        lora.apply(BASE, OTHERS[kind])


PEFT = pair(f"base_model.model.{Q[:-7]}", ".lora_A.weight", ".lora_B.weight")
MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str]] = {  # case → tensors, configuration, message
    "without a configuration": (PEFT, None, r"has no adapter_config\.json, which says alpha"),
    "another rank": (PEFT, {"r": 1, "lora_alpha": 1}, "tensors of rank 2, and adapter_config.json says 1"),
    "a rank that is no number": (PEFT, {"r": "x"}, "rank 2, and adapter_config.json says 'x'"),
    "QA-LoRA": (PEFT, CONFIG | {"use_qalora": True}, r"is QA-LoRA \(use_qalora\)"),
    "PiSSA": (PEFT, CONFIG | {"init_lora_weights": "pissa_niter_4"}, "initialized by pissa_niter_4, which changes"),
    "another type": (PEFT, CONFIG | {"peft_type": "MISS"}, "is MISS, which cannot be applied yet"),
    "LoHa with half of the second pair": (
        PEFT | {f"base_model.model.{Q[:-7]}.hada_w2_a": UP},
        CONFIG,
        "has no down2 for down_blocks.0.attentions.0.to_q",
    ),
    "parts of two kinds": (
        PEFT
        | {f"base_model.model.{Q[:-7]}.lora_E": np.ones((2, 1), "f4")}
        | {f"base_model.model.{Q[:-7]}.lora_mid.weight": np.ones((2, 2, 1), "f4")},
        CONFIG,
        "has mid and gains, of different kinds of adapters",
    ),
    "gains of another rank": (
        PEFT | {f"base_model.model.{Q[:-7]}.lora_E": UP},
        CONFIG,
        r"its tensor 'gains' has the shape \(6, 2\), not \(2, 1\)",
    ),
    "half a pair": (dict([*PEFT.items()][:1]), CONFIG, "has no up for down_blocks.0.attentions.0.to_q, only down"),
    "a tensor that is not used": (
        PEFT | {"base_model.model.x.weight": UP},
        CONFIG,
        "x.weight: is no tensor of the base",
    ),
    "another shape": (
        {key: value.T for key, value in PEFT.items()},
        CONFIG,
        r"to_q\.weight of the base .*: has the shape \(6, 4\), which",
    ),
    "a bad pattern": (PEFT, CONFIG | {"rank_pattern": {"(": 2}}, r"'\(' is not a regular expression"),
    "a scalar": (
        PEFT | {f"base_model.model.{Q[:-7]}.lora_A.weight": np.array(1.0)},
        CONFIG,
        "'down' is float64 of shape",
    ),
    "an empty factor": (
        {f"base_model.model.{Q[:-7]}.lora_A.weight": DOWN[:0], f"base_model.model.{Q[:-7]}.lora_B.weight": UP[:, :0]},
        CONFIG,
        r"'down' is float32 of shape \(0, 4\)",
    ),
    "integers": ({key: value.astype("i4") for key, value in PEFT.items()}, CONFIG, "'down' is int32"),
    "a pattern that is a list": (PEFT, CONFIG | {"rank_pattern": []}, "rank_pattern: expected an object"),
    "modules that are a text": (
        PEFT,
        CONFIG | {"modules_to_save": "head"},
        "modules_to_save: expected a list of names",
    ),
    "a billion layers": (
        PEFT,
        CONFIG | {"layer_replication": [[0, 10**9]]},
        "layer_replication: expected a list of pairs",
    ),
    "no adapter at all": ({"fc.weight": UP}, CONFIG, "has no tensor of a low-rank adapter"),
    "tokens that are not there": (
        PEFT | {f"base_model.model.{OUT[:-7]}.token_adapter.trainable_tokens_delta": DOWN},
        CONFIG | {"trainable_token_indices": [0, 6]},
        r"says the tokens \[0, 6\], which are not 2 different rows of \(6, 4\)",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_explained(case: str) -> None:
    adapter, config, message = MISTAKES[case]
    with pytest.raises(CombineError, match=message):
        lora.apply(BASE, adapter, config=config)


@pytest.mark.parametrize(
    ("base", "what"),
    [
        ({Q: BASE[Q].astype("i1")}, "is int8, to which nothing can be added; dequantize the base first"),
        (
            {Q: BASE[Q].astype(ml_dtypes.float8_e4m3fn), f"{Q}_scale": np.array(1, "f4")},
            "is quantized, with down_blocks.0.attentions.0.to_q.weight_scale",
        ),
    ],
)
def test_a_quantized_base_is_refused(base: dict[str, Any], what: str) -> None:
    with pytest.raises(CombineError, match=what):
        lora.apply(base, PEFT, config=CONFIG)


def test_half_an_adapter_is_shown_with_its_fault() -> None:
    half = {name: value for name, value in HADA.items() if not name.endswith("w2_b")}
    assert lora.show(half).fault.startswith("has no down2 for")


def test_patterns_that_disagree_are_noted() -> None:
    config = CONFIG | {"alpha_pattern": {"to_q": 2, ".*to_q": 8}}
    report = lora.show(PEFT, config)
    assert report.modules[0].scale == 1
    assert "several patterns of alpha_pattern match" in report.notes[0]


def test_a_tensor_without_an_adapter_keeps_its_bytes_and_flags() -> None:
    state = {**BASE, Q: BASE[Q].astype(ml_dtypes.bfloat16)}
    made = lora.apply(state, PEFT, config=CONFIG)
    assert str(made[Q].dtype) == "bfloat16"
    expected = (state[Q].astype("f4") + 2 * (UP @ DOWN)).astype(ml_dtypes.bfloat16)
    assert made[Q].numpy().tobytes() == expected.tobytes()


def test_parts_of_the_result_are_computed_alone() -> None:
    whole = lora.apply(BASE, PEFT, config=CONFIG)[Q]
    assert np.array_equal(whole[2:5, 1:3].numpy(), whole.numpy()[2:5, 1:3])
    assert np.array_equal(whole[-1].numpy(), whole.numpy()[-1])


def test_large_products_are_the_same_in_tiles() -> None:
    rng = np.random.default_rng(1)
    for rank in (1, 40, 300):
        base = {"m.weight": rng.standard_normal((70, 3000)).astype("f4")}
        down, up = rng.standard_normal((rank, 3000)).astype("f4"), rng.standard_normal((70, rank)).astype("f4")
        made = lora.apply(base, {"m.lora_down.weight": down, "m.lora_up.weight": up})
        assert np.allclose(made["m.weight"].numpy(), base["m.weight"] + up @ down, atol=1e-3)


def prove(base: Any, folder: Path, adapter: Any, weight: float = 1.0) -> Any:
    return apply_files(base, [adapter], folder / "out.safetensors", weight, prove=True)


def test_a_change_is_proved_from_the_written_file(tmp_path: Path) -> None:
    report = prove(BASE, tmp_path, DIALECTS["kohya"][0])
    assert report.proved
    assert [one.proof for one in report.targets] == ["proved"]


def test_a_change_that_rounding_hides_is_no_proof(tmp_path: Path) -> None:
    base = {Q: np.full((6, 4), 100, ml_dtypes.bfloat16)}
    report = prove(base, tmp_path, DIALECTS["kohya"][0], 1e-3)
    assert [one.proof for one in report.targets] == ["cannot tell"]
    assert not report.proved


def test_a_change_of_nothing_is_proved(tmp_path: Path) -> None:
    assert prove(BASE, tmp_path, DIALECTS["kohya"][0], 0).proved


@pytest.mark.parametrize("damage", ["target", "other", "missing"])
def test_a_file_that_is_not_base_and_delta_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    from statedict.api import files

    write = files.Target.write

    def write_wrongly(self: Any, tree: Any, *rest: Any) -> None:
        made = {name: one.numpy(copy=True) for name, one in tree.items()}
        if damage == "missing":
            del made[OUT]
        else:
            made[Q if damage == "target" else OUT][3, 2] += 1e-3
        write(self, made, *rest)

    monkeypatch.setattr(files.Target, "write", write_wrongly)
    report = prove(BASE, tmp_path, DIALECTS["kohya"][0])
    assert not report.proved
    assert [one.proof for one in report.targets] == ["wrong" if damage == "target" else "proved"]
    assert report.wrong == (() if damage == "target" else (OUT,))


@given(st.integers(0, 10_000), st.sampled_from(["float16", "bfloat16", "float32"]))
def test_what_can_be_taken_away_exactly_is_counted(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    base = {"m.weight": rng.standard_normal((8, 8)).astype(dtype)}
    adapter = {
        "m.lora_down.weight": (rng.standard_normal((2, 8)) * 0.1).astype("f4"),
        "m.lora_up.weight": rng.standard_normal((8, 2)).astype("f4"),
    }
    merged = {"m.weight": lora.apply(base, adapter)["m.weight"].numpy()}
    report = apply_files(merged, [adapter], None, -1, dry_run=True)
    back = lora.apply(merged, adapter, -1)["m.weight"].numpy()
    differing = int((back != base["m.weight"]).sum())
    count = report.targets[0].inexact
    assert count is not None
    assert differing <= count <= 64
    assert bool(count) == any("may differ by a rounding" in note for note in report.notes)
