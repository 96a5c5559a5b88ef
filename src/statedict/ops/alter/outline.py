"""How the entries of a new state are made from those of an old one, and what its optimizers make of that.

An operation describes the entries outside of optimizers: new path → the old ones that it is made of, and by what.
This module makes the new tree: entries stay in their dict, at their place, unless their new path leads out of it. The
moments of optimizers are made in the same way from the moments of the old parameters, and their names follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from statedict.errors import AlterError
from statedict.tensor.lazy import LazyTensor, Storage, as_lazy, is_array
from statedict.tree.optimizer import Linked, Shape, fits, is_optimizer, leaves, map_leaves, number_keys
from statedict.tree.rename import modules
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import MAX_DEPTH, chosen, label
from statedict.values import Opaque

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
        listed: the same, of those in lists, as Lightning keeps them; a list itself is an entry.
    """

    def __init__(self, tree: Any) -> None:
        self.leaves: dict[str, Any] = {}
        self.home: dict[str, str] = {}
        """Path of an entry → that of the dict which holds it."""
        self.keys: dict[str, Any] = {}
        self.dicts: dict[str, Any] = {}
        self.optimizers: dict[str, Any] = {}
        self.listed: dict[str, Any] = {}
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
                if type(child) in (list, tuple):
                    self.listed |= {f"{full}.{i}": item for i, item in enumerate(child) if is_optimizer(item)}

    def tensors(self) -> dict[str, LazyTensor]:
        """Path → tensor."""
        return {path: as_lazy(leaf) for path, leaf in self.leaves.items() if is_array(leaf)}


def rebuild(layout: Layout, outline: Mapping[str, Made]) -> StateDict:
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
        home = layout.home[new] if same else _home_of(new, layout)
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
                result[key] = _with_optimizers(_value(outline[full], layout), outline[full], layout, outline)
            elif full in layout.optimizers:
                result[key] = _follow(full, layout.optimizers[full], layout, outline)
            else:
                inside = finished(full)
                if inside or not layout.dicts[full]:
                    result[key] = inside
        if renamed[path] and isinstance(result._metadata, dict):
            result._metadata = _versions(result._metadata, renamed[path], result)
        return result

    return finished("")


def _home_of(path: str, layout: Layout) -> str:
    """The dict that an entry with a new path goes into: the one with the longest path that it begins with."""
    at = path.rfind(".")
    while at > 0:
        above = path[:at]
        if above in layout.dicts:
            return above
        if above in layout.optimizers or type(layout.leaves.get(above)) in (list, tuple):
            raise AlterError(f"{path!r}: lies in {above!r}, where no entry can be put; choose another path")
        at = path.rfind(".", 0, at)
    return ""


def _with_optimizers(value: Any, made: Made, layout: Layout, outline: Mapping[str, Made]) -> Any:
    """An entry, with the optimizers that are in it if it is a list."""
    if type(value) not in (list, tuple) or not layout.listed or not made.sources:
        return value
    paths = [f"{made.sources[0]}.{i}" for i in range(len(value))]
    return type(value)(
        _follow(path, layout.listed[path], layout, outline) if path in layout.listed else item
        for path, item in zip(paths, value, strict=True)
    )


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


def _follow(path: str, state: Any, layout: Layout, outline: Mapping[str, Made]) -> StateDict:
    """An optimizer's state, as the parameters of the new tree want it; as it is if its whole model is gone."""
    used: dict[str, list[tuple[str, Made]]] = {}
    for new, made in outline.items():
        if made.sources and not (made.make is None and used.get(made.sources[0])):  # a second name is a tie
            used.setdefault(made.sources[0], []).append((new, made))
    model = _model(path, state, layout, used)
    if model is None:
        return like(state, StateDict(state))
    base, owners = model
    below = base + "." if base else ""
    held: dict[Any, Any] = number_keys(state["state"], state["param_groups"])
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
        identifiers_before = group["params"]
        follow = [(new, made) for identifier in group["params"] for new, made in used.get(owners[identifier], ())]
        before = [order[made.sources[0]] for _, made in follow]
        if before == sorted(before):  # in the model's order, and so they stay
            follow.sort(key=lambda item: ranks[item[0]])
        for new, made in follow:
            if any(source not in by_path for source in made.sources):
                raise AlterError(f"{path}: has moments of some of {', '.join(made.sources)} only; drop the optimizer")
            key = by_path[made.sources[0]] if same else number
            if type(identifiers_before[0]) is str:  # as torch.distributed's state_dicts have it
                key = new.removeprefix(below)
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
    rest = {identifier: entry for identifier, entry in held.items() if same and identifier not in owners}
    return like(state, StateDict(state | {"state": StateDict(states | rest), "param_groups": groups}))


def _model(path: str, state: Any, layout: Layout, used: Mapping[str, list[tuple[str, Made]]]) -> Linked | None:
    """The model that an optimizer follows; None if nothing is done to any that it fits."""
    fitting = fits(state, layout)
    if not fitting:
        tensors = layout.tensors()
        touched = [p for p in tensors if [m.make for _, m in used.get(p, [])] != [None]]
        if touched:
            raise AlterError(
                f"{path}: has no names of parameters, and neither their order nor their shapes tell which moments "
                f"follow {touched[0]!r}; drop the optimizer, or save it beside its model by statedict first"
            )
        return None
    alive = [one for one in fitting if any(used.get(owner) for owner in one[1].values())]
    if not alive:
        return None
    if any(_uses(one, used) != _uses(alive[0], used) for one in alive[1:]):
        models = " and ".join(repr(one[0]) for one in alive)
        raise AlterError(
            f"{path}: may belong to {models}, to which different things are done; do the same to both, or drop one of "
            "them or the optimizer"
        )
    return alive[0]


def _uses(model: Linked, used: Mapping[str, list[tuple[str, Made]]]) -> list[list[tuple[str, bool, int]]]:
    """What becomes of each parameter of a model, in words that can be compared with those of another model."""
    below = model[0] + "." if model[0] else ""
    return [
        [(new.removeprefix(below), made.make is None, len(made.sources)) for new, made in used.get(owner, ())]
        for owner in model[1].values()
    ]


def _moments(found: list[Any], shapes: list[Shape], made: Made, path: str) -> Any:
    """What is kept for a parameter, made as the parameter is, at any depth."""
    make = made.make
    if make is None:
        return found[0]
    alike = [dict(leaves(entries)) for entries in found]

    def follow(keys: tuple[Any, ...], value: Any) -> Any:
        tensors = [as_lazy(one[keys]) for one in alike if is_array(one.get(keys))]
        if keys[-1:] != ("step",) and [tensor.shape for tensor in tensors] == shapes:
            return make(*tensors)
        if isinstance(value, Opaque) or (is_array(value) and as_lazy(value).numel() > 1):
            at = ".".join([path, *map(label, keys)])
            what = f"an object of {value.name}" if isinstance(value, Opaque) else as_lazy(value).shape
            raise AlterError(f"{at}: {what} cannot follow its parameter; drop the optimizer")
        return with_own_storage(as_lazy(value)) if is_array(value) else value  # each counts its own steps

    return map_leaves(found[0], follow)


def with_own_storage(tensor: LazyTensor) -> LazyTensor:
    """A tensor that shares its bytes with no other: it is stored, and changes, by itself."""
    old = tensor.storage
    own = Storage(old.source, old.offset, old.nbytes, old.device)
    return tensor.replace(storage=own)


Patterns = str | Sequence[str]


def filter_entries(state: StateDict, patterns: Patterns, wanted: bool) -> StateDict:
    """The entries that match, or those that do not."""
    layout = Layout(state)
    found = chosen([*layout.leaves, *layout.optimizers], patterns, "entry")
    gone = [path for path in layout.optimizers if (path in found) is not wanted]
    outline = {path: Made((path,)) for path in layout.leaves if (path in found) is wanted}
    return rebuild(without(layout, gone), outline)


def without(layout: Layout, optimizers: Iterable[str]) -> Layout:
    """The layout of the tree without some of its optimizers."""
    gone = {*optimizers}
    if not gone:
        return layout

    def bare(path: str) -> StateDict:
        node = layout.dicts[path]
        result = like(node, StateDict())
        for key, child in node.items():
            full = f"{path}.{key}" if path else str(key)
            if full in gone:
                continue
            result[key] = (
                bare(full) if full in layout.dicts and isinstance(child, dict) and not is_optimizer(child) else child
            )
        return result

    return Layout(bare(""))


def each(state: StateDict, patterns: Patterns, make: Make, moments: bool = True) -> StateDict:
    """Make each tensor that matches another one."""
    layout = Layout(state)
    chosen = chosen_tensors(layout, patterns)
    if not moments:
        layout.leaves |= {path: make(as_lazy(layout.leaves[path])) for path in chosen}
        return rebuild(layout, {path: Made((path,)) for path in layout.leaves})
    known: dict[object, LazyTensor] = {}
    return rebuild(
        layout,
        {path: Made((path,), _wrap_make(make, path, known) if path in chosen else None) for path in layout.leaves},
    )


def _wrap_make(make: Make, path: str, known: dict[object, LazyTensor]) -> Make:
    """With the path in its errors; what is tied before is tied afterwards."""

    def named(tensor: LazyTensor) -> LazyTensor:
        region = tensor.region
        if region in known:
            return known[region]
        try:
            result = known[region] = make(tensor)
        except AlterError as error:
            raise AlterError(f"{path}: {error}") from error
        return result

    return named


def chosen_tensors(layout: Layout, patterns: Patterns) -> dict[str, None]:
    """The paths of the tensors that match."""
    return chosen((path for path, leaf in layout.leaves.items() if is_array(leaf)), patterns, "tensor")
