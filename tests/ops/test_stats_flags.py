"""What `stats` flags, and what it lets pass."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy
import pytest

import statedict

FN, FNUZ = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz
RANDOM = numpy.random.default_rng(0)


def weights(*shape: int, scale: float = 0.02) -> Any:
    return (RANDOM.standard_normal(shape) * scale).astype("f4")


def changed(array: Any, index: Any, value: Any) -> Any:
    array = array.copy()
    array[index] = value
    return array


def kinds(state: Any) -> list[tuple[str, str]]:
    return [(flag.name, flag.kind) for flag in statedict.stats(state).flags]


W = weights(20, 30)
HALF = weights(100, 100, scale=0.5).astype("f2")


@pytest.mark.parametrize(
    ("kind", "odd", "fine"),
    [
        ("nan", changed(W, (3, 4), numpy.nan), W),
        ("nan", changed(W, (3, 4), numpy.nan).astype(FN), W.astype(FN)),
        ("inf", changed(W, (3, 4), -numpy.inf), W),
        ("inf", changed(W + 1j, (3, 4), numpy.inf), W + 1j),
        ("zeros", numpy.zeros(5), changed(numpy.zeros(5), 2, 1)),
        ("zeros", numpy.zeros((2, 3), "i4"), numpy.zeros((2, 3), bool)),
        ("zeros", numpy.zeros(2), numpy.zeros(1)),
        ("constant", numpy.full(7, 0.1, "f4"), changed(numpy.full(7, 0.1, "f4"), 2, 0.2)),
        ("constant", numpy.full((3, 3), 1 + 1j), changed(numpy.full((3, 3), 1 + 1j), (0, 0), 1)),
        ("constant", numpy.full(7, 0.1), numpy.full((), 0.1)),
        ("dead rows", changed(W, 7, 0), changed(W, (slice(None), 7), 0)),
        ("dead rows", changed(W, 7, -0.0).astype(ml_dtypes.bfloat16), W.astype(ml_dtypes.bfloat16)),
        ("dead rows", changed(W, 7, 0).astype(FNUZ), (W * 99).astype(FNUZ)),
        ("dead rows", changed(W.astype("c8"), 19, 0), W.astype("c8")),
        ("denormal", (W / 1000).astype("f2"), (W + 1).astype("f2")),
        ("denormal", W / 1e38, W / 1e30),
        ("edge", changed(HALF, (1, 1), 65504), HALF),
        ("edge", changed(numpy.arange(9), 3, -(2**63)), numpy.arange(9)),
        ("edge", numpy.clip(HALF * 2000, -448, 448).astype(FN), HALF.astype(FN)),
    ],
)  # fmt: skip
def test_a_flag_is_raised_for_what_is_odd_alone(kind: str, odd: Any, fine: Any) -> None:
    assert ("w", kind) in kinds({"w": odd})
    assert kind not in [found for _, found in kinds({"w": fine})]


def test_dead_rows_are_counted_across_blocks_and_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statedict.ops.stats.survey._JOB", 1 << 20)
    for shape in ((40, 100_003), (700, 5_001), (3, 1_500_000), (400_000, 7)):
        array = weights(*shape)
        rows = sorted({0, 1, shape[0] // 2, shape[0] - 1})
        array[rows] = 0
        array[shape[0] // 2, -1] = 1
        found = statedict.stats({"w": array.astype(ml_dtypes.bfloat16)}).tensors[0]
        assert found.dead_rows == len(rows) - 1
        assert statedict.stats({"w": array}).tensors[0].dead_rows == len(rows) - 1


def test_rows_are_those_of_two_dimensions_and_more() -> None:
    report = statedict.stats({"bias": numpy.zeros(3), "w": numpy.zeros((3, 2)), "tall": numpy.eye(4)[:, :1]})
    assert [t.dead_rows for t in report.tensors] == [None, 3, 0]


def test_an_exploded_norm_is_one_that_its_siblings_do_not_have() -> None:
    state = {f"layers.{n}.attn.weight": weights(9, 9) for n in range(5)}
    assert kinds(state) == []
    state["layers.3.attn.weight"] = weights(9, 9, scale=3)
    assert kinds(state) == [("layers.3.attn.weight", "exploded")]
    (flag,) = statedict.stats(state).flags
    assert "times the median of 5 like it (layers.{n}.attn.weight)" in flag.what


def test_without_siblings_there_is_nothing_to_compare_with() -> None:
    assert kinds({"a.0.w": weights(9), "a.1.w": weights(9, scale=3)}) == []
    assert kinds({f"{name}.w": weights(9, scale=10**at) for at, name in enumerate("abcde")}) == []


def test_running_statistics_differ_from_layer_to_layer() -> None:
    state = {f"bn{n}.running_var": abs(weights(9, scale=100.0 ** (n == 3))) for n in range(5)}
    assert kinds(state) == []


def test_moments_are_compared_with_those_of_the_same_parameter_in_other_layers() -> None:
    def optimizer(names: list[str] | None, odd: int) -> Any:
        group: dict[str, Any] = {"params": list(range(8))} | ({"param_names": names} if names else {})
        moments = {n: {"exp_avg": weights(9, scale=50.0 ** (n == odd) * 1000.0 ** (n % 2))} for n in range(8)}
        return {"optimizer": {"state": moments, "param_groups": [group]}}

    names = [f"layers.{n // 2}.{'weight' if n % 2 else 'bias'}" for n in range(8)]
    assert kinds(optimizer(names, 4)) == [("optimizer.state.4.exp_avg", "exploded")]
    assert kinds(optimizer(None, 4)) == []


def test_a_tied_tensor_is_flagged_once() -> None:
    w = numpy.zeros(3)
    assert kinds({"a": w, "b": w}) == [("a", "zeros")]


@pytest.mark.parametrize(
    "groups", [[None], [{}], [{"params": 3, "param_names": ["a"]}], [{"params": [[1]], "param_names": [2]}]]
)
def test_odd_groups_of_parameters_are_no_error(groups: Any) -> None:
    assert kinds({"state": {0: {"m": weights(3)}, "x": {"m": weights(3)}}, "param_groups": groups}) == []


def test_a_signalling_nan_in_a_row_keeps_it_alive() -> None:
    bits = numpy.zeros((4, 3), "u4")
    bits[1, 1] = 0x7F800001
    (tensor,) = statedict.stats({"w": bits.view("f4")}).tensors
    assert (tensor.dead_rows, tensor.nan, tensor.zeros) == (3, 1, 11)


@pytest.mark.parametrize("array", [numpy.array([2**60, 2**60 + 1]), numpy.array([5e-324, 1e-323] * 3)])
def test_elements_that_differ_by_less_than_float64_can_tell_are_not_constant(array: Any) -> None:
    assert "constant" not in [kind for _, kind in kinds({"w": array})]
