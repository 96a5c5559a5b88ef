"""What a reader with bad intentions tried: each case was silently wrong, or written in part, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict

from ..work import assert_linear, steps


def linear() -> nn.Linear:
    return nn.Linear(2, 2)


def layers(count: int = 3) -> nn.Sequential:
    return nn.Sequential(*[linear() for _ in range(count)])


def stepped(model: nn.Module, optimizer: Any) -> Any:
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 1.0 + number)
    optimizer.step()
    return optimizer


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class Block(nn.Module):
    """Its second version holds its weight transposed."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear()
        self.seen: Any = "nothing"

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        self.seen = metadata.get("version")
        if self.seen is None or self.seen < 2:
            state[prefix + "fc.weight"] = state[prefix + "fc.weight"].t()
        super()._load_from_state_dict(state, prefix, metadata, *rest)


@pytest.mark.parametrize("source", [nn.DataParallel, lambda m: nn.ModuleDict({"model": m}), lambda m: m])
@pytest.mark.parametrize("target", [nn.DataParallel, lambda m: nn.ModuleDict({"model": m}), lambda m: m])
def test_the_versions_of_modules_that_hold_only_modules_go_with_them(source: Any, target: Any) -> None:
    one, other = nn.Sequential(nn.Sequential(Block())), nn.Sequential(nn.Sequential(Block()))
    statedict.restore(target(other), source(one).state_dict())
    assert other[0][0].seen == 2
    assert torch.equal(other[0][0].fc.weight, one[0][0].fc.weight)


def test_the_versions_follow_rules_too() -> None:
    one, other = nn.ModuleDict({"old": nn.Sequential(Block())}), nn.ModuleDict({"new": nn.Sequential(Block())})
    statedict.restore(other, one.state_dict(), rename={"old": "new"})
    assert torch.equal(other["new"][0].fc.weight, one["old"][0].fc.weight)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.ModuleDict({"fc": linear()})
        self.fc = linear()


def test_moments_do_not_go_to_a_parameter_of_another_name() -> None:
    one, other = Two(), Two()
    state = statedict.capture({"m": one, "o": stepped(one, sgd(one.enc.parameters()))})
    fresh = sgd(other.fc.parameters())
    with pytest.raises(statedict.errors.RestoreError, match=r"2 missing: o\.state\.fc\.weight"):
        statedict.restore({"m": other, "o": fresh}, state)
    assert not fresh.state


def test_the_optimizers_of_two_models_are_not_exchanged() -> None:
    def tree(turned: bool) -> dict[str, Any]:
        g, d = layers(1), layers(1)
        pair = [stepped(g, sgd(g.parameters())), stepped(d, sgd(d.parameters()))]
        return {"g": g, "d": d, "o": pair[::-1] if turned else pair}

    with pytest.raises(statedict.errors.RestoreError, match=r"missing: o\.0\.state\.d\.0\.weight"):
        statedict.restore(tree(True), statedict.capture(tree(False)))


def test_names_in_the_place_of_numbers_are_names() -> None:
    """As torch.distributed.checkpoint.state_dict.get_optimizer_state_dict has them."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    one, other = layers(2), layers(2)
    first = stepped(one, torch.optim.Adam(one.parameters()))
    state = get_optimizer_state_dict(one, first)
    assert state["param_groups"][0]["params"][0] == "0.weight"
    second = torch.optim.Adam(list(other.parameters())[::-1])
    statedict.restore({"m": other, "o": second}, {"m": one.state_dict(), "o": state})
    assert torch.equal(second.state[other[0].weight]["exp_avg"], first.state[one[0].weight]["exp_avg"])


@statedict.renamed_in(1, {"a": "b", "b": "a"})
class Swapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear(), linear()


def test_an_average_beside_the_model_does_not_change_whose_names_are_read() -> None:
    old = nn.ModuleDict({"a": linear(), "b": linear()})
    state = statedict.capture({"m": old, "o": stepped(old, sgd(old.parameters()))})
    new = Swapped()
    optimizer = sgd(new.parameters())
    statedict.restore({"m": new, "o": optimizer, "ema": Swapped()}, state, allow_missing="ema")
    expected = state["o"]["state"][2]["momentum_buffer"]  # of b.weight, which is a.weight now
    assert torch.equal(optimizer.state[new.a.weight]["momentum_buffer"], expected)


@pytest.mark.parametrize("beside", [{}, {"ema": Swapped()}], ids=["alone", "beside another"])
def test_an_optimizer_that_has_names_of_its_own_follows_a_history_too(beside: dict[str, Any]) -> None:
    old = nn.ModuleDict({"a": linear(), "b": linear()})
    first = stepped(old, sgd(old.named_parameters()))
    new = Swapped()
    second = sgd(new.named_parameters())
    state = {"m": old.state_dict(), "o": first.state_dict()}
    statedict.restore({"m": new, "o": second} | beside, state, allow_missing="ema")
    expected = first.state[old["b"].weight]["momentum_buffer"]
    assert torch.equal(second.state[new.a.weight]["momentum_buffer"], expected)


def test_what_a_hook_drops_is_missing() -> None:
    model = nn.Sequential(linear())
    model._register_load_state_dict_pre_hook(lambda state, *_: state.pop("0.weight"))
    with pytest.raises(statedict.errors.RestoreError, match=r"1 missing: 0\.weight"):
        statedict.restore(model, nn.Sequential(linear()).state_dict())


class Exchanging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear(), linear()

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        state = dict(state)
        state["a.weight"], state["b.weight"] = state["b.weight"], state["a.weight"]
        return super().load_state_dict(state, strict, assign)


def test_a_load_state_dict_of_one_s_own_gets_what_pytorch_would_give_it() -> None:
    one, ours, theirs = Exchanging(), Exchanging(), Exchanging()
    state = statedict.capture(one)
    statedict.restore(ours, state)
    theirs.load_state_dict(one.state_dict())
    assert torch.equal(ours.a.weight, theirs.a.weight)
    assert torch.equal(ours.b.weight, theirs.b.weight)
    patched, seen = linear(), list[str]()
    patched.load_state_dict = lambda state, **_: seen.extend(state)  # type: ignore[method-assign,assignment,misc]
    statedict.restore(patched, linear().state_dict())
    assert seen == ["weight", "bias"]


def test_two_values_for_one_tensor_are_an_error_under_a_policy_too() -> None:
    model = nn.ModuleDict({"e": nn.Embedding(4, 2), "h": nn.Linear(2, 4, bias=False)})
    model["h"].weight = model["e"].weight
    state = {"e.weight": torch.zeros(6, 2), "h.weight": torch.ones(6, 2)}
    with pytest.raises(statedict.errors.RestoreError, match=r"1 tie: h\.weight"):
        statedict.restore(model, state, shapes="slice")
    same = {"e.weight": torch.ones(6, 2), "h.weight": torch.ones(6, 2)}
    with pytest.raises(statedict.errors.RestoreError, match="which has another policy"):
        statedict.restore(model, same, shapes={"h": "skip", "*": "slice"})
    statedict.restore(model, same, shapes="slice")
    assert model["e"].weight.eq(1).all()


class Own(torch.optim.Optimizer):
    """Keeps what it likes under names of its own, nested too."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                square = torch.ones(parameter.shape[0], parameter.shape[0], dtype=torch.float32)
                self.state[parameter] = {"m": torch.rand_like(parameter), "deep": [square, {"x": square.double()}]}


def test_what_an_unknown_optimizer_keeps_is_checked_by_shape_and_keeps_its_dtype() -> None:
    one, other = nn.Linear(2, 3).bfloat16(), nn.Linear(2, 3).bfloat16()
    old = stepped(one, Own(one.parameters()))
    new = Own(other.parameters())
    statedict.restore({"m": other, "o": new}, statedict.capture({"m": one, "o": old}))
    deep = new.state[other.weight]["deep"]
    assert (deep[0].dtype, deep[1]["x"].dtype) == (torch.float32, torch.float64)
    backwards = Own(list(other.parameters())[::-1])
    with pytest.raises(statedict.errors.RestoreError, match=r"shape: state\.0\.m, state\.1\.m"):
        statedict.restore(backwards, statedict.capture(old))


def test_state_for_a_parameter_in_no_group_is_unexpected_and_numbers_survive_json() -> None:
    one, other = layers(1), layers(1)
    first, second = stepped(one, sgd(one.parameters())), sgd(other.parameters())
    state = {"m": one.state_dict(), "o": first.state_dict()}
    state["o"]["state"][9] = {"momentum_buffer": torch.ones(2)}
    with pytest.raises(statedict.errors.RestoreError, match=r"1 unexpected: o\.state\.9"):
        statedict.restore({"m": other, "o": second}, state)
    del state["o"]["state"][9]
    state["o"]["state"] = {str(key): value for key, value in state["o"]["state"].items()}
    statedict.restore({"m": other, "o": second}, state)
    expected = first.state[one[0].weight]["momentum_buffer"]
    assert torch.equal(second.state[other[0].weight]["momentum_buffer"], expected)


def test_hyperparameters_of_groups_that_became_one_are_reported() -> None:
    one, other = linear(), linear()
    groups = [{"params": [one.weight], "weight_decay": 0.1}, {"params": [one.bias], "weight_decay": 0.0}]
    state = statedict.capture({"m": one, "o": stepped(one, sgd(groups))})
    report = statedict.restore({"m": other, "o": sgd(other.parameters())}, state)
    assert report.paths("differs") == ["o.param_groups.0"]
    assert "some were in group 1 of the state, whose weight_decay differ" in str(report)


def test_hooks_on_parameters_of_the_meta_device_stay() -> None:
    with torch.device("meta"):
        model = linear()
    seen: list[str] = []
    model.weight.register_hook(lambda grad: seen.append("hook"))
    model.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append("post"))
    statedict.restore(model, linear().state_dict())
    model(torch.ones(1, 2)).sum().backward()
    assert seen == ["hook", "post"]


def test_what_a_module_makes_itself_gets_memory() -> None:
    with torch.device("meta"):
        model = nn.BatchNorm1d(3)
    state = {name: tensor for name, tensor in nn.BatchNorm1d(3).state_dict().items() if "num" not in name}
    statedict.restore(model, state)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def batch_norm(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))


def test_a_batch_norm_of_another_width_is_an_error_or_takes_a_policy() -> None:
    model, state = batch_norm(10), batch_norm(12).state_dict()
    before = model[0].weight.clone()
    with pytest.raises(statedict.errors.RestoreError, match=r"1 shape: 0\.weight"):
        statedict.restore(model, state)
    assert torch.equal(model[0].weight, before)
    for policy in ("skip", "overlap", "slice"):
        report = statedict.restore(model, state, shapes=policy)
        assert len(report.paths("skipped" if policy == "skip" else "reshaped")) == 6
    assert torch.equal(model[1].weight, state["1.weight"][:10])


def test_what_a_module_s_loading_raises_is_known_before_anything_is_written() -> None:
    def hook(*_: Any) -> None:
        raise RuntimeError("no such luck")

    model = layers(2)
    model[1]._register_load_state_dict_pre_hook(hook)
    before = model[0].weight.clone()
    with pytest.raises(statedict.errors.RestoreError, match=r"1 refused: .*no such luck"):
        statedict.restore(model, layers(2).state_dict())
    assert torch.equal(model[0].weight, before)


def test_a_parameter_that_repeats_its_memory_is_refused_before_anything_is_written() -> None:
    model = layers(2)
    model[1].weight = nn.Parameter(torch.ones(1, 2).expand(2, 2))
    before = model[0].weight.clone()
    with pytest.raises(statedict.errors.RestoreError, match=r"1 target: 1\.weight .*elements share memory"):
        statedict.restore(model, layers(2).state_dict())
    assert torch.equal(model[0].weight, before)


def test_a_prefix_that_is_given_holds_for_the_optimizer() -> None:
    teacher = nn.ModuleDict({"teacher": layers(1)})
    state = statedict.capture({"m": teacher, "o": stepped(teacher, sgd(teacher.parameters()))})
    model = layers(1)
    optimizer = sgd(model.parameters())
    statedict.restore({"m": model, "o": optimizer}, state, prefix="teacher.")
    assert torch.equal(optimizer.state[model[0].bias]["momentum_buffer"], state["o"]["state"][1]["momentum_buffer"])


def test_a_tied_weight_may_go_by_another_of_its_names_in_the_optimizer() -> None:
    class Tied(nn.Module):
        def __init__(self, first: str) -> None:
            super().__init__()
            made = {"e": nn.Embedding(3, 2), "h": nn.Linear(2, 3, bias=False)}
            made["h"].weight = made["e"].weight
            for name in (first, "eh".replace(first, "")):
                self.add_module(name, made[name])
            self.other = linear()

    one, other = Tied("h"), Tied("e")
    state = statedict.capture({"m": one, "o": stepped(one, sgd(one.parameters()))})
    del state["m"]["h.weight"]
    optimizer = sgd(other.parameters())
    statedict.restore({"m": other, "o": optimizer}, state)
    assert torch.equal(optimizer.state[other.e.weight]["momentum_buffer"], state["o"]["state"][0]["momentum_buffer"])


def test_two_classes_of_one_module_may_rename_in_the_same_version() -> None:
    @statedict.renamed_in(1, {"a": "x"})
    class One(nn.Module):
        pass

    @statedict.renamed_in(1, {"b": "y"})
    class Other(nn.Module):
        pass

    class Both(One, Other):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.y = linear(), linear()

    old = nn.ModuleDict({"a": linear(), "b": linear()})
    target = Both()
    statedict.restore(target, old.state_dict())
    assert torch.equal(target.x.weight, old["a"].weight)
    assert torch.equal(target.y.weight, old["b"].weight)


@pytest.mark.parametrize("last", [[None], ["x"], [[1]], [torch.ones(2)]])
def test_a_learning_rate_that_is_none_is_no_traceback(last: list[Any]) -> None:
    scheduler = torch.optim.lr_scheduler.StepLR(sgd(linear().parameters()), 1)
    state = scheduler.state_dict() | {"_last_lr": last}
    report = statedict.restore(scheduler, state, dry_run=True)
    assert report.paths("differs") == ["_last_lr"]


@pytest.mark.parametrize(
    "options",
    [
        {"shapes": None}, {"shapes": ["skip"]}, {"rename": [("a", "b")]}, {"rename": "a"}, {"override": [1]},
        {"cast": 3}, {"allow_missing": 3}, {"allow_unexpected": [3]},
    ],
)  # fmt: skip
def test_an_argument_of_another_kind_says_what_is_expected(options: Any) -> None:
    with pytest.raises(statedict.errors.RestoreError, match=f"{next(iter(options))}: expected .*, got "):
        statedict.restore(linear(), linear().state_dict(), **options)


def test_renamed_in_says_what_it_is_for() -> None:
    for version, rules, kind in (("1", {}, nn.Linear), (1, [], nn.Linear), (1, {}, dict), (1, {}, linear)):
        with pytest.raises(statedict.errors.RenameError, match="renamed_in"):
            statedict.renamed_in(version, rules)(kind)  # type: ignore[type-var,arg-type]


def test_an_uninitialised_parameter_in_the_state_is_named() -> None:
    with pytest.raises(statedict.errors.RestoreError, match=r"kind: weight"):
        statedict.restore(nn.Linear(2, 3), nn.LazyLinear(3).state_dict())


def test_a_mixed_failure_stays_short() -> None:
    target = nn.Module()
    for n in range(30):
        target.register_buffer(f"b{n}", torch.zeros(n % 3 + 1, dtype=[torch.float32, torch.int64][n % 2]))
    state: dict[str, Any] = {f"b{n}": torch.zeros(2) if n % 4 else "text" for n in range(2, 30)} | {"z": 1}
    with pytest.raises(statedict.errors.RestoreError) as caught:
        statedict.restore({"m": target, "n": 0}, {"m": state, "n": [1]}, rename={"x": "y"})
    assert len(str(caught.value).splitlines()) <= 10


def test_a_repeated_block_with_a_history_costs_no_more_than_its_size() -> None:
    @statedict.renamed_in(1, {"query": "q"})
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = linear(), linear()

    def cost(count: int) -> int:
        model = nn.Sequential(*[Layer() for _ in range(count)])
        state = {name.replace("q.", "query."): tensor for name, tensor in model.state_dict().items()}
        assert not statedict.restore(model, state, dry_run=True).problems
        return steps(lambda: statedict.restore(model, state, dry_run=True))

    assert_linear(cost, 100, 400)


def test_a_live_state_under_other_names_is_not_overwritten_while_it_is_read() -> None:
    model = layers(2)
    first, second = (layer.weight.clone() for layer in model)
    statedict.restore(model, model.state_dict(), rename={"0": "1", "1": "0"})
    assert torch.equal(model[0].weight, second)
    assert torch.equal(model[1].weight, first)


def test_a_tuple_stays_one_when_it_is_overridden() -> None:
    model = layers(1)
    optimizer = torch.optim.Adam(model.parameters())
    statedict.restore(optimizer, statedict.capture(optimizer), override={"betas": [0.8, 0.9]})
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_a_tensor_in_the_state_without_plain_memory_is_named() -> None:
    model = layers(1)
    state = model.state_dict() | {"0.weight": torch.eye(2).to_sparse()}
    with pytest.raises(statedict.errors.RestoreError, match=r"1 kind: 0\.weight .*sparse"):
        statedict.restore(model, state)
    with pytest.raises(statedict.errors.RestoreError, match="1 kind: the whole "):
        statedict.restore(torch.optim.SGD(model.parameters()), {"state": 3})


class Fusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.qkv = linear(), nn.Linear(2, 6, bias=False)
        self._register_load_state_dict_pre_hook(self.fuse)

    def fuse(self, state: Any, prefix: str, *_: Any) -> None:
        if prefix + "q" in state:
            state[prefix + "qkv.weight"] = torch.cat([state.pop(prefix + key) for key in "qkv"])


def test_what_a_module_makes_of_a_wrong_shape_is_known_before_anything_is_written() -> None:
    model = Fusing()
    before = model.a.weight.clone()
    parts = {key: torch.ones(2 + (key == "q"), 2) for key in "qkv"}
    with pytest.raises(statedict.errors.RestoreError, match=r"1 refused: .*size mismatch for qkv\.weight"):
        statedict.restore(model, {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), **parts})
    assert torch.equal(model.a.weight, before)


def test_what_a_module_makes_is_not_cast_unasked() -> None:
    parts = {key: torch.ones(2, 2, dtype=torch.float64) for key in "qkv"}
    state = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), **parts}
    with pytest.raises(statedict.errors.RestoreError, match=r"1 dtype: qkv\.weight .*makes torch\.float64"):
        statedict.restore(Fusing(), state)
    assert statedict.restore(Fusing(), state, cast="qkv.weight").paths("made") == ["qkv.weight"]


def test_one_module_in_two_places_of_a_tree_takes_one_state() -> None:
    model, other = layers(1), layers(1)
    state = {"a": model.state_dict(), "b": other.state_dict()}
    fresh = layers(1)
    with pytest.raises(statedict.errors.RestoreError, match=r"2 tie: b\.0\.weight.*is in a too"):
        statedict.restore({"a": fresh, "b": fresh}, state)
    statedict.restore({"a": fresh, "b": fresh}, {"a": model.state_dict(), "b": model.state_dict()})
    assert torch.equal(fresh[0].weight, model[0].weight)


class Counted(torch.optim.SGD):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self.state["steps"] = 0

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        self.state["steps"] += 1


def test_what_an_optimizer_keeps_as_a_whole_is_restored() -> None:
    one, other = layers(1), layers(1)
    first, second = stepped(one, Counted(one.parameters())), Counted(other.parameters())
    statedict.restore({"m": other, "o": second}, {"m": one.state_dict(), "o": first.state_dict()})
    assert second.state["steps"] == 1
    assert torch.equal(second.state[other[0].bias]["momentum_buffer"], first.state[one[0].bias]["momentum_buffer"])


def test_names_of_one_s_own_are_not_read_as_the_model_s() -> None:
    def tree() -> dict[str, Any]:
        model = Two()
        names = [("fc.weight", model.enc["fc"].weight), ("enc.fc.weight", model.fc.weight)]
        return {"m": model, "o": sgd(names)}

    one, other = tree(), tree()
    stepped(one["m"], one["o"])
    statedict.restore(other, {key: part.state_dict() for key, part in one.items()})
    for mine, theirs in ((one["m"].fc, other["m"].fc), (one["m"].enc["fc"], other["m"].enc["fc"])):
        moments = [t["o"].state[m.weight]["momentum_buffer"] for t, m in ((one, mine), (other, theirs))]
        assert torch.equal(*moments)


def test_keys_of_one_s_own_in_a_group_are_taken_over() -> None:
    one, other = linear(), linear()
    first = torch.optim.Adam([{"params": [one.weight, one.bias], "name": "x", "lr_scale": 0.5}])
    second = torch.optim.Adam(other.parameters())
    statedict.restore(second, stepped(one, first).state_dict())
    assert (second.param_groups[0]["name"], second.param_groups[0]["lr_scale"]) == ("x", 0.5)


def test_an_empty_group_counts() -> None:
    one, other = linear(), linear()
    groups = [[{"params": []}, {"params": [*model.parameters()]}] for model in (one, other)]
    state = statedict.capture({"m": one, "o": stepped(one, torch.optim.Adam(groups[0]))})
    second = torch.optim.Adam(groups[1])
    statedict.restore(second, state["o"])
    assert torch.equal(second.state[other.bias]["exp_avg"], state["o"]["state"][1]["exp_avg"])


class Trainer:
    def __init__(self, turned: bool) -> None:
        self.model = layers(2)
        parameters = list(self.model.parameters())
        self.optimizer = sgd(parameters[::-1] if turned else parameters)


def test_an_optimizer_beside_its_model_in_an_object_goes_by_name() -> None:
    one, other = Trainer(False), Trainer(True)
    stepped(one.model, one.optimizer)
    statedict.restore(other, statedict.capture(one))
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        moments = [t.optimizer.state[p]["momentum_buffer"] for t, p in ((one, mine), (other, theirs))]
        assert torch.equal(*moments)


class Sampler:
    def __init__(self) -> None:
        self.at: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {} if self.at is None else {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def test_what_has_no_state_before_it_starts_takes_one() -> None:
    sampler = Sampler()
    statedict.restore({"sampler": sampler, "n": 0}, {"sampler": {"at": 7}, "n": 1})
    assert sampler.at == 7


def test_a_file_with_nothing_for_the_optimizer_does_not_pass_for_fine(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "optimizer_states": []}, tmp_path / "x.pth")
    with pytest.raises(statedict.errors.RestoreError):
        statedict.restore({"optimizer_states": [sgd(linear().parameters())]}, tmp_path / "x.pth")
