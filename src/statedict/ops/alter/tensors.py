"""The operations that make new tensors: cast, transpose, reshape, slice, pad, split, fuse.

Public as those of statedict/ops/alter/verbs.py. Each tensor is computed when it is read or saved, block by block.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Number
from typing import Any

from statedict.dtypes import DType, dtype
from statedict.errors import AlterError
from statedict.ops.alter.follow import Build, is_same
from statedict.ops.alter.outline import map_tensors, on_trees, rebuild
from statedict.ops.quantization.find import find_paths
from statedict.tensor.assembled import assemble, map_elements
from statedict.tensor.blocks import find_blocks
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree import rename as rules
from statedict.tree.layout import Layout
from statedict.tree.optimizer import leaves
from statedict.tree.walk import Patterns, no_match_error


@on_trees
def cast(state: Layout, kind: DType | str, patterns: Patterns = "*") -> Layout:
    """Convert tensors to another dtype, as PyTorch rounds; moments follow, step counts do not.

    Without patterns those of floating point, but not those of quantized weights, whose numbers mean nothing without
    their scales; with patterns all that match.

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
    floats, convert = patterns == "*", converter(kind)
    but = find_paths(state.tensors()) if floats else ()

    def make(tensor: LazyTensor) -> LazyTensor:
        return tensor if floats and tensor.dtype.kind != "float" else convert(tensor)

    return map_tensors(state, patterns, make, casts=True, but=but)


def converter(kind: DType | str) -> Callable[[LazyTensor], LazyTensor]:
    """What converts a tensor to a dtype.

    Raises:
        AlterError: it is not one to convert to; the converter raises it for a tensor that cannot be converted.
    """
    try:
        wanted = dtype(kind)
    except ValueError as error:
        raise AlterError(str(error)) from error
    if not wanted.itemsize or wanted.kind not in NUMBERS or wanted.name in SCALED:
        raise AlterError(f"{wanted}: not a dtype to convert to; take a float, integer, complex or bool dtype")

    def convert(tensor: LazyTensor) -> LazyTensor:
        blocks = find_blocks(tensor)
        tensor = tensor if blocks is None else blocks.dequantized()
        if tensor.dtype is wanted:
            return tensor
        if tensor.dtype.kind not in NUMBERS or not tensor.dtype.itemsize:
            raise AlterError(f"{tensor!r}: cannot be converted to {wanted}")
        if tensor.dtype.kind == "complex" and wanted.kind != "complex":
            raise AlterError(f"{tensor!r}: the imaginary part would be lost; take the real part in Python first")
        return map_elements(tensor, wanted, partial(round_to, wanted))

    return convert


NUMBERS = ("float", "int", "uint", "bool", "complex")
SCALED = ("float8_e8m0fnu", "float4_e2m1fn_x2")  # parts of a number in blocks that share a scale
_LARGEST = {"float8_e4m3fn": 448.0}  # where PyTorch takes the largest one for what is beyond the range


def round_to(wanted: DType, values: Any, out: Any = None) -> Any:
    """Elements in another dtype, rounded as PyTorch does; in the array `out` if there is one."""
    import numpy

    with numpy.errstate(all="ignore"):  # beyond the range is infinity, where there is one, as in PyTorch
        if wanted.name in _LARGEST:
            most = _LARGEST[wanted.name]
            values = values.astype(numpy.float32 if values.dtype.itemsize < 4 else values.dtype).clip(-most, most)
        if wanted.kind == "complex" and values.dtype.itemsize == 4 and values.dtype.isbuiltin == 2:
            values = values.astype(numpy.complex64)  # ml_dtypes 0.6 converts complex32 and bcomplex32 by way of bool
        if out is None:
            return values.astype(wanted.numpy)
        out[...] = values
        return out


@on_trees
def transpose(state: Layout, patterns: Patterns, dims: Sequence[int] | None = None) -> Layout:
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
        return tensor.replace(shape=shape, strides=strides).contiguous()

    return map_tensors(state, patterns, make)


@on_trees
def reshape(state: Layout, patterns: Patterns, shape: Sequence[int]) -> Layout:
    """Give tensors another shape of as many elements; one size may be -1.

    Raises:
        AlterError: nothing matches, or a tensor has another number of elements.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> reshape(state, "conv1.weight", (6, -1))["conv1.weight"].shape
    (6, 75)
    """

    def make(tensor: LazyTensor) -> LazyTensor:
        known = math.prod(size for size in shape if size != -1)
        wanted = tuple(tensor.numel() // known if size == -1 and known else size for size in shape)
        if not tensor.dtype.bits:
            raise AlterError(f"{tensor!r}: cannot be given another shape, for the size of its elements is not known")
        result = tensor.contiguous().replace(shape=wanted)
        if list(shape).count(-1) > 1 or any(size < 0 for size in wanted) or result.numel() != tensor.numel():
            raise AlterError(f"{tensor!r}: has {tensor.numel():,} elements, which {tuple(shape)} does not")
        return result

    return map_tensors(state, patterns, make)


@on_trees
def slice(state: Layout, patterns: Patterns, index: Any) -> Layout:
    """Take a part of tensors, by integers, slices and `...`, or by a text such as `"0:5,:"`.

    Raises:
        AlterError: nothing matches, or the index is outside of a tensor.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> slice(state, "fc3.*", "0:5")["fc3.weight"].shape
    (5, 84)
    """
    index = parse_index(index) if isinstance(index, str) else index

    def make(tensor: LazyTensor) -> LazyTensor:
        try:
            return _mark(tensor[index], tensor)
        except (IndexError, ValueError) as error:
            raise AlterError(f"{tensor!r}: {error}") from error

    return map_tensors(state, patterns, make)


def parse_index(text: str) -> tuple[Any, ...]:
    """`"0:5,:,-1,..."` as numpy has it.

    >>> parse_index("0:5, :, ...")
    (slice(0, 5, None), slice(None, None, None), Ellipsis)
    """
    items: list[Any] = []
    for part in text.split(","):
        part = part.strip()
        try:
            bounds = [int(number) if number.strip() else None for number in part.split(":")] if part != "..." else []
        except ValueError:
            raise AlterError(f"{text!r}: not an index; write it as 0:5,:,-1") from None
        if len(bounds) > 3 or (len(bounds) == 1 and bounds[0] is None):
            raise AlterError(f"{text!r}: not an index; write it as 0:5,:,-1")
        items.append(... if not bounds else bounds[0] if len(bounds) == 1 else builtins.slice(*bounds))
    return tuple(items)


def _mark(result: LazyTensor, *parts: LazyTensor) -> LazyTensor:
    """A tensor with the flags and Python attributes of those that it is made of, which are alike."""
    first, absent = parts[0], object()
    alike = [dict(leaves(part.attributes or {})) for part in parts]
    for keys in (keys for one in alike[1:] for keys in (alike[0] | one)):
        if any(not is_same(alike[0].get(keys, absent), one.get(keys, absent)) for one in alike):
            raise AlterError(f"the parts differ in their attribute {keys[0]!r}; remove it in Python first")
    flags = {name: getattr(first, name) for name in ("requires_grad", "parameter", "attributes", "ndarray")}
    return result.replace(**flags)


@on_trees
def pad(state: Layout, patterns: Patterns, shape: Sequence[int], value: float = 0) -> Layout:
    """Enlarge tensors at the end of each dimension; -1 leaves one as it is.

    Raises:
        AlterError: nothing matches, or a tensor is larger, or has other dimensions, or cannot hold the value.

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
        if not _holds(tensor.dtype, value):
            raise AlterError(f"{tensor!r}: cannot be padded with {value!r}, which is no {tensor.dtype}")
        wanted = tuple(own if size == -1 else size for size, own in zip(shape, tensor.shape, strict=True))
        name = tensor.storage.source.name
        return _mark(assemble(tensor.dtype, wanted, [((0,) * tensor.ndim, tensor)], name, value), tensor)

    return map_tensors(state, patterns, make)


def _holds(kind: DType, value: Any) -> bool:
    """Whether a dtype has the number, or for a float one near it; booleans are for bool alone."""
    import numpy

    only = {bool: "bool", complex: "complex"}.get(type(value), kind.kind)
    if not isinstance(value, Number) or kind.kind != only:
        return False
    try:
        with numpy.errstate(all="ignore"):
            made = numpy.array(value).astype(kind.numpy)
        if kind.numpy.kind in "iub":
            return bool(made == value)
        return kind.kind == "complex" or not math.isfinite(value) or math.isfinite(float(made))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


@on_trees
def split(
    state: Layout, path: str, into: Sequence[str], dim: int | None = None, sizes: Sequence[int] | None = None
) -> Layout:
    """Make several tensors of one, such as q, k and v of a fused projection.

    Args:
        state: any state_dict or checkpoint.
        path: a pattern in the language of rules: `"layers.{n}.qkv"`, for its weight and bias alike.
        into: the new paths: `["layers.{n}.q", "layers.{n}.k", "layers.{n}.v"]`.
        dim: the dimension to split; by default that of the outputs: the first, or the last of a matrix whose bias says
            so, as in GPT-2, whose `Conv1D` has its weights transposed.
        sizes: how much of it each gets; by default equal parts.

    Raises:
        AlterError: nothing matches, or the sizes do not make up the dimension.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> list(split(state, "fc{n}.bias", ["fc{n}.first", "fc{n}.second"]))[-2:]
    ['fc3.first', 'fc3.second']
    """
    if isinstance(into, str) or not into:
        raise AlterError(f"{into!r}: expected a list of new names")
    steps = [rules.Rules({path: new}) for new in into]
    outline: dict[str, str | Build] = {}
    run: list[str] = []  # the entries of one module, whose first parts come before their second ones

    def put(new: str, origin: str | Build) -> None:
        if new in outline:
            old, other = (part if isinstance(part, str) else part.sources[0] for part in (origin, outline[new]))
            raise AlterError(f"{old!r} and {other!r} both become {new!r}")
        outline[new] = origin

    def flush() -> None:
        for number, step in enumerate(steps):
            for old in run:
                axis = _find_outputs(state, old) if dim is None else dim
                put(step(old), Build((old,), partial(piece, number, len(into), axis, sizes)))
        run.clear()

    for old, leaf in state.leaves.items():
        hit = is_array(leaf) and steps[0].matches(old)
        if run and not (hit and old.rpartition(".")[0] == run[-1].rpartition(".")[0]):
            flush()
        if hit:
            run.append(old)
        else:
            put(old, old)
    flush()
    if all(isinstance(origin, str) for origin in outline.values()):
        raise no_match_error(path, sum(map(is_array, state.leaves.values())), "tensor")
    return rebuild(state, outline)


def _find_outputs(state: Layout, path: str) -> int:
    """The dimension of a tensor that has as many elements as its module has outputs, by the bias of the module."""
    above = path.rpartition(".")[0]
    shape, bias = as_lazy(state.leaves[path]).shape, state.leaves.get(f"{above}.bias" if above else "bias")
    if len(shape) != 2 or not is_array(bias):
        return 0
    return int(shape[0] != shape[1] and tuple(as_lazy(bias).shape) == (shape[1],))


def piece(number: int, count: int, dim: int, sizes: Sequence[int] | None, tensor: LazyTensor) -> LazyTensor:
    """One of the parts of a tensor along a dimension, equal ones or of some sizes."""
    whole = tensor.shape[dim] if -tensor.ndim <= dim < tensor.ndim else -1
    parts = [whole // count] * count if sizes is None else list(sizes)
    if whole < 0 or sum(parts) != whole or len(parts) != count or any(size < 0 for size in parts):
        said = f"{count} equal parts" if sizes is None else f"{count} parts of {list(sizes)}"
        raise AlterError(f"{tensor.shape} cannot be split along {dim} into {said}")
    start = sum(parts[:number])
    index = [builtins.slice(None)] * (dim % tensor.ndim) + [builtins.slice(start, start + parts[number])]
    return _mark(tensor[tuple(index)], tensor)


@on_trees
def fuse(state: Layout, paths: Sequence[str], into: str, dim: int | None = None) -> Layout:
    """Make one tensor of several, one after the other along a dimension: the inverse of `split`.

    Args:
        state: any state_dict or checkpoint.
        paths: patterns in the language of rules: `["layers.{n}.q", "layers.{n}.k", "layers.{n}.v"]`.
        into: the new path: `"layers.{n}.qkv"`.
        dim: the dimension that grows; by default as for `split`. The biases of square matrices do not tell it.

    Raises:
        AlterError: a part is missing, or shapes or dtypes differ, or an optimizer does not treat the parts alike.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")["model_state"]
    >>> parts = split(state, "fc3", ["a", "b"])
    >>> fuse(parts, ["a", "b"], "fc3")["fc3.weight"].shape
    (10, 84)
    """
    found: dict[str, dict[int, str]] = {}
    taken: dict[str, str] = {}
    for number, pattern in enumerate(paths):
        step = rules.Rules({pattern: into})
        for old, leaf in state.leaves.items():
            if is_array(leaf) and old not in taken and step.matches(old):
                new = taken[old] = step(old)
                found.setdefault(new, {})[number] = old
    if not found:
        raise no_match_error(", ".join(paths), sum(map(is_array, state.leaves.values())), "tensor")
    outline: dict[str, str | Build] = {}
    for old in state.leaves:
        new = taken.get(old, old)
        if old not in taken:
            if new in found:
                raise AlterError(f"{old!r}: is there already; what is fused needs another name")
            outline[new] = old
        elif new not in outline:
            if len(found[new]) < len(paths):
                absent = next(pattern for number, pattern in enumerate(paths) if number not in found[new])
                raise AlterError(f"{new}: has no part for {absent!r}")
            parts = tuple(found[new][number] for number in range(len(paths)))
            axis = max(_find_outputs(state, part) for part in parts) if dim is None else dim
            outline[new] = Build(parts, partial(join, axis))
    return rebuild(state, outline)


def join(dim: int, *parts: LazyTensor) -> LazyTensor:
    """Tensors one after the other along a dimension."""
    first = parts[0]
    axis = dim % max(first.ndim, 1)
    for part in parts:
        others = [s for d, s in enumerate(part.shape) if d != axis], [s for d, s in enumerate(first.shape) if d != axis]
        alike = part.dtype is first.dtype and part.ndim == first.ndim and others[0] == others[1]
        if not alike or not -first.ndim <= dim < first.ndim:
            raise AlterError(f"{part.dtype} {part.shape} does not go with {first.dtype} {first.shape} along {dim}")
    chunks, start = [], 0
    for part in parts:
        chunks.append((tuple(start if d == axis else 0 for d in range(first.ndim)), part))
        start += part.shape[axis]
    shape = tuple(start if d == axis else size for d, size in enumerate(first.shape))
    return _mark(assemble(first.dtype, shape, chunks, first.storage.source.name), *parts)
