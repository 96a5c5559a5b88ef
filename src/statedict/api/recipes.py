"""Merges that a file describes, as mergekit's do: the file read, its models opened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from statedict.api.combine import Made, _check_seed, _rules, _write
from statedict.api.locating import Place, locate
from statedict.api.names import Path
from statedict.api.tokenizers import make_tokenizer
from statedict.collector import Paused
from statedict.errors import CombineError, MissingExtraError
from statedict.formats import places
from statedict.io.urls import folder_of, redact, to_name
from statedict.ops.combine.align import only_model
from statedict.ops.combine.build import build
from statedict.ops.combine.layers import Model, find_stacks, select_module
from statedict.ops.combine.model_config import count_layers, resize, restack, set_ties
from statedict.ops.combine.recipe import Recipe, read_recipe
from statedict.ops.combine.reference import split_reference
from statedict.ops.combine.vocabulary import add_heads, check_policy, is_head_tied
from statedict.reports.combine import CombineReport
from statedict.tensor.lazy import is_array
from statedict.tree.layout import Layout
from statedict.tree.roles import is_extra
from statedict.tree.state_dict import StateDict, like

_LARGEST = 1 << 20  # bytes of a configuration


class Opened(NamedTuple):
    """A recipe, its text, and where its models lie, by name."""

    recipe: Recipe
    text: str
    places: Mapping[str, Place]

    def names(self) -> list[str]:
        """The models, the one whose configuration the result has first."""
        donor = self.recipe.donor()
        return [*dict.fromkeys([donor, *self.recipe.models()])]

    def adapters(self) -> dict[str, str]:
        """The adapters that models are named with, by name, and where they lie."""
        places = ((split_reference(name)[1], self.places[name].adapter) for name in self.names())
        return {name: adapter for name, adapter in places if adapter}

    def sources(self) -> list[str]:
        """Where the models lie, and after them the adapters."""
        return [*(self.places[name].path for name in self.names()), *self.adapters().values()]


def open_recipe(path: Path, download: bool = False) -> Opened:
    """Read a merge from a YAML file, and find its models.

    Args:
        path: of the file.
        download: whether models named `ORG/NAME` that are not on this disk are read from the hub.

    Raises:
        CombineError: the file is not YAML of a merge, or names a model that is not there.
        MissingExtraError: PyYAML is not installed.
        FileError: the file cannot be read.
    """
    name = to_name(path)
    source = places.open_file(name)
    where = redact(name)
    if source.size > _LARGEST:
        raise CombineError(f"{where}: has {source.size:,} bytes; the configuration of a merge has at most {_LARGEST:,}")
    try:
        text = bytes(source.read(0, source.size)).decode()
        recipe = read_recipe(_parse(text))
    except (ValueError, RecursionError) as error:
        raise CombineError(f"{where}: {' '.join(str(error).split())}") from error
    wanted = [*recipe.models()]
    tokenizer = recipe.tokenizer.source if recipe.tokenizer else None
    wanted += [one for one in (recipe.base, tokenizer) if one and one not in (*wanted, "base", "union")]
    return Opened(recipe, text, {model: locate(model, folder_of(name), where, download) for model in wanted})


def _parse(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("a merge from YAML needs PyYAML; pip install 'statedict[merge]'") from error
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if _count(root, {}) > _LARGEST:
            raise CombineError(f"has more than {_LARGEST:,} entries when its aliases are followed")
        _check_once(root)
        return yaml.safe_load(text)
    except yaml.composer.ComposerError as error:
        if "another document" in str(error):
            raise CombineError("has several documents; put each merge into a file of its own") from error
        raise CombineError(f"is not YAML: {error}") from error
    except yaml.YAMLError as error:
        raise CombineError(f"is not YAML: {error}") from error


def _count(node: Any, known: dict[int, float]) -> float:
    """The nodes of a document whose aliases are followed; infinitely many if one contains itself."""
    value = getattr(node, "value", None)
    if not isinstance(value, list):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = [one for entry in value for one in (entry if isinstance(entry, tuple) else [entry])]
        known[id(node)] = 1 + sum(_count(one, known) for one in inner)
    return known[id(node)]


def _check_once(root: Any) -> None:
    """Check that no mapping has a key twice, of which PyYAML drops the first in silence.

    Raises:
        CombineError: one has.
    """
    seen: set[int] = set()  # an anchor stands in several places
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(getattr(node, "value", None), list):
            continue
        seen.add(id(node))
        pairs = [one for one in node.value if isinstance(one, tuple)]
        nodes += [value for _, value in pairs] or node.value
        keys = [key.value for key, _ in pairs if isinstance(key.value, str)]
        for place, (key, _) in enumerate(pairs):
            if isinstance(key.value, str) and key.value in keys[:place]:
                raise CombineError(f"line {key.start_mark.line + 1}: has the key {key.value!r:.40} twice")


def merge_recipe_files(
    path: Path,
    dst: Path | None,
    *,
    integers: Mapping[str, str] | None = None,
    seed: int = 0,
    vocabulary: str | None = None,
    download: bool = False,
    **how: Any,
) -> CombineReport:
    """Write the merge that a YAML file of mergekit describes, as `save` does; see `combine._write`.

    `download` reads models named `ORG/NAME` from the hub if they are not on this disk.
    """
    _check_seed(seed)
    opened = open_recipe(path, download)

    def make() -> Made:
        with Paused():
            tree, report, changes, tokenizer = merge_recipe(opened, _rules(integers), seed, vocabulary)
            return Made(tree, report, changes, opened.text, tokenizer)

    return _write(make, dst, opened.sources(), **how)


def merge_recipe(
    opened: Opened, integers: Mapping[str, str], seed: int, vocabulary: str | None
) -> tuple[StateDict, CombineReport, dict[str, Any], tuple[str, dict[str, bytes]] | None]:
    """The merged state, how it was made, what changes in the configuration of its model, and the tokenizer.

    The last is the model that it is of, and its files; None if that is the model whose configuration the result has.

    Raises:
        StateDictError: what `load` raises, or models do not fit.
    """
    recipe = opened.recipe
    check_policy(vocabulary)
    configs = {name: place.read_config() for name, place in opened.places.items()}
    trees = [(name, _open_model(name, opened.places[name])) for name in opened.names()]
    named, notes = add_heads(trees, [configs[name] for name in opened.names()])
    models = {name: Model(tree, find_stacks(tree, count_layers(configs[name]))) for name, tree in named}
    tensors = {name: model.tensors for name, model in models.items()}
    tokens, files, more = make_tokenizer(recipe, opened.places, tensors)
    tree, report, rows = build(recipe, models, seed, integers, vocabulary, tokens)
    config = configs[recipe.donor()]
    changes = set_ties(config, is_head_tied(tree), bool(notes)) | _count_layers(recipe, configs, models, notes)
    if rows:
        changes |= resize(config, rows[recipe.donor()], rows[""]) if recipe.donor() in rows else {}
        sizes = ", ".join(f"{size:,}" for name, size in rows.items() if name)
        notes.append(f"the vocabulary has {rows['']:,} rows, of {sizes}")
    options = {"seed": seed, "vocabulary": vocabulary, "integers": dict(integers)}
    given = {key: value for key, value in options.items() if value is not None and value != {}}
    sources = (*report.sources, *((name, None) for name in opened.adapters()))
    report = replace(report, sources=sources, notes=(*report.notes, *notes, *more), parameters=given)
    return tree, report, changes, files


def _count_layers(
    recipe: Recipe, configs: Mapping[str, Any], models: Mapping[str, Model], notes: list[str]
) -> dict[str, Any]:
    """What changes in the configuration for other layers."""
    changes: dict[str, Any] = {}
    config, model = configs[recipe.donor()], models[recipe.donor()]
    for module in recipe.modules:
        firsts = [part.sources[0] for part in module.slices if part.sources[0].layers]
        if config and firsts:
            taken = [(configs[source.model], *(source.layers or (0, 0))) for source in firsts]
            stacks = select_module(recipe, module, model).stacks
            before, after = next(iter(stacks.values()), 0), sum(end - begin for _, begin, end in taken)
            counted = restack(config, before, taken, module.name)
            if before != after and after not in counted.values():
                notes.append(f"config.json names no number of layers that is {before:,}; it has to say {after:,}")
            changes |= counted
    return changes


def _open_model(name: str, place: Place) -> StateDict:
    """The tensors of a model by name."""
    _, model = only_model(redact(name), place.open())
    leaves = Layout(model).leaves
    return like(model, StateDict({path: leaf for path, leaf in leaves.items() if is_array(leaf) or is_extra(path)}))
