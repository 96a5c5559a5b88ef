"""A merge as a configuration of mergekit describes it: which layers of which models go where, by which method.

    merge_method, base_model, dtype, out_dtype, parameters, tokenizer_source
    models: [{model, parameters}]                                   all layers of each, or
    slices: [{sources: [{model, layer_range, parameters}], base_model, parameters}], or
    modules: {NAME: {models or slices, parameters}}                 of a single module

Keys that are not known are an error. Source: mergekit 0.1.5, config.py and plan.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from statedict.dtypes import DType, dtype
from statedict.errors import CombineError
from statedict.ops.combine.methods import METHODS, Method
from statedict.ops.combine.reference import read_reference
from statedict.ops.combine.settings import Settings, read_settings
from statedict.ops.combine.tokens import Tokenizer, read_tokenizer

_TOP = (
    "merge_method", "base_model", "dtype", "out_dtype", "parameters", "models", "slices", "modules",
    "tokenizer_source", "tokenizer",
)  # fmt: skip
_REFUSED = {
    "chat_template": "tokenizers are copied, not changed; put chat_template.jinja into the folder afterwards",
}
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
class Recipe:
    """A merge: one slice if all layers are merged alike."""

    method: str
    base: str | None  # the model whose configuration and tokenizer the result has, if one is named
    kind: DType | None  # of the result
    slices: tuple[Slice, ...]
    tokenizer: Tokenizer | None
    notes: tuple[str, ...]

    def models(self) -> list[str]:
        """The models, each once, in order."""
        return [*dict.fromkeys(source.model for part in self.slices for source in part.sources)]

    def donor(self) -> str:
        """The model whose configuration the result has."""
        return self.base or self.slices[0].sources[0].model


def read_recipe(node: Any) -> Recipe:
    """Read a configuration, as YAML gives it.

    Raises:
        CombineError: a key or a value in it is not known, or the method does not take such models.
    """
    if not isinstance(node, Mapping):
        raise CombineError(f"expected the keys of a merge, such as merge_method, got {node!r:.60}")
    _check_keys(node, "the configuration", _TOP)
    name = node.get("merge_method")
    method = METHODS.get(name) if isinstance(name, str) else None
    if method is None:
        raise CombineError(f"merge_method: expected one of {', '.join(METHODS)}, got {name!r:.40}")
    notes: list[str] = []
    base = None if node.get("base_model") is None else read_reference(node["base_model"], "base_model", notes)
    whole, module = read_settings(node.get("parameters"), "parameters"), node
    outer: tuple[Settings, ...] = (whole,)
    if "modules" in node:
        module = _read_module(node["modules"])
        outer = (read_settings(module.get("parameters"), "modules: parameters"), whole)
    if ("models" in module) == ("slices" in module) or ("modules" in node and {"models", "slices"} & {*node}):
        raise CombineError("expected one of models, slices and modules")
    reader = _Reader(method, str(name), base, outer, notes)
    slices = tuple(reader.read_models(module["models"]) if "models" in module else reader.read_slices(module["slices"]))
    for settings in outer:
        reader.check_names(settings, "parameters")
    kind = node.get("out_dtype") or node.get("dtype")
    return Recipe(
        str(name), base, read_dtype(kind), slices, read_tokenizer(node, notes, _check_keys), tuple(dict.fromkeys(notes))
    )


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
            _check_keys(one, "models", ("model", "parameters"))
            sources.append(Source(self._read_model(one.get("model"), "models"), None, self._read_settings(one)))
        if self._base is not None and self._base not in [source.model for source in sources]:
            sources.append(Source(self._base, None, {}))
        yield self._make(sources, self._base, {}, "models")

    def read_slices(self, node: Any) -> Iterator[Slice]:
        """The slices, in order."""
        for number, one in enumerate(_list(node, "slices"), 1):
            where = f"slices: {number}"
            _check_keys(one, where, ("sources", "base_model", "parameters", "residual_weight"))
            if one.get("residual_weight") is not None:
                self._notes.append(f"{where}: residual_weight has no effect, as in mergekit")
            sources = []
            for source in _list(one.get("sources"), f"{where}: sources"):
                _check_keys(source, where, ("model", "layer_range", "parameters"))
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
            CombineError: no method has such a parameter.
        """
        for key in settings:
            known = key == _MASK or any(key in (*one.each, *one.whole) for one in METHODS.values())
            if not known:
                have = ", ".join([*self._method.each, *self._method.whole]) or "none"
                raise CombineError(f"{where}: {key!r} is not known; {self._name} has the parameters {have}")
            if key in self._method.whole and single:
                self._notes.append(f"{where}: {key} belongs to the merge, not to one model; it has no effect there")
            elif key not in (*self._method.each, *self._method.whole):
                self._notes.append(f"{where}: {key} has no effect on {self._name}")


def _read_module(node: Any) -> Mapping[str, Any]:
    if not isinstance(node, Mapping) or len(node) != 1:
        names = ", ".join(map(str, node)) if isinstance(node, Mapping) else repr(node)[:40]
        raise CombineError(f"modules: a single one is merged, got {names}; merge each by itself, as file::path")
    module = next(iter(node.values()))
    _check_keys(module, "modules", ("models", "slices", "parameters"))
    return module  # type: ignore[no-any-return]


def _check_keys(node: Any, where: str, known: Sequence[str]) -> None:
    if not isinstance(node, Mapping):
        raise CombineError(f"{where}: expected the keys {', '.join(known)}, got {node!r:.60}")
    for key in node:
        if key in _REFUSED:
            raise CombineError(f"{key}: {_REFUSED[key]}")
        if key not in known:
            raise CombineError(f"{where}: the key {key!r:.40} is not known; there are {', '.join(known)}")


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
