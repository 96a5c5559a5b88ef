"""The generators that a process shares."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import statedict


@pytest.fixture(autouse=True)
def left_as_they_were() -> Iterator[None]:
    before = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(before[0])
    numpy.random.set_state(before[1])
    torch.set_rng_state(before[2])


def drawn() -> list[Any]:
    python = [random.gauss(0, 1), random.random(), random.getrandbits(70)]
    return [*python, *numpy.random.normal(size=3), numpy.random.permutation(9).tolist(), torch.randn(3).tolist()]


def seed(number: int) -> None:
    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("before", [0, 1, 2], ids="drawn {} times before".format)
def test_all_go_on_bit_for_bit(before: int, suffix: str, tmp_path: Path) -> None:
    seed(1)
    for _ in range(before):
        drawn()
    statedict.save({"rng": statedict.rng()}, tmp_path / f"x{suffix}")
    after = [drawn() for _ in range(3)]
    seed(2)
    statedict.restore({"rng": statedict.rng()}, tmp_path / f"x{suffix}")
    assert [drawn() for _ in range(3)] == after


def test_a_dropout_after_a_restore_is_the_one_that_it_would_have_been() -> None:
    state = statedict.capture({"rng": statedict.rng()})
    first = torch.nn.functional.dropout(torch.ones(100))
    statedict.restore({"rng": statedict.rng()}, state)
    assert torch.equal(torch.nn.functional.dropout(torch.ones(100)), first)


def test_half_a_pair_of_python_s_normal_numbers_is_kept_and_so_is_none() -> None:
    random.seed(1)
    assert statedict.capture(statedict.rng())["python"]["gauss"] is None
    random.gauss(0, 1)
    state = statedict.capture(statedict.rng())
    assert type(state["python"]["gauss"]) is float
    second = random.gauss(0, 1)
    random.seed(2)
    statedict.restore(statedict.rng(), state)
    assert random.gauss(0, 1) == second


def test_capturing_draws_nothing() -> None:
    seed(3)
    plain = drawn()
    seed(3)
    statedict.capture({"rng": statedict.rng()})
    assert drawn() == plain


def test_numpy_s_generator_may_be_of_another_kind() -> None:
    bits = numpy.random.get_bit_generator()
    try:
        numpy.random.set_bit_generator(numpy.random.PCG64(5))
        state = statedict.capture(statedict.rng())
        after = numpy.random.normal(size=3).tolist()
        statedict.restore(statedict.rng(), state)
        assert numpy.random.normal(size=3).tolist() == after
    finally:
        numpy.random.set_bit_generator(bits)
    plain = drawn()
    with pytest.raises(statedict.RestoreError, match=r"nothing was written(.|\n)*numpy\.bit_generator.*'PCG64'"):
        statedict.restore({"rng": statedict.rng()}, {"rng": state})
    assert drawn() != plain


def test_the_state_of_devices_that_are_not_here_is_refused_and_left_out_on_request() -> None:
    state = statedict.capture({"rng": statedict.rng()})
    state["rng"]["cuda2"] = [torch.zeros(16, dtype=torch.uint8)]
    with pytest.raises(statedict.RestoreError, match=r"1 unexpected: rng\.cuda2"):
        statedict.restore({"rng": statedict.rng()}, state)
    report = statedict.restore({"rng": statedict.rng()}, state, allow_unexpected=["rng.cuda2"])
    assert report.paths("unexpected") == ["rng.cuda2"]


def test_the_state_of_a_process_without_torch_is_missing_that_of_torch() -> None:
    state = statedict.capture({"rng": statedict.rng()})
    del state["rng"]["torch"]
    with pytest.raises(statedict.RestoreError, match=r"1 missing: rng\.torch"):
        statedict.restore({"rng": statedict.rng()}, state)
    torch.manual_seed(7)
    plain = torch.get_rng_state()
    statedict.restore({"rng": statedict.rng()}, state, allow_missing=["rng.torch"])
    assert torch.equal(torch.get_rng_state(), plain)


def test_a_state_that_does_not_fit_sets_none_of_them() -> None:
    state = statedict.capture(statedict.rng())
    state["torch"]["state"] = torch.zeros(16, dtype=torch.uint8)
    seed(4)
    plain = drawn()
    seed(4)
    with pytest.raises(statedict.RestoreError, match=r"torch\.state"):
        statedict.rng().load_state_dict(state)
    with pytest.raises(statedict.RestoreError, match=r"nothing was written"):
        statedict.restore(statedict.rng(), state)
    assert drawn() == plain
