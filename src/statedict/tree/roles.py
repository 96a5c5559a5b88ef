"""Which entries of a checkpoint are models: told by what they hold and how PyTorch marked them, not by their place.

A model is one of these, and everything else that holds tensors lies beside it:

- a whole module, which `torch.save(model)` pickles and TorchScript writes as a tree of attributes;
- a dict that `Module.state_dict()` made, which has `_metadata`;
- a dict of names → tensors, or a tree of them without dots in its keys, as Flax has it; unless its name says that it
  is of an optimizer, a callback or the like, or it holds nothing but integers, scalars or statistics.

In a list or tuple, where batches and results also stand, a dict must have `_metadata` or dots in its names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from statedict.errors import AlterError, TreeError
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree.layout import is_optimizer
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import MAX_DEPTH, label
from statedict.values import Opaque, abbreviate, count

WRAPPERS = frozenset((
    "module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module",
))  # fmt: skip
# mixed: a model whose tensors stand among other entries of a dict; beside: what holds tensors and is none of these
MODEL, MIXED, OPTIMIZER, BESIDE = "model", "mixed", "optimizer", "beside"

_OF_OTHERS = re.compile(
    r"opt(im(izers?)?)?(_\w*)?|\w*_opt(im)?|\w*optimi[sz]er\w*|callbacks?|loops|\w*schedulers?\w*|\w*rng\w*|args|cfg|"
    r"\w*config\w*|hparams|hyper_parameters|\w*metrics?|\w*scaler|loss(es)?",
    re.IGNORECASE,
)
_SIBLINGS = re.compile(  # keys of models, which a tree of one model does not have
    r"gen(erator)?|disc(riminator)?|[gd]|net_?[gd]|\w*_ema|ema(_\w*)?|teacher|student|critic|actor|policy|target\w*|"
    r"model\w*|state_dict\w*",
    re.IGNORECASE,
)
_STATISTICS = frozenset(("mean", "std", "var", "min", "max", "shift", "scale", "count", "median"))
_CONTAINERS = (dict, Opaque, list, tuple)
_MARKS = ("_backward_hooks", "_forward_hooks")  # every torch.nn.Module has these attributes


def is_extra(name: str) -> bool:
    """Whether an entry of a module's state_dict is what its `get_extra_state` returned."""
    return name.rpartition(".")[2] == "_extra_state"


def is_model(node: Any) -> bool:
    """Whether a value is a dict of names → tensors, extra state aside."""
    return (
        isinstance(node, dict)
        and any(is_array(value) for value in node.values())
        and all(type(key) is str for key in node)
        and all(is_array(value) or is_extra(key) for key, value in node.items())
    )


def members(node: Any) -> dict[str, Any] | None:
    """The parameters, persistent buffers and modules of a whole module by name; None if it is something else.

    A pickled module is an object whose attributes begin with them (`pickles.objects`). Of TorchScript's, tensors in
    plain attributes count too: it does not record which ones are buffers.
    """
    if _is_module(node):
        state = node.state
        left_out = state.get("_non_persistent_buffers_set")
        left_out = left_out if isinstance(left_out, set) else ()
        items = takewhile(lambda item: item[1] is None or is_array(item[1]) or _is_module(item[1]), state.items())
        return {name: value for name, value in items if value is not None and name not in left_out}
    if not isinstance(node, dict) or type(node.get("training")) is not bool or any("." in str(key) for key in node):
        return None
    return {n: v for n, v in node.items() if is_array(v) or (isinstance(v, dict) and "training" in v)}


def _is_module(value: Any) -> bool:
    """Whether an object is a module that was pickled."""
    return isinstance(value, Opaque) and isinstance(value.state, dict) and all(mark in value.state for mark in _MARKS)


def module_state(node: Any) -> StateDict | None:
    """The state_dict of a whole module, as the module itself would give it; None if it is something else."""
    found = StateDict()

    def add(module: Any, below: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise TreeError(f"{below[:80]!r}: modules nested deeper than {MAX_DEPTH}")
        for name, value in (members(module) or {}).items():
            if is_array(value):
                found[below + name] = value
            else:
                add(value, f"{below}{name}.", depth + 1)

    if members(node) is None:
        return None
    add(node, "", 0)
    return found


def plain(name: str) -> str:
    """A name without the keys that wrappers put into it.

    >>> plain("module.encoder._orig_mod.weight")
    'encoder.weight'
    """
    keys = name.split(".")
    return name if WRAPPERS.isdisjoint(keys) else unwrap(name) or name


def unwrap(path: str) -> str:
    """A module's path without wrappers; that of a module which is only wrapped is empty."""
    return ".".join(key for key in path.split(".") if key not in WRAPPERS)


def unwrap_names(names: list[str]) -> dict[str, str]:
    """The names of a model's tensors without the keys of wrappers → as they are; the same if two would become one.

    `module` is also a name that people give, so it goes only where everything is below it; with it goes what
    `torch.optim.swa_utils.AveragedModel` keeps beside.

    >>> unwrap_names(["module.conv._orig_mod.weight", "module.module.bias"])
    {'conv.weight': 'module.conv._orig_mod.weight', 'module.bias': 'module.module.bias'}
    """
    short = {name: ".".join(k for k in name.split(".") if k not in WRAPPERS or k == "module") for name in names}
    inside = [name for name in names if short[name].startswith("module.")]
    if inside and {*names} - {*inside} <= {"n_averaged"}:
        short = {name: short[name].removeprefix("module.") for name in inside}
    found = {new: name for name, new in short.items()}
    return found if len(found) == len(short) and all(found) else {name: name for name in names}


def find_roles(tree: Any) -> Iterator[tuple[str, str, Any]]:
    """(role, path, dict or whole module) of all in a tree that holds tensors, in order; each once."""
    pending, seen, nests = [("", tree, False, False)], set[int](), dict[int, bool]()
    while pending:
        path, node, other, listed = pending.pop()
        if id(node) in seen or not isinstance(node, _CONTAINERS) or type(node) is Counter:
            continue
        seen.add(id(node))
        if is_optimizer(node):
            yield OPTIMIZER, path, node
            continue
        if isinstance(node, list | tuple):
            items = [(str(at), child) for at, child in enumerate(node) if isinstance(child, _CONTAINERS)]
            pending += [(f"{path}.{at}" if path else at, child, other, True) for at, child in reversed(items)]
            continue
        if module_state(node):
            yield MODEL, path, node
        elif isinstance(node, dict):
            arrays = {key: value for key, value in node.items() if is_array(value)}
            made = bool(arrays) and isinstance(getattr(node, "_metadata", None), dict)
            dotted = any(type(key) is str and "." in key for key in arrays)
            leaf = made or is_model(node) or _is_nest(node, nests)
            if (leaf or arrays) and (made or dotted or not listed):
                named = leaf or dotted
                likely = made or (named and not other and _has_weights(node))
                yield (MODEL if leaf else MIXED) if likely else BESIDE, path, node
            if not leaf:
                below = [(f"{path}.{label(k)}" if path else label(k), k, v) for k, v in node.items()]
                pending += [
                    (at, child, other or bool(_OF_OTHERS.fullmatch(label(key))), listed)
                    for at, key, child in reversed(below)
                    if not is_extra(at)
                ]


def find_models(tree: Any) -> dict[str, Any]:
    """Path → state_dict of the models in a tree; without any, of whatever holds tensors outside optimizers."""
    found = list(find_roles(tree))
    models = {path: _state_of(node) for role, path, node in found if role in (MODEL, MIXED)}
    return models or {path: _state_of(node) for role, path, node in found if role == BESIDE}


def _state_of(node: Any) -> Any:
    whole = module_state(node)
    if whole or is_model(node) or _is_nest(node, {}):
        return whole or node
    return like(node, StateDict((key, v) for key, v in node.items() if is_array(v) or is_extra(label(key))))


def choose_model(tree: Any, remedy: str) -> tuple[str, Any]:
    """The path and the state_dict of the only model in a tree.

    Args:
        tree: any checkpoint.
        remedy: how to choose one of several, with `{}` for the path of one.

    Raises:
        AlterError: there is none, or several could be meant.
    """
    found = find_models(tree)
    if not found:
        raise AlterError("nothing is left without optimizers and plain values; there is no model in it")
    if len(found) > 1:
        raise ambiguity_error(found, remedy)
    return next(iter(found.items()))


def ambiguity_error(models: dict[str, Any], remedy: str) -> AlterError:
    """The error for models of which any could be meant; `remedy` as for `choose_model`."""
    rows = []
    for path, node in models.items():
        sizes = [as_lazy(value, parts=True).numel() for value in node.values() if is_array(value)]
        what = f"{count(len(sizes), 'tensor')}, {sum(sizes):,} elements" if sizes else "nested"
        rows.append(f"{path or 'the root'} ({what})")
    first = next(filter(None, models))
    return AlterError(f"{len(models):,} models could be meant: {abbreviate(rows)}; {remedy.format(repr(first))}")


def _is_nest(node: Any, known: dict[int, bool]) -> bool:
    """Whether a dict is one model whose names are nested keys."""
    if not isinstance(node, dict) or not node or is_optimizer(node):
        return False
    if id(node) not in known:
        known[id(node)] = False  # where it contains itself
        keys = all(type(key) is str and "." not in key for key in node)
        if keys and getattr(node, "_metadata", None) is None and not any(map(_tells_apart, node)):
            known[id(node)] = all(is_array(value) or _is_nest(value, known) for value in node.values())
    return known[id(node)]


def _tells_apart(key: str) -> bool:
    return bool(_SIBLINGS.fullmatch(key) or _OF_OTHERS.fullmatch(key))


def _has_weights(node: dict[Any, Any]) -> bool:
    """Whether a dict holds a tensor that a model may be made of."""
    if any(isinstance(value, dict) for value in node.values()):
        return True
    tensors = {key: as_lazy(value, parts=True) for key, value in node.items() if is_array(value)}
    if all(str(key).rpartition(".")[2] in _STATISTICS for key in tensors):
        return False
    return any(len(one.shape) and one.dtype.kind not in ("int", "uint", "bool") for one in tensors.values())
