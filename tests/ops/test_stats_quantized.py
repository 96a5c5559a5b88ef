"""Flags of weights that libraries have quantized: nothing where they are sound, the fault where they are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import statedict

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(32, 32)).astype("float32")


def by_rows() -> tuple[np.ndarray, np.ndarray]:
    """As bitsandbytes quantizes to 8 bits (LLM.int8): the largest of each row becomes 127."""
    scale = np.abs(WEIGHT).max(1)
    return np.rint(WEIGHT * 127 / scale[:, None]).astype("int8"), scale


def by_groups() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As GPTQ packs 4 bits: eight rows of the transposed matrix in an int32; symmetric, so each zero point is 7."""
    scale = np.abs(WEIGHT.T).reshape(2, 16, 32).max(1) / 7
    numbers = np.clip(np.rint(WEIGHT.T / np.repeat(scale, 16, 0)) + 8, 0, 15).astype("uint32").reshape(4, 8, 32)
    packed = (numbers << (4 * np.arange(8, dtype="uint32"))[None, :, None]).sum(1, dtype="uint32").view("int32")
    return packed, scale.astype("float16"), np.full((2, 4), 0x77777777, "int32")


SOUND: dict[str, Callable[[], dict[str, np.ndarray]]] = {
    "bitsandbytes": lambda: dict(zip(("l.weight", "l.SCB"), by_rows(), strict=True)),
    "compressed-tensors": lambda: {
        "l.weight": by_rows()[0],
        "l.weight_scale": by_rows()[1][:, None],
        "l.weight_zero_point": np.zeros((32, 2), "int8"),
    },
    "GPTQ": lambda: dict(zip(("l.qweight", "l.scales", "l.qzeros"), by_groups(), strict=True)),
    "the root": lambda: dict(zip(("weight", "SCB"), by_rows(), strict=True)),
}  # fmt: skip


@pytest.mark.parametrize("scheme", SOUND)
def test_sound_quantized_weights_have_no_flags(scheme: str) -> None:
    assert statedict.stats(SOUND[scheme]()).flags == ()


def test_without_scales_and_in_other_modules_integers_at_the_edge_are_flagged() -> None:
    weight, scale = by_rows()
    assert [flag.kind for flag in statedict.stats({"l.weight": weight}).flags] == ["edge"]
    assert [flag.name for flag in statedict.stats({"a.weight": weight, "l.SCB": scale}).flags] == ["a.weight"]


@pytest.mark.parametrize("fault", [np.nan, np.inf, 0])
def test_faults_are_found_in_the_scales_and_dead_weights(fault: float) -> None:
    weight, scale = by_rows()
    kind = {0: "zeros"}.get(fault, "nan" if np.isnan(fault) else "inf")
    flags = statedict.stats({"l.weight": weight, "l.SCB": np.full_like(scale, fault)}).flags
    assert [(flag.name, flag.kind) for flag in flags if flag.kind == kind] == [("l.SCB", kind)]
    dead = statedict.stats({"l.weight": np.zeros_like(weight), "l.SCB": scale}).flags
    assert [(flag.name, flag.kind) for flag in dead] == [("l.weight", "zeros")]


def test_packed_zero_points_and_indices_are_in_no_total() -> None:
    state = SOUND["GPTQ"]() | {"l.g_idx": np.repeat(np.arange(2, dtype="int32"), 16), "norm": np.ones(4, "float32")}
    report = statedict.stats(state)
    assert [tensor.name for tensor in report.tensors if not tensor.computed] == ["l.qweight", "l.qzeros"]
    assert report["l.g_idx"].max == 1
    assert report.total.tensors == 2  # the weight and the norm
    assert report.total.max == max(1, report["l.weight"].max)
    assert "GPTQ 4-bit, dequantized" in str(report)
    del state["l.scales"]
    assert "not computed: l.qweight, l.qzeros: packed numbers, GPTQ 4-bit" in str(statedict.stats(state))
