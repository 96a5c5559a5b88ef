"""The merge methods by name: what each takes, and what it makes of the tensors of one name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from statedict.dtypes import DType
from statedict.errors import CombineError
from statedict.ops.combine import pointwise, rows, span, sparse
from statedict.ops.combine.align import Aligned
from statedict.ops.combine.average import combine, is_number
from statedict.ops.combine.elements import to_dtype, weighted_mean, work_dtype
from statedict.reports.combine import CombineReport
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import matches, no_match_error

Models = Sequence[LazyTensor]
REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class Given:
    """The parameters of one call: of each model by name, those of the method, and a seed for each model."""

    each: Mapping[str, list[float]]
    whole: Mapping[str, Any]
    seeds: list[int]


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method.

    Attributes:
        make: the models, the base and the parameters → the merged tensor.
        base: whether it takes a base: True, False, or None if it may have one.
        models: the least and the most models, without the base; 0 for any number.
        each: a parameter of each model → its default.
        whole: another parameter → its default.
    """

    make: Callable[[Models, Any, Given], LazyTensor]
    base: bool | None
    models: tuple[int, int]
    each: Mapping[str, Any]
    whole: Mapping[str, Any]


def _linear(models: Models, base: Any, given: Given) -> LazyTensor:
    weights = given.each["weight"]
    if given.whole["normalize"]:
        return weighted_mean(models, weights)
    return span.merge(partial(_same, weights), models)


def _same(weights: list[float], gram: Any) -> list[float]:
    return weights


def _slerp(models: Models, base: LazyTensor, given: Given) -> LazyTensor:
    return span.merge(partial(span.slerp, t=given.whole["t"]), [base, *models])


def _on_sphere(factors: Callable[..., Any], models: Models, base: LazyTensor | None, given: Given) -> LazyTensor:
    if base is not None and len(models) == 1:
        return models[0]
    return span.merge(partial(factors, weights=given.each.get("weight", ()), **given.whole), models, base)


def _nuslerp(models: Models, base: LazyTensor | None, given: Given) -> LazyTensor:
    weights = given.each["weight"]
    if given.whole["nuslerp_flatten"]:
        return span.merge(partial(span.nuslerp, weights=weights), models, base)
    return rows.nuslerp(models, base, weights, given.whole["nuslerp_row_wise"])


def _model_stock(models: Models, base: LazyTensor, given: Given) -> LazyTensor:
    if given.whole["filter_wise"]:
        return rows.model_stock(models, base)
    return span.merge(partial(span.model_stock, weights=()), models, base)


def _sparse(keeper: sparse.Keeper, elect: bool, models: Models, base: LazyTensor, given: Given) -> LazyTensor:
    columns = [*given.each.values(), given.seeds]
    names = [*given.each, "seed"]
    vectors = [sparse.Vector(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
    keeper = keeper._replace(rescale=given.whole["rescale"])
    whole = {"normalize": given.whole["normalize"], "scale": given.whole["lambda"]}
    return sparse.merge(keeper, base, models, vectors, elect=elect, **whole)


def _task(keeper: sparse.Keeper, elect: bool, normalize: bool, each: Mapping[str, Any] | None = None) -> Method:
    whole = {"normalize": normalize, "rescale": keeper.rescale, "lambda": 1.0}
    return Method(partial(_sparse, keeper, elect), True, (1, 0), {"weight": 1.0, **(each or {})}, whole)


_DENSITY = {"density": 1.0}
_GAMMA = {"density": 1.0, "gamma": 0.01}
_EPSILON = {"density": REQUIRED, "epsilon": 0.15}

METHODS: dict[str, Method] = {
    "linear": Method(_linear, False, (1, 0), {"weight": 1.0}, {"normalize": True}),
    "slerp": Method(_slerp, True, (1, 1), {}, {"t": REQUIRED}),
    "nuslerp": Method(
        _nuslerp, None, (2, 2), {"weight": 1.0}, {"nuslerp_flatten": True, "nuslerp_row_wise": False}
    ),
    "multislerp": Method(
        partial(_on_sphere, span.multislerp), None, (1, 0), {"weight": 1.0}, {"normalize_weights": True, "eps": 1e-8}
    ),
    "karcher": Method(partial(_on_sphere, span.karcher), False, (2, 0), {}, {"max_iter": 10, "tol": 1e-5}),
    "model_stock": Method(_model_stock, True, (2, 0), {}, {"filter_wise": False}),
    "task_arithmetic": _task(sparse.ALL, False, False),
    "ties": _task(sparse.LARGEST, True, True, _DENSITY),
    "breadcrumbs": _task(sparse.MIDDLE, False, False, _GAMMA),
    "breadcrumbs_ties": _task(sparse.MIDDLE, True, False, _GAMMA),
    "dare_linear": _task(sparse.SOME, False, False, _DENSITY),
    "dare_ties": _task(sparse.SOME, True, False, _DENSITY),
    "della": _task(sparse.BY_RANK, True, True, _EPSILON),
    "della_linear": _task(sparse.BY_RANK, False, False, _EPSILON),
    "sce": Method(lambda m, b, g: pointwise.sce(b, m, **g.whole), True, (2, 0), {}, {"select_topk": 1.0}),
    "nearswap": Method(lambda m, b, g: pointwise.nearswap(b, m[0], **g.whole), True, (1, 1), {}, {"t": REQUIRED}),
    "arcee_fusion": Method(lambda m, b, g: pointwise.arcee_fusion(b, m[0]), True, (1, 1), {}, {}),
    "ram": Method(lambda m, b, g: pointwise.ram(b, m, **g.whole), True, (1, 0), {}, {"epsilon": 1e-5}),
    "ramplus_tl": Method(
        lambda m, b, g: pointwise.ram(b, m, **g.whole), True, (1, 0), {}, {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2}
    ),
    "passthrough": Method(
        lambda m, b, g: pointwise.passthrough(m[0], g.each["scale"][0]), False, (1, 1), {"scale": 1.0}, {}
    ),
}  # fmt: skip


def read_parameters(name: str, models: int, based: bool, parameters: Mapping[str, Any]) -> tuple[Method, Given]:
    """The method of a name, and its parameters for so many models; without seeds.

    Raises:
        CombineError: there is no such method, it takes another number of models, or a parameter is not valid.

    >>> read_parameters("ties", 2, True, {"density": 0.5, "weight": [1, 2]})[1].each
    {'weight': [1.0, 2.0], 'density': [0.5, 0.5]}
    """
    method = METHODS.get(name) if isinstance(name, str) else None
    if method is None:
        raise CombineError(f"{name!r:.40}: not a merge method; expected one of {', '.join(METHODS)}")
    if method.base is not None and method.base != based:
        raise CombineError(
            f"{name}: " + ("needs a base; pass base=…" if method.base else "takes no base; leave it out")
        )
    least, most = method.models
    if models < least or (most and models > most):
        wanted = f"{least:,}" if least == most else f"{least:,} or more"
        raise CombineError(f"{name}: takes {wanted} models{' beside the base' if based else ''}, got {models:,}")
    for key in parameters:
        if key not in method.each and key not in method.whole:
            known = ", ".join([*method.each, *method.whole]) or "none"
            raise CombineError(f"{name}: has no parameter {key!r}; there are {known}")
    each = {key: _numbers(name, key, parameters.get(key, default), models) for key, default in method.each.items()}
    whole = {key: _single(name, key, parameters.get(key, default), default) for key, default in method.whole.items()}
    _check_shares(name, each, whole)
    return method, Given(each, whole, [])


def _numbers(name: str, key: str, given: Any, models: int) -> list[float]:
    values = list(given) if isinstance(given, list | tuple) else [given] * models
    if given is REQUIRED:
        raise CombineError(f"{name}: needs the parameter {key!r}")
    if len(values) != models or not all(map(is_number, values)):
        raise CombineError(f"{name}: {key}: expected a number, or one for each of {models:,} models, got {given!r:.60}")
    return [float(one) for one in values]


def _single(name: str, key: str, given: Any, default: Any) -> Any:
    flag = type(default) is bool
    if given is REQUIRED:
        raise CombineError(f"{name}: needs the parameter {key!r}")
    whole = type(default) is int
    fine = type(given) is bool if flag else type(given) is int and given > 0 if whole else is_number(given)
    if not fine:
        wanted = "True or False" if flag else "a whole number above 0" if whole else "a finite number"
        raise CombineError(f"{name}: {key}: expected {wanted}, got {given!r:.40}")
    if key == "select_topk" and not 0 <= given <= 1:
        raise CombineError(f"{name}: {key}: expected a share from 0 to 1, got {given:g}")
    return given


def _check_shares(name: str, each: Mapping[str, list[float]], whole: Mapping[str, Any]) -> None:
    for key in ("density", "gamma"):
        for value in each.get(key, ()):
            if not 0 <= value <= 1:
                raise CombineError(f"{name}: {key}: expected a share from 0 to 1, got {value:g}")
    divided = whole["normalize"] if name == "linear" else whole.get("normalize_weights", False)  # others take 0 as 1
    if divided and not sum(each["weight"]):
        raise CombineError(f"{name}: the weights sum to 0, and are divided by that")
    for density, epsilon in zip(each.get("density", ()), each.get("epsilon", ()), strict=False):
        if epsilon < 0 or not 0 < density - epsilon <= density + epsilon < 1:
            raise CombineError(f"{name}: density ± epsilon must stay between 0 and 1, got {density:g} ± {epsilon:g}")


def check_parameters(name: str, models: int, based: bool, parameters: Mapping[str, Any]) -> None:
    """As `read_parameters`, for parameters of which some are given by pattern.

    Raises:
        CombineError: as `read_parameters`.
    """
    for key, value in parameters.items():
        for one in value.values() if isinstance(value, Mapping) else [value]:
            plain = {other: _first(given) for other, given in parameters.items()}
            read_parameters(name, models, based, plain | {key: one})
    if not parameters:
        read_parameters(name, models, based, {})


def _first(given: Any) -> Any:
    return next(iter(given.values()), None) if isinstance(given, Mapping) else given


def _choose(parameters: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The parameters of a tensor: of those by pattern the first that matches, or the default."""
    chosen: dict[str, Any] = {}
    for key, given in parameters.items():
        values = given if isinstance(given, Mapping) else {"*": given}
        found = [value for glob, value in values.items() if matches(path, (glob,))]
        chosen |= {key: found[0]} if found else {}
    return chosen


def merge(
    aligned: Aligned,
    name: str,
    based: bool,
    parameters: Mapping[str, Any] | Callable[[str], Mapping[str, Any]],
    seed: int,
    integers: Mapping[str, str],
    kind: DType | None = None,
) -> tuple[StateDict, CombineReport]:
    """The merged state, and how it is made; see `statedict.merge`. The first source is the base if there is one.

    Args:
        aligned: the sources.
        name: of the method.
        based: whether the first source is the base.
        parameters: of the method, each for all tensors or by pattern, or a function that gives those for a path.
        seed: of random choices.
        integers: pattern → rule.
        kind: the dtype of the result instead of that of the sources.

    Raises:
        CombineError: a parameter is not valid, or as `combine`.
        PatternError: a pattern matches nothing.
    """
    count = len(aligned.names) - based
    if not callable(parameters) and any(isinstance(given, Mapping) for given in parameters.values()):
        globs = [glob for given in parameters.values() if isinstance(given, Mapping) for glob in given]
        for glob in globs:
            if not any(matches(path, (glob,)) for path in aligned.values):
                raise no_match_error(glob, len(aligned.values), "entry")
        parameters = partial(_choose, parameters)
    fixed = None if callable(parameters) else read_parameters(name, count, based, parameters)

    def mean(path: str, tensors: list[LazyTensor]) -> LazyTensor:
        import xxhash

        fault = next((one.dtype for one in tensors if one.dtype.kind != "float"), None)
        if fault is not None:
            raise CombineError(f"{path}: {fault} cannot be merged; use average")
        method, given = fixed or read_parameters(name, count, based, parameters(path))  # type: ignore[operator]
        seeds = [xxhash.xxh3_64_intdigest(f"{seed}/{number}/{path}".encode()) for number in range(count)]
        first = tensors[0]
        if kind is not None and any(one.dtype is not kind and one.dtype.bits < 32 for one in tensors):
            tensors = [to_dtype(one, work_dtype(tensors)) for one in tensors]  # so that only the result is rounded
        result = method.make(tensors[based:], tensors[0] if based else None, replace(given, seeds=seeds))
        result = result if kind is None else to_dtype(result, kind)
        return result.replace(requires_grad=first.requires_grad, parameter=first.parameter)

    shares: list[float | None] = [None] * count
    if fixed is not None:
        shares = [*fixed[1].each.get("weight", [1.0] * count)]
    return combine(aligned, mean, integers, name, [None] * based + shares)
