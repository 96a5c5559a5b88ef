"""What patterns choose of a state: entries that stay, tensors that are made anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from statedict.errors import AlterError
from statedict.ops.alter.outline import Layout, Made, Make, changed
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.optimizer import is_optimizer
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import matches

Patterns = str | Sequence[str]


def kept(state: StateDict, patterns: Patterns, wanted: bool) -> StateDict:
    """The entries that match, or those that do not."""
    layout = Layout(state)
    globs = _globs(patterns)
    paths = [*layout.leaves, *layout.optimizers]
    for glob in globs:
        if not any(matches(path, (glob,)) for path in paths):
            raise AlterError(f"no entry of {len(paths):,} matches {glob!r}; mend or leave out the pattern")
    gone = [path for path in layout.optimizers if matches(path, globs) is not wanted]
    outline = {path: Made((path,)) for path in layout.leaves if matches(path, globs) is wanted}
    return changed(without(layout, gone), outline)


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
        return changed(layout, {path: Made((path,)) for path in layout.leaves})
    known: dict[object, LazyTensor] = {}
    return changed(
        layout, {path: Made((path,), _named(make, path, known) if path in chosen else None) for path in layout.leaves}
    )


def _named(make: Make, path: str, known: dict[object, LazyTensor]) -> Make:
    """With the path in its errors; what is tied before is tied afterwards."""

    def named(tensor: LazyTensor) -> LazyTensor:
        region = (tensor.storage.key, tensor.offset, tensor.shape, tensor.strides, tensor.dtype.name)
        if tensor.nbytes and region in known:
            return known[region]
        try:
            result = known[region] = make(tensor)
        except AlterError as error:
            raise AlterError(f"{path}: {error}") from error
        return result

    return named


def chosen_tensors(layout: Layout, patterns: Patterns) -> dict[str, None]:
    """The paths of the tensors that match."""
    globs = _globs(patterns)
    tensors = [path for path, leaf in layout.leaves.items() if is_array(leaf)]
    for glob in globs:
        if not any(matches(path, (glob,)) for path in tensors):
            raise AlterError(f"no tensor of {len(tensors):,} matches {glob!r}; mend or leave out the pattern")
    return {path: None for path in tensors if matches(path, globs)}


def _globs(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
