"""A tree as two flat dicts, tensors and values by path, in which two checkpoints can be compared.

What an optimizer keeps stands under the names of its parameters, `optimizer.state.fc.weight.exp_avg`, whatever numbers
the file has for them. Groups are paired by the parameters that they have in common: `param_groups.0`, or
`param_groups.0→1` where their numbers differ. Where the names of either side cannot be told, numbers stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from statedict.errors import AlterError
from statedict.ops.inspect import names_by_key
from statedict.tensor.attributes import data_of
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.layout import Layout, is_optimizer
from statedict.tree.optimizer import find_model, infer, names_of, parameter_size
from statedict.tree.walk import check_bounds, free_name, label
from statedict.values import Opaque

Names = list[list[Any]]
Labels = list[tuple[str, int]]  # of groups, with their numbers


class Entries:
    """The tensors and values of a tree."""

    def __init__(self, tree: Any) -> None:
        self.tensors: dict[str, LazyTensor] = {}  # by path, like all that follows
        self.values: dict[str, Any] = {}  # and lists and tuples of plain values; an Opaque's is one without contents
        self.keys: dict[str, Any] = {}  # those that are not strings
        self.containers: dict[str, str] = {}  # `dict`, `list` or `tuple`, of those that hold more than plain values
        self.extra: dict[str, Any] = {}  # beside the entries: versions of modules, the metadata of the file
        self.optimizers: dict[str, Any] = {}  # states, which `match_optimizers` adds
        self._tree = tree
        self._layout: Layout | None = None
        self._objects: set[int] = set()
        check_bounds(tree)  # which hold below too
        metadata = getattr(tree, "metadata", None)
        if isinstance(metadata, dict) and metadata:
            self.extra["metadata"] = dict(metadata)
        self.add("", tree)

    def add(self, path: str, node: Any) -> None:
        """Take in the node at a path."""
        if is_array(node):
            name, tensor = free_name(path, self.tensors), as_lazy(node)
            self.tensors[name] = tensor
            if tensor.attributes:
                noted = data_of(tensor.attributes)
                self.extra[name] = {key: value for key, value in noted.items() if _is_plain([value])}
        elif is_optimizer(node) and path not in self.optimizers:
            self.optimizers[path] = node
        elif isinstance(node, dict) and type(node) is not Counter:
            versions = getattr(node, "_metadata", None)
            if versions:
                self.extra[f"{path}._metadata" if path else "_metadata"] = versions
            if node:
                self.containers[path] = "dict"
            self._below(path, node.items(), {})
        elif type(node) in (list, tuple) and not _is_plain(node):
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

    def find_names(self, path: str) -> tuple[Names | None, bool]:
        """The names of an optimizer's parameters, group by group, and whether they are inferred."""
        state = self.optimizers[path]
        groups = state["param_groups"]
        if not all(type(number) in (int, str) for group in groups for number in group["params"]):
            return None, False
        names = names_of(groups)
        if names is not None:
            return [list(some) for some in names], False
        try:
            self._layout = self._layout or Layout(self._tree)
            match = find_model(state, self._layout)
        except (AlterError, TypeError):
            match = None
        if match is None:
            return None, False
        base, owners = match
        below = base + "." if base else ""
        return [[owners[i].removeprefix(below) for i in group["params"]] for group in groups], True

    def put_optimizer(self, path: str, names: Names | None, groups: Labels) -> None:
        """Take in an optimizer: its state by names, or by numbers without them, its groups under labels."""
        state = self.optimizers[path]
        dot = path + "." if path else ""
        known = names_by_key(state["param_groups"], names) if names else {}
        for key, part in state.items():
            if key == "state":
                for number, entry in part.items():
                    self.add(f"{dot}state.{known.get(number, label(number))}", entry)
            elif key != "param_groups":
                self.add(dot + label(key), part)
        for text, number in groups:
            for key, value in state["param_groups"][number].items():
                if not names or key not in ("params", "param_names"):
                    self.add(f"{dot}param_groups.{text}.{label(key)}", value)


def match_optimizers(one: Entries, other: Entries) -> list[tuple[str, str]]:
    """Take in the optimizers of both sides, and return notes on them: the optimizer's path, and a note."""
    all_notes: list[tuple[str, str]] = []
    for path in dict.fromkeys([*one.optimizers, *other.optimizers]):
        notes: list[str] = []
        sides = {name: side for name, side in (("A", one), ("B", other)) if path in side.optimizers}
        names = {name: side.find_names(path) for name, side in sides.items()}
        unknown = [name for name in names if names[name][0] is None]
        if len(sides) == 2 and len(unknown) == 1:
            (lacking,) = unknown
            known = "B" if lacking == "A" else "A"
            states = sides[known].optimizers[path], sides[lacking].optimizers[path]
            names[lacking] = _infer_names(*states, names[known][0] or []), True
        what = path or "the optimizer"
        if any(some is None for some, _ in names.values()):
            notes.append(f"{what}: compared by number, for the names of its parameters cannot be told")
            names = dict.fromkeys(names, (None, False))
        elif inferred := [name for name, (_, guess) in names.items() if guess]:
            where = " and ".join(inferred)
            notes.append(f"{what}: the names of its parameters are inferred from order and shapes in {where}")
        both = [some for some, _ in names.values() if some]
        if len(both) == 2:
            labels = _pair_groups(path, [one, other], both[0], both[1], notes)
        else:
            labels = [[(str(n), n) for n in range(len(s.optimizers[path]["param_groups"]))] for s in sides.values()]
        for name, groups in zip(sides, labels, strict=True):
            sides[name].put_optimizer(path, names[name][0], groups)
        all_notes += [(path, note) for note in notes]
    return all_notes


def _infer_names(there: Any, here: Any, names: Names) -> Names | None:
    """The names of a state that has none, by the shapes of another state, which has these."""
    sizes = {}
    for number, name in names_by_key(there["param_groups"], names).items():
        size = parameter_size(there["state"].get(number))
        if size is not None:
            sizes[name] = size
    flat = [name for group in names for name in group]
    try:
        return infer(here["param_groups"], here["state"], names, sizes, flat) if sizes else None
    except (KeyError, TypeError):
        return None


def _pair_groups(path: str, sides: list[Entries], ours: Names, theirs: Names, notes: list[str]) -> list[Labels]:
    """For each side the label of each of its groups; one that has parameters in common with several has several."""
    ours = _align_prefixes(ours, theirs)
    places = {name: number for number, group in enumerate(theirs) for name in group}
    pairs = list(dict.fromkeys((n, places[name]) for n, group in enumerate(ours) for name in group if name in places))
    texts = [str(one) if one == other else f"{one}→{other}" for one, other in pairs]
    labels: list[Labels] = []
    common: list[Names] = []
    dot = path + "." if path else ""
    for side, groups, others in ((0, ours, theirs), (1, theirs, ours)):
        numbers = [pair[side] for pair in pairs]
        taken, elsewhere = set(numbers), {name for group in others for name in group}
        labels.append([*zip(texts, numbers, strict=True)])
        labels[side] += [(str(n), n) for n in range(len(groups)) if n not in taken]
        for text, number in labels[side]:
            only_here = sorted(name for name in groups[number] if name not in elsewhere)
            if only_here:
                sides[side].values[f"{dot}param_groups.{text}.params"] = only_here
        common.append([[name for name in group if name in elsewhere] for group in groups])
    partitions = [sorted(sorted(group) for group in some if group) for some in common]
    if partitions[0] != partitions[1]:
        for side in (0, 1):
            sides[side].values[f"{dot}param_groups.params"] = partitions[side]
    elif common[0] != common[1]:
        notes.append(f"{path or 'the optimizer'}: its parameters are in another order; they are compared by name")
    return labels


def _align_prefixes(ours: Names, theirs: Names) -> Names:
    """Our names as the other side has them, if all names of one side have one prefix more."""
    names, known = [name for group in ours for name in group], {name for group in theirs for name in group}
    if not names or not known.isdisjoint(names):
        return ours
    for other in known:
        more, less = other.removesuffix("." + names[0]), names[0].removesuffix("." + other)
        if more != other:
            aligned = [[f"{more}.{name}" for name in group] for group in ours]
        elif less != names[0]:
            aligned = [[name.removeprefix(less + ".") for name in group] for group in ours]
        else:
            continue
        if all(name in known for group in aligned for name in group):
            return aligned
    return ours


def _is_plain(value: Any) -> bool:
    """Whether a list or tuple holds plain values alone, in lists of lists too."""
    return all(
        _is_plain(item) if type(item) in (list, tuple) else not (isinstance(item, dict | Opaque) or is_array(item))
        for item in value
    )
