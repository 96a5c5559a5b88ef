"""Products in tiles: the same as those of NumPy, for every shape and memory layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statedict.ops.products import dot, multiply, multiply_rows

KINDS = st.sampled_from(["f4", "f8", "c8", "c16"])
SIDES = st.integers(0, 300)


def normal(kind: str, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    real = rng.standard_normal(shape)
    return (real + 1j * rng.standard_normal(shape) if kind[0] == "c" else real).astype(kind)


@given(KINDS, SIDES, SIDES, SIDES, st.booleans())
def test_a_product_is_the_one_that_numpy_computes(kind: str, rows: int, depth: int, columns: int, turned: bool) -> None:
    left = normal(kind, depth, rows).T.conj() if turned else normal(kind, rows, depth)
    right = normal(kind, depth, columns)
    made, expected = multiply(left, right), left @ right
    assert made.dtype == expected.dtype
    np.testing.assert_allclose(made, expected, rtol=1e-3, atol=1e-4 * max(depth, 1))


@pytest.mark.parametrize("rows", [1, 64, 300])
def test_a_product_of_no_depth_is_zero(rows: int) -> None:
    full = [np.full((size, size), np.nan) for size in range(2, 40)]  # freed memory that is not zero
    del full
    for columns in range(1, 40):
        assert not multiply(np.ones((rows, 0)), np.ones((0, columns))).any()


@pytest.mark.parametrize("shape", [(3, 20_000, 40), (20_000, 3, 40), (70, 16, 30_000), (600, 700, 500)], ids=str)
def test_long_products_are_the_same_in_tiles(shape: tuple[int, int, int]) -> None:
    rows, depth, columns = shape
    left, right = normal("f8", rows, depth), normal("f8", depth, columns)
    np.testing.assert_allclose(multiply(left, right), left @ right, atol=1e-10)


@given(KINDS, SIDES, SIDES, SIDES, st.integers(0, 300), st.integers(0, 300))
def test_some_rows_of_a_product_are_those_of_the_whole(
    kind: str, rows: int, depth: int, columns: int, start: int, stop: int
) -> None:
    left, right = normal(kind, rows, depth), normal(kind, depth, columns)
    start, stop = sorted((min(start, rows), min(stop, rows)))
    assert np.array_equal(multiply_rows(left, right, start, stop), multiply(left, right)[start:stop])


@given(KINDS, st.sampled_from([0, 1, 8191, 8192, 8193, 20_000, 32_768]))
def test_a_dot_product_is_the_one_that_numpy_computes(kind: str, length: int) -> None:
    x, y = normal(kind, length), normal(kind, length)[::-1].copy()
    assert dot(x, y) == pytest.approx(np.vdot(x, y).real, rel=1e-3, abs=1e-2)
