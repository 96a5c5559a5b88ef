"""Adapters added to a model: which tensors they change, and the tree with the changes.

    base ─▶ its model, by name ─▶ the modules of each adapter ─▶ W + Σ weight · scale · up · down, rounded once

Every tensor of an adapter is used, or it is an error. Optimizers and what else `average` leaves out stay out.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from statedict.errors import CombineError
from statedict.ops.alter.follow import Build, with_own_storage
from statedict.ops.alter.outline import drop_hashes, rebuild
from statedict.ops.combine import lora_experts
from statedict.ops.combine.align import align, only_model
from statedict.ops.combine.elements import has_mean, to_dtype
from statedict.ops.combine.lora_experts import to_factors
from statedict.ops.combine.lora_factors import Factors, check_shape
from statedict.ops.combine.lora_keys import Adapter, Module, find_names
from statedict.ops.combine.lora_mix import Mix
from statedict.ops.combine.lora_target import Orders, Target, count_experts, find_orders, find_rows
from statedict.ops.combine.lora_ties import EMBEDDINGS, HEAD, add_head, follow, is_equal, lacks_head, settle_head
from statedict.ops.combine.model_config import resize, restack, set_ties
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.layout import Layout
from statedict.tree.roles import unwrap_names
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import matches, no_match_error
from statedict.values import abbreviate

_SCALES = ("weight_scale", "weight_scale_inv", "scales", "qweight", "absmax", "SCB")  # of quantized weights


@dataclass(slots=True)
class Plan:
    """Which tensors adapters change.

    Attributes:
        tree: the base, its layers replicated if the adapters say so.
        layout: of the base's tree.
        targets: path → what becomes of it.
        tied: path → the target that it is tied to, and stays tied to.
        kept: paths of the base that the result has.
        left_out: path → why it is not in the result.
        notes: what else there is to know.
        config: config.json of the base; empty without one.
        changes: what changes in it: path of keys → value.
    """

    layout: Layout
    targets: dict[str, Target]
    tied: dict[str, str]
    kept: list[str]
    left_out: dict[str, str]
    notes: list[str]
    config: Mapping[str, Any]
    changes: dict[str, Any]

    def build(self) -> StateDict:
        """The tree with the changes."""
        made = {path: one.make() for path, one in self.targets.items()}
        changed = copy.copy(self.layout)
        changed.leaves = {path: made.get(self.tied.get(path, path), leaf) for path, leaf in self.layout.leaves.items()}
        outline: dict[str, str | Build] = {path: path for path in self.kept}
        outline |= {path: Build((), value=made[path]) for path, one in self.targets.items() if one.base is None}
        dropped = [path for path in self.layout.optimizers if path in self.left_out]
        tree: StateDict = rebuild(changed, outline, dropped).tree
        drop_hashes(tree)
        return tree


def plan(
    name: str,
    tree: StateDict,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    only: Sequence[str] | str | None = None,
    config: Mapping[str, Any] | None = None,
    mix: Mix | None = None,
) -> Plan:
    """Plan what adapters change of a base.

    Args:
        name: what messages call the base.
        tree: the base.
        adapters: the adapters.
        weights: what each one's change is multiplied by.
        only: patterns of the adapters' modules to apply; all by default.
        config: config.json of the base.
        mix: how several adapters are combined; by default their changes add up.

    Raises:
        CombineError: an adapter cannot be applied, or not to this base.
    """
    for adapter in adapters:
        if adapter.fault:
            raise CombineError(f"{adapter.name}: {adapter.fault}")
    changes: dict[str, Any] = {}
    tree = _replicate(name, tree, adapters, config or {}, changes)
    tree, embedding = add_head(tree, adapters, config or {})
    home, _ = only_model(name, tree)
    aligned = align([(name, tree)])
    prefix = f"{home}." if home and all(path.startswith(f"{home}.") for path in aligned.values) else ""
    plain = unwrap_names([path.removeprefix(prefix) for path in aligned.values])
    names = {short: prefix + path for short, path in plain.items()}
    tensors = {path: as_lazy(leaf) for path, (leaf,) in aligned.values.items() if is_array(leaf)}
    made = Plan(aligned.first, {}, {}, aligned.kept, aligned.left_out, [], config or {}, changes)
    for adapter, weight in zip(adapters, weights, strict=True):
        made.notes += [f"{adapter.name}: {note}" for note in adapter.notes]
        _Placing(adapter, weight, names, tensors, made, len(adapters) > 1).place(only)
    if not made.targets:
        raise CombineError(f"{', '.join(one.name for one in adapters)}: nothing is left to apply")
    if mix is not None:
        most = max((one.rank for adapter in adapters for one in adapter.modules.values()), default=1)
        for path, one in made.targets.items():
            if one.factors and not one.bias and one.magnitude is None:
                one.factors = mix.combine(path, one.factors, most)
    made.tied = follow(made.targets, tensors)
    if embedding:
        _settle_head(made, embedding)
    made.notes += [f"{path}: is tied to {other}, and changes with it" for path, other in made.tied.items()]
    _check_targets(name, made, names)
    return made


class _Placing:
    """One adapter, whose tensors go to those of a base."""

    def __init__(
        self,
        adapter: Adapter,
        weight: float,
        names: dict[str, str],
        tensors: dict[str, LazyTensor],
        made: Plan,
        several: bool,
    ) -> None:
        self.adapter, self.weight, self.tensors, self.made, self.several = adapter, weight, tensors, made, several
        self.names = lora_experts.with_names_in_memory(names)
        self.experts = lora_experts.count_experts(self.names)
        self.modules = {short.rpartition(".")[0]: "" for short in self.names} | dict.fromkeys(self.experts, "")

    def place(self, only: Sequence[str] | str | None) -> None:
        """Add the targets of the adapter to the plan."""
        adapter = self.adapter = _choose(self.adapter, only)
        found = find_names(adapter, self.modules)
        first = next(iter(found), "")
        cut, add_on = _split_prefixes(first, found.get(first, first))
        apart = {key for key in adapter.modules if found[key[0]] in self.experts}
        weights = [
            (self.tensors[self._path_of(one, found[key[0]])].shape, one.parts)
            for key, one in adapter.modules.items()
            if "down" in one.parts and not one.embedding and key not in apart
        ]
        orders = find_orders(bool(adapter.config.get("fan_in_fan_out")), weights)
        for key, module in adapter.modules.items():
            if key in apart:
                self._place_experts(module, found[key[0]])
            else:
                self._place_module(module, found[key[0]], orders)
        saved = adapter.config.get("modules_to_save") or []
        for name, tensor in adapter.whole.items():
            self._place_whole(name, add_on + name.removeprefix(cut), tensor, saved)

    def _weight_of(self, module: str) -> str | None:
        """The path of the weight of a module; None if it has none."""
        names = [f"{module}.{leaf}" if module else leaf for leaf in ("weight", "in_proj_weight")]
        return next((self.names[one] for one in names if one in self.names), None)

    def _target(self, path: str) -> Target:
        return self.made.targets.setdefault(path, Target(path, self.tensors.get(path)))

    def _place_module(self, one: Module, home: str, orders: Orders) -> None:
        where = f"{self.adapter.name}: {one.name}"
        path = self._path_of(one, home)
        target, parts = self._target(path), one.parts
        base = target.base
        assert base is not None
        if "tokens" in parts:
            if self.weight != 1 or target.rows or target.whole:
                raise CombineError(f"{where}: replaces rows, which is done by one adapter and with weight 1 alone")
            target.rows = find_rows(where, self.adapter.config, one.name, parts["tokens"], base), parts["tokens"]
        if "down" not in parts:
            return
        if target.whole is not None:
            base = target.start()
        shape = base.shape
        experts = count_experts(shape, parts)
        turned = one.embedding or orders.is_turned(where, shape, experts, parts)
        new = to_factors(one, turned, experts, self.weight)
        check_shape(f"{path} of the base ({where})", shape, new)
        if experts > 1 and parts.keys() - {"down", "up", "alpha"}:
            raise CombineError(f"{where}: has {', '.join(parts)}, which do not go with experts in one tensor")
        if one.said and one.rank != one.said * experts:
            raise CombineError(
                f"{where}: has tensors of rank {one.rank // experts:,}, and adapter_config.json says {one.said:,}; "
                "fetch both again"
            )
        target.factors.append(new)
        if "magnitude" in parts:
            self._add_magnitude(where, target, parts["magnitude"], new)
        if "bias" in parts:
            self._add_bias(where, home, one.scale, parts["bias"])

    def _place_experts(self, one: Module, home: str) -> None:
        where = f"{self.adapter.name}: {one.name}"
        for path, new in lora_experts.split(where, one, home, self.experts[home], self.names, self.tensors):
            check_shape(f"{path} of the base ({where})", self.tensors[path].shape, new)
            self._target(path).factors.append(replace(new, weight=self.weight))

    def _add_magnitude(self, where: str, target: Target, magnitude: LazyTensor, new: Factors) -> None:
        outputs = new.shape[1] if new.turned else new.shape[0]
        if magnitude.numel() != outputs:
            raise CombineError(f"{where}: its magnitude has {magnitude.numel():,} elements for {outputs:,} outputs")
        if self.weight <= 0:
            raise CombineError(f"{where}: DoRA scales the rows of the base by norms that are not kept; take weight > 0")
        target.magnitude = magnitude

    def _add_bias(self, where: str, home: str, scale: float, bias: LazyTensor) -> None:
        path = self.names.get(f"{home}.bias" if home else "bias")
        if path is None:
            raise CombineError(f"{where}: has a bias for lora_B, and the base has none that it could be added to")
        target = self._target(path)
        assert target.base is not None
        new = Factors(bias.replace(shape=(1, bias.numel())), None, scale, weight=self.weight)
        check_shape(f"{path} of the base ({where})", target.base.shape, new)
        target.factors.append(new)
        target.bias = True

    def _parameters(self, one: Module, home: str) -> tuple[list[str], list[str]]:
        """The parameters of a module that `target_parameters` names, and the paths of those that the factors fit."""
        below = f"{home}." if home else ""
        named = [str(target) for target in self.adapter.config.get("target_parameters") or ()]
        mine = [
            short
            for short in self.names
            if short.startswith(below)
            and "." not in short[len(below) :]
            and any(f".{short}".endswith(f".{name}") for name in named)
        ]
        sizes = sorted((one.parts["down"].shape[-1], one.parts["up"].shape[0]))
        paths = [self.names[short] for short in mine]
        return mine, [path for path in paths if sorted(self.tensors[path].shape[-2:]) == sizes]

    def _path_of(self, one: Module, home: str) -> str:
        """The path of the weight that factors are for, or of the parameter that `target_parameters` names."""
        path = self._weight_of(home)
        if path is not None:
            return path
        mine, fits = self._parameters(one, home) if {"down", "up"} <= one.parts.keys() else ([], [])
        if len(fits) == 1:
            return fits[0]
        what = f"could be that of {abbreviate(fits)}" if fits else "the base has no weight there that it fits"
        raise CombineError(f"{self.adapter.name}: {one.name}: {what}; there is {abbreviate(mine) or 'none'}")

    def _place_whole(self, name: str, short: str, tensor: LazyTensor, saved: Sequence[str]) -> None:
        where = f"{self.adapter.name}: {name}"
        path = self.names.get(short)
        new = any(f".{short}".endswith(f".{one}.{short.rpartition('.')[2]}") for one in saved)
        if path is None and not new:
            raise CombineError(f"{where}: is no tensor of the base, nor in modules_to_save; is it for another model?")
        if path is None:
            some = next(iter(self.names.items()))
            path = some[1].removesuffix(some[0]) + short
            self.made.notes.append(f"{path}: the base has none, so its configuration must say that there is one")
            if short.endswith(HEAD):
                self.made.changes |= set_ties(self.made.config, False, True)
        base = self.tensors.get(path)
        copied = base is not None and base.shape == tensor.shape and name not in self.adapter.saved
        if base is not None and copied and self._is_spare(base, tensor):
            return
        if self.weight <= 0:
            raise CombineError(
                f"{where}: replaces a tensor of the base, and does not keep the old one; take weight > 0"
            )
        target = self._target(path)
        if target.whole is not None or target.rows is not None:
            if copied and target.whole is not None and is_equal(target.whole[0], tensor):
                return
            raise CombineError(f"{where}: is replaced by another adapter, too; apply one after the other")
        if base is not None and base.shape != tensor.shape:
            if base.shape[1:] != tensor.shape[1:] or self.weight != 1:
                raise CombineError(f"{where}: has the shape {tensor.shape}, and {base.shape} in the base")
            self.made.notes.append(f"{path}: has {tensor.shape[0]:,} rows now, {base.shape[0]:,} before")
            self.made.changes |= resize(self.made.config, base.shape[0], tensor.shape[0])
        target.whole, target.copied = (tensor, self.weight), copied
        if base is not None and short.endswith(EMBEDDINGS) and name in self.adapter.saved:
            self._keep_head(path, short, base)

    def _is_spare(self, base: LazyTensor, copied: LazyTensor) -> bool:
        """Whether the weight of the base, which peft stores with each adapter of embeddings, is to be left as it is."""
        return self.weight <= 0 or (self.several and is_equal(base, to_dtype(copied, base.dtype)))

    def _keep_head(self, path: str, short: str, old: LazyTensor) -> None:
        """Keep the old embedding as the head of a model that has none of its own, as peft does."""
        if not lacks_head([*self.names, *self.adapter.whole], self.made.config):
            return
        head = path.removesuffix(short) + HEAD
        self.made.targets[head] = Target(head, None, (old, 1.0))
        self.made.changes |= set_ties(self.made.config, False, True)
        self.made.notes.append(f"{head}: is the embedding of the base, to which it was tied")


def _choose(adapter: Adapter, only: Sequence[str] | str | None) -> Adapter:
    """The part of an adapter whose modules match patterns."""
    if only is None:
        return adapter
    globs = [only] if isinstance(only, str) else list(only)
    names = [*(name for name, _ in adapter.modules), *adapter.whole]
    for glob in globs:
        if not any(matches(name, (glob,)) for name in names):
            raise no_match_error(glob, len(names), "module")
    return replace(
        adapter,
        modules={key: one for key, one in adapter.modules.items() if matches(key[0], globs)},
        whole={name: one for name, one in adapter.whole.items() if matches(name, globs)},
    )


def _split_prefixes(name: str, new: str) -> tuple[str, str]:
    """What a name of an adapter has in front, and what the base has there."""
    return (name[: -len(new)], "") if name.endswith(new) else ("", new[: -len(name)] if name else "")


def _settle_head(made: Plan, embedding: str) -> None:
    """Leave out the head that was added, or say that it is not tied anymore."""
    if settle_head(embedding, made.targets, made.tied):
        made.changes |= set_ties(made.config, False, True)
        made.notes.append(f"{HEAD}: is no longer tied to {embedding}")
    else:
        made.kept.remove(HEAD)


def _check_targets(name: str, made: Plan, names: Mapping[str, str]) -> None:
    for path, one in made.targets.items():
        if one.magnitude is not None and len(one.factors) > 1:
            raise CombineError(f"{path}: DoRA does not add up with another adapter; apply one after the other")
        if one.base is None:
            continue
        above = path.rpartition(".")[0]
        scale = next((f"{above}.{key}" for key in _SCALES if f"{above}.{key}" in made.layout.leaves), "")
        if not has_mean(one.base.dtype) or scale:
            what = f"is quantized, with {scale}" if scale else f"is {one.base.dtype}"
            raise CombineError(f"{name}: {path}: {what}, to which nothing can be added; dequantize the base first")


def _replicate(
    name: str, tree: StateDict, adapters: Sequence[Adapter], config: Mapping[str, Any], changes: dict[str, Any]
) -> StateDict:
    """The base with its layers replicated as adapters say."""
    maps = [one.config.get("layer_replication") or [] for one in adapters]
    if not any(maps):
        return tree
    if any(one != maps[0] for one in maps):
        raise CombineError("the adapters differ in layer_replication; apply one after the other")
    layout = Layout(tree)
    outline: dict[str, str | Build] = {}
    lists = [re.match(r"(.*?\b(?:layers?|h))\.(\d+)\.", path) for path in layout.leaves]
    heads = {found[1] for found in lists if found}
    if len(heads) != 1:
        raise CombineError(f"{name}: layer_replication needs one list of layers, and there are {sorted(heads)}")
    last = max(int(found[2]) for found in lists if found)
    if any(end > last + 1 for _, end in maps[0]):
        raise CombineError(f"{name}: layer_replication is {maps[0]!r:.60}, and the base has {last + 1:,} layers")
    order = [number for first, end in maps[0] for number in range(first, end)]
    changes |= restack(config, last + 1, [(config, first, end) for first, end in maps[0]])
    for path, found in zip(layout.leaves, lists, strict=True):
        if found is None:
            outline[path] = path
            continue
        rest = path[found.end() :]
        for new, old in enumerate(order):
            if old == int(found[2]):
                outline[f"{found[1]}.{new}.{rest}"] = Build((path,), with_own_storage)
    result: StateDict = rebuild(layout, outline).tree
    return result
