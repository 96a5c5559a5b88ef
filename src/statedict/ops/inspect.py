"""What is in a state_dict, from the index alone: its tree with totals, and whose state its optimizers keep."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from statedict.collector import Paused
from statedict.dtypes import DType
from statedict.errors import AlterError
from statedict.ops.quantization.find import find
from statedict.reports.quantization import Quantization, format_weight
from statedict.reports.summary import BUFFERS, Node, Optimizer, Summary, TensorInfo, Total, mark_inferred, sum_by
from statedict.tensor.arrays import format_boxes
from statedict.tensor.attributes import data_of
from statedict.tensor.blocks import find_blocks
from statedict.tensor.ggml import BIG_ENDIAN
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tensor.segments import unseen_bytes
from statedict.tree.layout import Layout, is_optimizer
from statedict.tree.optimizer import find_model, names_of
from statedict.tree.roles import MIXED, MODEL, find_roles, members
from statedict.tree.walk import check_bounds, free_name, label, nest, sort_numbers, walk, walk_tensors
from statedict.values import Opaque, abbreviate, count, is_plain_list, shorten

_SHORT = 60
_NAMES = ("params", "param_names")
_GENERATORS = (("uint8", 5056), ("uint32", 624), ("uint32", 625))
_SMALL = (("uint8", 16), ("uint64", 2), ("uint64", 4))
_RANDOM = re.compile(r"(?:^|[._])(?:rng|random|generators?|seeds?|cuda|xpu|mps|npu|hpu)(?:[._]|$)")

_Rows = list[tuple[str, Node]]


def is_generator_state(path: str, tensor: LazyTensor) -> bool:
    """Whether a tensor is the state of a generator of random numbers, whatever its numbers are worth.

    PyTorch's has 5,056 bytes on the CPU and 16 on a GPU, the Mersenne Twister of Python and numpy 624 or 625 words,
    others of numpy 2 or 4.
    """
    if tensor.ndim != 1 or tensor.dtype.kind != "uint":
        return False
    kind, size, key = tensor.dtype.name, tensor.shape[0], path.rpartition(".")[2]
    small = (kind, size) in _SMALL and key in ("state", "key", "counter", "buffer")
    return (kind, size) in _GENERATORS or small or (size <= 5056 and bool(_RANDOM.search(path)))


def optimizers(tree: Any, item: Callable[[LazyTensor], Any] | None = None) -> list[Optimizer]:
    """Every optimizer in a tree; `item` reads tensors of one element, without which step counts in them are ignored."""
    if is_optimizer(tree):
        return [_describe("", tree, None, item)]
    try:
        layout = Layout(tree if isinstance(tree, dict) else {"": tree})
    except AlterError:  # two entries of one path: whose state is whose cannot be told
        return []
    states = layout.optimizers | layout.listed
    return [_describe(path.removeprefix("."), state, layout, item) for path, state in states.items()]


def owners(found: Iterable[Optimizer], paths: Iterable[str]) -> dict[str, tuple[Optimizer, Any]]:
    """Path of a tensor that an optimizer keeps for a parameter → the optimizer, and the key of the parameter."""
    entries = {f"{one.path}.state.".removeprefix(".") + label(key): (one, key) for one in found for key in one.keys}
    owned: dict[str, tuple[Optimizer, Any]] = {}
    for path in paths if entries else ():
        above = path
        while above and path not in owned:
            above = above.rpartition(".")[0]
            if above in entries:
                owned[path] = entries[above]
    return owned


def names_by_key(groups: Any, names: Iterable[Any]) -> dict[Any, str]:
    """Key of each parameter → its name, of names group by group."""
    pairs = zip(groups, names, strict=True)
    return {key: name for group, some in pairs for key, name in zip(group["params"], some, strict=True)}


def summarize(state: Any, path: str = "", config: Mapping[str, Any] | None = None) -> Summary:
    """What is in a tree; see `statedict.inspect`."""
    with Paused():
        check_bounds(state)  # which hold below
        dot = path + "." if path else ""
        by_path = {(dot + one.path).removesuffix("."): one for one in optimizers(state)}
        build = _Builder(by_path)
        roles = list(find_roles(state))  # tensors among plain values are a model's if there are no others
        build.models = {id(node) for role, _, node in roles if role == MODEL or (role == MIXED and len(roles) == 1)}
        build.quantized = find(_tensors(state), config, path)
        root = build.node("", state, path, "tensor", None)
        wasted = unseen_bytes(build.lazy)
    return Summary(
        root=root,
        tensors=tuple(build.tensors.values()),
        values=build.values,
        dtypes=dict(sorted(sum_by("dtype", build.tensors.values()).items(), key=lambda item: -item[1].nbytes)),
        wasted=wasted,
        opaque=build.opaque,
        optimizers=tuple(by_path.values()),
        quantization=_note_order(build.quantized.report, state),
    )


def _note_order(found: Quantization, state: Any) -> Quantization:
    order = getattr(state, "metadata", {}).get(BIG_ENDIAN)
    note = f"a big-endian file: {order}, by their values"
    return found if order is None else replace(found, notes=(*found.notes, note))


def _tensors(state: Any) -> dict[str, LazyTensor]:
    """The tensors of a tree by path; none of one alone, which shows nothing of what belongs to it."""
    found: dict[str, LazyTensor] = {}
    for path, leaf in walk_tensors(state):
        found[free_name(path, found)] = as_lazy(leaf, parts=True)
    return found if len(found) > 1 else {}


class _Builder:
    def __init__(self, optimizers: dict[str, Optimizer]) -> None:
        self.optimizers = optimizers
        self.models: set[int] = set()
        self.inferred = False
        self.tensors: dict[str, TensorInfo] = {}
        self.values: dict[str, Any] = {}
        self.opaque: dict[str, int] = {}
        self.objects: set[int] = set()  # the Opaques around, which may be referred to
        self.regions: dict[object, str] = {}
        self.lazy: list[LazyTensor] = []
        self.quantized = find({})

    def node(self, key: str, value: Any, path: str, role: str, parameter: str | None) -> Node:
        if is_array(value):
            return self.tensor(key, as_lazy(value, parts=True), path, role, parameter)
        if is_optimizer(value):
            return self.optimizer(value, path)
        if isinstance(value, dict) and type(value) is not Counter:
            role = self.role_within(value, role)
            return _group(self.children(value.items(), path, role, parameter), mark_inferred(parameter, self.inferred))
        if isinstance(value, Opaque):
            if id(value) in self.objects:
                return Node(note=f"the object of {value.name} that holds it")
            self.objects.add(id(value))
            self.count(value)
            within = members(value)
            if within is not None:
                rest = ((key, child) for key, child in value.children() if key not in within)
                children = self.children(within.items(), path, "marked", parameter)
                children += self.children(rest, path, "beside", parameter)
            else:
                children = self.children(value.children(), path, role, parameter)
            self.objects.discard(id(value))
            return _group(children, _name_object(value))
        if (
            type(value) in (list, tuple)
            and not is_plain_list(value)
            and any(is_array(v) or isinstance(v, dict | list | tuple | Opaque) for v in value)
        ):
            return _group(self.children(enumerate(value), path, "beside" if role == "marked" else role, parameter))
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
        if role == "marked":
            role = "parameter" if tensor.parameter else "buffer"
        elif role == "parameter" and key.rpartition(".")[2] in BUFFERS:
            role = "buffer"
        elif role == "beside":
            role = "tensor"
        if role != "optimizer" and is_generator_state(path, tensor):
            role = "generator"
        weight, part = self.quantized.stored.get(path), self.quantized.kind_of(path)
        if role != "optimizer":
            role = "quantization" if part else "parameter" if weight is not None else role
        first = self.regions.setdefault(tensor.region, path)
        tied = None if first == path else first
        blocks = find_blocks(tensor)
        info = TensorInfo(
            path=free_name(path, self.tensors),
            dtype=tensor.dtype.name if blocks is None else blocks.quantization,
            shape=tuple(tensor.shape),
            elements=tensor.numel(),
            nbytes=tensor.nbytes if blocks is None else blocks.blocks.nbytes,
            role=role,
            parameter=parameter,
            inferred=parameter is not None and self.inferred,
            tied=tied,
            attributes=tensor.attributes,
            quantized=weight,
        )
        self.tensors[info.path] = info
        self.lazy.append(tensor)
        held = f"only {format_boxes(tensor.present_boxes)}" if tensor.present_boxes is not None else ""
        stands = part if weight is None else f"{weight.kind} of {format_weight(weight)}"
        notes = (f"= {tied}" if tied is not None else "", held, stands, _note_attributes(tensor.attributes or {}))
        return Node(info, note=" ".join(filter(None, notes)), total=info.total)

    def role_within(self, node: dict[Any, Any], role: str) -> str:
        """The role of the tensors in a dict, from that of the tensors around it.

        "marked" where PyTorch recorded which ones are parameters; a dict in such a one, where it recorded none, has
        what lies "beside" them, as the constants of torch.export do.
        """
        if role not in ("tensor", "marked"):
            return role
        if any(isinstance(value, LazyTensor) and value.parameter for value in node.values()):
            return "marked"
        if role == "marked":
            return "beside"
        return "parameter" if id(node) in self.models else role

    def optimizer(self, value: Any, path: str) -> Node:
        record = self.optimizers.get(path, Optimizer(path))
        self.inferred = record.inferred
        dot = path + "." if path else ""
        rows: _Rows = []
        for name, part in value.items():
            if name == "state":
                entries = [
                    (label(i), self.node(label(i), entry, f"{dot}state.{label(i)}", "optimizer", record.names.get(i)))
                    for i, entry in part.items()
                ]
                rows.append(("state", _group(sort_numbers(entries))))
            else:
                rows.append((str(name), self.node(str(name), part, f"{dot}{name}", "optimizer", None)))
        self.inferred = False
        return _group(rows, "optimizer")


def _group(rows: _Rows, note: str = "") -> Node:
    return Node(note=note, children=tuple(rows), total=sum((row.total for _, row in rows), Total()))


def _name_object(value: Opaque) -> str:
    """What an object is: a tensor of its own class, as torchao's, or anything else."""
    state = value.state if isinstance(value.state, dict) else {}
    if not isinstance(state.get("dtype"), DType) or not isinstance(state.get("size"), tuple):
        return f"object of {value.name}"
    return f"{state['dtype']} {'×'.join(map(str, state['size'])) or 'scalar'}, a tensor of {value.name}"


def _note_attributes(attributes: dict[Any, Any]) -> str:
    data = data_of(attributes)
    return abbreviate(
        [f".{n} = {shorten(repr(v), _SHORT)}" if n in data else f".{n} is not data" for n, v in attributes.items()]
    )


def _describe(path: str, state: Any, layout: Layout | None, item: Callable[[LazyTensor], Any] | None) -> Optimizer:
    groups, keys = state["param_groups"], tuple(state["state"])
    settings = tuple((len(group["params"]), {k: v for k, v in group.items() if k not in _NAMES}) for group in groups)
    if not all(type(key) in (int, str) for group in groups for key in group["params"]):
        return Optimizer(path, keys=keys, groups=settings)
    match = find_model(state, layout) if layout is not None else None
    stored = names_of(groups)
    names, model = names_by_key(groups, stored) if stored else {}, None
    if match is not None:
        model, paths = match
        names = {key: name.removeprefix(f"{model}." if model else "") for key, name in paths.items()}
    troubles = dict(_find_troubles(state, names, item))
    return Optimizer(path, model, keys, names, bool(names) and not stored, settings, troubles)


def _find_troubles(
    state: Any, names: dict[Any, str], item: Callable[[LazyTensor], Any] | None
) -> Iterator[tuple[str, str]]:
    states = state["state"]
    known = dict.fromkeys(key for group in state["param_groups"] for key in group["params"])

    def name(keys: list[Any]) -> str:
        return abbreviate([names.get(key, label(key)) for key in keys])

    without = [key for key in known if key not in states]
    # torch.optim.LBFGS keeps one entry for all parameters together
    shared = len(states) == 1 and any(isinstance(entry, dict) and "func_evals" in entry for entry in states.values())
    if without and len(without) < len(known) and not shared:
        yield "missing state", f"{count(len(without), 'parameter')} of {len(known):,} without state: {name(without)}"
    stale = [key for key in states if type(key) is int and key not in known]
    if stale:
        yield "stale state", f"stale state of {count(len(stale), 'parameter')} in no group: {name(stale)}"
    steps: dict[Any, list[Any]] = {}
    for key, entries in states.items():
        step = entries.get("step") if isinstance(entries, dict) else None
        if is_array(step):
            one = as_lazy(step) if item is not None else None
            step = item(one) if item is not None and one is not None and one.numel() == 1 else None
        if type(step) in (int, float):
            steps.setdefault(step, []).append(key)
    if len(steps) > 1:
        usual = max(steps, key=lambda number: len(steps[number]))
        other = [key for number, keys in steps.items() if number != usual for key in keys]
        yield "steps", f"{count(len(other), 'parameter')} not at step {usual:,.0f} as the others: {name(other)}"
