"""New states from old ones: pure functions that read no tensor. What they return is computed when read or saved.

Patterns are globs over paths; one that matches a path takes all below it. What is done to a parameter is done to its
moments and names in the optimizers of the same tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import copy
from typing import Any

from statedict.errors import AlterError
from statedict.ops.alter.follow import Build, with_own_storage
from statedict.ops.alter.outline import filter_entries, filter_tensors, on_trees, rebuild
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree import rename as rules
from statedict.tree.layout import Layout, is_optimizer
from statedict.tree.roles import choose_model, unwrap_names
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import Patterns, label


@on_trees
def select(state: Layout, patterns: Patterns) -> Layout:
    """Keep what matches, and nothing else.

    Raises:
        PatternError: a pattern matches nothing.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")
    >>> list(select(state, "model_state.fc3")["model_state"])
    ['fc3.weight', 'fc3.bias']
    """
    return filter_entries(state, patterns, True)


@on_trees
def drop(state: Layout, patterns: Patterns) -> Layout:
    """Keep what does not match.

    Raises:
        PatternError: a pattern matches nothing.

    >>> import statedict
    >>> list(drop(statedict.load("examples/checkpoint.pth"), ["epoch", "optimizer_state"]))
    ['model_state']
    """
    return filter_entries(state, patterns, False)


@on_trees
def strip(state: Layout) -> Layout:
    """The model's state_dict alone, without optimizers, plain values and tensors beside it, such as a loss.

    The keys of wrappers go: `module.` (DistributedDataParallel) before all names, `_orig_mod.` (torch.compile) and the
    like anywhere. A whole module that was pickled gives the state_dict that it would give itself.

    Raises:
        AlterError: there is no tensor outside of optimizers, or several models could be meant.

    >>> import statedict
    >>> list(strip(statedict.load("examples/checkpoint.pth")))[:2]
    ['conv1.weight', 'conv1.bias']
    """
    _, model = choose_model(state.tree, "keep one first, by select(state, {0}) or a step {{'keep': {0}}}")
    layout = Layout(model)
    kept = [path for path, leaf in layout.leaves.items() if is_array(leaf) or "_extra_state" in path.split(".")]
    return rebuild(layout, unwrap_names(kept))


@on_trees
def rename(state: Layout, renames: Mapping[str, str]) -> Layout:
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
    new = rules.rename(renames, [*state.leaves, *state.optimizers]).paths
    for path in state.optimizers:
        if new[path] != path:
            raise AlterError(f"{path!r}: rules do not rename an optimizer; change its key in Python")
    return rebuild(state, {new[path]: path for path in state.leaves})


@on_trees
def prefix(state: Layout, text: str, patterns: Patterns = "*") -> Layout:
    """Put a text before the names of the tensors, within the dicts that hold them; `-text` takes it away.

    What is taken away may begin with the path of the dict: `"-state_dict.model."` moves the tensors out of it.

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
    chosen = filter_tensors(state, patterns)
    outline: dict[str, str] = {}
    for path in state.leaves:
        new = path
        if path in chosen:
            below = state.home[path] + "." if state.home[path] else ""
            name = path[len(below) :]
            if not text.startswith("-"):
                new = below + text + name
            elif name.startswith(text[1:]):
                new = below + name.removeprefix(text[1:])
            else:
                new = path.removeprefix(text[1:])
        if new in outline:
            raise AlterError(f"{outline[new]!r} and {path!r} both become {new!r}")
        outline[new] = path
    if all(new == path for new, path in outline.items()):
        raise AlterError(f"no name begins with {text.removeprefix('-')!r}, within its dict or from the root")
    return rebuild(state, outline)


@on_trees
def tie(state: Layout, names: Mapping[str, str]) -> Layout:
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
    for other in names.values():
        if not is_array(state.leaves.get(other)) or other in names:
            raise AlterError(f"{other!r}: there is no such tensor to share, or it shares another's itself")
    return rebuild(state, {path: path for path in state.leaves if path not in names} | dict(names))


@on_trees
def untie(state: Layout, patterns: Patterns = "*") -> Layout:
    """Let tensors that share bytes have their own; they are stored apart.

    Raises:
        AlterError: nothing matches.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> apart = untie(tie(state, {"head.weight": "fc3.weight"}))
    >>> apart["head.weight"].region == apart["fc3.weight"].region
    False
    """
    chosen = filter_tensors(state, patterns)
    return _replace_leaves(state, {path: with_own_storage(as_lazy(state.leaves[path])) for path in chosen})


@on_trees
def set(state: Layout, path: str, value: Any) -> Layout:
    """Give an entry a value, an old one or a new one, in lists and optimizers too. The moments of a parameter stay.

    Args:
        state: any state_dict or checkpoint.
        path: the entry's.
        value: a tensor, an array or a plain value.

    >>> import statedict
    >>> set(statedict.load("examples/checkpoint.pth"), "epoch", 0)["epoch"]
    0
    """
    if path in state.dicts or path in state.optimizers:
        raise AlterError(f"{path!r}: is a whole dict; name an entry in it")
    if path in state.leaves:
        return _replace_leaves(state, {path: value})
    inside = _set_inside(state.tree, path, value, False)
    if inside is not None:
        return Layout(inside)
    return rebuild(state, {p: p for p in state.leaves} | {path: Build(value=value)})


def _replace_leaves(layout: Layout, values: Mapping[str, Any]) -> Layout:
    """Other values under the same paths; optimizers stay as they are."""
    changed = copy(layout)
    changed.leaves = {**layout.leaves, **values}
    return rebuild(changed, {path: path for path in layout.leaves})


def _set_inside(node: Any, path: str, value: Any, inside: bool) -> Any:
    """A tree with a value at a path into a list, a Counter or an optimizer; None if the path leads into none."""
    inside = inside or is_optimizer(node) or type(node) in (list, tuple, Counter)
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
    new = Counter(node) if type(node) is Counter else like(node, StateDict(node))
    for key, child in node.items():
        name = label(key)
        if name == path and inside:
            new[key] = value
            return new
        if path.startswith(name + "."):
            made = _set_inside(child, path[len(name) + 1 :], value, inside)
            if made is not None:
                new[key] = made
                return new
    if not inside or "." in path:
        return None
    new[path] = value
    return new
