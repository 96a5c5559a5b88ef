"""A tree as two flat dicts, tensors and values by path, in which two checkpoints can be compared.

What an optimizer keeps stands under the names of its parameters, `optimizer.state.fc.weight.exp_avg`, whatever numbers
the file has for them. Groups are paired by the parameters that they have in common: `param_groups.0`, or
`param_groups.0→1` where their numbers differ. Where the names of either side cannot be told, numbers stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from statedict.errors import AlterError
from statedict.tensor.attributes import data_of
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.layout import Layout, is_optimizer
from statedict.tree.optimizer import find_model, infer, names_of, parameter_size
from statedict.tree.walk import free_name, label, walk
from statedict.values import Opaque

Names = list[list[Any]]


class Entries:
    """What is in a tree.

    Attributes:
        tensors: path → tensor.
        values: path → plain value, or list or tuple of plain values; an Opaque's is one without contents.
        keys: path → key, of keys that are no strings.
        containers: path → `dict`, `list` or `tuple`, of those that hold something, and not plain values alone.
        extra: what is said beside the entries: of a dict, `path → versions of modules`, of the file, its metadata.
        optimizers: path → state, which `together` adds.
    """

    def __init__(self, tree: Any) -> None:
        self.tensors: dict[str, LazyTensor] = {}
        self.values: dict[str, Any] = {}
        self.keys: dict[str, Any] = {}
        self.containers: dict[str, str] = {}
        self.extra: dict[str, Any] = {}
        self.optimizers: dict[str, Any] = {}
        self._tree = tree
        self._layout: Layout | None = None
        self._objects: set[int] = set()
        walk(tree)  # an error beyond its bounds, which hold below too
        metadata = getattr(tree, "metadata", None)
        if isinstance(metadata, dict) and metadata:
            self.extra["metadata"] = dict(metadata)
        self.add("", tree)

    def add(self, path: str, node: Any) -> None:
        """Take in what stands at a path."""
        if is_array(node):
            name, tensor = free_name(path, self.tensors), as_lazy(node)
            self.tensors[name] = tensor
            if tensor.attributes:
                noted = data_of(tensor.attributes)
                self.extra[name] = {key: value for key, value in noted.items() if _plain([value])}
        elif is_optimizer(node) and path not in self.optimizers:
            self.optimizers[path] = node
        elif isinstance(node, dict) and type(node) is not Counter:
            versions = getattr(node, "_metadata", None)
            if versions:
                self.extra[f"{path}._metadata" if path else "_metadata"] = versions
            if node:
                self.containers[path] = "dict"
            self._below(path, node.items(), {})
        elif type(node) in (list, tuple) and not _plain(node):
            self.containers[path] = type(node).__name__
            self._below(path, enumerate(node), [])
        elif isinstance(node, Opaque):
            self._put(path, Opaque(node.name))
            if id(node) not in self._objects:
                self._objects.add(id(node))
                self._below(path, node.children(), None)
                self._objects.discard(id(node))
        else:
            self._put(path, node)

    def _below(self, path: str, items: Iterable[tuple[Any, Any]], empty: Any) -> None:
        full = ""
        for key, child in items:
            full = f"{path}.{label(key)}" if path else label(key)
            if type(key) is not str and not isinstance(empty, list):
                self.keys[full] = key
            self.add(full, child)
        if not full and empty is not None and path:
            self._put(path, empty)

    def _put(self, path: str, value: Any) -> None:
        self.values[free_name(path, self.values)] = value

    def named(self, path: str) -> tuple[Names | None, bool]:
        """The names of an optimizer's parameters, group by group, and whether they are inferred."""
        state = self.optimizers[path]
        groups = state["param_groups"]
        if not all(type(number) in (int, str) for group in groups for number in group["params"]):
            return None, False
        own = names_of(groups)
        if own is not None:
            return [list(names) for names in own], False
        try:
            self._layout = self._layout or Layout(self._tree)
            found = find_model(state, self._layout)
        except (AlterError, TypeError):
            found = None
        if found is None:
            return None, False
        base, owners = found
        below = base + "." if base else ""
        return [[owners[i].removeprefix(below) for i in group["params"]] for group in groups], True

    def put_optimizer(self, path: str, names: Names | None, groups: list[tuple[str, int]]) -> None:
        """Take in an optimizer: its state by names, or by numbers without them, its groups under labels."""
        state = self.optimizers[path]
        dot = path + "." if path else ""
        known = _by_number(state, names) if names else {}
        for key, part in state.items():
            if key == "state":
                for number, entry in part.items():
                    self.add(f"{dot}state.{known.get(number, label(number))}", entry)
            elif key != "param_groups":
                self.add(dot + label(key), part)
        for text, number in groups:
            group = state["param_groups"][number]
            for key, value in group.items():
                if not names or key not in ("params", "param_names"):
                    self.add(f"{dot}param_groups.{text}.{label(key)}", value)


def match_optimizers(one: Entries, other: Entries) -> list[tuple[str, str]]:
    """Take in the optimizers of both sides, and return what there is to say of each: its path, and that."""
    said: list[tuple[str, str]] = []
    for path in dict.fromkeys([*one.optimizers, *other.optimizers]):
        notes: list[str] = []
        sides = [side for side in (one, other) if path in side.optimizers]
        found = [side.named(path) for side in sides]
        if len(sides) == 2 and (found[0][0] is None) != (found[1][0] is None):
            lacking = int(found[1][0] is None)
            found[lacking] = _by_other(sides, path, found[1 - lacking][0] or [], lacking), True
        all_names = [names for names, _ in found]
        what = path or "the optimizer"
        if any(names is None for names in all_names):
            notes.append(f"{what}: compared by number, for the names of its parameters cannot be told")
            all_names = [None] * len(sides)
        elif any(guessed for _, guessed in found):
            where = " and ".join(side for side, (_, guess) in zip("AB", found, strict=False) if guess)
            where = where if len(sides) == 2 else "B" if sides[0] is other else "A"
            notes.append(f"{what}: the names of its parameters are inferred from order and shapes in {where}")
        if len(sides) == 2 and all_names[0] and all_names[1]:
            labels = _pair_groups(path, sides, all_names[0], all_names[1], notes)
        else:
            labels = [[(str(n), n) for n in range(len(side.optimizers[path]["param_groups"]))] for side in sides]
        for side, names, groups in zip(sides, all_names, labels, strict=True):
            side.put_optimizer(path, names, groups)
        said += [(path, note) for note in notes]
    return said


def _by_other(sides: list[Entries], path: str, names: Names, lacking: int) -> Names | None:
    """The names of a side that has none, by the shapes of the other side's state."""
    there, here = sides[1 - lacking].optimizers[path], sides[lacking].optimizers[path]
    then = {}
    for number, name in _by_number(there, names).items():
        size = parameter_size(there["state"].get(number))
        if size is not None:
            then[name] = size
    now = [name for group in names for name in group]
    try:
        return infer(here["param_groups"], here["state"], names, then, now) if then else None
    except (KeyError, TypeError):
        return None


def _by_number(state: Mapping[str, Any], names: Names) -> dict[Any, str]:
    pairs = zip(state["param_groups"], names, strict=True)
    return {number: name for group, some in pairs for number, name in zip(group["params"], some, strict=True)}


def _pair_groups(
    path: str, sides: list[Entries], ours: Names, theirs: Names, notes: list[str]
) -> list[list[tuple[str, int]]]:
    """For each side the label of each of its groups; one that has parameters in common with several has several."""
    ours = _as_theirs(ours, theirs)
    places = {name: number for number, group in enumerate(theirs) for name in group}
    pairs = list(dict.fromkeys((n, places[name]) for n, group in enumerate(ours) for name in group if name in places))
    labels: list[list[tuple[str, int]]] = [[], []]
    for one, other in pairs:
        text = str(one) if one == other else f"{one}→{other}"
        labels[0].append((text, one))
        labels[1].append((text, other))
    dot = path + "." if path else ""
    for side, groups, most in ((0, ours, theirs), (1, theirs, ours)):
        taken = {pair[side] for pair in pairs}
        labels[side] += [(str(n), n) for n in range(len(groups)) if n not in taken]
        elsewhere = {name for group in most for name in group}
        for text, number in labels[side]:
            own = sorted(name for name in groups[number] if name not in elsewhere)
            if own:
                sides[side].values[f"{dot}param_groups.{text}.params"] = own
    common = [[[name for name in group if name in both] for group in some] for some, both in _common(ours, theirs)]
    partitions = [sorted(sorted(group) for group in some if group) for some in common]
    if partitions[0] != partitions[1]:
        for side in (0, 1):
            sides[side].values[f"{dot}param_groups.params"] = partitions[side]
    elif common[0] != common[1]:
        notes.append(f"{path or 'the optimizer'}: its parameters are in another order; they are compared by name")
    return labels


def _as_theirs(ours: Names, theirs: Names) -> Names:
    """Our names as the other side has them, where all of one side have a prefix more."""
    names, known = [name for group in ours for name in group], {name for group in theirs for name in group}
    if not names or not known.isdisjoint(names):
        return ours
    for other in known:
        if other.endswith("." + names[0]):
            prefix = other.removesuffix(names[0])
            made = [[prefix + name for name in group] for group in ours]
        elif names[0].endswith("." + other):
            prefix = names[0].removesuffix(other)
            made = [[name.removeprefix(prefix) for name in group] for group in ours]
        else:
            continue
        if all(name in known for group in made for name in group):
            return made
    return ours


def _common(ours: Names, theirs: Names) -> list[tuple[Names, set[str]]]:
    both = {name for group in ours for name in group} & {name for group in theirs for name in group}
    return [(ours, both), (theirs, both)]


def _plain(value: Any) -> bool:
    """Whether a list or tuple holds plain values alone, in lists of lists too."""
    for item in value:
        if type(item) in (list, tuple):
            if not _plain(item):
                return False
        elif isinstance(item, dict | Opaque) or is_array(item):
            return False
    return True
