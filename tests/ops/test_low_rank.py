"""Ranks of changes: held against numpy's SVD, found under the rounding of every dtype, in blocks and by samples."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import statedict
from statedict.io.pipeline import Meter
from statedict.ops.diff import change as changes
from statedict.ops.diff import singular as values_of
from statedict.ops.diff.change import Change
from statedict.ops.diff.rank import judge
from statedict.ops.diff.singular import spectrum
from statedict.render.diff_text import rank_summary
from statedict.reports.diff import LowRank
from statedict.tensor.lazy import as_lazy

Array = Any
WEIGHT = 0.02


def normal(*shape: int, seed: int = 0) -> Array:
    return numpy.random.default_rng(seed).standard_normal(shape)


def adapter(m: int, n: int, rank: int, size: float, seed: int = 1) -> Array:
    """A matrix of a rank whose directions fall off to a tenth, with elements of a size."""
    made = normal(m, rank, seed=seed) * numpy.geomspace(1, 0.1, rank) @ normal(rank, n, seed=seed + 1)
    return made * size / made.std()


def looked_at(one: Array, other: Array, **options: Any) -> LowRank:
    found = statedict.diff({"w": one}, {"w": other}, deep=True, **options).tensors[0].change
    assert found is not None
    return found


def change_of(one: Array, other: Array) -> Change:
    difference = numpy.abs(other.astype("c16") - one.astype("c16"))
    return Change(as_lazy(one), as_lazy(other), float(difference.max()), Meter())


def singular(one: Array, other: Array) -> Array:
    return numpy.linalg.svd((other - one).reshape(len(one), -1), compute_uv=False)


# the figures


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(0, 1000))
def test_the_figures_are_those_of_the_singular_values(m: int, n: int, k: int, seed: int) -> None:
    one, other = normal(m, n, k, seed=seed), normal(m, n, k, seed=seed + 1)
    found, values = looked_at(one, other), singular(one, other)
    shares = values / values.sum()
    assert (found.rows, found.columns, found.method, found.rank) == (m, n * k, "svd", min(m, n * k))
    assert found.effective_rank == pytest.approx(math.exp(-(shares * numpy.log(shares)).sum()))
    assert found.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2)
    for count, share in found.top:
        assert share == pytest.approx((values[:count] ** 2).sum() / (values**2).sum())
    assert [count for count, _ in found.top] == [r for r in (1, 4, 8, 16) if r <= min(m, n * k)]


def test_the_effective_rank_of_equal_directions_is_their_number() -> None:
    found = looked_at(numpy.zeros((40, 50)), numpy.eye(40, 50))
    assert (found.rank, found.stable_rank) == (40, pytest.approx(40))
    assert found.effective_rank == pytest.approx(40)


SHAPES = [(300, 200), (200, 300), (3, 5000), (5000, 3), (1, 700), (700, 1), (64, 8, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("held", [0, 1 << 20])
def test_blocks_and_panels_find_what_the_svd_of_the_whole_finds(
    shape: tuple[int, ...], held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = normal(*shape), normal(*shape, seed=1)
    monkeypatch.setattr(changes, "ELEMENTS", 997)
    monkeypatch.setattr(changes, "HELD", held)
    monkeypatch.setattr(values_of, "_SVD", (0, 0))
    change = change_of(one, other)
    found = spectrum(change)
    assert found.method == "gram"
    assert_allclose(numpy.sqrt(found.squares) * change.scale, singular(one, other), rtol=1e-6)
    assert change.energy * change.scale**2 == pytest.approx(((other - one) ** 2).sum())


@pytest.mark.parametrize("shape", [(300, 900), (900, 300)], ids=str)
@pytest.mark.parametrize("most", [0, 1 << 30])
def test_random_columns_find_the_first_directions(
    shape: tuple[int, int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = normal(*shape) * WEIGHT
    other = one + adapter(*shape, 12, 0.01) + normal(*shape, seed=5) * 1e-4
    monkeypatch.setattr(changes, "ELEMENTS", 9_999)
    monkeypatch.setattr(changes, "HELD", 0)
    monkeypatch.setattr(values_of, "_SVD", (0, 0))
    monkeypatch.setattr(values_of, "SHORT", 0)
    monkeypatch.setattr(values_of, "_MOST", most)
    change, again = change_of(one, other), change_of(one, other)
    found = spectrum(change, 20)
    values = singular(one, other)
    assert (found.method, found.whole, len(found.squares)) == ("randomized, 20 directions", False, 20)
    assert_allclose(numpy.sqrt(found.squares[:12]) * change.scale, values[:12], rtol=1e-6)
    assert (numpy.sqrt(found.squares[12:]) * change.scale <= values[12:20] * (1 + 1e-9)).all()
    assert change.energy * change.scale**2 == pytest.approx((values**2).sum())
    assert (spectrum(again, 20).squares == found.squares).all()
    report = judge(change, found)
    assert (report.verdict, report.bounded) == ("full", True)
    assert report.effective_rank < 300


def test_a_large_low_rank_change_is_found_by_random_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values_of, "_SVD", (0, 0))
    monkeypatch.setattr(values_of, "SHORT", 0)
    one = (normal(700, 500) * WEIGHT).astype(ml_dtypes.bfloat16)
    other = (one.astype("f8") + adapter(700, 500, 8, 5e-4)).astype(ml_dtypes.bfloat16)
    found = looked_at(one, other)
    assert (found.verdict, found.adapter, found.method) == ("low-rank", 8, "randomized, 64 directions")
    full = (one.astype("f8") + normal(700, 500, seed=3) * 5e-4).astype(ml_dtypes.bfloat16)
    report = looked_at(one, full)
    assert (report.verdict, report.adapter, report.bounded, report.rank) == ("full", None, True, 64)
    assert looked_at(one, full, rank=100).method == "randomized, 100 directions"


# adapters under rounding

STORED = {
    "float64": lambda x: x,
    "float32": lambda x: x.astype("f4"),
    "float16": lambda x: x.astype("f2"),
    "bfloat16": lambda x: x.astype(ml_dtypes.bfloat16),
    "float8_e4m3fn": lambda x: x.astype(ml_dtypes.float8_e4m3fn),
    "bfloat16 in float32": lambda x: x.astype(ml_dtypes.bfloat16).astype("f4"),
    "float16 in float64": lambda x: x.astype("f2").astype("f8"),
}


@pytest.mark.parametrize("shape", [(256, 256), (256, 1024), (1500, 128), (128, 32, 3, 3)], ids=str)
@pytest.mark.parametrize("kind", STORED)
def test_a_merged_adapter_of_rank_8_is_found_whatever_it_was_rounded_to(shape: tuple[int, ...], kind: str) -> None:
    stored = STORED[kind]
    size = 0.4 if "float8" in kind else 0.1
    plain = normal(*shape) * WEIGHT * (50 if "float8" in kind else 1)
    added = adapter(shape[0], math.prod(shape[1:]), 8, size * plain.std()).reshape(shape)
    base = stored(plain)
    merged = stored(base.astype("f8") + added)
    found = looked_at(base, merged)
    assert (found.verdict, found.adapter) == ("low-rank", 8), found
    assert found.share(8) > 0.9
    both = looked_at(base, stored(plain + added))  # the base was rounded, too
    assert (both.verdict, both.adapter) == ("low-rank", 8), both


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [3e-3, 1e-2, 1e-1])
def test_an_adapter_that_rounding_half_hides_is_found_or_said_not_to_be_told(kind: str, size: float) -> None:
    stored = STORED[kind]
    base = stored(normal(512, 512) * WEIGHT)
    found = looked_at(base, stored(base.astype("f8") + adapter(512, 512, 8, size * WEIGHT)))
    assert found.verdict == "low-rank"
    assert found.adapter in ((8,) if found.rounding < 0.1 else range(6, 13))


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16", "bfloat16 in float32"])
@pytest.mark.parametrize("size", [1e-2, 1e-1, 1])
@pytest.mark.parametrize("steep", [0, 0.6])
def test_a_full_fine_tune_is_not_called_low_rank(kind: str, size: float, steep: float) -> None:
    base = STORED[kind](normal(256, 320) * WEIGHT)
    left, right = (numpy.linalg.qr(normal(side, 256, seed=side))[0] for side in (256, 320))
    change = left * numpy.arange(1, 257) ** -steep @ right.T if steep else normal(256, 320, seed=7)
    tuned = STORED[kind](base.astype("f8") + change * size * WEIGHT / change.std())
    found = looked_at(base, tuned)
    assert (found.verdict, found.adapter) == ("full", None), found
    assert found.effective_rank > 40


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_what_rounding_alone_changed_is_no_adapter(kind: str) -> None:
    plain = (normal(128, 200) * WEIGHT).astype("f4")
    for other in (STORED[kind](plain), STORED[kind](plain).astype("f4")):
        found = looked_at(plain, other)
        assert (found.verdict, found.adapter, found.rank, found.effective_rank) == ("rounding", None, 0, 0.0)
        assert 0.95 < found.rounding < 2.1


def test_a_change_below_the_rounding_is_not_judged() -> None:
    base = (normal(256, 256) * WEIGHT).astype(ml_dtypes.bfloat16)
    for added in (adapter(256, 256, 8, 1e-3 * WEIGHT), normal(256, 256, seed=2) * 1e-3 * WEIGHT):
        found = looked_at(base, (base.astype("f8") + added).astype(ml_dtypes.bfloat16))
        assert (found.verdict, found.adapter) == ("rounding", None)


def test_the_expected_rounding_is_the_one_that_happens() -> None:
    plain = normal(400, 300) * WEIGHT
    for stored, other in ((numpy.float16, "f8"), (ml_dtypes.bfloat16, "f8"), (ml_dtypes.float8_e4m3fn, "f8")):
        rounded = plain.astype(stored)
        change = change_of(plain.astype(other), rounded)
        spectrum(change)
        assert change.energy / change.noise == pytest.approx(1, rel=0.1)


def test_an_adapter_multiplied_out_in_bfloat16_is_an_adapter() -> None:
    base = (normal(512, 300) * WEIGHT).astype("f4")
    product = adapter(512, 300, 8, 1e-3).astype(ml_dtypes.bfloat16).astype("f4")
    found = looked_at(base, base + product)
    assert (found.verdict, found.adapter) == ("low-rank", 8)


def test_a_merge_as_peft_does_it_is_found_in_every_layer() -> None:
    torch.manual_seed(0)
    layers = {f"layer{i}.weight": (torch.randn(96, 160) * WEIGHT).bfloat16() for i in range(3)}
    merged = {
        name: (weight.float() + 2 * (torch.randn(96, 4) * 0.02) @ (torch.randn(4, 160) * 0.1)).bfloat16()
        for name, weight in layers.items()
    }
    merged["layer2.weight"] = (layers["layer2.weight"].float() + torch.randn(96, 160) * 0.01).bfloat16()
    found = statedict.diff(layers, merged, deep=True)
    changes = [tensor.change for tensor in found.changed if tensor.change is not None]
    assert [change.adapter for change in changes] == [4, 4, None]
    assert rank_summary(changes) == "2 of 3 changed matrices are explained by an adapter of rank 4; 1 changed fully"
    assert rank_summary(changes) in str(found)


def test_a_rank_that_is_asked_for_is_the_limit() -> None:
    base = normal(96, 96) * WEIGHT
    merged = base + adapter(96, 96, 20, 1e-2)
    assert looked_at(base, merged).verdict == "full"
    found = looked_at(base, merged, rank=20)
    assert (found.verdict, found.adapter) == ("low-rank", 20)
    assert dict(found.top)[20] == pytest.approx(1)
    assert looked_at(base, merged, rank=19).adapter is None


# what is particular


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (2, 3), (1, 1)], ids=str)
def test_a_matrix_without_room_for_an_adapter_is_small(shape: tuple[int, int]) -> None:
    found = looked_at(normal(*shape), normal(*shape, seed=1))
    assert (found.verdict, found.adapter, found.rank) == ("small", None, min(shape))


def test_what_is_no_changed_matrix_has_no_rank() -> None:
    same, vector = normal(8, 8), normal(8)
    one = {"same": same, "vector": vector, "whole": numpy.arange(64).reshape(8, 8), "none": numpy.zeros((0, 8))}
    other = {"same": same.copy(), "vector": vector + 1, "whole": one["whole"] + 1, "none": numpy.zeros((0, 8))}
    found = statedict.diff(one, other, deep=True)
    assert [tensor.change for tensor in found] == [None] * 4
    assert "no changed matrix" in str(found)


def test_other_zeros_are_no_change_of_any_rank() -> None:
    found = looked_at(numpy.zeros((9, 9)), -numpy.zeros((9, 9)))
    assert (found.verdict, found.rank, found.effective_rank, found.stable_rank) == ("rounding", 0, 0.0, 0.0)
    assert not any(share for _, share in found.top)


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    base = normal(64, 80) * WEIGHT
    merged = base + adapter(64, 80, 3, 1e-2)
    plain = looked_at(base, merged)
    base[3, 4] = merged[3, 4] = math.nan
    found = looked_at(base, merged)
    assert (found.nonfinite, found.rows, found.columns) == (1, 64, 80)
    merged[5, 6], base[7, 8] = math.inf, -math.inf
    found = looked_at(base, merged)
    assert found.nonfinite == 3
    assert found.share(4) == pytest.approx(plain.share(4), abs=0.02)
    assert "3 not finite" in str(statedict.diff({"w": base}, {"w": merged}, deep=True))


@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e150, 1e300])
def test_numbers_of_any_size_have_a_rank(size: float) -> None:
    one, other = normal(30, 40) * size, normal(30, 40, seed=1) * size
    found = looked_at(one, other)
    assert (found.rank, found.stable_rank) == (30, pytest.approx(looked_at(one / size, other / size).stable_rank))


def test_a_difference_beyond_float64_has_a_rank() -> None:
    one = numpy.full((20, 30), -1.7e308)
    assert looked_at(one, -one).rank == 1


def test_complex_changes_have_ranks() -> None:
    base = (normal(90, 70) + 1j * normal(90, 70, seed=1)).astype("c8")
    left, right = normal(90, 4) + 1j * normal(90, 4, seed=2), normal(4, 70) - 1j * normal(4, 70, seed=3)
    found = looked_at(base, (base + left @ right).astype("c8"))
    assert (found.verdict, found.adapter, found.rank) == ("low-rank", 4, 4)
    values = singular(base.astype("c16"), base + (left @ right).astype("c8"))
    assert found.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-5)


def test_another_dtype_and_another_order_in_memory_make_no_difference() -> None:
    base = (normal(64, 96) * WEIGHT).astype("f4")
    merged = base + adapter(64, 96, 3, 1e-2).astype("f4")
    plain = looked_at(base, merged)
    assert looked_at(numpy.asfortranarray(base), merged) == plain
    assert looked_at(base.T.copy().T, numpy.repeat(merged, 2, 1)[:, ::2]) == plain
    found = looked_at(base, merged.astype("f2"))
    assert (found.verdict, found.adapter) == ("low-rank", 3)


def test_files_of_any_format_an_executor_and_tied_tensors_give_the_same(tmp_path: Path) -> None:
    base, tuned = normal(64, 96).astype("f4"), normal(64, 96, seed=1).astype("f4")
    one, other = {"a": base, "b": base, "c": base}, {"a": tuned, "b": tuned, "c": tuned + base}
    statedict.save(one, tmp_path / "a.pth")
    statedict.save(other, tmp_path / "b.safetensors")
    plain = statedict.diff(one, other, deep=True)
    read = statedict.diff(tmp_path / "a.pth", tmp_path / "b.safetensors", deep=True)
    with ThreadPoolExecutor(2) as pool:
        spread = statedict.diff(one, other, deep=True, executor=pool)
    assert [t.change for t in plain] == [t.change for t in read] == [t.change for t in spread]
    assert all(tensor.change is not None for tensor in plain)


def test_the_json_is_strict_and_has_everything() -> None:
    found = statedict.diff(
        {"w": numpy.ones((64, 64))}, {"w": numpy.ones((64, 64)) + numpy.eye(64, 2) @ numpy.eye(2, 64)}, deep=True
    )
    made = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert made["deep"] is True
    assert set(made["changed"][0]["change"]) == {
        "matrix", "verdict", "adapter", "rank", "effective_rank", "stable_rank", "bounded", "top", "rounding",
        "method", "nonfinite",
    }  # fmt: skip
    assert made["changed"][0]["change"]["top"]["4"] == pytest.approx(1)
    assert "change" not in statedict.diff({"w": numpy.ones((4, 4))}, {"w": numpy.eye(4)}).to_json()["changed"][0]


@pytest.mark.parametrize("options", [{"deep": True, "names_only": True}, {"rank": 3}, {"deep": True, "rank": 0}])
def test_what_cannot_be_asked_for_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="deep"):
        statedict.diff({}, {}, **options)


def test_what_became_nan_is_explained_by_no_adapter_and_by_no_rounding() -> None:
    random = numpy.random.default_rng(0)
    base = random.standard_normal((64, 64)).astype(numpy.float32)
    tuned = numpy.full_like(base, numpy.nan)
    assert statedict.diff({"w": base}, {"w": tuned}, deep=True).changed[0].change.verdict == "full"
    tuned = base + numpy.outer(random.standard_normal(64), random.standard_normal(64)).astype(numpy.float32)
    tuned[3, 4] = numpy.inf
    assert statedict.diff({"w": base}, {"w": tuned}, deep=True).changed[0].change.verdict == "full"


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_rows_of_unequal_size_do_not_hide_the_rank_of_an_adapter(sigma: float, seed: int) -> None:
    random = numpy.random.default_rng(seed)
    base = random.standard_normal((256, 256)) * numpy.exp(sigma * random.standard_normal((256, 1)))
    base = base.astype(numpy.float32)
    change = random.standard_normal((256, 4)) @ random.standard_normal((4, 256))
    tuned = base + (change * (0.1 * numpy.linalg.norm(base) / numpy.linalg.norm(change))).astype(numpy.float32)
    found = statedict.diff({"w": base}, {"w": tuned}, deep=True).changed[0].change
    assert (found.verdict, found.adapter) == ("low-rank", 4)
