"""A loader goes on in the middle of an epoch: same batches, same random numbers."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

import statedict

EPOCHS = 2
State = tuple[int, statedict.StateDict]


class Noisy(Dataset[torch.Tensor]):
    """Numbers with noise from the generators of the process."""

    def __init__(self, size: int = 14) -> None:
        self.size = size
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        self.read.append(index)
        return torch.tensor([index, random.random(), numpy.random.random(), torch.rand(()).item()])


class OwnNoise(Dataset[float]):
    """Numbers with noise from a generator of its own."""

    def __init__(self) -> None:
        self.noise = numpy.random.default_rng(8)

    def __len__(self) -> int:
        return 14

    def __getitem__(self, index: int) -> float:
        return index + self.noise.random() / 2


class Shuffled(Sampler[int]):
    """As users write one, over any generator with `shuffle`."""

    def __init__(self, generator: Any) -> None:
        self.rng = generator

    def __iter__(self) -> Iterator[int]:
        order = list(range(14))
        self.rng.shuffle(order)
        return iter(order)  # drawn at iter(), not at the first next()

    def __len__(self) -> int:
        return 14


class Stream(IterableDataset[torch.Tensor]):
    def __init__(self) -> None:
        self.rng = random.Random(3)

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = torch.utils.data.get_worker_info()
        order = list(range(14))
        self.rng.shuffle(order)
        for number in order[info.id :: info.num_workers] if info else order:
            yield torch.tensor([number, torch.rand(()).item() if info else 0])


class Plain(Noisy):
    """Without noise, for workers."""

    def __getitem__(self, index: int) -> Any:
        return index


class Torched(Noisy):
    """With noise of the worker's generators."""

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index, random.random(), torch.rand(()).item()])


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


ALONE: dict[str, Callable[[], DataLoader[Any]]] = {
    "shuffle": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "in order": lambda: DataLoader(Noisy(), 4),
    "a generator": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=seeded(1)),
    "drop_last": lambda: DataLoader(Noisy(), 4, shuffle=True, drop_last=True),
    "no batches": lambda: DataLoader(Noisy(), None, shuffle=True),
    "replacement": lambda: DataLoader(
        Noisy(), batch_sampler=BatchSampler(RandomSampler(Noisy(), replacement=True, num_samples=70), 16, False)
    ),
    "replacement, a generator": lambda: DataLoader(
        Noisy(), 16, sampler=RandomSampler(Noisy(), True, 70, generator=seeded(2))
    ),
    "weights": lambda: DataLoader(Noisy(), 4, sampler=WeightedRandomSampler([1.0] * 7 + [3.0] * 7, 14)),
    "subset": lambda: DataLoader(Noisy(), 2, sampler=SubsetRandomSampler(range(3, 10), generator=seeded(3))),
    "numpy's generator": lambda: DataLoader(Noisy(), 4, sampler=Shuffled(numpy.random.default_rng(1))),
    "Python's generator": lambda: DataLoader(Noisy(), 4, sampler=Shuffled(random.Random(1))),
    "the process' generator": lambda: DataLoader(Noisy(), 4, sampler=Shuffled(random)),
    "a generator of the dataset": lambda: DataLoader(Subset(OwnNoise(), range(1, 13)), 4, shuffle=True),
    "generators of several datasets": lambda: DataLoader(
        ConcatDataset([OwnNoise(), Subset(OwnNoise(), range(5))]), 4, shuffle=True
    ),
    "ranks": lambda: DataLoader(Noisy(), 3, sampler=DistributedSampler(Noisy(), 2, 1)),
    "iterable": lambda: DataLoader(Stream(), 4),
}
WORKERS: dict[str, tuple[Callable[[], DataLoader[Any]], bool]] = {
    "order": (lambda: DataLoader(Plain(), 4, shuffle=True, num_workers=2), False),
    "order, a generator": (lambda: DataLoader(Plain(), 4, shuffle=True, num_workers=2, generator=seeded(1)), False),
    "order, persistent": (
        lambda: DataLoader(Plain(), 4, shuffle=True, num_workers=2, persistent_workers=True),
        False,
    ),
    "order, persistent, replayed": (
        lambda: DataLoader(Plain(), 4, shuffle=True, num_workers=2, persistent_workers=True),
        True,
    ),
    "noise": (lambda: DataLoader(Torched(), 4, shuffle=True, num_workers=2), True),
    "iterable": (lambda: DataLoader(Stream(), 3, num_workers=2), False),
}


def draw() -> list[Any]:
    """What a step of training draws, such as dropout."""
    return [random.random(), numpy.random.random(), torch.rand(()).item()]


def seed(number: int) -> None:
    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)


def tree(loader: statedict.ResumableLoader) -> dict[str, Any]:
    return {"loader": loader, "rng": statedict.rng()}


def trained(loader: Any, states: list[State] | None = None) -> list[Any]:
    """What happens in each step and after each epoch; `states` gets a state after each of them."""
    events: list[Any] = []

    def note(*what: Any) -> None:
        events.append([*what, *draw()])
        if states is not None:
            states.append((len(events), statedict.capture(tree(loader))))

    for epoch in range(getattr(loader, "epoch", 0), EPOCHS):
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(epoch)
        for batch in loader:
            note(epoch, batch.tolist() if isinstance(batch, torch.Tensor) else batch)
        note(f"end of {epoch}")
    return events


def resumed(state: statedict.StateDict, make: Callable[[], DataLoader[Any]], replay: bool = False) -> list[Any]:
    """What happens after a restore in what may be another process."""
    seed(1234)
    loader = statedict.ResumableLoader(make(), replay=replay)
    statedict.restore(tree(loader), state)
    return trained(loader)


@pytest.mark.parametrize("replay", [False, True], ids=["", "replayed"])
@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
def test_every_step_of_an_epoch_goes_on_as_if_nothing_had_happened(
    make: Callable[[], DataLoader[Any]], replay: bool
) -> None:
    seed(1)
    plain = trained(make())
    seed(1)
    loader = statedict.ResumableLoader(make(), replay=replay)
    states = [(0, statedict.capture(tree(loader)))]
    events = trained(loader, states)
    assert events == plain
    for done, state in states:
        assert resumed(state, make, replay) == events[done:], done


@pytest.mark.parametrize(("make", "replay"), WORKERS.values(), ids=WORKERS)
def test_with_workers_what_they_were_given_is_the_same(make: Callable[[], DataLoader[Any]], replay: bool) -> None:
    seed(1)
    plain = trained(make())
    seed(1)
    loader = statedict.ResumableLoader(make(), replay=replay)
    states: list[State] = []
    assert trained(loader, states) == plain
    last = len(states) // 2 - 1  # of the first epoch; after it is one between epochs
    for done, state in (states[index] for index in (1, last - 1, last, last + 1)):
        assert resumed(state, make, replay) == plain[done:], done


def test_a_loader_whose_workers_are_there_goes_back() -> None:
    loader = statedict.ResumableLoader(DataLoader(Plain(), 4, shuffle=True, num_workers=1, persistent_workers=True))
    batches = iter(loader)
    next(batches)
    state = statedict.capture(tree(loader))
    rest = [batch.tolist() for batch in batches]
    assert len(list(loader)) == 4
    statedict.restore(tree(loader), state)
    assert [batch.tolist() for batch in loader] == rest


def test_what_workers_draw_is_drawn_anew_without_replay(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(Torched(), 4, shuffle=True, num_workers=2)

    loader, states = statedict.ResumableLoader(make()), list[State]()
    events = trained(loader, states)
    done, state = states[1]
    after = resumed(state, make)
    assert [row[0] for row in after[0][1]] == [row[0] for row in events[done][1]]
    assert after[0][1] != events[done][1]
    with caplog.at_level(logging.WARNING), statedict.CheckpointManager(tmp_path) as manager:
        manager.save(1, tree(loader))
    assert manager.not_captured == ("loader: what its 2 workers draw at random",)


@given(
    some.integers(1, 20),
    some.integers(1, 7),
    some.booleans(),
    some.sampled_from([None, 1]),
    some.booleans(),
    some.integers(0, 50),
)
def test_any_size_and_any_step_goes_on(
    size: int, batch: int, last: bool, own: int | None, replay: bool, step: int
) -> None:
    def make() -> DataLoader[Any]:
        generator = seeded(own) if own else None
        return DataLoader(Noisy(size), batch, sampler=RandomSampler(Noisy(size), generator=generator), drop_last=last)

    seed(size)
    plain = trained(make())
    seed(size)
    loader = statedict.ResumableLoader(make(), replay=replay)
    states = [(0, statedict.capture(tree(loader)))]
    assert trained(loader, states) == plain
    done, state = states[step % len(states)]
    assert resumed(state, make, replay) == plain[done:]


def test_nothing_that_was_given_out_is_loaded_again() -> None:
    loader, states = statedict.ResumableLoader(DataLoader(Noisy(), 2, shuffle=True)), list[State]()
    trained(loader, states)
    data = Noisy()
    fresh = statedict.ResumableLoader(DataLoader(data, 2, shuffle=True))
    statedict.restore(tree(fresh), states[4][1])
    assert len(list(fresh)) == 2
    assert len(data.read) == 4


def test_a_state_taken_before_the_first_batch_of_a_running_epoch_goes_on_with_it() -> None:
    loader = statedict.ResumableLoader(DataLoader(Noisy(), 4, shuffle=True))
    batches = iter(loader)
    state = statedict.capture(tree(loader))
    expected = [batch.tolist() for batch in batches]
    fresh = statedict.ResumableLoader(DataLoader(Noisy(), 4, shuffle=True))
    statedict.restore(tree(fresh), state)
    assert [batch.tolist() for batch in fresh] == expected


def test_a_state_taken_right_after_a_restore_is_the_one_that_was_restored() -> None:
    loader, states = statedict.ResumableLoader(DataLoader(Noisy(), 4, shuffle=True)), list[State]()
    events = trained(loader, states)
    done, state = states[1]
    middle = statedict.ResumableLoader(DataLoader(Noisy(), 4, shuffle=True))
    statedict.restore(tree(middle), state)
    again = statedict.capture(tree(middle))
    assert resumed(again, lambda: DataLoader(Noisy(), 4, shuffle=True)) == events[done:]


def test_an_epoch_that_is_left_early_ends_when_the_next_begins() -> None:
    loader = statedict.ResumableLoader(DataLoader(range(6), 2))
    for _ in loader:
        break
    assert (loader.epoch, loader.position) == (0, 1)
    assert len(list(loader)) == 3
    assert (loader.epoch, loader.position) == (2, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_short_epochs_go_on_from_every_step(workers: int) -> None:
    def make() -> statedict.ResumableLoader:
        data = Plain() if workers else Noisy()
        return statedict.ResumableLoader(DataLoader(data, 2, shuffle=True, num_workers=workers))

    def short(loader: statedict.ResumableLoader, states: list[State] | None = None) -> list[Any]:
        events: list[Any] = []

        def note(*what: Any) -> None:
            events.append([*what, *draw()])
            if states is not None:
                states.append((len(events), statedict.capture(tree(loader))))

        for epoch in range(loader.epoch, 3):
            for batch in loader:
                if loader.position > 3:
                    break
                note(epoch, batch.tolist())
            loader.end_epoch()
            note(f"end of {epoch}")
        return events

    states: list[State] = []
    events = short(make(), states)
    assert len(events) == 12
    for done, state in states[:: 1 + workers]:
        seed(77)
        fresh = make()
        statedict.restore(tree(fresh), state)
        assert short(fresh) == events[done:], done


def test_two_loaders_may_share_a_generator() -> None:
    def make() -> dict[str, Any]:
        shared = seeded(5)
        one, other = (
            statedict.ResumableLoader(DataLoader(range(10), 2, sampler=RandomSampler(range(10), generator=shared)))
            for _ in range(2)
        )
        return {"one": one, "other": other}

    live = make()
    one, other = iter(live["one"]), iter(live["other"])
    next(one), next(other), next(one)
    state = statedict.capture(live)
    rest = [batch.tolist() for _ in range(2) for part in (one, other, live["one"]) for batch in part]
    fresh = make()
    statedict.restore(fresh, state)
    one, other = iter(fresh["one"]), iter(fresh["other"])
    assert [batch.tolist() for _ in range(2) for part in (one, other, fresh["one"]) for batch in part] == rest


def test_it_has_what_its_loader_has() -> None:
    inner = DataLoader(range(6), 2)
    loader = statedict.ResumableLoader(inner)
    assert len(loader) == 3
    assert loader.dataset is inner.dataset
    assert loader.sampler is inner.sampler
    assert not hasattr(loader, "nonsense")
    assert next(iter(inner)).tolist() == [0, 1]


class Bucketed(DataLoader[Any]):
    """A loader of one's own that asks its sampler."""

    def __iter__(self) -> Any:
        assert self.batch_sampler.sampler is self.sampler  # type: ignore[attr-defined]
        assert self.batch_sampler.batch_size == 4  # type: ignore[attr-defined]
        return super().__iter__()


def test_a_loader_of_one_s_own_finds_its_sampler() -> None:
    loader, states = statedict.ResumableLoader(Bucketed(Noisy(), 4, shuffle=True)), list[State]()
    events = trained(loader, states)
    done, state = states[1]
    assert resumed(state, lambda: Bucketed(Noisy(), 4, shuffle=True)) == events[done:]


def test_the_position_of_an_older_iteration_is_none() -> None:
    loader = statedict.ResumableLoader(DataLoader(range(6), 2))
    old = iter(loader)
    next(old)
    next(iter(loader))
    with pytest.raises(statedict.errors.RunError, match="one iteration at a time"):
        next(old)


def test_another_size_of_batches_is_refused_before_anything_is_written() -> None:
    loader, other = (statedict.ResumableLoader(DataLoader(range(12), size)) for size in (2, 3))
    next(iter(loader))
    array = torch.zeros(1)
    state = statedict.capture({"array": torch.ones(1), "loader": loader})
    said = r"nothing was written(.|\n)*batches: 1 of 6 of an epoch were given out, here an epoch has 4"
    with pytest.raises(statedict.errors.RestoreError, match=said):
        statedict.restore({"array": array, "loader": other}, state)
    assert not array.any()
    with pytest.raises(statedict.errors.RestoreError, match="here an epoch has 4"):
        other.load_state_dict(loader.state_dict())
    list(loader)
    statedict.restore({"loader": other}, statedict.capture({"loader": loader}))
    assert other.epoch == loader.epoch


def test_other_generators_are_refused() -> None:
    def make(generator: Any) -> statedict.ResumableLoader:
        return statedict.ResumableLoader(DataLoader(Noisy(), 2, sampler=Shuffled(generator)))

    state = statedict.capture({"loader": make(random.Random(1))})
    with pytest.raises(
        statedict.errors.RestoreError, match=r"loader \(generators: the loader has \[\], the state \['samp"
    ):
        statedict.restore({"loader": make(random)}, state)
    with pytest.raises(statedict.errors.RestoreError, match=r"sampler\.rng\.bit_generator: the target has it"):
        statedict.restore({"loader": make(numpy.random.default_rng(1))}, state)


class Counting(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(6))

    def __len__(self) -> int:
        return 6

    def state_dict(self) -> dict[str, int]:
        return {"seen": 0}


def test_what_has_a_state_of_its_own_or_no_order_is_refused() -> None:
    with pytest.raises(statedict.errors.RunError, match=r"sampler: a Counting has a state of its own"):
        statedict.ResumableLoader(DataLoader(range(6), sampler=Counting()))
    with pytest.raises(statedict.errors.RunError, match=r"in_order=False"):
        statedict.ResumableLoader(DataLoader(range(6), num_workers=2, in_order=False))
    with pytest.raises(statedict.errors.RunError, match=r"expected a torch\.utils\.data\.DataLoader, got a list"):
        statedict.ResumableLoader([1, 2])


def test_a_sampler_without_a_length_is_taken() -> None:
    class Endless(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(6))

    def make() -> statedict.ResumableLoader:
        return statedict.ResumableLoader(DataLoader(range(6), 2, sampler=Endless()))

    loader, fresh = make(), make()
    next(iter(loader))
    statedict.restore({"loader": fresh}, statedict.capture({"loader": loader}))
    assert [batch.tolist() for batch in fresh] == [[2, 3], [4, 5]]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata asks for what torch has set aside
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_s_loader_has_a_state_and_goes_on_as_it_is(workers: int, tmp_path: Path) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make() -> Any:
        return StatefulDataLoader(Noisy() if not workers else Plain(), 4, shuffle=True, num_workers=workers)

    loader = make()
    batches = iter(loader)
    next(batches), next(batches)
    with statedict.CheckpointManager(tmp_path) as manager:
        manager.save(2, tree(loader))
        assert manager.not_captured == ()
        rest = [[batch.tolist(), *draw()] for batch in batches]
        seed(99)
        fresh = make()
        manager.restore(tree(fresh))
        batches = iter(fresh)  # which draws from PyTorch's generator: so the generators are restored after it
        statedict.restore({"rng": statedict.rng()}, {"rng": manager.load()["rng"]})
    assert [[batch.tolist(), *draw()] for batch in batches] == rest
    with pytest.raises(statedict.errors.RunError, match="loader: a StatefulDataLoader has a state of its own"):
        statedict.ResumableLoader(loader)
