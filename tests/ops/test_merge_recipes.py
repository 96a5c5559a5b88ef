"""Merges that a YAML file describes: against what mergekit made of the same file, and its rules one by one."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import statedict
from statedict.api.recipes import merge_recipe_files
from statedict.errors import CombineError, PatternError
from statedict.ops.combine.build import build
from statedict.ops.combine.layers import Model, find_stacks
from statedict.ops.combine.methods import METHODS
from statedict.ops.combine.recipe import read_recipe
from statedict.ops.combine.settings import resolve

PEERS = Path(__file__).parents[1] / "peers"
RECORD = statedict.load(PEERS / "mergekit.safetensors")
RECIPES = [path for path in sorted((PEERS / "recipes").glob("*.yml")) if "tokens" not in path.name]


def recorded(name: str) -> statedict.StateDict:
    return statedict.StateDict(
        {key.partition("/")[2]: value for key, value in RECORD.items() if key.startswith(f"{name}/")}
    )


def made(text: str, models: dict[str, Any], **options: Any) -> tuple[statedict.StateDict, Any]:
    opened = {name: Model(statedict.StateDict(state), find_stacks(state)) for name, state in models.items()}
    tree, report, _ = build(read_recipe(yaml.safe_load(text)), opened, **options)
    return tree, report


def layered(value: float, count: int = 3) -> dict[str, Any]:
    names = ["embed.w", *(f"layers.{n}.{part}" for n in range(count) for part in ("up", "down")), "norm.w"]
    return {name: np.full(2, value + 10 * place, "f4") for place, name in enumerate(names)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_configuration_gives_what_mergekit_makes_of_it(path: Path) -> None:
    recipe = read_recipe(yaml.safe_load(path.read_text()))
    models = {name: Model(recorded(name), find_stacks(recorded(name))) for name in recipe.models()}
    found, wanted = build(recipe, models)[0], recorded(path.name)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), value.numpy(), rtol=0, atol=2.5e-7)


def test_the_nearest_setting_decides_and_the_first_filter_that_fits() -> None:
    scopes = [{"w": [{"filter": "mlp", "value": 1}, {"filter": "up", "value": 2}]}, {}, {"w": [0, 10]}]
    assert [resolve(scopes, "w", name, t) for name, t in (("mlp.up", 0), ("up", 0), ("norm", 0.5))] == [1, 2, 5]
    assert resolve(scopes, "v", "norm", 0) is None
    assert resolve([{"w": {"filter": "*", "value": "1e-5"}}], "w", "norm", 0) == 1e-5
    assert [resolve([{"w": [True, False, True]}], "w", "norm", t) for t in (0, 0.4, 0.5, 0.9, 1)] == [1, 1, 0, 0, 1]
    assert [resolve([{"w": [0, 1, 5]}], "w", "norm", t) for t in (0, 0.25, 0.75, 1)] == [0, 0.5, 3, 5]


def test_slices_are_stacked_and_layers_numbered_anew() -> None:
    text = """
        merge_method: passthrough
        slices:
        - sources: [{model: a, layer_range: [0, 2]}]
        - sources: [{model: b, layer_range: [1, 3]}]
    """
    a, b = layered(0), layered(1)
    tree, report = made(text, {"a": a, "b": b})
    wanted = {"embed.w": a["embed.w"], "norm.w": b["norm.w"]}
    wanted |= {f"layers.{n}.{part}": a[f"layers.{n}.{part}"] for n in (0, 1) for part in ("up", "down")}
    wanted |= {f"layers.{n}.{part}": b[f"layers.{n - 1}.{part}"] for n in (2, 3) for part in ("up", "down")}
    assert tree.numpy().keys() == wanted.keys()
    assert all(np.array_equal(tree[name].numpy(), value) for name, value in wanted.items())
    assert (report.tensors, report.sources) == (10, (("a", None), ("b", None)))


def test_a_head_that_is_tied_to_the_embedding_goes_with_it() -> None:
    text = """
        merge_method: passthrough
        slices:
        - sources: [{model: a, layer_range: [0, 1]}]
        - sources: [{model: b, layer_range: [1, 3]}]
    """
    models = {"a": layered(0), "b": layered(1)}
    for model in models.values():
        model["lm_head.w"] = model["embed.w"]
    tree, _ = made(text, models)
    assert tree["lm_head.w"].region == tree["embed.w"].region
    assert tree["lm_head.w"].tolist() == [0, 0]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_layers_that_are_cut_and_put_back_are_merged_as_the_whole(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 5))
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=3))})
    rng = np.random.default_rng(count)
    models = {
        name: {key: rng.standard_normal(5).astype("f4") for key in layered(0, count)} for name in ("base", "a", "b")
    }
    method, options = data.draw(st.sampled_from([
        ("linear", {"weight": [2, 1]}), ("nuslerp", {"weight": [1, 3]}), ("ties", {"weight": [1, 1], "density": 0.5}),
        ("dare_linear", {"weight": [1, 1], "density": 0.5}), ("slerp", {"t": 0.3}), ("model_stock", {}),
    ]))  # fmt: skip
    base = METHODS[method].base or None
    used = (["base"] if base else []) + (["a"] if method == "slerp" else ["a", "b"])
    weights = dict(zip(("a", "b"), options.get("weight", [1, 1]), strict=True))
    sources = [{"model": name, "parameters": {"weight": weights.get(name, 1)}} for name in used]
    slices = [{"sources": [one | {"layer_range": [*pair]} for one in sources]} for pair in pairwise(cuts)]
    config = {"merge_method": method, "base_model": "base" if base else None, "slices": slices}
    config |= {"parameters": {key: value for key, value in options.items() if key != "weight"}}
    found, _ = made(yaml.safe_dump(config), models, seed=3)
    states = [models[name] for name in used if name != "base"]
    wanted = statedict.merge(method, states, models["base"] if base else None, seed=3, **options)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name].numpy(), tensor.numpy())


def test_the_norm_is_merged_of_all_models_of_the_last_slice() -> None:
    text = """
        merge_method: linear
        parameters: {weight: 1}
        slices:
        - sources: [{model: a, layer_range: [0, 1]}]
        - sources: [{model: a, layer_range: [1, 3]}, {model: b, layer_range: [1, 3]}]
    """  # where mergekit 0.1.5 takes that of `a` alone: findings/mergekit_head_of_one_model.sh
    tree, _ = made(text, {"a": layered(0), "b": layered(2)})
    assert [tree[name].tolist()[0] for name in ("embed.w", "layers.0.up", "layers.1.up", "norm.w")] == [0, 10, 31, 71]


def test_a_base_that_is_in_no_slice_gives_the_configuration_only() -> None:
    text = "{merge_method: passthrough, base_model: b, slices: [{sources: [{model: a, layer_range: [1, 3]}]}]}"
    models = {"a": layered(0), "b": layered(1)}
    tree, report = made(text, models)
    assert report.sources == (("b", None), ("a", None))
    assert {name: tensor.tolist() for name, tensor in tree.items() if "layers.0" in name} == {
        f"layers.0.{part}": models["a"][f"layers.1.{part}"].tolist() for part in ("up", "down")
    }


def test_layers_are_found_by_the_first_number_in_names() -> None:
    names = ["a.layers.0.experts.0.w", "a.layers.0.experts.1.w", "a.layers.1.w", "mlp.0.w", "gap.0.w", "gap.2.w"]
    assert find_stacks(names) == {"a.layers": 2}
    assert find_stacks(names, {1}) == {"mlp": 1}
    assert find_stacks(names, {1, 2}) == {"a.layers": 2, "mlp": 1}
    assert find_stacks(names, {7}) == {"a.layers": 2}
    assert find_stacks(["w", "b"]) == {}


def test_integers_of_slices_follow_one_rule_and_a_pattern_that_matches_nothing_is_an_error() -> None:
    text = """
        merge_method: linear
        parameters: {weight: 1}
        slices:
        - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]
        - sources: [{model: a, layer_range: [1, 3]}, {model: b, layer_range: [1, 3]}]
    """
    models = {"a": layered(0) | {"norm.ids": np.array([1])}, "b": layered(2) | {"norm.ids": np.array([2])}}
    tree, report = made(text, models, integers={"*.ids": "last"})
    assert (tree["norm.ids"].tolist(), tree["norm.w"].tolist()) == ([2], [71, 71])
    assert dict(report.rules) == {"norm.ids": "last"}
    with pytest.raises(PatternError, match="no entry of 9 matches 'nope'"):
        made(text, models, integers={"nope": "last"})


def test_the_dtype_of_the_result_is_rounded_to_once() -> None:
    import ml_dtypes

    models = {name: {"w": np.array([value], ml_dtypes.bfloat16)} for name, value in (("a", 256), ("b", 1), ("c", 1))}
    text = "{merge_method: linear, models: [{model: a}, {model: b}, {model: c}], parameters: {weight: 1}, %s}"
    for setting, kind, value in (
        ("dtype: float32", "float32", 86),
        ("dtype: float16", "float16", 86),
        ("dtype: bfloat16, out_dtype: float32", "float32", 86),
        ("dtype: bfloat16", "bfloat16", 86),
    ):
        found = made(text % setting, models)[0]["w"]
        assert (str(found.dtype), found.tolist()) == (kind, [value])
    thirds = {name: {"w": np.array([value], "f2")} for name, value in (("a", 1), ("b", 0), ("c", 0))}
    found = made(text % "dtype: float32", thirds)[0]["w"]
    assert found.tolist() == [np.float32(1) / np.float32(3)]


@pytest.mark.parametrize(("value", "wanted"), [("1.0", 1), ("0", 2), ('"false"', 2), ("true", 1)])
def test_a_number_or_a_text_may_stand_for_true(value: str, wanted: float) -> None:
    text = (
        f"{{merge_method: linear, models: [{{model: a}}, {{model: b}}], parameters: {{weight: 1, normalize: {value}}}}}"
    )
    assert made(text, {name: {"w": np.ones(2, "f4")} for name in "ab"})[0]["w"].tolist() == [wanted] * 2


def test_what_has_no_effect_is_said() -> None:
    text = """
        merge_method: slerp
        base_model: {model: {path: a}, override_architecture: LlamaForCausalLM}
        name: mine
        normalize: true
        models:
        - {model: a, weight: 3}
        - {model: b, parameters: {t: 0.1, weight: 2}}
        parameters: {t: 0.5, int8_mask: true, density: 0.5, embed_slerp: true}
    """
    _, report = made(text, {"a": layered(0), "b": layered(1)})
    assert report.notes == (
        "the configuration: 'name' has no effect, as in mergekit",
        "the configuration: 'normalize', which belongs under parameters, has no effect, as in mergekit",
        "base_model: override_architecture has no effect: tensors are found by their names in the files",
        "models: 'weight', which belongs under parameters, has no effect, as in mergekit",
        "parameters of b: t belongs to the merge, not to one model; it has no effect there",
        "parameters of b: weight has no effect on slerp",
        "parameters: int8_mask has no effect on slerp",
        "parameters: density has no effect on slerp",
        "parameters: embed_slerp has no effect on slerp",
    )


def test_each_module_is_cut_and_merged_in_its_own_way() -> None:
    text = """
        merge_method: linear
        modules:
          text_decoder: {slices: [{sources: [{model: a, layer_range: [1, 3]}]}]}
          vision_tower: {models: [{model: a}, {model: b}], parameters: {weight: [0, 4]}}
        parameters: {weight: 1, normalize: false}
    """
    models = {}
    for name, value in (("a", 0), ("b", 1)):
        text_part = {f"language_model.{key}": tensor for key, tensor in layered(value).items()}
        vision = {f"model.visual.{key}": tensor for key, tensor in layered(value, 2).items()}
        models[name] = {
            **text_part,
            **vision,
            "model.visual.merger.0.w": np.ones(2, "f4"),
            "lm_head.w": np.ones(2, "f4"),
        }
    tree, report = made(text, models)
    assert {name: tensor.tolist()[0] for name, tensor in tree.items() if "up" in name or "layers" not in name} == {
        "language_model.embed.w": 0, "language_model.layers.0.up": 30, "language_model.layers.1.up": 50,
        "language_model.norm.w": 70, "lm_head.w": 1, "model.visual.embed.w": 0, "model.visual.layers.0.up": 0,
        "model.visual.layers.1.up": 4 * 61, "model.visual.norm.w": 0,
    }  # fmt: skip
    assert report.left_out == (("model.visual.merger.0.w", "in none of the modules"),)


def test_the_configuration_counts_the_layers_of_each_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "PQ":
        Path(name).mkdir()
        statedict.save(recorded(name), f"{name}/model.safetensors")
        Path(name, "config.json").write_text('{"num_layers": 3, "num_decoder_layers": 2, "vocab_size": 12}')
    text = (PEERS / "recipes" / "t5.yml").read_text()
    for layers, counts in (("[1, 3]", (4, 2)), ("[0, 1]", (3, 2))):
        Path("merge.yml").write_text(text.replace("[1, 3]", layers))
        merge_recipe_files("merge.yml", "out/")
        assert json.loads(Path("out", "config.json").read_text()) == {
            "num_layers": counts[0], "num_decoder_layers": counts[1], "vocab_size": 12,
        }  # fmt: skip


PUBLISHED = {  # configurations of the shapes that model cards have
    "ties with a gradient and filters": """
        models:
        - model: org/one
          parameters: {density: [1, 0.7, 0.1], weight: 1.0}
        - model: org/two-7B.v0.1
          parameters:
            density: 0.33
            weight: [{filter: up, value: 0.5}, {value: 0}]
        merge_method: ties
        base_model: org/base
        parameters: {normalize: true, int8_mask: true}
        dtype: float16
        align_weights: zipit
    """,
    "dare_ties with the base among the models": """
        models:
        - model: org/base
        - {model: org/one, parameters: {density: 0.53, weight: 0.4}}
        - {model: org/two-7B.v0.1, parameters: {density: 0.53, weight: 0.3}}
        merge_method: dare_ties
        base_model: org/base
        parameters:
        dtype: bfloat16
    """,
    "slerp of slices": """
        slices:
        - sources:
          - {model: org/one, layer_range: [0, 3]}
          - {model: org/two-7B.v0.1, layer_range: [0, 3]}
        merge_method: slerp
        base_model: org/one
        parameters:
          t:
          - {filter: up, value: [0, 0.5, 0.3, 0.7, 1]}
          - {filter: down, value: [1, 0.5, 0.7, 0.3, 0]}
          - value: 0.5
        dtype: bfloat16
        name: mine
    """,
    "layers stacked": """
        slices:
        - sources: [{model: org/one, layer_range: [0, 2]}]
        - sources: [{model: org/two-7B.v0.1, layer_range: [1, 3]}]
        - sources: [{model: org/one, layer_range: [2, 3]}]
        merge_method: passthrough
        dtype: float16
    """,
    "a part of a model whose name has no owner": """
        slices:
        - sources:
          - model: gpt2
            layer_range: [0, 2]
        merge_method: passthrough
        dtype: float16
    """,
    "model_stock": """
        models: [{model: org/one}, {model: org/two-7B.v0.1}]
        merge_method: model_stock
        base_model: org/base
        parameters: {filter_wise: false, embed_slerp: true}
        dtype: bfloat16
        out_dtype: bfloat16
    """,
    "arcee_fusion": """
        models: [{model: org/base}, {model: org/one}]
        merge_method: arcee_fusion
        base_model: org/base
        dtype: bfloat16
    """,
    "nuslerp with parameters of another version": """
        models: [{model: org/one, parameters: {weight: 1}}, {model: org/two-7B.v0.1, parameters: {weight: 2}}]
        merge_method: nuslerp
        parameters: {geodesic: true, lambda: 0.5, nuslerp_flatten: true}
    """,
    "models with keys": """
        models: [{model: {model: {path: org/one}, override_architecture: BertModel}, parameters: {weight: 0.6}}]
        merge_method: linear
        base_model: null
        tokenizer_source: null
        parameters: {normalize: false, weight: 0.5}
    """,
    "a module": """
        merge_method: della_linear
        base_model: org/base
        modules:
          default:
            models: [{model: org/one, parameters: {density: 0.5, epsilon: 0.1, weight: 0.5}}]
            parameters: {lambda: 1.1}
    """,
}


@pytest.mark.parametrize("text", PUBLISHED.values(), ids=PUBLISHED)
def test_configurations_of_the_shapes_that_are_published_are_merged(text: str) -> None:
    models = {name: layered(value) for value, name in enumerate(("org/base", "org/one", "org/two-7B.v0.1", "gpt2"))}
    tree, _ = made(text, models)
    assert all(np.isfinite(tensor.numpy().astype("f4")).all() for tensor in tree.values())


SLICES = "merge_method: linear\nparameters: {weight: 1}\nslices:\n- sources: "


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[]", "expected the keys of a merge, such as merge_method"),
        ("{merge_method: lineal, models: []}", "merge_method: expected one of linear, slerp"),
        ("{merge_method: linear, modles: []}", "the key 'modles' is not known; there are merge_method, base_model"),
        ("{merge_method: linear}", "expected one of models, slices and modules"),
        ("{merge_method: linear, models: [{model: a}], slices: []}", "expected one of models, slices and modules"),
        ("{merge_method: linear, models: []}", "models: expected a list of them"),
        ("{merge_method: linear, models: [a]}", "models: expected the keys model, parameters, got 'a'"),
        ("{merge_method: linear, models: [{model: [a]}]}", r"expected a path or OWNER/NAME of the hub, got \['a'\]"),
        ("{merge_method: linear, models: [{model: a}]}", "needs the parameter 'weight' of a for embed.w"),
        ("{merge_method: linear, models: [{model: a}, {model: a}]}", "names 'a' twice"),
        ("{merge_method: ties, models: [{model: a}]}", "models: ties needs base_model"),
        ("{merge_method: slerp, base_model: a, models: [{model: b}, {model: c}]}", "takes 1 models beside the base"),
        ("{merge_method: linear, models: [{model: a}], parameters: {wieght: 1}}",
         "parameters: 'wieght' is not known; linear has the parameters weight, normalize"),
        ("{merge_method: linear, models: [{model: a}], parameters: {weight: {filter: mlp}}}",
         "weight: expected {filter: TEXT, value: VALUE}"),
        ("{merge_method: linear, models: [{model: a}], parameters: {weight: [1, [2]]}}", "expected {filter: TEXT"),
        ("{merge_method: linear, models: [{model: a}], parameters: {weight: [{filter: 1, value: 2}]}}",
         "expected a text as filter, got 1"),
        ("{merge_method: linear, models: [{model: a}], parameters: [1]}", "expected names and values of parameters"),
        ("{merge_method: linear, models: [{model: a}], parameters: {weight: heavy}}",
         "weight: expected a number, or one for each of 1 models, got "),
        ("{merge_method: linear, models: [{model: a}], dtype: int8}", "dtype: expected one of floating point"),
        ("{merge_method: linear, models: [{model: a}], chat_template: [x]}", "expected auto, a name or a temp"),
        ("{merge_method: linear, models: [{model: a, lora: b}]}", "lora stands in the model: {model: MODEL, lora: "),
        ("{merge_method: linear, modules: {encoder: {models: [{model: a}]}, decoder: {models: [{model: a}]}}}",
         "modules: encoder: no tensor is of it by its name; there are embed.w, layers.0.up, layers.0.down and"),
        ("{merge_method: linear, models: [{model: a}], tokenizer: {}, tokenizer_source: base}", "got both"),
        ("{merge_method: linear, modules: {x: {models: [{model: a}]}, y: {}}}", "modules: y: expected models or"),
        (SLICES + "[{model: a}]", r"layer_range: expected \[FIRST, END\], END not included, got None"),
        (SLICES + "[{model: a, layer_range: [2, 1]}]", r"got \[2, 1\]"),
        (SLICES + "[{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 2]}]", r"got \[1, 2\]"),
        (SLICES + "[{model: a, layer_range: [2, 4]}]", r"a: layer_range \[2, 4\]: layers has 3 layers"),
        (SLICES + "[{model: flat, layer_range: [0, 1]}]", "flat: slices need one stack of layers, and it has none"),
        (SLICES + "[{model: a, layer_range: [0, 1]}, {model: h, layer_range: [0, 1]}]",
         "layers of one name, got h, layers"),
        (SLICES + "[{model: a, layer_range: [0, 1]}]\n- sources: [{model: h, layer_range: [0, 1]}]",
         "layers of one name, got h, layers"),
        ("merge_method: ties\nbase_model: b\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]",
         "slices: 1: ties needs its base_model 'b' among its sources"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_an_error(text: str, match: str) -> None:
    other = {f"h{name.removeprefix('layers')}": value for name, value in layered(1).items() if "layers" in name}
    models = {"a": layered(0), "b": layered(1), "c": layered(2), "flat": {"w": np.ones(2, "f4")}, "h": other}
    with pytest.raises(CombineError, match=match):
        made(text, models)
