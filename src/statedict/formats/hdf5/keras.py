"""Keras's trees: layers under their names, variables under theirs.

    Keras 3    a group for each object, with its variables in the group `vars`: layers/dense/vars/0, 1 …
               `vars` has an attribute `name`, which the user gave, or Keras; groups in lists are called by their class
    legacy     model_weights/LAYER/WEIGHT, or LAYER/WEIGHT; attributes `layer_names` and `weight_names` tell the order

The tree has each layer under its name within the layer around it: `encoder.kernel`, `rnn.lstm_cell.bias`. The model
itself has none. Layers that share a name are told apart by their groups. What the variables of a layer are called
follows from its class, if that is one of Keras's and the file tells it, by a group in a list, by a name that Keras
gave, or by `config.json`; otherwise they have their numbers. The optimizer's state is `optimizer.iteration`,
`optimizer.momentum.encoder.kernel`; without a configuration its parameters are not known, and it keeps its numbers too.

The tree's metadata say which group each layer was (`keras.groups`), so that it can be written again.

Source: keras 3.15.1, saving/saving_lib.py and legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

from collections import Counter

from statedict.dtypes import BY_NAME
from statedict.errors import CorruptFileError
from statedict.formats.hdf5.names import CHILDREN, FIXED, SLOTS, VARIABLES, name_variables, snake_case
from statedict.formats.hdf5.objects import Group
from statedict.tensor.lazy import LazyTensor
from statedict.tree.keras import OPTIMIZER, label_layers, split_number, write_rows
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.tree.keras import Row

VARS = "vars"
_TOP = "top_level_model_weights"
_SLOT_NAMES = sorted({name for slots in SLOTS.values() for name in slots.split()})


class Layer:
    """An object of Keras: its group, class, name and variables, and the objects in it.

    `kind` is the class as a file spells it; empty if it is not known. `names` are those of the variables, by key.
    """

    def __init__(self, path: str, kind: str, own: Group | None) -> None:
        self.path, self.kind = path, kind
        self.own: dict[str, Any] = {} if own is None else own.entries
        name = None if own is None else own.attributes.get("name")
        self.name = name if type(name) is str and name else ""
        self.label: str = ""
        self.trained = True
        self.is_list = own is None and kind not in CHILDREN
        self.children: list[Layer] = []
        self.names: dict[str, str] = {key: key for key in self.own}


def is_keras(root: Group) -> bool:
    """Whether every dataset of a file lies in a group of variables."""

    def look(group: Group, inside: bool) -> tuple[int, int]:
        counts = [
            look(one, name == VARS) if isinstance(one, Group) else (1, inside) for name, one in group.entries.items()
        ]
        return sum(n for n, _ in counts), sum(n for _, n in counts)

    total, inside = look(root, False)
    return total == inside > 0 or (not total and VARS in root.entries)


def read_keras(root: Group, config: Any = None) -> StateDict:
    """The tree of a file of Keras 3; `config` is the model's, if there is one."""
    model = _parse(root)
    layers = dict(_list_configs(config))
    kinds = Counter(name for name, _ in _list_configs(config))
    _name(model, {name: one for name, one in layers.items() if kinds[name] == 1})
    order = {name: index for index, name in enumerate(layers)}
    tree, rows = StateDict(), list["Row"]()
    optimizer = [child for child in model.children if child.path == OPTIMIZER]
    model.children = [child for child in model.children if child.path != OPTIMIZER]
    model.children.sort(key=lambda layer: order.get(layer.name, len(order)))
    _fill(model, tree, [], rows)
    for one in optimizer:
        one.children = []
        _name_optimizer(one, model, config, order)
        below = StateDict()
        label = OPTIMIZER if OPTIMIZER not in tree else f"{OPTIMIZER}/{VARS}"
        tree[label] = below
        _fill(one, below, [label], rows)
    tree.metadata = write_rows(rows)
    return tree


def _parse(group: Group, path: str = "", kind: str = "") -> Layer:
    """The object that a group is; without variables of its own it is a list, and its objects are called by class."""
    own = group.entries.get(VARS)
    layer = Layer(path, kind, own if isinstance(own, Group) else None)
    base = split_number(layer.name)[0]
    if not kind and base in VARIABLES | CHILDREN | SLOTS:
        layer.kind = base  # a name that Keras gave
    for name, below in group.entries.items():
        if not isinstance(below, Group) or name == VARS:
            continue
        inside = f"{path}/{name}" if path else name
        known = CHILDREN.get(layer.kind, {}).get(name)
        child = _parse(below, inside, known[0] if known else split_number(name)[0] if layer.is_list else "")
        layer.children += child.children if child.is_list else [child]
    return layer


def _list_configs(config: Any) -> Iterator[tuple[str, Any]]:
    """Name and configuration of each layer in a model's configuration, in order."""
    pending, fuel = [config], 1_000_000
    while pending and fuel:
        node, fuel = pending.pop(), fuel - 1
        if isinstance(node, dict):
            inner = node.get("config")
            name = node.get("name") or (inner.get("name") if isinstance(inner, dict) else None)
            if type(node.get("class_name")) is str and isinstance(inner, dict) and type(name) is str:
                yield name, node
            pending += reversed([value for value in node.values() if isinstance(value, dict | list)])
        elif isinstance(node, list):
            pending += reversed([value for value in node if isinstance(value, dict | list)])


def _name(layer: Layer, configs: dict[str, Any]) -> None:
    """Name the variables of a layer and of those in it."""
    found = configs.get(layer.name)
    settings: Any = {}
    if found is not None:
        layer.kind, settings = snake_case(found["class_name"]), found["config"]
        layer.trained = settings.get("trainable") is not False
    keys = [str(index) for index in range(len(layer.own))]
    tensors = [*layer.own.values()]
    if layer.path and [*layer.own] == keys and all(isinstance(one, LazyTensor) for one in tensors):
        layer.names = dict(zip(keys, name_variables(layer.kind, tensors, settings), strict=True))
    for child in layer.children:
        _name(child, configs)


def _fill(layer: Layer, tree: StateDict, labels: list[str], rows: list[Row]) -> None:
    """Put a layer's variables and layers into a dict."""
    for key, name in layer.names.items():
        _put(tree, name.split("/"), layer.own[key])
    if layer.own or layer.name:
        rows.append((labels, layer.path, layer.name, {name: key for key, name in layer.names.items()}))
    places = [(child.name, child.path) for child in layer.children]
    for child, label in zip(layer.children, label_layers(layer.path, places, tree), strict=True):
        child.label, below = label, StateDict()
        _fill(child, below, [*labels, label], rows)
        if below:
            tree[child.label] = below


def _put(tree: StateDict, keys: list[str], leaf: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, StateDict())
    tree[keys[-1]] = leaf


def _name_optimizer(optimizer: Layer, model: Layer, config: Any, order: dict[str, int]) -> None:
    """Name the optimizer's variables, those of parameters by their paths if their order is known."""
    tensors = [*optimizer.own.values()]
    if [*optimizer.own] != [str(index) for index in range(len(tensors))]:
        return
    if not all(isinstance(one, LazyTensor) for one in tensors):
        return
    names = [str(index) for index in range(len(tensors))]
    first = 0
    for name, kinds in (("iteration", ("int",)), ("learning_rate", ("float",))):
        if first < len(tensors) and not tensors[first].shape and tensors[first].dtype.kind in kinds:
            names[first], first = name, first + 1
    slots = SLOTS.get(_find_optimizer(config), "").split()
    parameters = [*_list_parameters(model, [])] if slots and _is_ordered(model, {*order}) else []
    if slots and len(parameters) * len(slots) == len(tensors) - first:
        expected = [("/".join([slot, *labels]), one.shape) for labels, one in parameters for slot in slots]
        if all(one.shape == shape for one, (_, shape) in zip(tensors[first:], expected, strict=True)):
            names[first:] = [name for name, _ in expected]
    optimizer.names = dict(zip(optimizer.names, names, strict=True))


def _find_optimizer(config: Any) -> str:
    """The class of the optimizer that a configuration names."""
    for key in ("compile_config", "optimizer"):
        config = config.get(key) if isinstance(config, dict) else None
    name = config.get("class_name") if isinstance(config, dict) else config
    return snake_case(name) if type(name) is str else ""


def _is_ordered(layer: Layer, known: set[str]) -> bool:
    """Whether the order of a layer's layers is known: of one, or by the configuration."""
    inner = [child for child in layer.children if child.own or child.children]
    listed = {child.name for child in inner} <= known and all("/" not in child.label for child in inner)
    return (listed or len(inner) < 2) and all(_is_ordered(child, known) for child in inner)


def _list_parameters(layer: Layer, labels: list[str]) -> Iterator[tuple[list[str], Any]]:
    """Path and tensor of each variable that is trained, in the order of the configuration."""
    if layer.trained:
        yield from (([*labels, name], layer.own[key]) for key, name in layer.names.items() if name not in FIXED)
        for child in layer.children:
            yield from _list_parameters(child, [*labels, child.label])


def is_legacy(root: Group) -> bool:
    """Whether a file is one of Keras 2, or of Keras 3 in its form."""
    return _find_names(find_weights(root), "layer_names") is not None


def find_weights(root: Group) -> Group:
    """The group of a legacy file's layers."""
    inner = root.entries.get("model_weights")
    return inner if isinstance(inner, Group) and "layer_names" not in root.attributes else root


def _find_names(group: Group, name: str) -> list[str] | None:
    """An attribute of names; a long one is cut into several, `layer_names0` and so on."""
    parts = [group.attributes[name]] if name in group.attributes else []
    while name not in group.attributes and f"{name}{len(parts)}" in group.attributes:
        parts.append(group.attributes[f"{name}{len(parts)}"])
    names = [text for part in parts for text in (part if isinstance(part, list) else [part])]
    return names if parts and all(type(text) is str for text in names) else None


def read_legacy(root: Group, where: str) -> StateDict:
    """The tree of a legacy file."""
    weights, tree = find_weights(root), StateDict()
    version = weights.attributes.get("keras_version", root.attributes.get("keras_version"))
    new = type(version) is str and version[:1] == "3"
    paths: dict[str, list[list[str]]] = {}
    for layer in [*(_find_names(weights, "layer_names") or ()), _TOP]:
        group = weights.entries.get(layer)
        if not isinstance(group, Group):
            if layer == _TOP:
                continue
            raise CorruptFileError(f"{where}: lists a layer {layer!r:.80} and has no such group; the file is damaged")
        below = StateDict()
        for name in _find_names(group, "weight_names") or ():
            leaf = _find_leaf(group, name, f"{where}: {layer}")
            keys = name.removesuffix(":0").split("/")
            inner = keys[keys.index(layer) + 1 :] if layer in keys[:-1] else keys
            paths.setdefault("_".join(keys), []).append([layer, *inner] if layer != _TOP else inner)
            _put_new(below, inner, _as_bfloat16(leaf, new), where)
        if layer == _TOP:
            tree.update(below)
        elif below:
            tree[layer] = below
    _add_optimizer(root, tree, paths, new, where)
    return tree


def _find_leaf(group: Group, name: str, where: str) -> Any:
    node: Any = group
    for part in name.split("/"):
        node = node.entries.get(part) if isinstance(node, Group) else None
    if node is None or isinstance(node, Group):
        raise CorruptFileError(f"{where}: lists a weight {name!r:.80} and has no such dataset; the file is damaged")
    return node


def _as_bfloat16(leaf: Any, new: bool) -> Any:
    """A weight; Keras 3 writes bfloat16 as bytes without saying so, and no other weights of two bytes."""
    if new and isinstance(leaf, LazyTensor) and leaf.dtype.name == "V2":
        return leaf.replace(dtype=BY_NAME["bfloat16"])
    return leaf


def _put_new(tree: Any, keys: list[str], leaf: Any, where: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, StateDict())
        if not isinstance(tree, dict):
            break
    if not isinstance(tree, dict) or keys[-1] in tree:
        raise CorruptFileError(f"{where}: two weights are called {'/'.join(keys)!r:.80}; the file is damaged")
    tree[keys[-1]] = leaf


def _add_optimizer(root: Group, tree: StateDict, paths: dict[str, list[list[str]]], new: bool, where: str) -> None:
    """Add the optimizer's state; `adam/encoder_kernel_momentum` becomes `optimizer.momentum.encoder.kernel`.

    `paths` are those of the variables, by the names that the file has for them.
    """
    group = root.entries.get("optimizer_weights")
    names = _find_names(group, "weight_names") if isinstance(group, Group) else None
    if not names or OPTIMIZER in tree:
        return
    state = StateDict()
    for name in names:
        keys = name.removesuffix(":0").split("/")
        keys = keys[1:] or keys
        for slot in _SLOT_NAMES:
            owner = (
                paths.get(keys[0].removesuffix(f"_{slot}"), [])
                if len(keys) == 1 and keys[0].endswith(f"_{slot}")
                else []
            )
            if len(owner) == 1:
                keys = [slot, *owner[0]]
                break
        _put_new(state, keys, _as_bfloat16(_find_leaf(group, name, where), new), where)
    tree[OPTIMIZER] = state
