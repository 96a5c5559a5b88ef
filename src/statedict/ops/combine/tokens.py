"""The rows of embeddings and heads by token, where models have different tokenizers.

    source: base, union, or a model     whose vocabulary the result has; union adds what the others have
    tokens: {TOKEN: {source: MODEL, or {kind: model_token, model, token or token_id}, or {kind: zero}; force: BOOL}}
    pad_to_multiple_of: N               rows below the vocabulary, each the mean of the rows above

A model that lacks a token gets its row from the source that is named for it, else from the only model that has it, else
from the base if that has it, else the mean of the rows that there are; zeros if no model has it. `force` replaces the
rows of models that have the token, too. Source: mergekit 0.1.5, tokenizer/config.py and embed.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from statedict.errors import CombineError
from statedict.ops.alter.tensors import round_to
from statedict.ops.combine.elements import Once, has_mean, read_whole_rows, to_dtype, weighted_mean, widest
from statedict.ops.combine.reference import read_reference
from statedict.ops.combine.vocabulary import is_of_vocabulary, measure_vocabulary
from statedict.tensor.boxes import BoxSource, raw_dtype
from statedict.tensor.gathered import gather
from statedict.tensor.lazy import LazyTensor, Storage, as_lazy
from statedict.tree.state_dict import StateDict, like
from statedict.values import abbreviate

Table = Mapping[str, int]
"""Token → row."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Where the row of a token comes from.

    Attributes:
        model: a model; "" for zeros, None if nothing is said.
        token: the token, or its row, in that model; None if the same.
        force: whether models that have the token get that row, too.
    """

    model: str | None
    token: str | int | None
    force: bool


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What a configuration says of the tokenizer: `source` is "base", "union" or a model."""

    source: str
    rules: Mapping[str, Rule]
    multiple: int


def read_tokenizer(node: Mapping[str, Any], notes: list[str], check: Callable[..., None]) -> Tokenizer | None:
    """What a configuration says of the tokenizer, if anything.

    Args:
        node: the configuration.
        notes: gets what has no effect.
        check: checks the keys of a mapping.

    Raises:
        CombineError: it is not understood.
    """
    given, source = node.get("tokenizer"), node.get("tokenizer_source")
    if given is not None and source is not None:
        raise CombineError("expected tokenizer or tokenizer_source, got both")
    if given is None:
        return None if source is None else Tokenizer(read_reference(source, "tokenizer_source", notes), {}, 1)
    check(given, "tokenizer", ("source", "tokens", "pad_to_multiple_of"))
    multiple = given.get("pad_to_multiple_of") or 1
    if type(multiple) is not int or multiple < 1:
        raise CombineError(f"tokenizer: pad_to_multiple_of: expected a whole number above 0, got {multiple!r:.40}")
    tokens = given.get("tokens") or {}
    if not isinstance(tokens, Mapping) or not all(type(token) is str for token in tokens):
        raise CombineError(f"tokenizer: tokens: expected tokens and where they come from, got {tokens!r:.60}")
    rules = {}
    for token, one in tokens.items():
        where = f"tokenizer: tokens: {token!r:.40}"
        check(one, where, ("source", "force"))
        force = one.get("force", False)
        if type(force) is not bool:
            raise CombineError(f"{where}: force: expected true or false, got {force!r:.40}")
        rules[token] = Rule(*_read_source(one.get("source"), where, notes), force)
    return Tokenizer(read_reference(given.get("source", "union"), "tokenizer", notes), rules, multiple)


def _read_source(node: Any, where: str, notes: list[str]) -> tuple[str | None, str | int | None]:
    if node is None:
        return None, None
    kind = node.get("kind") if isinstance(node, Mapping) else None
    if kind is None:
        return read_reference(node, where, notes), None
    if kind == "zero":
        return "", None
    found = [node[key] for key, form in (("token", str), ("token_id", int)) if type(node.get(key)) is form]
    if kind != "model_token" or len(found) != 1 or not {*node} <= {"kind", "model", "token", "token_id"}:
        wanted = "{kind: zero}, or {kind: model_token, model: MODEL, token: TOKEN or token_id: ROW}"
        raise CombineError(f"{where}: source: expected a model, {wanted}, got {dict(node)!r:.80}")
    return read_reference(node.get("model"), where, notes), found[0]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The vocabulary of the result, and those of the models.

    Attributes:
        table: of the result.
        tables: of each model.
        sizes: rows of each model's embedding.
        rules: for single tokens.
        rows: how many the result has.
        base: the model that comes first if a token is in several.
    """

    table: Table
    tables: Mapping[str, Table]
    sizes: Mapping[str, int]
    rules: Mapping[str, Rule]
    rows: int
    base: str | None


def find_vocabulary(
    tokenizer: Tokenizer, table: Table, tables: Mapping[str, Table], models: Mapping[str, StateDict], base: str | None
) -> Vocabulary:
    """The vocabulary of the result.

    Args:
        tokenizer: what is asked for.
        table: token → row of the result's tokenizer.
        tables: those of the models.
        models: their tensors, by name.
        base: the base of the merge.

    Raises:
        CombineError: a model has no embedding, or a rule names a model that is not merged or a token that it lacks.
    """
    sizes = {name: measure_vocabulary(name, tree) for name, tree in models.items()}
    for token, rule in tokenizer.rules.items():
        where = f"tokenizer: tokens: {token!r:.40}"
        if rule.model and rule.model not in models:
            raise CombineError(f"{where}: {rule.model} is not merged; there are {', '.join(models)}")
        if rule.model and type(rule.token) is int and not 0 <= rule.token < sizes[rule.model]:
            raise CombineError(f"{where}: {rule.model} has no row {rule.token:,}, only {sizes[rule.model]:,}")
        if rule.model and type(rule.token) is not int:
            wanted = token if rule.token is None else str(rule.token)
            if tables[rule.model].get(wanted, sizes[rule.model]) >= sizes[rule.model]:
                raise CombineError(f"{where}: {rule.model} has no token {wanted!r:.40}")
    count = max(table.values(), default=-1) + 1
    return Vocabulary(table, tables, sizes, tokenizer.rules, -(-count // tokenizer.multiple) * tokenizer.multiple, base)


def permute(
    names: Sequence[str], states: Sequence[StateDict], vocabulary: Vocabulary
) -> tuple[list[StateDict], list[str]]:
    """The states of models with the rows of a vocabulary, in its order, and notes; what was tied is tied."""
    plan = _Plan(names, vocabulary)
    changed: list[dict[str, Any]] = [dict(state) for state in states]
    known: dict[Any, LazyTensor] = {}
    for name in states[0]:
        if all(name in state and is_of_vocabulary(name, state[name], plan.size(at)) for at, state in enumerate(states)):
            tensors = [as_lazy(state[name]) for state in states]
            kind = widest(tensors)
            if not has_mean(kind):
                raise CombineError(f"{name}: rows of {kind} are not moved; dequantize the models first")
            regions = tuple(tensor.region for tensor in tensors)
            for at in range(len(states)):
                key = at, regions
                if key not in known:
                    known[key] = plan.make([to_dtype(tensor, kind) for tensor in tensors], at)
                changed[at][name] = known[key]
    notes = []
    if known and plan.orphans:
        who = "no model has" if {*names} == {*vocabulary.tables} else f"{abbreviate(names)}: without"
        notes = [f"{who} the tokens {abbreviate([*map(repr, plan.orphans)])}: their rows are zeros"]
    return [like(state, StateDict(new)) for state, new in zip(states, changed, strict=True)], notes


class _Plan:
    """Which row of which model, or of what is computed, is each row of the result, for each of some models."""

    def __init__(self, names: Sequence[str], vocabulary: Vocabulary) -> None:
        self._names, self._vocabulary = names, vocabulary
        self.orphans: list[str] = []  # tokens that nothing tells the row of
        self._means: dict[tuple[int, ...], list[str]] = {}  # the models that have a token → such tokens
        self._of_others = {token: self._choose(token) for token in vocabulary.table if self._is_moved(token)}

    def size(self, at: int) -> int:
        """The rows that a model has."""
        return self._vocabulary.sizes[self._names[at]]

    def _find(self, at: int, token: str) -> int | None:
        row = self._vocabulary.tables[self._names[at]].get(token)
        return None if row is None or row >= self.size(at) else row

    def _is_moved(self, token: str) -> bool:
        rule = self._vocabulary.rules.get(token)
        forced = rule is not None and rule.force
        return forced or any(self._find(at, token) is None for at in range(len(self._names)))

    def _choose(self, token: str) -> tuple[int, int] | tuple[()] | None:
        """The (model, row) that models without a token get; () for a mean, None for zeros."""
        rule, base = self._vocabulary.rules.get(token), self._vocabulary.base
        having = [at for at in range(len(self._names)) if self._find(at, token) is not None]
        if rule is not None and rule.model != "":
            if rule.model is None or rule.model not in self._names:
                raise CombineError(
                    f"tokenizer: tokens: {token!r:.40}: needs a source among the models merged here: "
                    f"{', '.join(self._names)}"
                )
            at = self._names.index(rule.model)
            row = rule.token if type(rule.token) is int else self._find(at, str(rule.token or token))
            assert row is not None
            return at, row
        if rule is None and not having:
            self.orphans.append(token)
        if rule is not None or not having:
            return None
        only = having[0] if len(having) == 1 else self._names.index(base) if base in self._names else None
        row = None if only is None else self._find(only, token)
        if only is not None and row is not None:
            return only, row
        self._means.setdefault(tuple(having), []).append(token)
        return ()

    def make(self, tensors: list[LazyTensor], at: int) -> LazyTensor:
        """The tensor of a model with the rows of the result, of the tensors that all have."""
        import numpy

        sources, means = [*tensors], dict[str, tuple[int, int]]()
        for having, tokens in self._means.items():
            parts = [gather([tensors[one]], [0] * len(tokens), [self._find(one, t) for t in tokens]) for one in having]  # type: ignore[misc]  # they have it
            means |= {token: (len(sources), row) for row, token in enumerate(tokens)}
            sources.append(weighted_mean(parts, [1.0] * len(parts)))
        zeros = len(sources)
        sources.append(as_lazy(numpy.zeros((1, *tensors[0].shape[1:]), tensors[0].dtype.numpy)))
        count = max(self._vocabulary.table.values(), default=-1) + 1
        which, rows = [zeros] * count, [0] * count
        for token, place in self._vocabulary.table.items():
            rule = self._vocabulary.rules.get(token)
            own = None if rule is not None and rule.force else self._find(at, token)
            found = self._of_others.get(token) if own is None else (at, own)
            which[place], rows[place] = means[token] if found == () else found or (zeros, 0)
        made = gather(sources, which, rows)
        more = self._vocabulary.rows - count
        if more:
            made = gather([made, _mean_row(made)], [0] * count + [1] * more, [*range(count), *[0] * more])
        return made.replace(requires_grad=tensors[at].requires_grad, parameter=tensors[at].parameter)


def _mean_row(tensor: LazyTensor) -> LazyTensor:
    """The mean of the rows, as a tensor of one."""
    shape = (1, *tensor.shape[1:])
    found = Once(partial(_find_mean, tensor))
    source = BoxSource(tensor.dtype, shape, partial(_copy_mean, found), tensor.storage.source.name, int)
    return LazyTensor(tensor.dtype, shape, Storage(source, 0, source.size))


def _find_mean(tensor: LazyTensor) -> Any:
    import numpy

    rows = tensor if tensor.ndim > 1 else tensor.replace(shape=(*tensor.shape, 1), strides=None)
    total: Any = 0
    for (values,) in read_whole_rows([rows]):
        total = total + values.reshape(-1, *rows.shape[1:]).sum(axis=0, dtype="f8")
    mean = numpy.asarray(total / tensor.shape[0]).reshape(1, *tensor.shape[1:])
    return round_to(tensor.dtype, mean.astype("f4")).view(raw_dtype(tensor.dtype.itemsize))


def _copy_mean(found: Once[Any], corner: Sequence[int], out: Any) -> None:
    out[...] = found()[tuple(slice(c, c + n) for c, n in zip(corner, out.shape, strict=True))]


def add_tokens(table: Table, tokens: Iterable[str]) -> dict[str, int]:
    """The table with further tokens at the end, as the package tokenizers numbers them.

    >>> add_tokens({"a": 0, "b": 3}, ["c", "a", "d"])
    {'a': 0, 'b': 3, 'c': 4, 'd': 5}
    """
    made = dict(table)
    following = max(made.values(), default=-1) + 1
    for token in tokens:
        if token not in made:
            made[token], following = following, following + 1
    return made
