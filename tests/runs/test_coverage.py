"""What a checkpoint does not hold is said, once and by its path."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import statedict


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(8, 2)), 2, shuffle=True)


class Training:
    """A plain object, as some keep all parts of a run in one."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


def left(tree: Any, directory: Path) -> tuple[str, ...]:
    with statedict.CheckpointManager(directory) as manager:
        manager.save(1, tree)
        manager.restore(tree)
        return manager.not_captured


def test_a_loader_and_a_missing_rng_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = {"model": torch.nn.Linear(2, 2), "data": {"train": loader(), "sampler": RandomSampler(range(4))}}
    later = tree | {"model": torch.nn.Linear(2, 2)}
    with caplog.at_level(logging.WARNING), statedict.CheckpointManager(tmp_path) as manager:
        manager.save(1, tree)
        manager.save(2, later)
    train, sampler, rng = manager.not_captured
    assert train.startswith("data.train: a torch.utils.data.dataloader.DataLoader without state_dict()")
    assert "statedict.ResumableLoader(loader)" in train
    assert sampler.startswith("data.sampler: a torch.utils.data.sampler.RandomSampler without")
    assert "statedict.rng()" in rng
    assert len([record for record in caplog.records if "not captured" in record.message]) == 3


def test_a_bundle_has_nothing_to_name(tmp_path: Path) -> None:
    tree = {"model": torch.nn.Linear(2, 2), "train": statedict.ResumableLoader(loader()), "rng": statedict.rng()}
    assert left(tree, tmp_path) == ()


def test_an_rng_is_found_wherever_it_stands(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    trees = (
        {"model": model, "more": [statedict.rng()]},
        OrderedDict(model=model, rng=statedict.rng()),
        {"it": Training(model=model, rng=statedict.rng())},
    )
    for index, tree in enumerate(trees):
        assert left(tree, tmp_path / str(index)) == ()


@pytest.mark.parametrize("make", [lambda it: {"it": [it]}, lambda it: {"it": (it,)}, lambda it: Training(it=it)])
def test_a_loader_that_cannot_be_left_out_is_refused_by_its_path(make: Any, tmp_path: Path) -> None:
    with statedict.CheckpointManager(tmp_path) as manager:
        with pytest.raises(
            statedict.errors.UnsupportedError, match=r"it(\.0)?: a torch.*DataLoader without.*ResumableLoader"
        ):
            manager.save(1, make(loader()))
        assert manager.save(1, make(statedict.ResumableLoader(loader())))
