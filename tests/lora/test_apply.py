"""Adapters that peft made, added to the base: against peft's own `merge_and_unload`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import statedict
from statedict import lora
from statedict.api.lora import apply_files
from statedict.errors import CombineError

from .conftest import MODELS

Make = Callable[..., Any]
LINEAR = {"r": 4, "target_modules": "all-linear"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # case → model, configuration of peft
    "all linear": ("llama", LINEAR),
    "rank and alpha patterns, rsLoRA": (
        "llama",
        LINEAR
        | {"use_rslora": True, "lora_alpha": 7, "alpha_pattern": {"v_proj": 5}}
        | {"rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 2}},
    ),
    "DoRA and modules to save": (
        "llama",
        {"target_modules": ["q_proj", "up_proj", "embed_tokens"], "use_dora": True, "modules_to_save": ["norm"]},
    ),
    "a bias of the adapter": ("llama", {"target_modules": ["q_proj"], "lora_bias": True}),
    "all biases": ("llama", {"target_modules": ["q_proj"], "bias": "all"}),
    "biases of targets": ("llama", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "tied embeddings": ("tied", {"r": 2, "target_modules": ["embed_tokens"]}),
    "an embedding to save, which unties": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "a head to save, which unties": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "trained tokens": ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]}),
    "trained tokens of two modules": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 1], "lm_head": [2]}},
    ),
    "transposed weights": (
        "gpt2",
        {"r": 2, "target_modules": ["c_attn", "c_proj", "wte"], "bias": "all", "rank_pattern": {"c_proj": 3}},
    ),
    "DoRA of transposed weights": ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_proj", "wte"], "use_dora": True}),
    "only square transposed weights": ("gpt2", {"r": 2, "target_modules": ["attn.c_proj"]}),
    "parameters of experts": (
        "mixtral",
        {"r": 2, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "target_modules": []},
    ),
    "convolutions": ("mixed", {"r": 2, "target_modules": ["a", "b", "c"]}),
    "attention of PyTorch, whose output peft changes twice": ("mixed", {"r": 2, "target_modules": ["m"]}),
    "DoRA of convolutions": ("mixed", {"r": 2, "target_modules": ["a", "b", "c"], "use_dora": True}),
}


def assert_close(ours: Any, theirs: Any, limit: float) -> None:
    assert {*ours} == {*theirs}
    for name, want in theirs.items():
        difference = (ours[name].torch().double() - want.double()).abs().max()
        assert difference <= limit * want.double().abs().max(), name


@pytest.mark.parametrize("case", CASES)
def test_every_form_of_adapter_gives_what_peft_merges(tuned: Make, case: str) -> None:
    model, config = CASES[case]
    one = tuned(model, **config)
    ours = lora.apply(one.base, one.folder)
    assert_close(ours, one.merged().state_dict(), 1e-6)  # sums in another order
    assert any(not torch.equal(ours[name].torch(), value) for name, value in one.base.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [LINEAR, {"target_modules": ["q_proj", "up_proj"], "use_dora": True}])
def test_half_precision_is_rounded_once_and_bit_for_bit_as_by_peft(
    tuned: Make, dtype: torch.dtype, config: dict[str, Any]
) -> None:
    one = tuned("llama", dtype, **config)
    ours, theirs = lora.apply(one.base, one.folder), one.merged().state_dict()
    for name, want in theirs.items():
        differing = int((ours[name].torch() != want).sum())
        assert differing <= want.numel() // 500, name  # where the sum in float32 is next to a tie


def test_the_model_computes_the_same_with_the_adapter_as_with_its_change(tuned: Make) -> None:
    one = tuned("llama", **LINEAR)
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        expected = one.peft(tokens).logits
    from .conftest import llama

    model = llama()
    model.load_state_dict(lora.apply(one.base, one.folder))
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, expected, atol=1e-5)


def test_replicated_layers_get_each_their_own_change(tuned: Make) -> None:
    one = tuned("llama", r=2, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]])
    ours = lora.apply(one.base, one.folder)
    adapter = load(one.folder)
    for new, old in enumerate((0, 1, 1)):
        above = f"base_model.model.model.layers.{new}.self_attn.q_proj"
        delta = 4 * adapter[f"{above}.lora_B.weight"].torch() @ adapter[f"{above}.lora_A.weight"].torch()
        was = one.base[f"model.layers.{old}.self_attn.q_proj.weight"]
        assert torch.allclose(ours[f"model.layers.{new}.self_attn.q_proj.weight"].torch(), was + delta, atol=1e-6)
    copies = [ours[f"model.layers.{number}.mlp.up_proj.weight"] for number in (1, 2)]
    assert copies[0].raw() == copies[1].raw()


def load(folder: Path) -> statedict.StateDict:
    return statedict.load(folder)


def test_a_folder_is_written_which_transformers_loads(tuned: Make, tmp_path: Path) -> None:
    from .conftest import llama

    one = tuned("llama", **LINEAR)
    model = llama()
    model.load_state_dict(one.base)
    model.save_pretrained(tmp_path / "base")
    report = apply_files(tmp_path / "base", [one.folder], tmp_path / "out", prove=True)
    assert report.written
    assert report.proved
    assert {target.how for target in report.targets} == {"LoRA"}
    again = type(model).from_pretrained(tmp_path / "out")
    merged = one.merged()
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.allclose(again(tokens).logits, merged(tokens).logits, atol=1e-5)


def test_the_norms_are_those_of_the_changes(tuned: Make, tmp_path: Path) -> None:
    for config in (LINEAR, {"target_modules": ["q_proj"], "use_dora": True, "modules_to_save": ["norm"]}):
        one = tuned("llama", **config)
        report = apply_files(one.base, [one.folder], None, dry_run=True)
        merged = one.merged().state_dict()
        assert report.targets
        for target in report.targets:
            difference = merged[target.path].double() - one.base[target.path].double()
            assert target.norm == pytest.approx(float(difference.norm()), rel=1e-4), target


def test_two_adapters_add_up_with_their_weights(tuned: Make, tmp_path: Path) -> None:
    one = tuned("llama", r=4, target_modules=["q_proj", "v_proj"])
    other = tmp_path / "other"
    one.peft.save_pretrained(other)
    both = lora.apply(one.base, [one.folder, other], [0.75, 0.25])
    assert_close(both, {name: value.torch() for name, value in lora.apply(one.base, one.folder).items()}, 1e-6)


def test_dora_cannot_be_taken_away_and_says_why(tuned: Make) -> None:
    one = tuned("llama", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(CombineError, match="DoRA scales the rows of the base by norms that are not kept"):
        lora.apply(one.base, one.folder, -1)


def test_an_adapter_of_another_model_is_refused(tuned: Make) -> None:
    one = tuned("llama", target_modules=["q_proj"])
    from .conftest import gpt2, llama

    with pytest.raises(CombineError, match=r"the base lacks 2 modules of its 2: model\.layers\.0\.self_attn\.q_proj"):
        lora.apply(gpt2().state_dict(), one.folder)
    with pytest.raises(CombineError, match=r"the base lacks 1 module of its 2: model\.layers\.1\.self_attn\.q_proj"):
        lora.apply(llama(layers=1).state_dict(), one.folder)


def test_a_base_with_another_prefix_is_found(tuned: Make) -> None:
    one = tuned("llama", target_modules=["q_proj"])
    plain = {name.removeprefix("model."): value for name, value in one.base.items()}
    nested = {"epoch": 3, "state": {f"module.{name}": value for name, value in one.base.items()}}
    expected = lora.apply(one.base, one.folder)["model.layers.1.self_attn.q_proj.weight"].tolist()
    assert lora.apply(plain, one.folder)["layers.1.self_attn.q_proj.weight"].tolist() == expected
    made = lora.apply(nested, one.folder)
    assert made["epoch"] == 3
    assert made["state"]["module.model.layers.1.self_attn.q_proj.weight"].tolist() == expected


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["embed_tokens"]}, True),
        ({"target_modules": ["lm_head"]}, True),
        ({"target_modules": ["q_proj"]}, True),
    ],
)
def test_a_folder_with_a_tied_head_is_what_peft_saves(
    tuned: Make, tmp_path: Path, config: dict[str, Any], tied: bool
) -> None:
    from .conftest import llama

    one = tuned("tied", **config)
    model = llama(tie=True)
    model.load_state_dict(one.base)
    model.save_pretrained(tmp_path / "base")
    report = apply_files(tmp_path / "base", [one.folder], tmp_path / "out", prove=True)
    assert report.proved
    again = type(model).from_pretrained(tmp_path / "out")
    assert again.config.tie_word_embeddings is tied
    merged = one.merged()
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.allclose(again(tokens).logits, merged(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("alike", [False, True])
def test_a_tied_head_and_embedding_that_both_change_give_what_the_trained_model_computes(
    tuned: Make, tmp_path: Path, alike: bool
) -> None:
    from .conftest import llama

    targets: dict[str, Any] = {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}
    one = tuned("tied", **(targets if alike else {"target_modules": ["embed_tokens", "lm_head"]}))
    model = llama(tie=True)
    model.load_state_dict(one.base)
    model.save_pretrained(tmp_path / "base")
    report = apply_files(tmp_path / "base", [one.folder], tmp_path / "out", prove=True)
    assert report.proved
    assert ("lm_head.weight" in load(tmp_path / "out")) is not alike
    again = type(model).from_pretrained(tmp_path / "out")
    assert again.config.tie_word_embeddings is alike
    tokens = torch.arange(6)[None]
    with torch.no_grad():  # peft's merge_and_unload adds both changes to the one tensor
        assert torch.allclose(again(tokens).logits, one.peft(tokens).logits, rtol=1e-5, atol=1e-4)


EXPERTS: dict[str, Any] = {
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
    "target_modules": ["q_proj"],
    "r": 2,
}


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_that_a_folder_has_one_by_one_get_their_parts_of_the_factors(
    tuned: Make, tmp_path: Path, kind: str
) -> None:
    one = tuned(kind, **EXPERTS)
    model = MODELS[kind]()
    model.load_state_dict(one.base)
    model.save_pretrained(tmp_path / "base")
    names = load(tmp_path / "base").keys()
    assert any(".experts.2." in name for name in names)  # the real library splits them
    report = apply_files(tmp_path / "base", [one.folder] * 2, tmp_path / "out", [0.75, 0.25], prove=True)
    assert report.proved
    assert {target.rank for target in report.targets} == {4}
    merged = one.merged()
    merged.save_pretrained(tmp_path / "merged")
    theirs = {name: value.torch() for name, value in load(tmp_path / "merged").items()}
    assert theirs.keys() == names
    assert_close(load(tmp_path / "out"), theirs, 1e-6)


def test_experts_that_factors_do_not_fit_are_named(tuned: Make) -> None:
    one = tuned("mixtral", **EXPERTS)
    base: dict[str, Any] = {
        f"model.layers.0.block_sparse_moe.experts.{number}.{leaf}.weight": torch.zeros(shape)
        for number in range(3)
        for leaf, shape in (("w1", (48, 32)), ("w2", (32, 48)), ("w3", (48, 32)))
    }
    base |= {"model.layers.0.self_attn.q_proj.weight": torch.zeros(32, 32)}
    base |= {"model.layers.0.block_sparse_moe.gate.weight": torch.zeros(3, 32)}
    assert len(lora.apply(base, one.folder)) == 11
    more = {"model.layers.0.block_sparse_moe.experts.3.w1.weight": torch.zeros(48, 32)}
    with pytest.raises(CombineError, match=r"rank 6 for 4 experts, and adapter_config\.json says 2"):
        lora.apply(base | more, one.folder)
    other = {name: value[:40] if ".w3." in name else value for name, value in base.items()}
    with pytest.raises(CombineError, match=r"no weights of the experts of the base stack up to \(96, 32\)"):
        lora.apply(other, one.folder)
    less = {name: value for name, value in base.items() if "experts.1.w3" not in name}
    with pytest.raises(CombineError, match=r"the base has no model\.layers\.0\.mlp\.experts\.1\.w3\.weight"):
        lora.apply(less, one.folder)


def test_a_folder_of_replicated_layers_says_how_many(tuned: Make, tmp_path: Path) -> None:
    from .conftest import llama

    one = tuned("llama", r=2, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]])
    model = llama()
    model.load_state_dict(one.base)
    model.save_pretrained(tmp_path / "base")
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        expected = one.peft(tokens).logits
    apply_files(tmp_path / "base", [one.folder], tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out")
    assert again.config.num_hidden_layers == 3
    with torch.no_grad():
        assert torch.allclose(again(tokens).logits, expected, atol=1e-5)


WITHOUT = {"dare_linear": "linear", "dare_ties": "ties", "dare_linear_svd": "svd", "dare_ties_svd": "ties_svd"}
MIXES: dict[str, dict[str, Any]] = {
    "cat": {},
    "linear": {},
    "ties": {"density": 0.5},
    "magnitude_prune": {"density": 0.3},
    "svd": {},
    "ties_svd": {"density": 0.5},
    "magnitude_prune_svd": {"density": 0.3},
}


def two_adapters(tuned: Make, tmp_path: Path) -> tuple[Any, list[Path]]:
    from peft import LoraConfig

    one = tuned("llama", r=4, target_modules=["q_proj", "v_proj"])
    torch.manual_seed(5)
    one.peft.add_adapter("other", LoraConfig(r=4, lora_alpha=3, target_modules=["q_proj"], init_lora_weights=False))
    one.peft.save_pretrained(tmp_path / "both")
    return one, [tmp_path / "both", tmp_path / "both" / "other"]


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.7, -0.3)])
@pytest.mark.parametrize("method", MIXES)
def test_several_adapters_are_combined_as_by_peft(
    tuned: Make, tmp_path: Path, method: str, weights: tuple[float, float]
) -> None:
    one, folders = two_adapters(tuned, tmp_path)
    ours = lora.apply(one.base, folders, weights, combination=method, **MIXES[method])
    one.peft.add_weighted_adapter(["default", "other"], [*weights], "mix", method, **MIXES[method])
    one.peft.set_adapter("mix")
    assert_close(ours, one.merged().state_dict(), 2e-6)


@pytest.mark.parametrize("rank", [2, 4, 7])
@pytest.mark.parametrize("method", ["svd", "ties_svd"])
def test_adapters_of_several_ranks_are_cut_down_to_one(tuned: Make, tmp_path: Path, method: str, rank: int) -> None:
    from peft import LoraConfig

    one = tuned("gpt2", r=4, target_modules=["c_attn", "wte"])
    more: dict[str, Any] = {"rank_pattern": {"c_proj": 6}, "fan_in_fan_out": True, "init_lora_weights": False}
    one.peft.add_adapter("other", LoraConfig(r=3, target_modules=["c_attn", "c_proj"], **more))
    one.peft.save_pretrained(tmp_path / "both")
    folders, weights = [tmp_path / "both", tmp_path / "both" / "other"], (0.7, -0.4)
    ours = lora.apply(one.base, folders, weights, combination=method, rank=rank, **MIXES[method])
    one.peft.add_weighted_adapter(["default", "other"], [*weights], "mix", method, svd_rank=rank, **MIXES[method])
    one.peft.set_adapter("mix")
    assert_close(ours, one.merged().state_dict(), 3e-6)
    by_default = apply_files(one.base, folders, None, weights, combination=method, dry_run=True, **MIXES[method])
    assert {target.rank for target in by_default.targets} == {6}
    both, whole = (lora.apply(one.base, folders, weights, **how) for how in ({"combination": "svd", "rank": 99}, {}))
    assert_close(both, {name: value.torch() for name, value in whole.items()}, 1e-6)


def test_large_changes_are_mixed_and_cut_down_as_whole_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from statedict.ops.combine import lora_mix
    from statedict.ops.diff import singular

    torch.manual_seed(3)
    base = {"m.weight": torch.zeros(120, 90)}
    adapters = [
        {"m.lora_down.weight": torch.randn(rank, 90), "m.lora_up.weight": torch.randn(120, rank)} for rank in (4, 6)
    ]
    for method in ("svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"):
        options = {"combination": method, "rank": 5} | ({} if method == "svd" else {"density": 0.5})
        with monkeypatch.context() as patched:
            whole = lora.apply(base, adapters, (0.5, 0.8), **options)["m.weight"].numpy()
            patched.setattr(singular, "_SVD", (0, 0))
            for most in (0, 1 << 30):
                patched.setattr(singular, "_MOST", most)
                patched.setattr(lora_mix, "_BLOCK", 1000)
                pieces = lora.apply(base, adapters, (0.5, 0.8), **options)["m.weight"].numpy()
                assert (numpy.linalg.svd(pieces, compute_uv=False) > 1e-5 * numpy.linalg.norm(pieces, 2)).sum() == 5
                assert numpy.linalg.norm(pieces - whole) <= 0.05 * numpy.linalg.norm(whole)


def test_a_mix_of_which_nothing_is_kept_changes_nothing() -> None:
    base = {"m.weight": torch.ones(530, 600)}
    adapter = {"m.lora_down.weight": torch.ones(2, 600), "m.lora_up.weight": torch.ones(530, 2)}
    options = {"combination": "magnitude_prune_svd", "density": 1e-9}
    assert lora.apply(base, [adapter, adapter], **options)["m.weight"].raw() == base["m.weight"].numpy().tobytes()


@pytest.mark.parametrize("shape", [(700, 900), (900, 700), (257, 129)], ids=str)
@pytest.mark.parametrize("rank", [1, 4, 40])
@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_a_block_of_a_tuned_tensor_is_that_of_the_whole(shape: tuple[int, int], rank: int, kind: str) -> None:
    rng = numpy.random.default_rng(rank)
    rows, columns = shape
    down, up, weight = (rng.standard_normal(size).astype("f4") for size in ((rank, columns), (rows, rank), shape))
    adapter = {"m.lora_A.weight": down, "m.lora_B.weight": up}
    if kind == "DoRA":
        adapter["m.lora_magnitude_vector"] = numpy.ones(rows, "f4")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["m"], "use_dora": kind == "DoRA"}
    found = lora.apply({"m.weight": weight}, adapter, config=config)["m.weight"]
    whole = found.numpy()
    for start, stop in zip(range(0, rows, 37), range(50, rows, 41), strict=False):
        assert numpy.array_equal(found[start:stop].numpy(), whole[start:stop])
    source = found.contiguous().storage.source
    starts = range(0, source.size, 100_000)
    assert b"".join(bytes(source.read(at, min(100_000, source.size - at))) for at in starts) == whole.tobytes()


def test_what_is_dropped_by_chance_is_half_of_all_and_the_rest_is_twice_as_large() -> None:
    base = {"m.weight": torch.zeros(60, 50)}
    adapter = {"m.lora_down.weight": torch.ones(1, 50), "m.lora_up.weight": torch.ones(60, 1)}
    options = {"combination": "dare_linear_svd", "density": 0.5, "rank": 50}
    made = [lora.apply(base, [adapter], seed=seed, **options)["m.weight"].numpy() for seed in range(20)]
    assert all((numpy.isclose(one, 0, atol=1e-4) | numpy.isclose(one, 2, atol=1e-4)).all() for one in made)
    assert numpy.mean(made) == pytest.approx(1, abs=0.03)
    assert abs(numpy.corrcoef(made[0].reshape(-1), made[1].reshape(-1))[0, 1]) < 0.1


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_random_combinations_follow_the_seed(tuned: Make, tmp_path: Path, method: str) -> None:
    one, folders = two_adapters(tuned, tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"

    def made(seed: int, density: float = 0.5) -> Any:
        tree = lora.apply(one.base, folders, (0.7, 0.3), combination=method, density=density, seed=seed)
        return tree[name].tolist()

    assert made(1) == made(1) != made(2)
    whole = lora.apply(one.base, folders, (0.7, 0.3), combination=WITHOUT[method], **(
        {"density": 1} if "ties" in method else {}
    ))  # fmt: skip
    assert made(1, 1.0) == whole[name].tolist()


def test_mistakes_in_a_combination_are_explained(tuned: Make, tmp_path: Path) -> None:
    one, folders = two_adapters(tuned, tmp_path)
    for options, message in (
        ({"combination": "sdv"}, "expected one of cat, linear, ties"),
        ({"combination": "ties", "density": 0.5, "rank": 2}, "combination ties: takes no rank; svd, ties_svd"),
        ({"combination": "svd", "rank": 0}, "rank: expected a whole number above 0, got 0"),
        ({"combination": "svd", "density": 0.5}, "combination svd: takes no density"),
        ({"combination": "ties"}, "combination ties: needs a density"),
        ({"density": 0.5}, "combination cat: takes no density"),
        ({"combination": "ties", "density": 2}, "density: expected a share above 0 and up to 1, got 2"),
    ):
        with pytest.raises(CombineError, match=message):
            lora.apply(one.base, folders, **options)


def test_a_base_of_two_models_is_named_with_both(tuned: Make) -> None:
    one = tuned("llama", r=2, target_modules=["q_proj"])
    with pytest.raises(CombineError, match=r"^base: 2 models could be meant: .*; name one as file::'model'"):
        lora.apply({"model": one.base, "ema": dict(one.base)}, one.folder)


def test_two_adapters_of_one_head_add_up_though_each_has_a_copy_of_its_weight(tuned: Make) -> None:
    one = tuned("llama", r=2, target_modules=["lm_head"])
    assert "base_model.model.lm_head.base_layer.weight" in load(one.folder)
    once, twice = (lora.apply(one.base, [one.folder] * count)["lm_head.weight"].torch() for count in (1, 2))
    before = one.base["lm_head.weight"]
    assert torch.allclose(twice - before, 2 * (once - before), atol=1e-5)
