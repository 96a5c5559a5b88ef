"""Merge methods: against what mergekit made (tests/peers/mergekit.py), by hand, and by their properties."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import statedict
from statedict.api.combine import merge_files
from statedict.errors import CombineError, PatternError
from statedict.ops.combine import sparse
from statedict.ops.combine.methods import METHODS
from statedict.ops.combine.sparse import draw, find_cuts, is_kept, magnitude_bits

RECORD = statedict.load(Path(__file__).parents[1] / "peers" / "mergekit.safetensors")
W2, W3 = [0.5, 0.3], [0.5, 0.3, 0.4]
SPARSE = {"weight": W2, "density": [0.5, 0.6]}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # case → method, models with b for the base, parameters
    "linear": ("linear", "ABC", {"weight": W3}),
    "linear_sum": ("linear", "AB", {"weight": W2, "normalize": False}),
    "slerp": ("slerp", "bA", {"t": 0.3}),
    "nuslerp": ("nuslerp", "AB", {"weight": W2}),
    "nuslerp_base": ("nuslerp", "bAB", {"weight": W2}),
    "nuslerp_rows": ("nuslerp", "AB", {"weight": W2, "nuslerp_flatten": False}),
    "nuslerp_columns": ("nuslerp", "bAB", {"weight": W2, "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "multislerp": ("multislerp", "ABC", {"weight": W3}),
    "multislerp_sum": ("multislerp", "AB", {"weight": W2, "normalize_weights": False}),
    "multislerp_base": ("multislerp", "bABC", {"weight": W3}),
    "karcher": ("karcher", "ABC", {}),
    "task_arithmetic": ("task_arithmetic", "bAB", {"weight": W2, "lambda": 0.9}),
    "ties": ("ties", "bAB", SPARSE),
    "breadcrumbs": ("breadcrumbs", "bAB", SPARSE | {"gamma": [0.05, 0.02]}),
    "breadcrumbs_ties": ("breadcrumbs_ties", "bAB", SPARSE | {"gamma": [0.05, 0.02]}),
    "model_stock": ("model_stock", "bABC", {}),
    "model_stock_rows": ("model_stock", "bABC", {"filter_wise": True}),
    "sce": ("sce", "bABC", {"select_topk": 0.5}),
    "nearswap": ("nearswap", "bA", {"t": 0.001}),
    "arcee_fusion": ("arcee_fusion", "bA", {}),
    "passthrough": ("passthrough", "A", {"scale": 0.5}),
    "ram": ("ram", "bAB", {}),
    "ramplus_tl": ("ramplus_tl", "bAB", {}),
}
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


def recorded(name: str) -> dict[str, Any]:
    return {key.partition("/")[2]: value for key, value in RECORD.items() if key.startswith(f"{name}/")}


def merged(method: str, letters: str, parameters: dict[str, Any], **options: Any) -> statedict.StateDict:
    base = recorded("b") if "b" in letters else None
    models = [recorded(letter) for letter in letters if letter != "b"]
    return statedict.merge(method, models, base, **parameters, **options)


@pytest.mark.parametrize("case", CASES)
def test_a_merge_is_that_of_mergekit_in_float32(case: str) -> None:
    found, wanted = merged(*CASES[case]), recorded(case)
    assert found.keys() == wanted.keys()
    apart = 0
    for name, value in wanted.items():
        apart += int((np.abs(found[name].numpy() - value.numpy()) > 5e-7).sum())
    assert apart <= 2 * (case == "arcee_fusion")  # an element may lie at the threshold


def test_every_method_is_compared_with_mergekit_or_tested_as_random() -> None:
    assert {method for method, *_ in CASES.values()} | {*RANDOM} == {*METHODS}


@pytest.mark.parametrize("method", RANDOM)
def test_a_random_method_keeps_the_share_and_the_sum_of_magnitudes(method: str) -> None:
    density, size = 0.3, 200_000
    rng = np.random.default_rng(3)
    base = {"w": rng.standard_normal((50, size // 50)).astype("f4")}
    delta = rng.standard_normal(base["w"].shape).astype("f4")
    model = {"w": base["w"] + delta}
    delta = model["w"] - base["w"]
    options = {"density": density} | ({"epsilon": 0.1} if method.startswith("della") else {})
    found = [statedict.merge(method, [model], base, seed=seed, **options)["w"].numpy() for seed in (1, 1, 2)]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    change = found[0] - base["w"]
    kept = change != 0
    assert abs(kept.mean() - density) < 6 * (density * (1 - density) / size) ** 0.5
    assert np.abs(change).sum() == pytest.approx(np.abs(delta).sum(), rel=1e-3)
    scale = change[kept] / delta[kept]
    assert np.ptp(scale) < 1e-2  # every kept element is scaled alike
    large = np.abs(delta) > np.median(np.abs(delta))
    gain = kept[large].mean() - kept[~large].mean()
    assert abs(gain - (0.1 if method.startswith("della") else 0)) < 0.02


def test_models_and_tensors_draw_apart() -> None:
    base = {name: np.zeros(1000, "f4") for name in "vw"}
    ones = {name: np.ones(1000, "f4") for name in "vw"}
    alone = [statedict.merge("dare_linear", [ones], base, density=0.5)[name].numpy() != 0 for name in "vw"]
    assert not np.array_equal(*alone)
    both = statedict.merge("dare_linear", [ones, ones], base, density=0.5)["w"].numpy()
    assert len(np.unique(both)) > 2  # kept of one, of the other, of both


def test_numbers_drawn_are_uniform_and_belong_to_their_position() -> None:
    numbers = draw(7, np.arange(100_000))
    assert np.array_equal(draw(7, np.arange(500, 600)), numbers[500:600])
    counts = np.histogram(numbers, 100, (0, 1))[0]
    assert abs(counts - 1000).max() < 6 * 1000**0.5
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(numbers, draw(8, np.arange(100_000)))[0, 1]) < 0.02


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1e-40, 0.5, -0.5, 0.75, 3.0, -3.0, float("inf")]), min_size=1, max_size=40),
    st.lists(st.integers(0, 45), min_size=1, max_size=3),
    st.integers(1, 7),
)
@pytest.mark.parametrize("counted", [False, True])
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_largest_are_those_of_a_stable_sort(
    counted: bool, monkeypatch: pytest.MonkeyPatch, values: list[float], counts: list[int], size: int
) -> None:
    monkeypatch.setattr(sparse, "_SMALL", 0 if counted else 1 << 16)
    array = np.array(values, "f4")
    places = np.arange(len(array))

    def read() -> Any:
        return ((magnitude_bits(array[i : i + size]), places[i : i + size]) for i in range(0, len(array), size))

    order = np.argsort(-np.abs(array), kind="stable")
    for count, cut in zip(counts, find_cuts(read, counts, len(array)), strict=True):
        wanted = np.zeros(len(array), bool)
        wanted[order[:count]] = True
        assert np.array_equal(is_kept(magnitude_bits(array), places, cut), wanted)


@pytest.mark.parametrize("case", [*CASES])
def test_bfloat16_is_merged_in_float32_and_rounded_once(case: str) -> None:
    method, letters, parameters = CASES[case]

    def load(letter: str) -> dict[str, Any]:
        return {"w": recorded(letter)["model.layers.0.mlp.gate_proj.weight"].numpy().astype(ml_dtypes.bfloat16)}

    def merge(wide: bool) -> Any:
        made = {letter: {"w": load(letter)["w"].astype("f4") if wide else load(letter)["w"]} for letter in letters}
        models = [made[letter] for letter in letters if letter != "b"]
        return statedict.merge(method, models, made.get("b"), **parameters)["w"]

    found = merge(False)
    assert str(found.dtype) == "bfloat16"
    assert np.array_equal(found.numpy(), merge(True).numpy().astype(ml_dtypes.bfloat16))


def vectors(*rows: list[float]) -> list[dict[str, Any]]:
    return [{"w": np.array(row, "f4")} for row in rows]


def test_a_parameter_by_pattern_is_that_of_the_first_that_matches() -> None:
    base, one = ({name: np.full(2, value, "f4") for name in ("a.mlp", "b.mlp", "c")} for value in (0, 8))
    weight = {"a.*": 1, "*.mlp": [0.5], "c": 0.25}
    found = statedict.merge("task_arithmetic", [one], base, weight=weight, **{"lambda": {"c": 2}})
    assert {name: tensor.tolist()[0] for name, tensor in found.items()} == {"a.mlp": 8, "b.mlp": 4, "c": 4}
    rest = statedict.merge("task_arithmetic", [one], base, weight={"c": 0.25})
    assert {name: tensor.tolist()[0] for name, tensor in rest.items()} == {"a.mlp": 8, "b.mlp": 8, "c": 2}
    with pytest.raises(PatternError, match="no entry of 3 matches 'nope'"):
        statedict.merge("linear", [one], weight={"nope": 1, "*": 2})
    with pytest.raises(CombineError, match="density: expected a share from 0 to 1, got 7"):
        statedict.merge("ties", [one], base, density={"c": 0.5, "*": 7})


def test_ties_by_hand() -> None:
    base, one, other = vectors([0, 0, 0, 0], [4, 1, -2, 0], [-1, 3, -2, 0.5])
    # half of each is kept: (4, 0, -2, 0) and (0, 3, -2, 0); elected +, +, -, +; the mean of those that agree
    found = statedict.merge("ties", [one, other], base, density=0.5)
    assert found["w"].tolist() == [4, 3, -2, 0]
    assert statedict.merge("ties", [one, other], base, density=0.5, normalize=False)["w"].tolist() == [4, 3, -4, 0]


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs_ties", "dare_linear", "della"])
def test_weights_that_sum_to_0_divide_by_1_as_in_mergekit(method: str) -> None:
    base, one, other = ({"w": np.array(value, "f4")} for value in ([1, 1], [3, 5], [3, 2]))
    options = {"density": 0.5, "epsilon": 0.1} if method == "della" else {}
    for weight in ([0, 0], {"w": [0, 0], "*": 1}):
        same = statedict.merge(method, [one, other], base, weight=weight, normalize=True, **options)
        assert same["w"].tolist() == [1, 1]


def test_ties_divides_each_element_by_the_weights_of_those_that_agree() -> None:
    base, one, other = ({"w": np.array(value, "f4")} for value in ([0, 0, 0], [2, 5, 0], [-3, 2, 4]))
    made = statedict.merge("ties", [one, other], base, weight=[1, -1])
    assert made["w"].tolist() == [5, 5, 4]  # (2 + 3) / (1 - 1 → 1); 5 / 1, for -2 disagrees; -4 / -1


def test_multislerp_of_opposite_models_is_their_sum_as_in_mergekit() -> None:
    one, other, none = ({"w": np.array(value, "f4")} for value in ([1, 2], [-2, -4], [0, 0]))
    assert statedict.merge("multislerp", [one, other])["w"].tolist() == [-0.5, -1]
    assert statedict.merge("multislerp", [none] * 3, one)["w"].tolist() == [0, 0]
    assert statedict.merge("multislerp", [none] * 3)["w"].tolist() == [0, 0]
    with pytest.raises(CombineError, match="multislerp: the directions of the models cancel out"):
        statedict.merge("multislerp", [one, other, none])["w"].numpy()


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([[1, 2], [-1, -2]], [1, 2]),
        ([[1, 2], [-2, -4]], [1.5, 3]),
        ([[1e-6, 0], [0, 1]], [0, 0.5000005]),
        ([[1, 0], [-1, 0], [0, 1]], [0, 1]),
        ([[0, 0], [1, 2]], [0.5, 1]),
        ([[1e-6, 0], [0, 1e-6]], [0.5**0.5 * 1e-6] * 2),  # zeros in mergekit
    ],
)
def test_karcher_starts_and_leaves_out_what_mergekit_does(models: list[list[float]], expected: list[float]) -> None:
    made = statedict.merge("karcher", [{"w": np.array(one, "f4")} for one in models])
    np.testing.assert_allclose(made["w"].numpy(), expected, rtol=1e-5, atol=1e-12)


def test_slerp_goes_along_the_arc_and_straight_between_parallel_models() -> None:
    one, other, against = vectors([1, 0], [0, 2], [-1, 0])
    half = 0.5**0.5
    np.testing.assert_allclose(statedict.merge("slerp", [other], one, t=0.5)["w"].numpy(), [half, 2 * half], rtol=1e-6)
    assert statedict.merge("slerp", [against], one, t=0.25)["w"].tolist() == [0.5, 0]
    assert [statedict.merge("slerp", [other], one, t=t)["w"].tolist() for t in (0, 1)] == [[1, 0], [0, 2]]


def test_equal_models_merge_to_themselves() -> None:
    rng = np.random.default_rng(0)
    base, model = ({"w": rng.standard_normal((6, 7)).astype("f4")} for _ in range(2))
    for name in ("linear", "nuslerp", "multislerp", "karcher"):
        found = statedict.merge(name, [model, model])["w"].numpy()
        np.testing.assert_allclose(found, model["w"], rtol=2e-6)
    for name in ("ties", "model_stock", "sce", "ram"):
        found = statedict.merge(name, [model, model], base)["w"].numpy()
        np.testing.assert_allclose(found, model["w"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0), (1, 1, 1), (2, 3, 4)])
@pytest.mark.parametrize("method", [*METHODS])
def test_any_shape_is_merged(method: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    sources = [{"w": np.asarray(rng.standard_normal(shape), "f4")} for _ in range(3)]
    least, most = METHODS[method].models
    based = METHODS[method].base is True
    models = sources[1 : 1 + (most or max(least, 2))]
    given = {"t": 0.5} if method in ("slerp", "nearswap") else {"density": 0.5} if method.startswith("della") else {}
    found = statedict.merge(method, models, sources[0] if based else None, **given)["w"]
    assert found.shape == shape
    assert np.isfinite(found.numpy()).all()


@pytest.mark.parametrize("case", [*CASES])
def test_a_block_of_a_merge_is_that_of_the_whole_and_can_be_sent(case: str) -> None:
    found = merged(*CASES[case])["model.layers.1.mlp.down_proj.weight"]
    whole = found.numpy()
    assert np.array_equal(found[3:9, 5:20].numpy(), whole[3:9, 5:20])
    assert np.array_equal(pickle.loads(pickle.dumps(found[2])).numpy(), whole[2])
    source = found.contiguous().storage.source
    starts = range(0, source.size, 100)
    assert b"".join(bytes(source.read(at, min(100, source.size - at))) for at in starts) == whole.tobytes()


@pytest.mark.parametrize("case", ["ties", "slerp", "arcee_fusion"])
def test_models_that_lie_in_another_order_are_merged_alike(case: str, tmp_path: Path) -> None:
    method, letters, parameters = CASES[case]
    sources = {}
    for letter in letters:
        turned = {name: torch.from_numpy(t.numpy().copy()).t() for name, t in recorded(letter).items() if t.ndim == 2}
        torch.save(turned, tmp_path / f"{letter}.pth")
        sources[letter] = tmp_path / f"{letter}.pth"
    models = [sources[letter] for letter in letters if letter != "b"]
    found = statedict.merge(method, models, sources.get("b"), **parameters)
    plain = {letter: {name: np.ascontiguousarray(t.numpy().T) for name, t in recorded(letter).items() if t.ndim == 2}
             for letter in letters}  # fmt: skip
    wanted = statedict.merge(method, [plain[x] for x in letters if x != "b"], plain.get("b"), **parameters)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name].numpy(), value.numpy())


@pytest.mark.parametrize("method", ["linear", "passthrough", "task_arithmetic"])
def test_what_has_no_average_stays_if_there_is_one_source(method: str) -> None:
    model = {"w": np.ones(3, "f4"), "steps": np.array(3), "mask": np.array([True, False]), "none": np.zeros(0, "i4")}
    made = statedict.merge(method, [model], model if method == "task_arithmetic" else None)
    assert {name: tensor.tolist() for name, tensor in made.items()} == {k: v.tolist() for k, v in model.items()}


def test_ties_between_tensors_and_what_is_no_float() -> None:
    base, one = ({"w": np.full(3, value, "f4"), "ids": np.arange(3)} for value in (0, 1))
    for source in (base, one):
        source["head"] = source["w"]
    found = statedict.merge("task_arithmetic", [one], base)
    assert found["head"].region == found["w"].region
    assert found["ids"].tolist() == [0, 1, 2]
    with pytest.raises(CombineError, match="ids: int64 has no average"):
        statedict.merge("task_arithmetic", [one | {"ids": np.ones(3, int)}], base)
    with pytest.raises(CombineError, match="w: complex64 cannot be merged; use average"):
        statedict.merge("linear", [{"w": np.ones(2, "c8")}] * 2)


@pytest.mark.parametrize(
    ("method", "models", "based", "parameters", "match"),
    [
        ("tie", 2, True, {}, "'tie': not a merge method; expected one of linear, slerp"),
        ("ties", 2, False, {}, "ties: needs a base"),
        ("linear", 2, True, {}, "linear: takes no base"),
        ("slerp", 1, True, {}, "slerp: needs the parameter 't'"),
        ("slerp", 2, True, {"t": 0.5}, "slerp: takes 1 models beside the base, got 2"),
        ("karcher", 1, False, {}, "karcher: takes 2 or more models, got 1"),
        ("ties", 2, True, {"densities": 1}, "ties: has no parameter 'densities'; there are weight, density, normalize"),
        ("ties", 2, True, {"density": [0.5]}, "density: expected a number, or one for each of 2 models, got"),
        ("ties", 2, True, {"density": 1.5}, "density: expected a share from 0 to 1, got 1.5"),
        ("ties", 2, True, {"weight": "a"}, "weight: expected a number"),
        ("ties", 2, True, {"normalize": 1}, "normalize: expected True or False, got 1"),
        ("della", 2, True, {"density": 0.9}, r"density ± epsilon must stay between 0 and 1, got 0.9 ± 0.15"),
        ("ties", 0, True, {}, "one or more sources"),
        ("dare_ties", 1, True, {"seed": 0.5}, "seed: expected a whole number"),
        ("della", 2, True, {}, "della: needs the parameter 'density'"),
        ("della", 2, True, {"density": 0.5, "epsilon": -0.1}, "must stay between 0 and 1"),
        ("linear", 2, False, {"weight": [1, -1]}, "linear: the weights sum to 0"),
        ("multislerp", 2, False, {"weight": [1, -1]}, "multislerp: the weights sum to 0"),
        ("linear", 2, False, {"weight": float("nan")}, "weight: expected a number"),
        ("linear", 2, False, {"weight": 10**400}, "weight: expected a number"),
        ("slerp", 1, True, {"t": float("inf")}, "t: expected a finite number, got inf"),
        ("karcher", 2, False, {"max_iter": -1}, "max_iter: expected a whole number above 0, got -1"),
        ("sce", 2, True, {"select_topk": -1}, "select_topk: expected a share from 0 to 1"),
        (["ties"], 2, True, {}, "not a merge method"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_is_an_error(
    method: str, models: int, based: bool, parameters: dict[str, Any], match: str
) -> None:
    base, one = vectors([0.0], [1.0])
    with pytest.raises(CombineError, match=match):
        statedict.merge(method, [one] * models, base if based else None, **parameters)


@pytest.mark.parametrize("method", [*METHODS])
def test_numbers_that_all_models_share_stay_though_sums_overflow(method: str) -> None:
    largest = float(np.finfo("f4").max)
    one, most = METHODS[method].models[1] == 1, METHODS[method].models[0]
    based = METHODS[method].base is True
    same = {"w": np.array([-largest, float("-inf"), 1.5], "f4")}
    given = {"t": 0.5} if method in ("slerp", "nearswap") else {"density": 0.5} if method.startswith("della") else {}
    found = statedict.merge(method, [same] * (1 if one else max(most, 2)), same if based else None, **given)
    assert found["w"].tolist() == same["w"].tolist()


def test_a_merge_is_written_and_reported(tmp_path: Path) -> None:
    base, one, other = vectors([0, 0], [2, 1], [2, -3])
    path = tmp_path / "out.safetensors"
    parameters = {"weight": [0.5, 1], "lambda": 0.5}
    done = merge_files("task_arithmetic", [one, other], path, base, parameters=parameters)
    assert (done.method, done.written, done.sources) == (
        "task_arithmetic", True, (("source 1", None), ("source 2", 0.5), ("source 3", 1.0)),
    )  # fmt: skip
    assert statedict.load(path)["w"].tolist() == [1.5, -1.25]


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"rescale": False}])
def test_task_arithmetic_counts_no_elements(options: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their positions take longer than the sum."""
    monkeypatch.setattr("statedict.ops.combine.elements.positions", None)
    base, one, other = ({"w": np.full(5, value, "f4")} for value in (1, 2, 5))
    merged = statedict.merge("task_arithmetic", [one, other], base, weight=[0.5, 0.5], **options)
    assert merged["w"].tolist() == [3.5] * 5
