"""New states from old ones: pure functions that read no tensor. What they return is computed when it is read or saved.

Patterns are globs over paths; one that matches a path takes all below it. What is done to a parameter is done to the
moments and names that optimizers in the same tree keep of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from statedict.errors import AlterError
from statedict.ops.alter.outline import (
    Layout,
    Made,
    Outline,
    Patterns,
    chosen_tensors,
    each,
    filter_entries,
    rebuild,
    with_own_storage,
    without,
)
from statedict.ops.alter.tensors import cast as cast
from statedict.ops.alter.tensors import fuse as fuse
from statedict.ops.alter.tensors import pad as pad
from statedict.ops.alter.tensors import reshape as reshape
from statedict.ops.alter.tensors import slice as slice
from statedict.ops.alter.tensors import split as split
from statedict.ops.alter.tensors import transpose as transpose
from statedict.tensor.lazy import is_array
from statedict.tree import rename as rules
from statedict.tree.optimizer import is_optimizer
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import label


def select(state: StateDict, patterns: Patterns) -> StateDict:
    """Keep what matches, and nothing else.

    Args:
        state: any state_dict or checkpoint.
        patterns: globs over paths.

    Raises:
        PatternError: a pattern matches nothing.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")
    >>> list(select(state, "model_state.fc3")["model_state"])
    ['fc3.weight', 'fc3.bias']
    """
    return filter_entries(state, patterns, True)


def drop(state: StateDict, patterns: Patterns) -> StateDict:
    """Keep what does not match.

    Args:
        state: any state_dict or checkpoint.
        patterns: globs over paths.

    Raises:
        PatternError: a pattern matches nothing.

    >>> import statedict
    >>> list(drop(statedict.load("examples/checkpoint.pth"), ["epoch", "optimizer_state"]))
    ['model_state']
    """
    return filter_entries(state, patterns, False)


def strip(state: StateDict) -> StateDict:
    """The model's state_dict alone, without optimizers, schedulers and plain values.

    Several models stay in a dict under their keys.

    Raises:
        AlterError: there is no tensor outside of optimizers.

    >>> import statedict
    >>> list(strip(statedict.load("examples/checkpoint.pth")))[:2]
    ['conv1.weight', 'conv1.bias']
    """
    layout = Layout(state)
    homes = dict.fromkeys(layout.home[path] for path in layout.tensors())
    if not homes:
        raise AlterError("nothing is left without optimizers and plain values; there is no model in it")
    if len(homes) == 1:
        (home,) = homes
        node = layout.dicts[home]
        return like(node, StateDict((key, value) for key, value in node.items() if is_array(value)))
    outline = {path: Made((path,)) for path in layout.tensors()}
    return rebuild(without(layout, layout.optimizers), outline)


def rename(state: StateDict, renames: Mapping[str, str]) -> StateDict:
    """Give entries other paths, by the rules of `statedict.tree.rename`.

    Args:
        state: any state_dict or checkpoint.
        renames: old → new, for whole paths: `{"model.layers.{n}": "model.blocks.{n}"}`.

    Raises:
        RenameError: a rule is malformed or matches nothing, or two entries get one path.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> list(rename(state, {"fc{n}": "head.{n}"}))[-2:]
    ['head.3.weight', 'head.3.bias']
    """
    layout = Layout(state)
    paths = [*layout.leaves, *layout.optimizers]
    new = rules.rename(renames, paths).paths
    for path in layout.optimizers:
        if new[path] != path:
            raise AlterError(f"{path!r}: an optimizer is not renamed by rules; change its key in Python")
    return rebuild(layout, {new[path]: Made((path,)) for path in layout.leaves})


def prefix(state: StateDict, text: str, patterns: Patterns = "*") -> StateDict:
    """Put a text before the names of the tensors, within the dicts that hold them; `-text` takes it away.

    Args:
        state: any state_dict or checkpoint.
        text: such as `"model."`; `"-module."` removes `"module."` where it stands.
        patterns: which tensors.

    Raises:
        AlterError: two entries get one path, or nothing matches or has the prefix.

    >>> import statedict
    >>> list(prefix(statedict.load("examples/checkpoint.pth"), "net.")["model_state"])[0]
    'net.conv1.weight'
    """
    layout = Layout(state)
    chosen = chosen_tensors(layout, patterns)
    outline: Outline = {}
    done = False
    for path in layout.leaves:
        new = path
        if path in chosen:
            below = layout.home[path] + "." if layout.home[path] else ""
            name = path[len(below) :]
            new = below + (name.removeprefix(text[1:]) if text.startswith("-") else text + name)
        done = done or new != path
        if new in outline:
            raise AlterError(f"{outline[new].sources[0]!r} and {path!r} both become {new!r}")
        outline[new] = Made((path,))
    if not done:
        raise AlterError(f"no name begins with {text.removeprefix('-')!r}")
    return rebuild(layout, outline)


def tie(state: StateDict, names: Mapping[str, str]) -> StateDict:
    """Let entries share the bytes of others; they are stored once.

    Args:
        state: any state_dict or checkpoint.
        names: path → the path of the tensor that it shares; it may be new.

    Raises:
        AlterError: there is no such tensor.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> tied = tie(state, {"head.weight": "fc3.weight"})
    >>> tied["head.weight"].storage is tied["fc3.weight"].storage
    True
    """
    layout = Layout(state)
    outline: Outline = {path: Made((path,)) for path in layout.leaves if path not in names}
    for path, other in names.items():
        if other not in layout.leaves or not is_array(layout.leaves[other]) or other in names:
            raise AlterError(f"{other!r}: there is no such tensor to share, or it shares another's itself")
        outline[path] = Made((other,))
    return rebuild(layout, outline)


def untie(state: StateDict, patterns: Patterns = "*") -> StateDict:
    """Let tensors that share bytes have their own; they are stored apart.

    Raises:
        AlterError: nothing matches.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> apart = untie(tie(state, {"head.weight": "fc3.weight"}))
    >>> apart["head.weight"].region == apart["fc3.weight"].region
    False
    """
    return each(state, patterns, with_own_storage, moments=False)


def set(state: StateDict, path: str, value: Any) -> StateDict:
    """Give an entry a value, an old one or a new one, in lists and optimizers too. The moments of a parameter stay.

    Args:
        state: any state_dict or checkpoint.
        path: the entry's.
        value: a tensor, an array or a plain value.

    >>> import statedict
    >>> set(statedict.load("examples/checkpoint.pth"), "epoch", 0)["epoch"]
    0
    """
    layout = Layout(state)
    if path in layout.dicts or path in layout.optimizers:
        raise AlterError(f"{path!r}: is a whole dict; name an entry in it")
    if path in layout.leaves:
        layout.leaves[path] = value
        return rebuild(layout, {path: Made((path,)) for path in layout.leaves})
    inside = _set_inside(state, path, value, False)
    if isinstance(inside, StateDict):
        return inside
    return rebuild(layout, {p: Made((p,)) for p in layout.leaves} | {path: Made((), None, value)})


def _set_inside(node: Any, path: str, value: Any, inside: bool) -> Any:
    """A tree with a value at a path that leads into a list or an optimizer; None where it does not."""
    inside = inside or is_optimizer(node) or type(node) in (list, tuple)
    if type(node) in (list, tuple):
        head, _, rest = path.partition(".")
        if not head.isdecimal() or int(head) >= len(node):
            raise AlterError(f"{head!r}: a list of {len(node):,} has no such entry")
        items = list(node)
        made = _set_inside(items[int(head)], rest, value, inside) if rest else value
        items[int(head)] = made
        return None if made is None and rest else type(node)(items)
    if not isinstance(node, dict):
        return None
    for key, child in node.items():
        name = label(key)
        if name == path and inside:
            return like(node, StateDict(node | {key: value}))
        if path.startswith(name + "."):
            made = _set_inside(child, path[len(name) + 1 :], value, inside)
            if made is not None:
                return like(node, StateDict(node | {key: made}))
    return like(node, StateDict(node | {path: value})) if inside and "." not in path else None
