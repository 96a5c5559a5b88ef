"""Checks that the indices of sparse, nested and jagged tensors lie within them, before PyTorch makes these.

By default PyTorch checks nothing, and its kernels follow an index out of bounds to foreign memory. Each tensor of
indices is read once, whoever refers to it:

    sparse COO           indices (sparse dims, nnz): each below its size; ascending where they claim to be coalesced
    sparse CSR/BSR       crow_indices (…, rows + 1): from 0 to nnz, never falling, no row longer than it is wide
                         col_indices (…, nnz): below the number of columns, ascending within a row
    sparse CSC/BSC       the same with columns and rows in each other's place
    nested               sizes, strides (n, dims) and offsets (n): the last element of each within the values
    jagged               offsets (n + 1): never falling, within the ragged dimension; offsets + lengths as well

Sources: ATen/native/sparse/ValidateCompressedIndicesCommon.h and SparseTensor.cpp, ATen/NestedTensorImpl.cpp,
torch/nested/_internal/nested_tensor.py (PyTorch 2.13).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from statedict.errors import CorruptFileError, LimitError
from statedict.pickles.tables import SPARSE
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.values import Size

_READS = 8  # times that a storage may be read for its indices, which different views of it can ask for
_ALLOWANCE = 1 << 20  # bytes beyond that


class Indices:
    """Reads tensors of indices, each once, in the storages of the file: PyTorch would see no others."""

    def __init__(self, storages: Iterable[Storage]) -> None:
        self._storages = {*storages}
        self._known: dict[Any, Any] = {}
        self._read: Counter[Storage] = Counter()

    def check(self, name: str, parts: Mapping[str, Any]) -> None:
        """Check the parts of a `torch.sparse_coo` or another kind of tensor of the module docstring.

        Raises:
            CorruptFileError: it breaks an invariant of its kind.
            LimitError: the check would take more than the file's size justifies.
        """
        if name in _KINDS:
            _KINDS[name](self, parts, *_LAYOUTS.get(name, ()))

    def tensor(self, parts: Mapping[str, Any], part: str, ndim: int | None = None) -> LazyTensor:
        """A part that holds integers."""
        indices = _tensor(parts, part)
        _expect(indices.dtype.name in ("int64", "int32"), part, "int64 or int32", indices.dtype)
        if indices.storage not in self._storages or indices.nbytes > indices.storage.nbytes:
            raise LimitError(f"{part}: {indices.nbytes:,} bytes of indices would be copied; refused")
        _expect(ndim is None or indices.ndim == ndim, part, f"{ndim} dimensions", f"shape {indices.shape}")
        return indices

    def facts(self, find: Any, *tensors: LazyTensor) -> Any:
        """The result of `find` for the values of some tensors."""
        key = (find, *(tensor.region for tensor in tensors))
        if key not in self._known:
            for tensor in tensors:
                self._read[tensor.storage] += tensor.nbytes
                if self._read[tensor.storage] > _READS * tensor.storage.nbytes + _ALLOWANCE:
                    raise LimitError("too many views of the same indices to check")
            self._known[key] = find(*(tensor.numpy() for tensor in tensors))
        return self._known[key]


def _expect(holds: object, what: str, expected: object, got: object) -> None:
    if not holds:
        got = f"shape {got.shape} of {got.dtype}" if isinstance(got, LazyTensor) else got
        raise CorruptFileError(f"{what}: expected {expected}, got {got}")


def _expect_within(least: int, most: int, what: str, bound: int, before: str = "0 to") -> None:
    _expect(least >= 0 and most <= bound, what, f"{before} {bound:,}", f"{least if least < 0 else most:,}")


def _tensor(parts: Mapping[str, Any], part: str) -> LazyTensor:
    value: Any = parts.get(part)
    _expect(type(value) is LazyTensor, part, "a tensor", "none" if value is None else f"a {type(value).__name__}")
    return value  # type: ignore[no-any-return]


def _size(parts: Mapping[str, Any]) -> tuple[int, ...]:
    size: Any = parts.get("size")
    valid = type(size) in (tuple, Size) and all(type(n) is int and 0 <= n < 1 << 63 for n in size)
    _expect(valid, "size", "a torch.Size", repr(size)[:100])
    return tuple(size)


def _check_coo(indices: Indices, parts: Mapping[str, Any]) -> None:
    size, values, coalesced = _size(parts), _tensor(parts, "values"), parts.get("is_coalesced")
    at = indices.tensor(parts, "indices", 2)
    _expect(at.dtype.name == "int64", "indices", "int64", at.dtype)
    dims, count = at.shape
    _expect(values.shape[:1] == (count,), "values", f"one for each of {count:,} indices", f"shape {values.shape}")
    fits = dims + values.ndim - 1 == len(size) and values.shape[1:] == size[dims:]
    _expect(fits, "size", f"{dims} sizes and then {values.shape[1:]}", size)
    _expect(type(coalesced) in (bool, type(None)), "is_coalesced", "True or False", f"a {type(coalesced).__name__}")
    if count and not dims:  # indices of no bytes, of which there may be any number
        few = not coalesced or count == 1
        _expect(few, "indices", "at most one without axes, as they are coalesced", f"{count:,}")
    if not count or not dims:
        return
    ascending, bounds = indices.facts(_extents, at)
    for axis, (least, most) in enumerate(bounds):
        _expect_within(least, most, f"indices of axis {axis}", size[axis] - 1)
    _expect(ascending or not coalesced, "indices", "ascending order, as they are coalesced", "another one")


def _extents(indices: Any) -> tuple[bool, list[tuple[int, int]]]:
    """Whether columns ascend, and the least and the greatest number of each row."""
    import numpy

    before = numpy.zeros(indices.shape[1] - 1, bool)
    alike = ~before
    for row in indices:
        before |= alike & (row[:-1] < row[1:])
        alike &= row[:-1] == row[1:]
    return bool(before.all()), [(int(row.min()), int(row.max())) for row in indices]


def _check_compressed(
    indices: Indices, parts: Mapping[str, Any], outer: str, inner: str, axis: int, blocked: bool
) -> None:
    size, values = _size(parts), _tensor(parts, "values")
    outer_at, inner_at = indices.tensor(parts, outer), indices.tensor(parts, inner)
    batch, shape = outer_at.ndim - 1, f"shape {values.shape}"
    alike = batch >= 0 and inner_at.ndim == batch + 1 and inner_at.dtype is outer_at.dtype
    _expect(alike, inner, f"{outer_at.ndim} dimensions of {outer_at.dtype}, as {outer}", inner_at)
    fits = values.ndim >= batch + 1 + 2 * blocked and len(size) == values.ndim + 1 - 2 * blocked
    _expect(fits, "values", f"the dimensions of size {size}", shape)
    count, blocks = inner_at.shape[batch], values.shape[batch + 1 : batch + 3] if blocked else (1, 1)
    _expect(values.shape[batch] == count, "values", f"one for each of {count:,} {inner}", shape)
    alike = size[:batch] == outer_at.shape[:batch] == inner_at.shape[:batch] == values.shape[:batch]
    _expect(alike, "batch dimensions", f"{size[:batch]}, as in size", outer_at.shape[:batch])
    dense = size[batch + 2 :]
    _expect(values.shape[batch + 1 + 2 * blocked :] == dense, "values", f"dense dimensions {dense}", shape)
    whole = 0 not in blocks and not any(n % block for n, block in zip(size[batch:], blocks, strict=False))
    _expect(whole, "blocks", f"a divisor of each of {size[batch : batch + 2]}", tuple(blocks))
    rows, width = size[batch + axis] // blocks[axis], size[batch + 1 - axis] // blocks[1 - axis]
    _expect(outer_at.shape[batch] == rows + 1, outer, f"{rows + 1:,} numbers", f"{outer_at.shape[batch]:,}")
    if not prod(size[:batch]):
        return
    first, last, shortest, longest = indices.facts(_steps, outer_at)
    ends = first == (0, 0) and last == (count, count)
    _expect(ends, outer, f"0 to begin and {count:,} to end with", f"{first[1] or first[0]:,} and {last[1]:,}")
    _expect_within(shortest, longest, outer, width, "steps of 0 to")
    if count:
        least, most, ascending = indices.facts(_within, outer_at, inner_at)
        _expect_within(least, most, inner, width - 1)
        _expect(ascending, inner, f"ascending order within each of the {rows:,}", "another one")


def _steps(outer: Any) -> tuple[tuple[int, int], tuple[int, int], int, int]:
    """The extremes of the first numbers, of the last ones, and the smallest and the largest step."""
    first, last = outer[..., 0], outer[..., -1]
    ends = (int(first.min()), int(first.max())), (int(last.min()), int(last.max()))
    before, after = outer[..., :-1], outer[..., 1:]
    if not before.size:
        return *ends, 0, 0
    if outer.min() < 0:  # first, for a difference could go past the greatest number
        return *ends, int(outer.min()), 0
    steps = after - before
    return *ends, int(steps.min()), int(steps.max())


def _within(outer: Any, inner: Any) -> tuple[int, int, bool]:
    """The extremes of the inner indices, and whether they ascend within each step of the outer ones."""
    count = inner.shape[-1]
    numbers, ends = inner.reshape(-1, count), outer.reshape(-1, outer.shape[-1])
    follows = numbers[:, :-1] < numbers[:, 1:]
    batch, at = ((ends > 0) & (ends < count)).nonzero()
    follows[batch, ends[batch, at] - 1] = True  # the first of a step follows whatever comes before
    return int(inner.min()), int(inner.max()), bool(follows.all())


def _check_nested(indices: Indices, parts: Mapping[str, Any]) -> None:
    values, offsets = _tensor(parts, "values"), indices.tensor(parts, "offsets", 1)
    sizes, strides = indices.tensor(parts, "sizes", 2), indices.tensor(parts, "strides", 2)
    what, kinds = "sizes, strides and offsets", (sizes.dtype, strides.dtype, offsets.dtype)
    _expect({kind.name for kind in kinds} == {"int64"}, what, "int64", ", ".join(map(str, kinds)))
    dense = values.ndim == 1 and values.strides is None
    _expect(dense, "values", "one dimension without gaps", f"shape {values.shape}")
    alike = strides.shape == sizes.shape and offsets.shape == sizes.shape[:1]
    _expect(alike, what, "a row for each tensor", f"{sizes.shape}, {strides.shape}")
    if offsets.shape[0]:
        least, end = indices.facts(_ends, sizes, strides, offsets)
        got = "a negative number" if least < 0 else f"{end:,}"
        _expect(least >= 0 and end <= values.shape[0], what, f"elements up to {values.shape[0]:,}", got)


def _ends(sizes: Any, strides: Any, offsets: Any) -> tuple[int, int]:
    """The least of all numbers, and where the elements end."""
    least = min(int(numbers.min()) for numbers in (sizes, strides, offsets) if numbers.size)
    if least < 0:
        return least, 0
    # floats are exact up to 2**53: no file has as many elements, and no product of them falls back below it
    reach = ((sizes - 1.0) * strides).sum(axis=1) + offsets + 1.0
    ends = reach[(sizes > 0).all(axis=1)]
    return least, int(max(ends.max() if ends.size else 0, offsets.max()))


def _check_jagged(indices: Indices, parts: Mapping[str, Any]) -> None:
    values, offsets, ragged = _tensor(parts, "values"), indices.tensor(parts, "offsets", 1), parts.get("_ragged_idx", 1)
    inside = type(ragged) is int and 1 <= ragged <= values.ndim
    _expect(inside, "_ragged_idx", f"1 to {values.ndim}", repr(ragged)[:100])
    _expect(offsets.shape[0], "offsets", "at least one", "none")
    most, count = values.shape[ragged - 1], offsets.shape[0] - 1
    lengths = None if parts.get("lengths") is None else indices.tensor(parts, "lengths", 1)
    alike = lengths is None or (lengths.shape[0] == count and lengths.dtype is offsets.dtype)
    _expect(alike, "lengths", f"{count:,} of {offsets.dtype}", lengths)
    (first, _), (last, _), shortest, _ = indices.facts(_steps, offsets)
    got = "a negative number or step" if min(first, shortest) < 0 else f"{last:,}"
    rising = first >= 0 and shortest >= 0 and last <= most
    _expect(rising, "offsets", f"rising numbers up to {most:,}", got)
    if lengths is not None and count:
        least, end = indices.facts(_reach, offsets, lengths)
        _expect_within(least, end, "lengths", most, "0 or more, from the offsets up to")


def _reach(offsets: Any, lengths: Any) -> tuple[int, int]:
    return int(lengths.min()), int((offsets[:-1] + lengths.astype("f8")).max())


# the layout → the outer and inner indices, the axis of the outer ones, whether values are blocks
_LAYOUTS = {
    layout: (*names[:2], int(layout.endswith("c")), "_bs" in layout)
    for layout, names in SPARSE.items()
    if layout != "torch.sparse_coo"
}
_KINDS: dict[str, Any] = {
    "torch.sparse_coo": _check_coo,
    **dict.fromkeys(_LAYOUTS, _check_compressed),
    "torch.nested": _check_nested,
    "torch.jagged": _check_jagged,
}
