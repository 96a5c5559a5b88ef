"""How the entries of a new state are made from those of an old one, and what its optimizers make of that.

An operation describes the entries outside of optimizers: new path → the old ones that it is made of, and by what.
This module makes the new tree: entries stay in their dict, at their place, unless their new path leads out of it. The
moments of optimizers are made in the same way from the moments of the old parameters, and their names follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from statedict.errors import AlterError
from statedict.param_names import Shape, inferred
from statedict.paths import MAX_DEPTH, label
from statedict.rename import modules
from statedict.tensor import LazyTensor, Storage, as_lazy, is_array
from statedict.tree import StateDict, like

Make = Callable[..., LazyTensor]


@dataclass(frozen=True, slots=True)
class Made:
    """How an entry is made.

    Attributes:
        sources: the paths of the old entries; none for a new one.
        make: makes a tensor of those of the sources; None takes the only one as it is.
        value: what a new entry is.
    """

    sources: tuple[str, ...] = ()
    make: Make | None = None
    value: Any = None


Outline = dict[str, Made]


class Layout:
    """What stands where in a tree.

    Attributes:
        leaves: path → value of every entry that is in a dict and outside of optimizers; lists and Opaques are values.
        dicts: path → dict, of those outside of optimizers.
        optimizers: path → the optimizer's state.
    """

    def __init__(self, tree: Any) -> None:
        self.leaves: dict[str, Any] = {}
        self.home: dict[str, str] = {}
        """Path of an entry → that of the dict which holds it."""
        self.keys: dict[str, Any] = {}
        self.dicts: dict[str, Any] = {}
        self.optimizers: dict[str, Any] = {}
        self._walk(tree, "", 0)

    def _walk(self, node: Any, path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise AlterError(f"{path[:80]!r}: nested deeper than {MAX_DEPTH}")
        self.dicts[path] = node
        for key, child in node.items():
            full = f"{path}.{label(key)}" if path else label(key)
            if is_optimizer(child):
                self.optimizers[full] = child
            elif isinstance(child, dict) and child and full not in self.dicts:
                self._walk(child, full, depth + 1)
            elif full in self.leaves:
                raise AlterError(f"{full!r}: two entries have this path; rename one of them in Python first")
            else:
                self.leaves[full] = child
                self.home[full], self.keys[full] = path, key

    def tensors(self) -> dict[str, LazyTensor]:
        """Path → tensor."""
        return {path: as_lazy(leaf) for path, leaf in self.leaves.items() if is_array(leaf)}


def is_optimizer(node: Any) -> bool:
    """Whether a dict is what an optimizer's `state_dict()` gives."""
    return (
        isinstance(node, dict)
        and isinstance(node.get("state"), dict)
        and isinstance(node.get("param_groups"), list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in node["param_groups"])
    )


def changed(layout: Layout, outline: Mapping[str, Made]) -> StateDict:
    """The new tree.

    Args:
        layout: of the old one.
        outline: every entry of the new tree outside of optimizers.

    Raises:
        AlterError: an optimizer has parameters that are changed, and it cannot be told which of its moments are theirs.
    """
    places = {path: {key: place for place, key in enumerate(node)} for path, node in layout.dicts.items()}
    waiting = {path: [*_inner(path, layout)][::-1] for path in layout.dicts}  # dicts and optimizers, the last one first
    placed: dict[str, list[tuple[Any, str]]] = {path: [] for path in layout.dicts}
    moved_in: dict[str, list[tuple[Any, str]]] = {path: [] for path in layout.dicts}
    renamed: dict[str, list[tuple[str, str]]] = {path: [] for path in layout.dicts}
    for new, made in outline.items():
        same = made.sources == (new,)
        homes = (path for path in layout.dicts if new.startswith(path + "."))
        home = layout.home[new] if same else max(homes, key=len, default="")
        below = home + "." if home else ""
        from_here = [source for source in made.sources if layout.home[source] == home]
        if not same:
            renamed[home] += [(source[len(below) :], new[len(below) :]) for source in from_here]
        if from_here:
            place = places[home][layout.keys[from_here[0]]]
            while waiting[home] and places[home][waiting[home][-1][0]] < place:
                placed[home].append(waiting[home].pop())
        (placed if from_here else moved_in)[home].append((layout.keys[new] if same else new[len(below) :], new))

    def finished(path: str) -> StateDict:
        result = like(layout.dicts[path], StateDict())
        for key, full in [*placed[path], *waiting[path][::-1], *moved_in[path]]:
            if full in outline:
                result[key] = _value(outline[full], layout)
            elif full in layout.optimizers:
                result[key] = _followed(full, layout, outline)
            else:
                inside = finished(full)
                if inside or not layout.dicts[full]:
                    result[key] = inside
        if renamed[path] and isinstance(result._metadata, dict):
            result._metadata = _versions(result._metadata, renamed[path], result)
        return result

    return finished("")


def _inner(path: str, layout: Layout) -> Iterator[tuple[Any, str]]:
    """The dicts and optimizers in a dict: key and path."""
    for key in layout.dicts[path]:
        full = f"{path}.{label(key)}" if path else label(key)
        if full in layout.optimizers or (full in layout.dicts and full not in layout.leaves):
            yield key, full


def _versions(metadata: dict[str, Any], moved: list[tuple[str, str]], entries: Mapping[Any, Any]) -> dict[str, Any]:
    """What a dict says of its modules, by their new names."""
    names = modules(moved)
    still = {""}
    for key in entries:
        parent = str(key).rpartition(".")[0]
        while parent not in still:
            still.add(parent)
            parent = parent.rpartition(".")[0]
    result: dict[str, Any] = {}
    for name, entry in metadata.items():
        for now in [name] if name in still or name not in names else names[name]:
            result.setdefault(now, entry)
    return result


def _value(made: Made, layout: Layout) -> Any:
    if not made.sources:
        return made.value
    found = [layout.leaves[source] for source in made.sources]
    return found[0] if made.make is None else made.make(*(as_lazy(leaf) for leaf in found))


def _followed(path: str, layout: Layout, outline: Mapping[str, Made]) -> StateDict:
    """An optimizer's state, as the parameters of the new tree want it."""
    state = layout.optimizers[path]
    used: dict[str, list[tuple[str, Made]]] = {}
    for new, made in outline.items():
        if made.sources and not (made.make is None and used.get(made.sources[0])):  # a second name is a tie
            used.setdefault(made.sources[0], []).append((new, made))
    known = linked(state, layout)
    if known is None:
        tensors = layout.tensors()
        touched = [p for p in tensors if [m.make for _, m in used.get(p, [])] != [None]]
        if touched:
            raise AlterError(
                f"{path}: has no names of parameters, and neither their order nor their shapes tell which moments "
                f"follow {touched[0]!r}; drop the optimizer, or save it beside its model by statedict first"
            )
        return like(state, StateDict(state))
    base, owners = known
    below = base + "." if base else ""
    held: dict[Any, Any] = state["state"]
    by_path = {owner: identifier for identifier, owner in owners.items()}
    states: dict[Any, Any] = StateDict()
    groups: list[Any] = []
    order = {old: place for place, old in enumerate(layout.leaves)}
    ranks = {new: place for place, new in enumerate(outline)}
    same = all(used.get(p) is not None and len(used[p]) == 1 and len(used[p][0][1].sources) == 1 for p in by_path)
    number = 0
    for group in state["param_groups"]:
        new_group = like(group, StateDict(group))
        identifiers, names = [], []
        follow = [(new, made) for identifier in group["params"] for new, made in used.get(owners[identifier], ())]
        before = [order[made.sources[0]] for _, made in follow]
        if before == sorted(before):  # in the model's order, and so they stay
            follow.sort(key=lambda item: ranks[item[0]])
        for new, made in follow:
            if any(source not in by_path for source in made.sources):
                raise AlterError(f"{path}: has moments of some of {', '.join(made.sources)} only; drop the optimizer")
            key = by_path[made.sources[0]] if same else number
            number += 1
            identifiers.append(key)
            names.append(new.removeprefix(below))
            found = [held[by_path[source]] for source in made.sources if by_path[source] in held]
            if len(found) == len(made.sources):
                shapes = [as_lazy(layout.leaves[source]).shape for source in made.sources]
                states[key] = _moments(found, shapes, made, f"{path}.state.{by_path[made.sources[0]]}")
        new_group["params"] = identifiers
        if isinstance(group.get("param_names"), list):
            new_group["param_names"] = names
        groups.append(new_group)
    rest = {identifier: entry for identifier, entry in held.items() if same and identifier not in states}
    return like(state, StateDict(state | {"state": StateDict(states | rest), "param_groups": groups}))


def _moments(found: list[Any], shapes: list[Shape], made: Made, path: str) -> Any:
    """What is kept for a parameter, made as the parameter is."""
    if made.make is None or not all(isinstance(entries, dict) for entries in found):
        return found[0]
    result = like(found[0], StateDict())
    for key, value in found[0].items():
        tensors = [as_lazy(entries[key]) for entries in found if is_array(entries.get(key))]
        if (
            key != "step"
            and len(tensors) == len(shapes)
            and all(t.shape == s for t, s in zip(tensors, shapes, strict=True))
        ):
            result[key] = made.make(*tensors)
        elif is_array(value) and as_lazy(value).numel() > 1:
            raise AlterError(f"{path}.{key}: {as_lazy(value).shape} cannot follow its parameter; drop the optimizer")
        else:
            result[key] = apart(as_lazy(value)) if is_array(value) else value  # each counts its own steps
    return result


def apart(tensor: LazyTensor) -> LazyTensor:
    """A tensor that shares its bytes with no other: it is stored, and changes, by itself."""
    old = tensor.storage
    own = Storage(old.source, old.offset, old.nbytes, old.device)
    return LazyTensor(
        tensor.dtype, tensor.shape, own, tensor.offset, tensor.strides, tensor.requires_grad, tensor.parameter
    )


def linked(state: Any, layout: Layout) -> tuple[str, dict[Any, str]] | None:
    """The dict that holds an optimizer's parameters, and the path of each; None where that cannot be told."""
    groups = state["param_groups"]
    tensors = layout.tensors()
    named = [group.get("param_names") for group in groups]
    if all(isinstance(names, list) and len(names) == len(g["params"]) for names, g in zip(named, groups, strict=True)):
        for base in layout.dicts:
            below = base + "." if base else ""
            owners = {
                identifier: below + name
                for group, names in zip(groups, named, strict=True)
                for identifier, name in zip(group["params"], names, strict=True)
                if type(name) is str
            }
            if owners and all(path in tensors for path in owners.values()):
                return base, owners
        return None
    sizes = [[parameter_size(state["state"].get(identifier)) for identifier in group["params"]] for group in groups]
    for base in layout.dicts:
        then = dict(_parameters(tensors, base, layout))
        names_of = inferred(sizes, [list(then)], then, list(then)) if then else None
        if names_of is not None:
            return base, {
                identifier: name
                for group, names in zip(groups, names_of, strict=True)
                for identifier, name in zip(group["params"], names, strict=True)
            }
    return None


def _parameters(tensors: Mapping[str, LazyTensor], base: str, layout: Layout) -> Iterator[tuple[str, Shape]]:
    """What may be the parameters among the tensors of a dict: each once, without the buffers of batch norms."""
    seen = set()
    for path, tensor in tensors.items():
        region = (tensor.storage.key, tensor.offset, tensor.shape)
        buffer = tensor.dtype.kind not in ("float", "complex") or path.endswith(("running_mean", "running_var"))
        if layout.home[path] == base and not buffer and region not in seen:
            seen.add(region)
            yield path, tensor.shape


def parameter_size(entries: Any) -> Shape | None:
    """The shape of the parameter that something is kept for: that of what has most elements."""
    tensors = [as_lazy(value) for value in entries.values() if is_array(value)] if isinstance(entries, dict) else []
    largest = max(tensors, key=LazyTensor.numel, default=None)
    return None if largest is None or (len(tensors) > 1 and largest.numel() <= 1) else largest.shape
