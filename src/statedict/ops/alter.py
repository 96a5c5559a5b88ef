"""New states from old ones: pure functions that read no tensor. What they return is computed when it is read or saved.

Patterns are globs over paths; one that matches a path takes all below it. What is done to a parameter is done to the
moments and names that optimizers in the same tree keep of it.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from statedict import rename as rules
from statedict.assemble import assembled, mapped
from statedict.dtypes import DType, dtype
from statedict.errors import AlterError
from statedict.ops.outline import Layout, Made, Make, Outline, apart, changed, is_optimizer
from statedict.paths import matches
from statedict.tensor import LazyTensor, as_lazy, is_array
from statedict.tree import StateDict, like

Patterns = str | Sequence[str]


def select(state: StateDict, patterns: Patterns) -> StateDict:
    """Keep what matches, and nothing else.

    Args:
        state: any state_dict or checkpoint.
        patterns: globs over paths.

    Raises:
        AlterError: a pattern matches nothing.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")
    >>> list(select(state, "model_state.fc3")["model_state"])
    ['fc3.weight', 'fc3.bias']
    """
    return _kept(state, patterns, True)


def drop(state: StateDict, patterns: Patterns) -> StateDict:
    """Keep what does not match.

    Args:
        state: any state_dict or checkpoint.
        patterns: globs over paths.

    Raises:
        AlterError: a pattern matches nothing.

    >>> import statedict
    >>> list(drop(statedict.load("examples/checkpoint.pth"), ["epoch", "optimizer_state"]))
    ['model_state']
    """
    return _kept(state, patterns, False)


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
    return changed(_without(layout, layout.optimizers), outline)


def rename(state: StateDict, renames: Mapping[str, str]) -> StateDict:
    """Give entries other paths, by the rules of `statedict.rename`.

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
    return changed(layout, {new[path]: Made((path,)) for path in layout.leaves})


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
    chosen = _chosen(layout, patterns)
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
    return changed(layout, outline)


def cast(state: StateDict, kind: DType | str, patterns: Patterns = "*") -> StateDict:
    """Convert tensors to another dtype, as PyTorch rounds; moments follow, step counts do not.

    Without patterns those of floating point; with patterns all that match.

    Args:
        state: any state_dict or checkpoint.
        kind: `"bfloat16"`, `"bf16"`, a `DType` or `torch.bfloat16`.
        patterns: which tensors.

    Raises:
        AlterError: nothing matches, or numpy cannot convert between the two.

    >>> import statedict
    >>> cast(statedict.load("examples/checkpoint.pth"), "bf16")["model_state"]["fc3.bias"]
    LazyTensor(bfloat16, (10,), 20 B, 'examples/checkpoint.pth')
    """
    try:
        wanted = dtype(kind)
    except ValueError as error:
        raise AlterError(str(error)) from error
    if not wanted.itemsize or wanted.kind not in _NUMBERS:
        raise AlterError(f"{wanted}: is no dtype to convert to; take one of floats, integers, complex or bool")
    floats = patterns == "*"

    def make(tensor: LazyTensor) -> LazyTensor:
        if tensor.dtype is wanted or (floats and tensor.dtype.kind != "float"):
            return tensor
        if tensor.dtype.kind not in _NUMBERS or not tensor.dtype.itemsize:
            raise AlterError(f"{tensor!r}: cannot be converted to {wanted}")
        if tensor.dtype.kind == "complex" and wanted.kind != "complex":
            raise AlterError(f"{tensor!r}: the imaginary part would be lost; take the real part in Python first")
        return mapped(tensor, wanted, partial(_converted, wanted))

    return _each(state, patterns, make)


_NUMBERS = ("float", "int", "uint", "bool", "complex")


def _converted(wanted: DType, values: Any) -> Any:
    import numpy

    with numpy.errstate(all="ignore"):  # beyond the range is infinity, as in PyTorch
        return values.astype(wanted.numpy)


def transpose(state: StateDict, patterns: Patterns, dims: Sequence[int] | None = None) -> StateDict:
    """Exchange dimensions.

    Args:
        state: any state_dict or checkpoint.
        patterns: which tensors.
        dims: the new order of dimensions; by default the last two are exchanged.

    Raises:
        AlterError: nothing matches, or a tensor has other dimensions.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> transpose(state, "fc3.weight")["fc3.weight"].shape
    (84, 10)
    """

    def make(tensor: LazyTensor) -> LazyTensor:
        order = list(range(tensor.ndim)) if dims is None else list(dims)
        if dims is None and tensor.ndim >= 2:
            order[-2:] = order[:-3:-1]
        if sorted(order) != list(range(tensor.ndim)) or tensor.ndim < 2 or not tensor.dtype.itemsize:
            raise AlterError(f"{tensor!r}: cannot be transposed by {dims or 'its last two dimensions'}")
        shape, strides = (tuple(some[d] for d in order) for some in (tensor.shape, tensor.stride()))
        return LazyTensor(
            tensor.dtype, shape, tensor.storage, tensor.offset, strides, tensor.requires_grad, tensor.parameter
        ).contiguous()

    return _each(state, patterns, make)


def reshape(state: StateDict, patterns: Patterns, shape: Sequence[int]) -> StateDict:
    """Give tensors another shape of as many elements; one size may be -1.

    Raises:
        AlterError: nothing matches, or a tensor has another number of elements.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> reshape(state, "conv1.weight", (6, -1))["conv1.weight"].shape
    (6, 75)
    """

    def make(tensor: LazyTensor) -> LazyTensor:
        known = 1
        for size in shape:
            known *= size if size != -1 else 1
        wanted = tuple(tensor.numel() // known if size == -1 and known else size for size in shape)
        rows = tensor.contiguous()
        result = LazyTensor(rows.dtype, wanted, rows.storage, rows.offset, None, tensor.requires_grad, tensor.parameter)
        if list(shape).count(-1) > 1 or any(size < 0 for size in wanted) or result.numel() != tensor.numel():
            raise AlterError(f"{tensor!r}: has {tensor.numel():,} elements, which {tuple(shape)} does not")
        return result

    return _each(state, patterns, make)


def slice(state: StateDict, patterns: Patterns, index: Any) -> StateDict:
    """Take a part of tensors, by integers, slices and `...`.

    Raises:
        AlterError: nothing matches, or the index is outside of a tensor.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> import builtins
    >>> slice(state, "fc3.*", builtins.slice(0, 5))["fc3.weight"].shape
    (5, 84)
    """

    def make(tensor: LazyTensor) -> LazyTensor:
        try:
            return tensor[index]
        except IndexError as error:
            raise AlterError(f"{tensor!r}: {error}") from error

    return _each(state, patterns, make)


def pad(state: StateDict, patterns: Patterns, shape: Sequence[int], value: float = 0) -> StateDict:
    """Enlarge tensors at the end of each dimension; -1 leaves one as it is.

    Raises:
        AlterError: nothing matches, or a tensor is larger, or has other dimensions.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> pad(state, "fc3.bias", [12])["fc3.bias"].shape
    (12,)
    """

    def make(tensor: LazyTensor) -> LazyTensor:
        if len(shape) != tensor.ndim or any(
            size != -1 and size < own for size, own in zip(shape, tensor.shape, strict=True)
        ):
            raise AlterError(f"{tensor!r}: cannot be padded to {tuple(shape)}")
        wanted = tuple(own if size == -1 else size for size, own in zip(shape, tensor.shape, strict=True))
        return assembled(
            tensor.dtype, wanted, [((0,) * tensor.ndim, lambda: tensor)], tensor.storage.source.name, value
        )

    return _each(state, patterns, make)


def split(
    state: StateDict, path: str, into: Sequence[str], dim: int = 0, sizes: Sequence[int] | None = None
) -> StateDict:
    """Make several tensors of one, such as q, k and v of a fused projection.

    Args:
        state: any state_dict or checkpoint.
        path: a pattern in the language of rules: `"layers.{n}.qkv"`, for its weight and bias alike.
        into: the new paths: `["layers.{n}.q", "layers.{n}.k", "layers.{n}.v"]`.
        dim: the dimension to split.
        sizes: how much of it each gets; by default equal parts.

    Raises:
        AlterError: nothing matches, or the sizes do not make up the dimension.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> list(split(state, "fc{n}.bias", ["fc{n}.first", "fc{n}.second"]))[-2:]
    ['fc3.first', 'fc3.second']
    """
    layout = Layout(state)
    steps = [rules.Rules({path: new}) for new in into]
    outline: Outline = {}
    run: list[str] = []  # the entries of one module, whose first parts come before their second ones

    def put(new: str, made: Made) -> None:
        if new in outline:
            raise AlterError(f"{made.sources[0]!r} and {outline[new].sources[0]!r} both become {new!r}")
        outline[new] = made

    def flush() -> None:
        for number, step in enumerate(steps):
            for old in run:
                put(step(old), Made((old,), partial(_piece, number, len(into), dim, sizes, old)))
        run.clear()

    for old, leaf in layout.leaves.items():
        hit = is_array(leaf) and steps[0].matches(old)
        if run and not (hit and old.rpartition(".")[0] == run[-1].rpartition(".")[0]):
            flush()
        if hit:
            run.append(old)
        else:
            put(old, Made((old,)))
    flush()
    if all(made.make is None for made in outline.values()):
        raise AlterError(f"no entry matches {path!r}")
    return changed(layout, outline)


def _piece(number: int, count: int, dim: int, sizes: Sequence[int] | None, path: str, tensor: LazyTensor) -> LazyTensor:
    whole = tensor.shape[dim] if -tensor.ndim <= dim < tensor.ndim else -1
    parts = [whole // count] * count if sizes is None else list(sizes)
    if whole < 0 or sum(parts) != whole or len(parts) != count:
        raise AlterError(f"{path}: {tensor.shape} cannot be split along {dim} into {sizes or f'{count} equal parts'}")
    start = sum(parts[:number])
    index = [builtins.slice(None)] * (dim % tensor.ndim) + [builtins.slice(start, start + parts[number])]
    return tensor[tuple(index)]


def fuse(state: StateDict, paths: Sequence[str], into: str, dim: int = 0) -> StateDict:
    """Make one tensor of several, one after the other along a dimension: the inverse of `split`.

    Args:
        state: any state_dict or checkpoint.
        paths: patterns in the language of rules: `["layers.{n}.q", "layers.{n}.k", "layers.{n}.v"]`.
        into: the new path: `"layers.{n}.qkv"`.
        dim: the dimension that grows.

    Raises:
        AlterError: a part is missing, or shapes or dtypes differ.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> parts = split(state, "fc3", ["a", "b"])
    >>> fuse(parts, ["a", "b"], "fc3")["fc3.weight"].shape
    (10, 84)
    """
    layout = Layout(state)
    found: dict[str, dict[int, str]] = {}
    taken: dict[str, str] = {}
    for number, pattern in enumerate(paths):
        step = rules.Rules({pattern: into})
        for old, leaf in layout.leaves.items():
            if is_array(leaf) and old not in taken and step.matches(old):
                new = taken[old] = step(old)
                found.setdefault(new, {})[number] = old
    if not found:
        raise AlterError(f"no entry matches {' or '.join(map(repr, paths))}")
    outline: Outline = {}
    for old in layout.leaves:
        new = taken.get(old, old)
        if old not in taken:
            if new in found:
                raise AlterError(f"{old!r}: is there already; what is fused needs another name")
            outline[new] = Made((old,))
        elif new not in outline:
            if len(found[new]) < len(paths):
                absent = next(pattern for number, pattern in enumerate(paths) if number not in found[new])
                raise AlterError(f"{new}: has no part for {absent!r}")
            outline[new] = Made(tuple(found[new][number] for number in range(len(paths))), partial(_joined, dim, new))
    return changed(layout, outline)


def _joined(dim: int, path: str, *parts: LazyTensor) -> LazyTensor:
    first = parts[0]
    axis = dim % max(first.ndim, 1)
    for part in parts:
        others = [s for d, s in enumerate(part.shape) if d != axis], [s for d, s in enumerate(first.shape) if d != axis]
        if not first.ndim or part.dtype is not first.dtype or part.ndim != first.ndim or others[0] != others[1]:
            raise AlterError(
                f"{path}: {part.dtype} {part.shape} does not go with {first.dtype} {first.shape} along {dim}"
            )
    chunks, start = [], 0
    for part in parts:
        chunks.append((tuple(start if d == axis else 0 for d in range(first.ndim)), partial(_itself, part)))
        start += part.shape[axis]
    shape = tuple(start if d == axis else size for d, size in enumerate(first.shape))
    return assembled(first.dtype, shape, chunks, first.storage.source.name)


def _itself(tensor: LazyTensor) -> LazyTensor:
    return tensor


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
    return changed(layout, outline)


def untie(state: StateDict, patterns: Patterns = "*") -> StateDict:
    """Let tensors that share bytes have their own; they are stored apart.

    Raises:
        AlterError: nothing matches.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> apart = untie(tie(state, {"head.weight": "fc3.weight"}))
    >>> apart["head.weight"].storage.key == apart["fc3.weight"].storage.key
    False
    """
    return _each(state, patterns, apart, moments=False)


def set(state: StateDict, path: str, value: Any) -> StateDict:
    """Give an entry a value, an old one or a new one. The moments of a parameter stay.

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
        return changed(layout, {path: Made((path,)) for path in layout.leaves})
    return changed(layout, {p: Made((p,)) for p in layout.leaves} | {path: Made((), None, value)})


def _kept(state: StateDict, patterns: Patterns, wanted: bool) -> StateDict:
    layout = Layout(state)
    globs = _globs(patterns)
    paths = [*layout.leaves, *layout.optimizers]
    for glob in globs:
        if not any(matches(path, (glob,)) for path in paths):
            raise AlterError(f"no entry of {len(paths):,} matches {glob!r}; mend or leave out the pattern")
    gone = [path for path in layout.optimizers if matches(path, globs) is not wanted]
    outline = {path: Made((path,)) for path in layout.leaves if matches(path, globs) is wanted}
    return changed(_without(layout, gone), outline)


def _without(layout: Layout, optimizers: Iterable[str]) -> Layout:
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


def _each(state: StateDict, patterns: Patterns, make: Make, moments: bool = True) -> StateDict:
    """Make each tensor that matches another one."""
    layout = Layout(state)
    chosen = _chosen(layout, patterns)
    if not moments:
        layout.leaves |= {path: make(as_lazy(layout.leaves[path])) for path in chosen}
        return changed(layout, {path: Made((path,)) for path in layout.leaves})
    return changed(
        layout, {path: Made((path,), _named(make, path) if path in chosen else None) for path in layout.leaves}
    )


def _named(make: Make, path: str) -> Make:
    def named(*tensors: LazyTensor) -> LazyTensor:
        try:
            return make(*tensors)
        except AlterError as error:
            raise AlterError(f"{path}: {error}") from error

    return named


def _chosen(layout: Layout, patterns: Patterns) -> dict[str, None]:
    globs = _globs(patterns)
    tensors = [path for path, leaf in layout.leaves.items() if is_array(leaf)]
    for glob in globs:
        if not any(matches(path, (glob,)) for path in tensors):
            raise AlterError(f"no tensor of {len(tensors):,} matches {glob!r}; mend or leave out the pattern")
    return {path: None for path in tensors if matches(path, globs)}


def _globs(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


OPERATIONS: dict[str, Callable[..., StateDict]] = {
    "select": select, "drop": drop, "rename": rename, "prefix": prefix, "cast": cast, "transpose": transpose,
    "reshape": reshape, "slice": slice, "pad": pad, "split": split, "fuse": fuse, "tie": tie, "untie": untie,
    "set": set, "strip": strip,
}  # fmt: skip
