"""Generators of random numbers, of Python, NumPy and PyTorch."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

import statedict

BITS = [numpy.random.PCG64, numpy.random.PCG64DXSM, numpy.random.MT19937, numpy.random.Philox, numpy.random.SFC64]


def drawn(generator: Any, count: int = 5) -> Any:
    if isinstance(generator, torch.Generator):
        return torch.randn(count, generator=generator).tolist()
    if isinstance(generator, numpy.random.BitGenerator):
        return generator.random_raw(count).tolist()
    if isinstance(generator, random.Random):
        return [generator.gauss() for _ in range(count)]
    if isinstance(generator, numpy.random.Generator):
        return [*generator.standard_normal(count), int(generator.integers(9, dtype=numpy.uint32))]
    return [generator.normal() for _ in range(count)]


MAKERS: dict[str, Callable[[int], Any]] = {
    "random.Random": random.Random,
    "torch.Generator": lambda seed: torch.Generator().manual_seed(seed),
    "RandomState": numpy.random.RandomState,
    "RandomState of PCG64": lambda seed: numpy.random.RandomState(numpy.random.PCG64(seed)),
    **{kind.__name__: kind for kind in BITS},
    **{f"Generator of {kind.__name__}": lambda seed, kind=kind: numpy.random.Generator(kind(seed)) for kind in BITS},
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_generator_goes_on_where_it_was(make: Callable[[int], Any], suffix: str, tmp_path: Path) -> None:
    live, fresh = make(1), make(2)
    drawn(live, 3)  # an odd number of normal ones leaves half a pair behind
    statedict.save({"it": live}, tmp_path / f"x{suffix}")
    report = statedict.restore({"it": fresh}, tmp_path / f"x{suffix}")
    assert drawn(fresh) == drawn(live)
    assert set(report.counts()) == {"restored"}


@given(some.sampled_from(list(MAKERS)), some.integers(0, 2**32 - 1), some.integers(0, 700))
def test_a_capture_brings_back_any_place_in_the_sequence(name: str, seed: int, count: int) -> None:
    live = MAKERS[name](seed)
    drawn(live, count)
    state = statedict.capture({"it": live})
    after = drawn(live, 8)
    statedict.restore({"it": live}, state)
    assert drawn(live, 8) == after


def test_who_holds_the_generator_goes_on_too() -> None:
    generator = torch.Generator().manual_seed(1)
    sampler = torch.utils.data.RandomSampler(range(50), generator=generator)
    state = statedict.capture({"generator": generator})
    first = list(sampler)
    statedict.restore({"generator": generator}, state)
    assert list(sampler) == first


PAIRS = [
    ("Generator of PCG64", "Generator of MT19937", "(the generator's is 'MT19937', the state has 'PCG64'"),
    ("RandomState", "Generator of PCG64", "g.bit_generator (the generator's is 'PCG64', the state"),
    ("torch.Generator", "random.Random", "2 missing: g.version, g.gauss"),
    ("random.Random", "torch.Generator", "1 missing: g.device"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "said"), PAIRS)
def test_the_state_of_another_kind_is_refused(one: str, other: str, said: str) -> None:
    live = MAKERS[other](3)
    state = statedict.capture({"g": MAKERS[one](1)})
    with pytest.raises(statedict.errors.RestoreError, match=r"nothing was written") as caught:
        statedict.restore({"g": live}, state)
    assert said in str(caught.value)
    assert drawn(live) == drawn(MAKERS[other](3))


def test_the_state_of_another_device_is_refused() -> None:
    state = statedict.capture({"g": torch.Generator()})
    state["g"]["device"] = "cuda"
    with pytest.raises(
        statedict.errors.RestoreError, match=r"g.device \(the generator's is 'cpu', the state has 'cuda'"
    ):
        statedict.restore({"g": torch.Generator()}, state)
    state["g"] |= {"device": "cpu", "state": torch.zeros(16, dtype=torch.uint8)}
    with pytest.raises(statedict.errors.RestoreError, match=r"g.state .*uint8 \(16,\): it is of another kind"):
        statedict.restore({"g": torch.Generator()}, state)


def test_a_part_of_a_state_is_none() -> None:
    state = statedict.capture({"g": random.Random(1), "n": 1})
    del state["g"]["gauss"]
    live = random.Random(2)
    report = statedict.restore({"g": live, "n": 0}, state, allow_missing=["g"])
    assert report.paths("missing") == ["g.gauss"]
    assert report.paths("restored") == ["n"]
    assert live.getstate() == random.Random(2).getstate()


class Counted(random.Random):
    """Holds more than its base."""

    count = 0


def test_a_generator_that_holds_more_or_nothing_is_refused() -> None:
    for value in (Counted(1), random.SystemRandom()):
        with pytest.raises(statedict.errors.UnsupportedError, match="cannot capture"):
            statedict.capture({"g": value})
