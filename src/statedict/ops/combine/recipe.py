"""A merge as a configuration of mergekit describes it: which layers of which models go where, by which method.

    merge_method, base_model, dtype, out_dtype, parameters, tokenizer or tokenizer_source, chat_template
    models: [{model, parameters}]                                   all layers of each, or
    slices: [{sources: [{model, layer_range, parameters}], base_model, parameters}], or
    modules: {NAME: {models or slices, parameters}}                 such as encoder and decoder

Source: mergekit 0.1.5, config.py and plan.py, which ignore other keys in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

from statedict.dtypes import DType, dtype
from statedict.errors import CombineError
from statedict.ops.combine.methods import METHODS, Method
from statedict.ops.combine.reference import read_reference
from statedict.ops.combine.settings import Settings, read_settings
from statedict.ops.combine.tokens import Tokenizer, read_tokenizer

_TOP = (
    "merge_method", "base_model", "dtype", "out_dtype", "parameters", "models", "slices", "modules",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip
_MISPLACED = {"lora": "stands in the model: {model: MODEL, lora: ADAPTER}"}
_NEAR = 0.8  # how much a key looks like one that is known; else it is for somebody else
_MASK = "int8_mask"  # of mergekit's memory; the result is the same


@dataclass(frozen=True, slots=True)
class Source:
    """A model in a slice: its name as given, the layers that are taken (None: all), and its parameters."""

    model: str
    layers: tuple[int, int] | None
    parameters: Settings


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers that are merged together; the base is a place in `sources`, or None."""

    sources: tuple[Source, ...]
    base: int | None
    scopes: tuple[Settings, ...]  # parameters of the slice, the module and the whole


@dataclass(frozen=True, slots=True)
class Module:
    """A part of a model, such as its encoder: one slice if all its layers are merged alike."""

    name: str  # "" for the whole model
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A merge: one module if all modules of the models are merged alike."""

    method: str
    base: str | None  # the model whose configuration and tokenizer the result has, if one is named
    kind: DType | None  # of the result
    modules: tuple[Module, ...]
    tokenizer: Tokenizer | None
    template: str | None  # of chats: "auto", a name, or itself
    notes: tuple[str, ...]

    def models(self) -> list[str]:
        """The models, each once, in order."""
        slices = (one for module in self.modules for one in module.slices)
        return [*dict.fromkeys(source.model for one in slices for source in one.sources)]

    def donor(self) -> str:
        """The model whose configuration the result has."""
        return self.base or self.modules[0].slices[0].sources[0].model


def read_recipe(node: Any) -> Recipe:
    """Read a configuration, as YAML gives it.

    Raises:
        CombineError: a key or a value in it is not known, or the method does not take such models.
    """
    if not isinstance(node, Mapping):
        raise CombineError(f"expected the keys of a merge, such as merge_method, got {node!r:.60}")
    notes: list[str] = []
    check = partial(check_keys, notes)
    check(node, "the configuration", _TOP)
    name = node.get("merge_method")
    method = METHODS.get(name) if isinstance(name, str) else None
    if method is None:
        raise CombineError(f"merge_method: expected one of {', '.join(METHODS)}, got {name!r:.40}")
    base = None if node.get("base_model") is None else read_reference(node["base_model"], "base_model", notes)
    if sum(node.get(key) is not None for key in ("models", "slices", "modules")) != 1:
        raise CombineError("expected one of models, slices and modules")
    whole = read_settings(node.get("parameters"), "parameters")
    modules = []
    for title, module in _read_modules(node).items():
        outer = (whole,) if module is node else (read_settings(module.get("parameters"), f"modules: {title}"), whole)
        reader = _Reader(method, str(name), base, outer, notes)
        found = reader.read_models if module.get("models") is not None else reader.read_slices
        modules.append(Module(title, tuple(found(module.get("models") or module.get("slices")))))
        for settings in outer:
            reader.check_names(settings, "parameters")
    kind, template = node.get("out_dtype") or node.get("dtype"), node.get("chat_template") or None
    if not isinstance(template, str | None):
        raise CombineError(f"chat_template: expected auto, a name or a template, got {template!r:.40}")
    tokenizer = read_tokenizer(node, notes, check)
    return Recipe(str(name), base, read_dtype(kind), tuple(modules), tokenizer, template, tuple(dict.fromkeys(notes)))


class _Reader:
    """Reads models and slices for a method."""

    def __init__(
        self, method: Method, name: str, base: str | None, outer: tuple[Settings, ...], notes: list[str]
    ) -> None:
        self._method, self._name, self._base, self._outer, self._notes = method, name, base, outer, notes

    def read_models(self, node: Any) -> Iterator[Slice]:
        """One slice of all layers of the models, and of the base if it is not among them."""
        sources = []
        for one in _list(node, "models"):
            check_keys(self._notes, one, "models", ("model", "parameters"))
            sources.append(Source(self._read_model(one.get("model"), "models"), None, self._read_settings(one)))
        if self._base is not None and self._base not in [source.model for source in sources]:
            sources.append(Source(self._base, None, {}))
        yield self._make(sources, self._base, {}, "models")

    def read_slices(self, node: Any) -> Iterator[Slice]:
        """The slices, in order."""
        for number, one in enumerate(_list(node, "slices"), 1):
            where = f"slices: {number}"
            check_keys(self._notes, one, where, ("sources", "base_model", "parameters", "residual_weight"))
            if one.get("residual_weight") is not None:
                self._notes.append(f"{where}: residual_weight has no effect, as in mergekit")
            sources = []
            for source in _list(one.get("sources"), f"{where}: sources"):
                check_keys(self._notes, source, where, ("model", "layer_range", "parameters"))
                layers = _read_range(source.get("layer_range"), where)
                sources.append(
                    Source(self._read_model(source.get("model"), where), layers, self._read_settings(source))
                )
            lengths = {source.layers[1] - source.layers[0] for source in sources if source.layers}
            if len(lengths) > 1:
                raise CombineError(f"{where}: expected as many layers of each source, got {sorted(lengths)}")
            base = one.get("base_model")
            parameters = read_settings(one.get("parameters"), where)
            self.check_names(parameters, where)
            yield self._make(sources, self._base if base is None else self._read_model(base, where), parameters, where)

    def _make(self, sources: Sequence[Source], base: str | None, parameters: Settings, where: str) -> Slice:
        names = [source.model for source in sources]
        for name in names:
            if names.count(name) > 1:
                raise CombineError(f"{where}: names {name!r} twice; each model is one source")
        at = names.index(base) if base in names and self._method.base is not False else None
        if at is None and self._method.base:
            wanted = "base_model" if base is None else f"its base_model {base!r} among its sources"
            raise CombineError(f"{where}: {self._name} needs {wanted}")
        count = len(names) - (at is not None)
        least, most = self._method.models
        if count < least or (most and count > most):
            beside = " beside the base" if at is not None else ""
            wanted = f"{least:,}" if least == most else f"{least:,} or more"
            raise CombineError(
                f"{where}: {self._name} takes {wanted} models{beside}, got {count:,}: {', '.join(names)}"
            )
        return Slice(tuple(sources), at, (parameters, *self._outer))

    def _read_model(self, node: Any, where: str) -> str:
        return read_reference(node, where, self._notes)

    def _read_settings(self, node: Mapping[str, Any]) -> Settings:
        settings = read_settings(node.get("parameters"), f"parameters of {node.get('model')}")
        self.check_names(settings, f"parameters of {node.get('model')}", True)
        return settings

    def check_names(self, settings: Settings, where: str, single: bool = False) -> None:
        """Note the parameters that the method does not have there.

        Raises:
            CombineError: one looks like a parameter that the method has.
        """
        have = [*self._method.each, *self._method.whole]
        for key in settings:
            if not _is_parameter(key) and get_close_matches(key, have, cutoff=_NEAR):
                raise CombineError(f"{where}: {key!r} is not known; {self._name} has the parameters {', '.join(have)}")
            if key in self._method.whole and single:
                self._notes.append(f"{where}: {key} belongs to the merge, not to one model; it has no effect there")
            elif key not in have:
                self._notes.append(f"{where}: {key} has no effect on {self._name}")


def _read_modules(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The modules by name; the configuration itself under "" if it has none."""
    if node.get("modules") is None:
        return {"": node}
    modules = node["modules"]
    if not isinstance(modules, Mapping) or not modules:
        raise CombineError(f"modules: expected them by name, got {modules!r:.60}")
    for name, module in modules.items():
        check_keys([], module, f"modules: {name}", ("models", "slices", "parameters"))
        if (module.get("models") is None) == (module.get("slices") is None):
            raise CombineError(f"modules: {name}: expected models or slices")
    return {str(name): module for name, module in modules.items()}


def check_keys(notes: list[str], node: Any, where: str, known: Sequence[str]) -> None:
    """Note the keys of a mapping that have no effect.

    Raises:
        CombineError: it is not a mapping, or a key looks like one that is known.
    """
    if not isinstance(node, Mapping):
        raise CombineError(f"{where}: expected the keys {', '.join(known)}, got {node!r:.60}")
    for key in node:
        if key in _MISPLACED:
            raise CombineError(f"{where}: {key} {_MISPLACED[key]}")
        if key not in known:
            if get_close_matches(str(key), known, cutoff=_NEAR):
                raise CombineError(f"{where}: the key {key!r:.40} is not known; there are {', '.join(known)}")
            why = ", which belongs under parameters," if _is_parameter(key) else ""
            notes.append(f"{where}: {str(key)!r:.40}{why} has no effect, as in mergekit")


def _is_parameter(key: Any) -> bool:
    return key == _MASK or any(key in (*method.each, *method.whole) for method in METHODS.values())


def _list(node: Any, where: str) -> list[Any]:
    if not isinstance(node, list) or not node:
        raise CombineError(f"{where}: expected a list of them, got {node!r:.60}")
    return node


def _read_range(node: Any, where: str) -> tuple[int, int]:
    fine = isinstance(node, list) and len(node) == 2 and all(type(one) is int for one in node)
    if not fine or not 0 <= node[0] < node[1]:
        raise CombineError(f"{where}: layer_range: expected [FIRST, END], END not included, got {node!r:.40}")
    return node[0], node[1]


def read_dtype(node: Any) -> DType | None:
    """The dtype that a result is asked for in, if any.

    Raises:
        CombineError: it is not a dtype of floating point with 16 bits or more.
    """
    if node is None:
        return None
    try:
        kind = dtype(node)
    except ValueError as error:
        raise CombineError(f"dtype: {error}") from None
    if kind.kind != "float" or kind.bits < 16:
        raise CombineError(f"dtype: expected one of floating point, such as bfloat16, got {kind}")
    return kind
