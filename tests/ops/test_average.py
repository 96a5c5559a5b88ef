"""Averages of states: each tensor against the sum in numpy, everything else by its rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import statedict
from statedict.api.combine import average_files
from statedict.errors import CombineError
from statedict.runs import CheckpointManager
from statedict.testing.same import assert_same

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128")


def numbers(kind: str, shape: tuple[int, ...], seed: int) -> Any:
    made: Any = np.random.default_rng(seed).standard_normal((2, *shape))
    values = made[0] + 1j * made[1] if kind.startswith("complex") else made[0]
    return np.asarray(values).astype(np.dtype(getattr(ml_dtypes, kind, kind)))


def trained(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(seed + 1):
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
    return {"model": model, "optimizer": optimizer, "epoch": seed, "config": {"width": 4}}


def report(sources: list[Any], **options: Any) -> Any:
    return average_files(sources, None, dry_run=True, **options)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_tensor_is_the_weighted_sum_in_float32_rounded_once(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(FLOATS))
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=3)))
    count = data.draw(st.integers(2, 4))
    given = data.draw(st.none() | st.lists(st.sampled_from([1, 0.5, 2.25, 3, 0]), min_size=count, max_size=count))
    weights = given if given and sum(given) else None
    arrays = [numbers(kind, shape, seed) for seed in range(count)]
    work = {"float64": "float64", "complex64": "complex64", "complex128": "complex128"}.get(kind, "float32")
    shares = weights or [1] * count
    terms = [array.astype(work) * np.dtype(work).type(share) for array, share in zip(arrays, shares, strict=True)]
    wanted = np.asarray(sum(terms[1:], terms[0]) / np.dtype(work).type(sum(shares))).astype(arrays[0].dtype)
    found = statedict.average([{"w": array} for array in arrays], weights)["w"]
    assert found.dtype == kind
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_the_sum_of_half_precision_is_not_rounded_on_its_way() -> None:
    arrays = [np.array([value], "float16") for value in (60000, 60000, 2)]
    assert statedict.average([{"w": array} for array in arrays])["w"].tolist() == [40000]
    third = [np.array([value], ml_dtypes.bfloat16) for value in (256, 1, 1)]
    assert statedict.average([{"w": array} for array in third])["w"].tolist() == [86]


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("number", [2, 3, 7])
def test_elements_that_are_equal_in_all_sources_stay_the_same(number: int, kind: str) -> None:
    frozen = np.random.default_rng(0).standard_normal(100_000).astype(kind)
    sources = [{"w": np.append(frozen, np.array([index], kind))} for index in range(number)]
    averages = statedict.average(sources), statedict.average(sources, [0.3 + index for index in range(number)])
    for average in averages:
        assert np.array_equal(average["w"].numpy()[:-1], frozen)
    assert averages[0]["w"].numpy()[-1] == pytest.approx((number - 1) / 2)


def test_float64_sums_are_asked_for_or_follow_the_sources() -> None:
    arrays = [{"w": np.array([value], "float32")} for value in (1e8, 1, -1e8)]
    assert statedict.average(arrays)["w"].tolist() == [0]
    exact = statedict.average(arrays, precision="float64")["w"]
    assert (str(exact.dtype), exact.item()) == ("float32", np.float32(1 / 3))
    mixed = statedict.average([arrays[0], {"w": np.array([1.0])}])["w"]
    assert (str(mixed.dtype), mixed.item()) == ("float64", 50000000.5)
    halves = [{"w": np.ones(1, kind)} for kind in ("float16", ml_dtypes.bfloat16)]
    assert str(statedict.average(halves)["w"].dtype) == "float32"


@pytest.mark.parametrize("decay", [0, 0.5, 0.99])
def test_an_exponential_moving_average_is_that_of_pytorch(decay: float) -> None:
    models = [nn.Linear(5, 3) for _ in range(4)]
    live = nn.Linear(5, 3)
    live.load_state_dict(models[0].state_dict())
    moving = AveragedModel(live, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for model in models:
        live.load_state_dict(model.state_dict())
        moving.update_parameters(live)
    found = statedict.average(models, ema=decay).torch()
    for name, value in moving.module.state_dict().items():
        torch.testing.assert_close(found[name], value)


def test_of_a_checkpoint_the_model_is_averaged_and_what_differs_is_left_out() -> None:
    parts = [trained(seed) for seed in range(3)]
    state = statedict.average(parts)
    assert list(state) == ["model", "config"]
    wanted = sum(part["model"].state_dict()["0.weight"] for part in parts) / 3
    assert torch.equal(state["model"]["0.weight"].torch(), wanted)
    assert state["model"]["1.num_batches_tracked"].item() == 3
    assert state["config"] == {"width": 4}
    found = report(parts)
    assert dict(found.left_out) == {"optimizer": "optimizer", "epoch": "differs"}
    assert dict(found.rules) == {"model.1.num_batches_tracked": "max"}
    assert "update_bn" in found.notes[0]
    target = trained(9)
    statedict.restore({"model": target["model"]}, {"model": state["model"]})


def test_generators_and_schedulers_are_left_out_whole(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        for seed in range(2):
            parts = trained(seed)
            scheduler = torch.optim.lr_scheduler.StepLR(parts["optimizer"], 5)
            manager.save(seed, parts | {"scheduler": scheduler, "rng": statedict.rng()})
    found = report([tmp_path / "run" / "0", tmp_path / "run" / "1"])
    assert dict(found.left_out) == {
        "optimizer": "optimizer",
        "epoch": "differs",
        "scheduler": "scheduler",
        "rng": "tensors beside the model",
    }


def test_moments_are_averaged_when_asked_for_and_steps_are_the_largest() -> None:
    parts = [trained(seed) for seed in range(2)]
    state = statedict.average(parts, optimizer=True)
    states = [part["optimizer"].state_dict()["state"][0] for part in parts]
    found = state["optimizer"]["state"][0]
    assert torch.equal(found["exp_avg"].torch(), (states[0]["exp_avg"] + states[1]["exp_avg"]) / 2)
    assert found["step"].item() == 2
    target = trained(5)
    del target["epoch"], target["config"]
    statedict.restore(target, {"model": state["model"], "optimizer": state["optimizer"]})


def test_tied_tensors_stay_tied_and_those_tied_in_one_source_do_not() -> None:
    shared = [nn.Parameter(torch.randn(3)) for _ in range(2)]
    both = [{"a": one, "b": one} for one in shared]
    state = statedict.average(both)
    assert state["a"].region == state["b"].region
    apart = statedict.average([both[0], {"a": shared[1], "b": torch.zeros(3)}])
    assert torch.equal(apart["b"].torch(), shared[0].detach() / 2)
    assert apart["a"].region != apart["b"].region


def test_a_model_may_stand_elsewhere_in_each_source(tmp_path: Path) -> None:
    models = [nn.Linear(2, 2) for _ in range(3)]
    statedict.save({"state_dict": models[0], "epoch": 1}, tmp_path / "a.pth")
    statedict.save(models[1], tmp_path / "b.safetensors")
    statedict.save({"net": {"inner": models[2]}}, tmp_path / "c.pth")
    found = statedict.average([tmp_path / "a.pth", f"{tmp_path / 'b.safetensors'}", f"{tmp_path / 'c.pth'}::net.inner"])
    assert torch.equal(found["state_dict"]["bias"].torch(), sum(model.bias for model in models) / 3)  # type: ignore[arg-type]


def test_whole_modules_that_were_pickled_are_averaged_by_their_names(tmp_path: Path) -> None:
    models = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    torch.save(models[0], tmp_path / "whole.pth")
    torch.save({"epoch": 1, "model": models[1]}, tmp_path / "inside.pth")
    found = statedict.average([tmp_path / "whole.pth", tmp_path / "inside.pth", models[1]])
    assert torch.equal(found["0.weight"].torch(), (models[0][0].weight + models[1][0].weight + models[1][0].weight) / 3)  # type: ignore[arg-type]
    assert list(found) == list(models[0].state_dict())


def test_several_models_are_averaged_each_and_nested_names_stay_nested() -> None:
    def source(value: float) -> dict[str, Any]:
        return {
            "netG": {"w": torch.full((2,), value)},
            "netD": {"w": torch.full((3,), -value)},
            "params": {"dense": {"kernel": torch.full((1,), value)}},
        }

    found = statedict.average([source(1.0), source(2.0)])
    assert found["netG"]["w"].tolist() == [1.5, 1.5]
    assert found["netD"]["w"].tolist() == [-1.5] * 3
    assert found["params"]["dense"]["kernel"].tolist() == [1.5]


def test_equal_integers_are_kept_and_others_need_a_rule() -> None:
    def source(seed: int) -> dict[str, Any]:
        return {"ids": np.arange(4), "seen": np.array([seed, 9 - seed]), "mask": np.array([seed > 0, True])}

    sources = [source(seed) for seed in range(3)]
    with pytest.raises(
        CombineError, match=r"seen: int64 has no average, and the sources differ; pass integers={'seen': "
    ):
        statedict.average(sources)
    with pytest.raises(CombineError, match="mask: bool has no average"):
        statedict.average(sources, integers={"seen": "max"})
    wanted = {"first": ([0, 9], [False, True]), "last": ([2, 7], [True, True]), "max": ([2, 9], [True, True]),
              "min": ([0, 7], [False, True])}  # fmt: skip
    for rule, (seen, mask) in wanted.items():
        state = statedict.average(sources, integers={"*": rule})
        assert (state["ids"].tolist(), state["seen"].tolist(), state["mask"].tolist()) == ([0, 1, 2, 3], seen, mask)
        assert dict(report(sources, integers={"*": rule}).rules) == {"ids": "equal", "seen": rule, "mask": rule}


def test_parts_of_numbers_have_no_average() -> None:
    kind = ml_dtypes.float8_e8m0fnu
    sources = [{"w": torch.ones(2), "s": np.array([value], kind)} for value in (1, 2)]
    with pytest.raises(CombineError, match=r"s: float8_e8m0fnu has no average"):
        statedict.average(sources)


@pytest.mark.parametrize(
    ("sources", "options", "match"),
    [
        ([{"w": torch.ones(1)}], {}, "two or more"),
        ("a.pth", {}, "two or more"),
        ([{"w": torch.ones(1)}, {"v": torch.ones(1)}], {}, r"source 2: lacks 1 entry that source 1 has: w"),
        ([{"w": torch.ones(1)}, {"w": torch.ones(1), "v": torch.ones(1)}], {},
         "source 1: lacks 1 entry that source 2 has: v"),
        ([{"w": torch.ones(1)}, {"w": torch.ones(2)}], {}, r"w: has the shape \(2,\) in source 2, \(1,\) in source 1"),
        ([{"w": torch.ones(1)}, {"epoch": 1}], {}, "source 2: there is no model in it"),
        ([{"netG": {"w": torch.ones(1)}, "netD": {"w": torch.ones(1)}}, {"netG": {"w": torch.ones(1)}}], {},
         "source 2: has the models netG, source 1 has netG, netD"),
        ([{"w": torch.ones(1)}] * 2, {"weights": [1]}, "expected 2 finite numbers, one for each source, got 1"),
        ([{"w": torch.ones(1)}] * 2, {"weights": [1, -1]}, "their sum is 0"),
        ([{"w": torch.ones(1)}] * 2, {"weights": [1, float("nan")]}, "got nan"),
        ([{"w": torch.ones(1)}] * 2, {"weights": [1, "2"]}, "got '2'"),
        ([{"w": torch.ones(1)}] * 2, {"ema": 1}, "a decay below 1"),
        ([{"w": torch.ones(1)}] * 2, {"ema": 0.5, "weights": [1, 1]}, "no weights beside it"),
        ([{"w": torch.ones(1)}] * 2, {"precision": "bf16"}, "precision: expected one of float32, float64"),
        ([{"w": torch.ones(1)}] * 2, {"integers": {"*": "mean"}}, "integers: expected one of max, min, first, last"),
        ([{"w": torch.ones(1)}] * 2, {"integers": "max"}, "integers: expected a dict"),
        ([{"w": torch.ones(1)}] * 2, {"weights": [10**400, 1]}, "expected 2 finite numbers"),
        ([{"w": torch.ones(1), "i": torch.ones(1, dtype=torch.int32)}, {"w": torch.ones(1), "i": torch.ones(1).long()}],
         {}, "i: is int32 and int64 in the sources"),
    ],
)  # fmt: skip
def test_what_cannot_be_averaged_is_an_error(sources: Any, options: Any, match: str) -> None:
    with pytest.raises(CombineError, match=match):
        statedict.average(sources, **options)


def test_values_between_the_tensors_of_a_model_keep_it_in_its_place() -> None:
    def source(number: int) -> dict[str, Any]:
        weights = {"l.weight": torch.full((2, 2), float(number)), "l.bias": None, "version": 3, "count": number}
        return {"net": weights, "arch": "x", "config": {"depth": 4}, "seen": number}

    found = statedict.average([source(0), source(1)])
    assert list(found) == ["net", "arch", "config"]
    assert list(found["net"]) == ["l.weight", "l.bias", "version", "count"]
    assert found["net"]["l.weight"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    made = report([source(0), source(1)])
    assert (dict(made.rules), dict(made.left_out)) == ({"net.count": "first"}, {"seen": "differs"})
    flat = [{**source(n)["net"], "optimizer": trained(n)["optimizer"], "kept": [torch.ones(1)]} for n in range(2)]
    state = statedict.average(flat, optimizer=True)
    assert list(state["optimizer"]) == ["state", "param_groups"]
    assert dict(report(flat).left_out) == {"optimizer": "optimizer"}
    assert dict(report(flat).rules) == {"count": "first", "kept": "first"}


def test_what_only_a_later_source_has_is_reported() -> None:
    sources = [{"model": {"w": torch.ones(1)}}, {"model": {"w": torch.ones(1)}, "scaler": {"scale": 2.0}}]
    assert dict(report(sources).left_out) == {"scaler": "only in source 2"}


def test_settings_of_an_optimizer_are_those_of_the_first() -> None:
    def source(rate: float) -> dict[str, Any]:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(rate))
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return {"model": model, "optimizer": optimizer}

    sources = [source(0.25), source(0.5)]
    assert statedict.average(sources, optimizer=True)["optimizer"]["param_groups"][0]["lr"].item() == 0.25
    assert dict(report(sources, optimizer=True).rules)["optimizer.param_groups.0.lr"] == "first"


def test_an_optimizer_that_cannot_be_averaged_is_an_error_when_asked_for() -> None:
    listed = {"state_dict": {"w": torch.ones(1)}, "optimizer_states": [trained(1)["optimizer"].state_dict()]}
    with pytest.raises(CombineError, match=r"source 1: has no optimizer .* it is in a list"):
        statedict.average([listed, listed], optimizer=True)


def test_numbers_beyond_the_sum_are_averaged_in_float64() -> None:
    largest = float(np.finfo("f4").max)
    for sources in ([largest, largest], [-largest, -largest], [float("-inf")] * 2, [largest, 0.0]):
        found = statedict.average([{"w": np.array([value], "f4")} for value in sources])["w"].item()
        assert found == sum(np.array(sources, "f8")) / 2
    assert statedict.average([{"w": np.array([n], "f4")} for n in (1, 3)], [1e38, 1e38])["w"].item() == 2
    assert statedict.average([{"w": np.array([n], "f4")} for n in (1, 3)], [1e-50, 1e-50])["w"].item() == 2


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        (("float64", "complex64"), "complex128"),
        (("float16", "complex64"), "complex64"),
        (("float8_e4m3fn", "bfloat16"), "bfloat16"),
        (("float8_e4m3fn", "float8_e5m2"), "float32"),
        (("complex64", "complex128"), "complex128"),
    ],
)
def test_the_result_has_the_widest_dtype(kinds: tuple[str, str], wanted: str) -> None:
    assert str(statedict.average([{"w": numbers(kind, (2,), 1)} for kind in kinds])["w"].dtype) == wanted


def test_negative_weights_extrapolate() -> None:
    found = statedict.average([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], [2, -1])
    assert found["w"].item() == -1


@pytest.mark.parametrize("name", ["out.safetensors", "out.pth", "shards/"])
def test_an_average_is_written_in_every_format(name: str, tmp_path: Path) -> None:
    sources = [{"layers": [1], "model": {"w": torch.randn(40, 50), "b": torch.randn(50)}} for _ in range(2)]
    done = average_files(sources, str(tmp_path / name), max_shard_size="6kB" if name.endswith("/") else None)
    assert (done.written, done.tensors, done.nbytes) == (True, 2, 8200)
    assert_same(statedict.load(tmp_path / name).torch(), statedict.average(sources).torch())
    assert statedict.verify(tmp_path / name).ok


def test_it_can_be_written_over_one_of_its_sources(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    one, other = ({"w": torch.randn(100)} for _ in range(2))
    statedict.save(one, path)
    average_files([path, other], path)
    assert torch.equal(statedict.load(path)["w"].torch(), (one["w"] + other["w"]) / 2)
