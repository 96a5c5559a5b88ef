"""The generators that a process shares."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
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
    with pytest.raises(statedict.errors.RestoreError, match=r"nothing was written(.|\n)*numpy\.bit_generator.*'PCG64'"):
        statedict.restore({"rng": statedict.rng()}, {"rng": state})
    assert drawn() != plain


def test_the_state_of_devices_that_are_not_here_is_refused_and_left_out_on_request() -> None:
    state = statedict.capture({"rng": statedict.rng()})
    state["rng"]["cuda2"] = [torch.zeros(16, dtype=torch.uint8)]
    with pytest.raises(statedict.errors.RestoreError, match=r"1 unexpected: rng\.cuda2"):
        statedict.restore({"rng": statedict.rng()}, state)
    report = statedict.restore({"rng": statedict.rng()}, state, allow_unexpected=["rng.cuda2"])
    assert report.paths("unexpected") == ["rng.cuda2"]


def test_the_state_of_a_process_without_torch_is_missing_that_of_torch() -> None:
    state = statedict.capture({"rng": statedict.rng()})
    del state["rng"]["torch"]
    with pytest.raises(statedict.errors.RestoreError, match=r"1 missing: rng\.torch"):
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
    with pytest.raises(statedict.errors.RestoreError, match=r"torch\.state"):
        statedict.rng().load_state_dict(state)
    with pytest.raises(statedict.errors.RestoreError, match=r"nothing was written"):
        statedict.restore(statedict.rng(), state)
    assert drawn() == plain


class Devices:
    """The part of `torch.cuda` that is asked for the states of devices."""

    def __init__(self, count: int, used: bool = True) -> None:
        self.states = [torch.full((16,), number, dtype=torch.uint8) for number in range(count)]
        self.used = used

    def is_initialized(self) -> bool:
        return self.used

    def device_count(self) -> int:
        return len(self.states)

    def get_rng_state(self, device: int = 0) -> torch.Tensor:
        return self.states[device].clone()

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [state.clone() for state in self.states]

    def set_rng_state_all(self, states: list[torch.Tensor]) -> None:
        assert all(isinstance(state, torch.Tensor) and state.dtype is torch.uint8 for state in states)
        self.states = list(states)


def present(monkeypatch: pytest.MonkeyPatch, devices: Any) -> Any:
    """As if the machine had them."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch, "get_device_module", lambda name: devices)
    return devices


def test_every_device_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    present(monkeypatch, Devices(2))
    statedict.save({"rng": statedict.rng()}, tmp_path / "x.safetensors")
    fresh = present(monkeypatch, Devices(2, used=False))
    fresh.states.reverse()
    statedict.restore({"rng": statedict.rng()}, tmp_path / "x.safetensors")
    assert [state[0].item() for state in fresh.states] == [0, 1]


def test_devices_that_were_not_used_have_no_state_and_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    present(monkeypatch, Devices(2, used=False))
    state = statedict.capture(statedict.rng())
    assert state["cuda"] == []
    fresh = present(monkeypatch, Devices(1))
    statedict.restore(statedict.rng(), state)
    assert fresh.states[0].tolist() == [0] * 16


def test_another_number_of_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    present(monkeypatch, Devices(2))
    state = statedict.capture(statedict.rng())
    present(monkeypatch, Devices(1))
    said = r"nothing was written(.|\n)*cuda: the state is that of 2 devices, here are 1; leave the rng out"
    with pytest.raises(statedict.errors.RestoreError, match=said):
        statedict.restore({"rng": statedict.rng()}, {"rng": state})


def test_a_kind_of_device_of_which_there_is_one_only_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [torch.ones(16, dtype=torch.uint8)]
    one = SimpleNamespace(  # as torch.mps
        device_count=lambda: 1,
        get_rng_state=lambda: kept[0].clone(),
        set_rng_state=lambda state: kept.__setitem__(0, state),
    )
    present(monkeypatch, one)
    state = statedict.capture(statedict.rng())
    kept[0] = torch.zeros(16, dtype=torch.uint8)
    statedict.restore(statedict.rng(), state)
    assert kept[0].tolist() == [1] * 16
