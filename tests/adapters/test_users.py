"""What users struggled with, each case rebuilt from its thread (repository#number)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict
from statedict.tree.rename import inverse, rename

from .test_torch_optimizer import OPTIMIZERS, OPTIONS


class Encoder(nn.Module):
    def __init__(self, layers: int = 42) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.LayerNorm(2)}) for _ in range(layers)]
        )
        self.head = nn.Linear(2, 3)


def values(model: nn.Module) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in model.state_dict().values()]


def stepped(model: nn.Module, optimizer: Any) -> Any:
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 1.0 + number)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module.", "model.module."])
def test_pytorch_41048_and_101107_the_keys_differ_by_a_wrapper(wrapper: str) -> None:
    source, target = Encoder(), Encoder()
    state = {wrapper + name: tensor for name, tensor in source.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*Unexpected key"):
        target.load_state_dict(state)
    assert wrapper.split(".")[0] in statedict.restore(target, state).notes[0]
    assert values(target) == values(source)
    with pytest.raises(statedict.errors.RestoreError) as caught:
        statedict.restore(target, state, prefix="")
    assert "all 170 keys differ by " in str(caught.value)
    assert len(str(caught.value).splitlines()) < 10


def test_kokoro_368_parts_whose_keys_have_a_prefix_are_not_left_random() -> None:
    parts = {"bert": Encoder(2), "decoder": Encoder(3)}
    state = {k: {f"module.{n}": t for n, t in m.state_dict().items()} for k, m in parts.items()}
    fresh = {"bert": Encoder(2), "decoder": Encoder(3)}
    fresh["bert"].load_state_dict(state["bert"], strict=False)
    assert values(fresh["bert"]) != values(parts["bert"])  # as it was: nothing matched, and nothing was said
    statedict.restore(fresh, state)
    assert [values(part) for part in fresh.values()] == [values(part) for part in parts.values()]


def test_mlx_audio_902_what_stays_unrestored_must_be_named() -> None:
    source, target = Encoder(2), Encoder(3)
    with pytest.raises(statedict.errors.RestoreError, match=r"4 missing: layers\.2\.a\.weight"):
        statedict.restore(target, source.state_dict())
    report = statedict.restore(target, source.state_dict(), allow_missing="layers.2")
    assert report.counts() == {"restored": 10, "missing": 4}


class Pair(nn.Module):
    """Two parameters of one shape, in either order; matrices, and a table for those that need sparse gradients."""

    def __init__(self, first: str, kind: str) -> None:
        super().__init__()
        for name in (first, "ab".replace(first, "")):
            made = nn.Embedding(3, 2, sparse=True) if kind == "SparseAdam" else nn.Linear(2, 3, bias=False)
            self.add_module(name, made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.tensor([0, 2])
        one, other = (m(rows) if isinstance(m, nn.Embedding) else m(x) for m in (self.a, self.b))
        return (one**2).sum() + ((other - 1) ** 2).sum() + (one * other).sum()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pytorch_1489_every_optimizer_survives_parameters_that_changed_places(
    name: str, suffix: str, tmp_path: Path
) -> None:
    def made(seed: int, first: str) -> tuple[nn.Module, Any]:
        torch.manual_seed(seed)
        model = Pair(first, name)
        return model, getattr(torch.optim, name)(model.parameters(), **OPTIONS.get(name, {}))

    def train(model: nn.Module, optimizer: Any, steps: range) -> None:
        for number in steps:
            x = torch.randn(4, 2, generator=torch.Generator().manual_seed(number))

            def closure(x: torch.Tensor = x) -> torch.Tensor:
                optimizer.zero_grad()
                loss = model(x)
                loss.backward()
                return loss

            optimizer.step(closure)

    whole, swapped = made(1, "a"), made(2, "b")
    train(*whole, range(4))
    statedict.save({"model": whole[0], "optimizer": whole[1]}, tmp_path / f"x{suffix}")
    statedict.restore({"model": swapped[0], "optimizer": swapped[1]}, tmp_path / f"x{suffix}")
    train(*whole, range(4, 5 if name == "LBFGS" else 8))
    train(*swapped, range(4, 5 if name == "LBFGS" else 8))
    for one, other in ((whole[0].a, swapped[0].a), (whole[0].b, swapped[0].b)):
        if name == "LBFGS":  # sums over all parameters in their order: rounding differs
            assert torch.allclose(one.weight, other.weight, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(one.weight, other.weight)


def test_lbfgs_keeps_one_state_for_parameters_that_must_be_the_same() -> None:
    model = Pair("a", "LBFGS")
    old = torch.optim.LBFGS(model.parameters())
    old.step(lambda: stepped(model, torch.optim.SGD(model.parameters(), lr=0.0)) and model(torch.ones(4, 2)))
    state = statedict.capture({"m": model, "o": old})
    fresh = Pair("b", "LBFGS")
    with pytest.raises(
        statedict.errors.RestoreError, match="LBFGS keeps one state for all parameters, which are others"
    ):
        statedict.restore({"m": fresh, "o": torch.optim.LBFGS([fresh.a.weight])}, state, allow_unexpected="o.state.*")


def test_pytorch_113673_a_parameter_that_joined_the_optimizer_does_not_take_another_s_moments() -> None:
    source, target = Encoder(1), Encoder(1)
    old = stepped(source, torch.optim.AdamW([p for n, p in source.named_parameters() if "a.weight" not in n]))
    new = torch.optim.AdamW(target.parameters())
    state = statedict.capture({"m": source, "o": old})
    report = statedict.restore({"m": target, "o": new}, state, allow_missing="layers.0.a.weight")
    assert report.paths("fresh") == ["o.state.layers.0.a.weight"]
    for (name, one), other in zip(source.named_parameters(), target.parameters(), strict=True):
        assert (other in new.state) is ("a.weight" not in name)
        if other in new.state:
            assert torch.equal(new.state[other]["exp_avg"], old.state[one]["exp_avg"])


def test_pytorch_40859_a_head_of_another_size_takes_a_policy_and_the_optimizer_follows() -> None:
    source, target = Encoder(1), Encoder(1)
    target.head = nn.Linear(2, 5)
    with pytest.raises(RuntimeError, match="size mismatch"):
        target.load_state_dict(source.state_dict(), strict=False)
    old, new = stepped(source, torch.optim.Adam(source.parameters())), torch.optim.Adam(target.parameters())
    state = statedict.capture({"m": source, "o": old})
    report = statedict.restore({"m": target, "o": new}, state, shapes={"m.head": "overlap"})
    assert torch.equal(target.head.weight[:3], source.head.weight)
    assert torch.equal(new.state[target.head.weight]["exp_avg"][:3], old.state[source.head.weight]["exp_avg"])
    assert len(report.paths("reshaped")) == 4


def test_accelerate_3971_and_pytorch_148252_state_that_never_existed_is_not_missing() -> None:
    """A parameter that never had a gradient has no state; `Missing key … optimizer.state.0.step` was the answer."""
    source, target = Encoder(1), Encoder(1)
    source.head.requires_grad_(False)
    old = torch.optim.Adam(source.parameters())
    for parameter in source.layers.parameters():
        parameter.grad = torch.ones_like(parameter)
    old.step()
    new = torch.optim.Adam(target.parameters())
    state = statedict.capture({"m": source, "o": old})
    report = statedict.restore({"m": target, "o": new}, state)
    assert "2 restored: o.state.head.weight, o.state.head.bias (it had no state yet, so it starts fresh)" in str(report)
    assert target.head.weight not in new.state
    del state["o"]["param_groups"][0]["params"][-1], state["o"]["param_groups"][0]["param_names"][-1]
    with pytest.raises(statedict.errors.RestoreError, match=r"1 missing: o\.state\.head\.bias"):
        statedict.restore({"m": target, "o": new}, state)


DIALECT = {  # the names of llama in transformers → those of its own repository, as llama.cpp#7505 has to map them
    "model.embed_tokens": "tok_embeddings",
    "model.layers.{n}.self_attn.{which}_proj": "layers.{n}.attention.w{which}",
    "model.layers.{n}.mlp.gate_proj": "layers.{n}.feed_forward.w1",
    "model.layers.{n}.input_layernorm": "layers.{n}.attention_norm",
    "model.norm": "norm",
    "lm_head": "output",
}


class Named(nn.Module):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            *above, last = name.split(".")
            module: nn.Module = self
            for key in above:
                if key not in dict(module.named_children()):
                    module.add_module(key, nn.Module())
                module = getattr(module, key)
            module.register_parameter(last, nn.Parameter(torch.randn(3)))


def test_llama_cpp_7505_a_dialect_is_a_map_and_its_inverse_and_the_moments_follow() -> None:
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    for n in range(11):
        names += [f"model.layers.{n}.self_attn.{which}_proj.weight" for which in "qkvo"]
        names += [f"model.layers.{n}.{rest}.weight" for rest in ("mlp.gate_proj", "input_layernorm")]
    theirs = list(rename(DIALECT, names).paths.values())
    assert list(rename(inverse(DIALECT), theirs).paths.values()) == names
    source, target = Named(names), Named(theirs)
    old, new = stepped(source, torch.optim.Adam(source.parameters())), torch.optim.Adam(target.parameters())
    state = statedict.capture({"m": source, "o": old})
    in_tree = {f"m.{one}": f"m.{other}" for one, other in DIALECT.items()}
    statedict.restore({"m": target, "o": new}, state, rename=in_tree)
    ours = dict(target.named_parameters())
    for (name, parameter), there in zip(
        source.named_parameters(), [*rename(DIALECT, dict(source.named_parameters())).paths.values()], strict=True
    ):
        assert torch.equal(ours[there], parameter), name
        assert torch.equal(new.state[ours[there]]["exp_avg"], old.state[parameter]["exp_avg"]), name


def test_comfyui_1144_keys_that_nothing_takes_are_an_error_not_a_line_in_a_log() -> None:
    target = Encoder(1)
    state = target.state_dict() | {"lora_unet_down.weight": torch.ones(1)}
    with pytest.raises(statedict.errors.RestoreError, match=r"1 unexpected: lora_unet_down\.weight"):
        statedict.restore(target, state)


def test_pytorch_173901_and_megatron_1359_dtypes_are_exact_or_the_cast_is_asked_for_and_told() -> None:
    source, target = Encoder(1).bfloat16(), Encoder(1)
    with pytest.raises(statedict.errors.RestoreError, match=r"6 dtype: .*the state has bfloat16, the target float32"):
        statedict.restore(target, source.state_dict())
    report = statedict.restore(target, source.state_dict(), cast="layers.*", allow_missing=(), dry_run=True)
    assert report.counts() == {"cast": 4, "dtype": 2}
    old = stepped(source, torch.optim.Adam(source.parameters()))
    for entries in old.state.values():
        entries["exp_avg"] = entries["exp_avg"].float()
    fresh = Encoder(1).bfloat16()
    new = torch.optim.Adam(fresh.parameters())
    statedict.restore({"m": fresh, "o": new}, statedict.capture({"m": source, "o": old}))
    kinds = [{key: tensor.dtype for key, tensor in entries.items()} for entries in new.state.values()]
    assert kinds == [{"step": torch.float32, "exp_avg": torch.float32, "exp_avg_sq": torch.bfloat16}] * 6


def test_physicsnemo_1173_and_pytorch_102999_a_refactored_class_reads_its_old_checkpoints(tmp_path: Path) -> None:
    @statedict.renamed_in(1, {"layers": "blocks"})
    class Refactored(Encoder):
        def __init__(self) -> None:
            super().__init__(2)
            self.blocks = self.layers
            del self.layers

    source, target = Encoder(2), Refactored()
    torch.save({"model": source.state_dict()}, tmp_path / "old.pth")
    statedict.restore({"model": target}, tmp_path / "old.pth")
    kept = dict(source.state_dict())
    assert all(torch.equal(t, kept[n.replace("blocks", "layers")]) for n, t in target.state_dict().items())


def test_a_report_of_a_thousand_tensors_is_ten_lines() -> None:
    source, target = Encoder(250), Encoder(251)
    source.head, target.head = nn.Linear(2, 3).half(), nn.Linear(2, 4)
    source.more = nn.Linear(1, 1)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    report = statedict.restore(
        target, state, allow_missing="layers.250", allow_unexpected="module.more", shapes="pad", cast=True
    )
    assert len(report.entries) == 1008
    assert len(str(report).splitlines()) <= 10
    assert len(report.to_json()["entries"]) == 1008
