"""What is in a state_dict: its tree with totals, from the index alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from statedict.collector import Paused
from statedict.ops.optimizers import optimizers
from statedict.reports.summary import BUFFERS, Node, Optimizer, Summary, TensorInfo, Total, mark_inferred, sum_by
from statedict.tensor.arrays import format_boxes
from statedict.tensor.attributes import data_of
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tensor.segments import unseen_bytes
from statedict.tree.layout import is_optimizer
from statedict.tree.walk import free_name, label, nest, walk
from statedict.values import Opaque, abbreviate, shorten

_SHORT = 60

_Rows = list[tuple[str, Node]]


def is_model(node: Any) -> bool:
    """Whether a value is a model's state_dict: a dict of names → tensors, extra state aside."""
    return (
        isinstance(node, dict)
        and any(is_array(value) for value in node.values())
        and all(type(key) is str for key in node)
        and all(is_array(value) or key.rpartition(".")[2] == "_extra_state" for key, value in node.items())
    )


def state_dicts(tree: Any) -> Iterator[tuple[str, Any]]:
    """(path, state_dict) of every model and optimizer in a tree."""
    pending = [("", tree)]
    while pending:
        path, node = pending.pop()
        if is_optimizer(node) or is_model(node):
            yield path, node
        elif isinstance(node, dict):
            pending += [(f"{path}.{key}" if path else str(key), child) for key, child in reversed(node.items())]


def summarize(state: Any, path: str = "") -> Summary:
    """What is in a tree; see `statedict.inspect`."""
    with Paused():
        walk(state)  # an error beyond its bounds, which hold below too
        dot = path + "." if path else ""
        found = {(dot + one.path).removesuffix("."): one for one in optimizers(state)}
        build = _Builder(found)
        root = build.node("", state, path, "tensor", None)
        wasted = unseen_bytes(build.lazy)
    return Summary(
        root=root,
        tensors=tuple(build.tensors.values()),
        values=build.values,
        dtypes=dict(sorted(sum_by("dtype", build.tensors.values()).items(), key=lambda item: -item[1].nbytes)),
        wasted=wasted,
        opaque=build.opaque,
        optimizers=tuple(found.values()),
    )


class _Builder:
    def __init__(self, optimizers: dict[str, Optimizer]) -> None:
        self.optimizers = optimizers
        self.inferred = False
        self.tensors: dict[str, TensorInfo] = {}
        self.values: dict[str, Any] = {}
        self.opaque: dict[str, int] = {}
        self.objects: set[int] = set()  # the Opaques around, which may be referred to
        self.regions: dict[object, str] = {}
        self.lazy: list[LazyTensor] = []

    def node(self, key: str, value: Any, path: str, role: str, parameter: str | None) -> Node:
        if is_array(value):
            return self.tensor(key, as_lazy(value, parts=True), path, role, parameter)
        if is_optimizer(value):
            return self.optimizer(value, path)
        if isinstance(value, dict) and type(value) is not Counter:
            role = "parameter" if role == "tensor" and is_model(value) else role
            return _group(self.children(value.items(), path, role, parameter), mark_inferred(parameter, self.inferred))
        if isinstance(value, Opaque):
            if id(value) in self.objects:
                return Node(note=f"the object of {value.name} that holds it")
            self.objects.add(id(value))
            self.count(value)
            children = self.children(value.children(), path, role, parameter)
            self.objects.discard(id(value))
            return _group(children, f"object of {value.name}")
        if type(value) in (list, tuple) and any(
            is_array(v) or isinstance(v, dict | list | tuple | Opaque) for v in value
        ):
            return _group(self.children(enumerate(value), path, role, parameter))
        for where, item in walk(value):  # a plain value, or a list of them on one row
            self.values[free_name(f"{path}.{where}" if where else path, self.values)] = item
            if isinstance(item, set | frozenset):
                self.count(item)
        return Node(value=shorten(repr(value), _SHORT))

    def children(self, items: Iterable[tuple[Any, Any]], path: str, role: str, parameter: str | None) -> _Rows:
        dot = path + "." if path else ""
        rows: _Rows = []
        for key, value in items:
            self.count(key)
            name = label(key)
            rows.append((name, self.node(name, value, dot + name, role, parameter)))
        return nest(rows, _group)

    def count(self, key: Any) -> None:
        """Count the objects in a key or a set."""
        if isinstance(key, Opaque):
            self.opaque[key.name] = self.opaque.get(key.name, 0) + 1
        elif isinstance(key, tuple | set | frozenset):
            for item in key:
                self.count(item)

    def tensor(self, key: str, tensor: LazyTensor, path: str, role: str, parameter: str | None) -> Node:
        if role == "parameter" and key.rpartition(".")[2] in BUFFERS:
            role = "buffer"
        first = self.regions.setdefault(tensor.region, path)
        tied = None if first == path else first
        info = TensorInfo(
            path=free_name(path, self.tensors),
            dtype=tensor.dtype.name,
            shape=tuple(tensor.shape),
            elements=tensor.numel(),
            nbytes=tensor.nbytes,
            role=role,
            parameter=parameter,
            inferred=parameter is not None and self.inferred,
            tied=tied,
            attributes=tensor.attributes,
        )
        self.tensors[info.path] = info
        self.lazy.append(tensor)
        part = f"only {format_boxes(tensor.present_boxes)}" if tensor.present_boxes is not None else ""
        notes = (f"= {tied}" if tied is not None else "", part, _note_attributes(tensor.attributes or {}))
        return Node(info, note=" ".join(filter(None, notes)), total=info.total)

    def optimizer(self, value: Any, path: str) -> Node:
        found = self.optimizers.get(path, Optimizer(path))
        self.inferred = found.inferred
        dot = path + "." if path else ""
        rows: _Rows = []
        for name, part in value.items():
            if name == "state":
                entries = [
                    (label(i), self.node(label(i), entry, f"{dot}state.{label(i)}", "optimizer", found.names.get(i)))
                    for i, entry in part.items()
                ]
                rows.append(("state", _group(entries)))
            else:
                rows.append((str(name), self.node(str(name), part, f"{dot}{name}", "optimizer", None)))
        self.inferred = False
        return _group(rows, "optimizer")


def _group(rows: _Rows, note: str = "") -> Node:
    return Node(note=note, children=tuple(rows), total=sum((row.total for _, row in rows), Total()))


def _note_attributes(attributes: dict[Any, Any]) -> str:
    data = data_of(attributes)
    return abbreviate(
        [f".{n} = {shorten(repr(v), _SHORT)}" if n in data else f".{n} is not data" for n, v in attributes.items()]
    )
