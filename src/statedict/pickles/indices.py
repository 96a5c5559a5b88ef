"""Whether the indices of sparse, nested and jagged tensors lie within them, before PyTorch makes these.

PyTorch checks none of it by default, and its kernels follow an index out of bounds to foreign memory. The facts of
each tensor of indices are found by reading it once, whoever refers to it:

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
from math import prod

from statedict.errors import CorruptFileError, LimitError
from statedict.tensor.lazy import LazyTensor
from statedict.values import Size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from statedict.tensor.lazy import Storage

_READS = 8  # times that a storage may be read for its indices, which different views of it can ask for
_ALLOWANCE = 1 << 20  # bytes beyond that


class Indices:
    """Reads tensors of indices, each once.

    Args:
        storages: of the file; indices in any other memory are not the ones that PyTorch would see.
    """

    def __init__(self, storages: Iterable[Storage]) -> None:
        self._storages = {*storages}
        self._known: dict[Any, Any] = {}
        self._read: Counter[Storage] = Counter()

    def check(self, name: str, parts: Mapping[str, Any]) -> None:
        """Check a tensor that consists of other tensors.

        Args:
            name: of its kind, `torch.sparse_coo`.
            parts: as composites.py names them.

        Raises:
            CorruptFileError: it breaks an invariant of its kind.
            LimitError: to check it would take more than the file's size justifies.
        """
        check = _KINDS.get(name)
        if check is not None:
            check(self, parts, *_LAYOUTS.get(name, ()))

    def tensor(self, parts: Mapping[str, Any], part: str, ndim: int | None = None) -> LazyTensor:
        """A part that holds integers."""
        found = _tensor(parts, part)
        if found.dtype.name not in ("int64", "int32"):
            raise _wrong(part, "int64 or int32", str(found.dtype))
        if found.storage not in self._storages or found.nbytes > found.storage.nbytes:
            raise LimitError(f"{part}: {found.nbytes:,} bytes of indices would be copied; refused")
        if ndim is not None and found.ndim != ndim:
            raise _wrong(part, f"{ndim} dimensions", f"shape {found.shape}")
        return found

    def facts(self, find: Any, *tensors: LazyTensor) -> Any:
        """What `find` finds in the values of some tensors of one shape a batch."""
        key = (find, *(tensor.region for tensor in tensors))
        if key not in self._known:
            for tensor in tensors:
                self._read[tensor.storage] += tensor.nbytes
                if self._read[tensor.storage] > _READS * tensor.storage.nbytes + _ALLOWANCE:
                    raise LimitError("many views of the same indices; to check all of them would take too long")
            self._known[key] = find(*(tensor.numpy() for tensor in tensors))
        return self._known[key]


def _wrong(what: str, expected: str, got: str) -> CorruptFileError:
    return CorruptFileError(f"{what}: expected {expected}, got {got}")


def _tensor(parts: Mapping[str, Any], part: str) -> LazyTensor:
    found = parts.get(part)
    if type(found) is not LazyTensor:
        raise _wrong(part, "a tensor", "none" if found is None else f"a {type(found).__name__}")
    return found


def _size(parts: Mapping[str, Any]) -> tuple[int, ...]:
    size: Any = parts.get("size")
    if type(size) not in (tuple, Size) or not all(type(n) is int and 0 <= n < 1 << 63 for n in size):
        raise _wrong("size", "a torch.Size", repr(size)[:100])
    return tuple(size)


def _coo(indices: Indices, parts: Mapping[str, Any]) -> None:
    size, values, coalesced = _size(parts), _tensor(parts, "values"), parts.get("is_coalesced")
    at = indices.tensor(parts, "indices", 2)
    if at.dtype.name != "int64":
        raise _wrong("indices", "int64", str(at.dtype))
    dims, count = at.shape
    if values.ndim < 1 or values.shape[0] != count:
        raise _wrong("values", f"one for each of {count:,} indices", f"shape {values.shape}")
    if dims + values.ndim - 1 != len(size) or values.shape[1:] != size[dims:]:
        raise _wrong("size", f"{dims} sizes and then {values.shape[1:]}", f"{size}")
    if type(coalesced) not in (bool, type(None)):
        raise _wrong("is_coalesced", "True or False", f"a {type(coalesced).__name__}")
    if not count:
        return
    if coalesced and count > 1 and not dims:  # indices of no bytes, of which there may be any number
        raise _wrong("indices", "at most one without axes, for they are coalesced", f"{count:,}")
    if not dims:
        return
    ascending, bounds = indices.facts(_extents, at)
    for axis, (least, most) in enumerate(bounds):
        if least < 0 or most >= size[axis]:
            raise _wrong(f"indices of axis {axis}", f"0 to {size[axis] - 1:,}", f"{least if least < 0 else most:,}")
    if coalesced and not ascending:
        raise _wrong("indices", "an ascending order, for they are coalesced", "another one")


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
    batch = outer_at.ndim - 1
    if batch < 0 or inner_at.ndim != batch + 1 or inner_at.dtype is not outer_at.dtype:
        raise _wrong(inner, f"{outer_at.ndim} dimensions of {outer_at.dtype}, as {outer}", _describe(inner_at))
    if values.ndim < batch + 1 + 2 * blocked or len(size) != values.ndim + 1 - 2 * blocked:
        raise _wrong("values", f"the dimensions of size {size}", f"shape {values.shape}")
    count, blocks = inner_at.shape[batch], values.shape[batch + 1 : batch + 3] if blocked else (1, 1)
    if values.shape[batch] != count:
        raise _wrong("values", f"one for each of {count:,} {inner}", f"shape {values.shape}")
    if not size[:batch] == outer_at.shape[:batch] == inner_at.shape[:batch] == values.shape[:batch]:
        raise _wrong("batch dimensions", f"{size[:batch]}, as in size", f"{outer_at.shape[:batch]}")
    if values.shape[batch + 1 + 2 * blocked :] != size[batch + 2 :]:
        raise _wrong("values", f"dense dimensions {size[batch + 2 :]}", f"shape {values.shape}")
    if 0 in blocks or any(n % block for n, block in zip(size[batch:], blocks, strict=False)):
        raise _wrong("blocks", f"a divisor of each of {size[batch : batch + 2]}", f"{tuple(blocks)}")
    rows, width = size[batch + axis] // blocks[axis], size[batch + 1 - axis] // blocks[1 - axis]
    if outer_at.shape[batch] != rows + 1:
        raise _wrong(outer, f"{rows + 1:,} numbers", f"{outer_at.shape[batch]:,}")
    if not prod(size[:batch]):
        return
    first, last, shortest, longest = indices.facts(_steps, outer_at)
    if first != (0, 0) or last != (count, count):
        raise _wrong(outer, f"0 to begin and {count:,} to end with", f"{first[1] or first[0]:,} and {last[1]:,}")
    if shortest < 0 or longest > width:
        raise _wrong(outer, f"steps of 0 to {width:,}", f"{shortest if shortest < 0 else longest:,}")
    if count:
        least, most, ascending = indices.facts(_within, outer_at, inner_at)
        if least < 0 or most >= width:
            raise _wrong(inner, f"0 to {width - 1:,}", f"{least if least < 0 else most:,}")
        if not ascending:
            raise _wrong(inner, f"an ascending order within each of the {rows:,}", "another one")


def _describe(tensor: LazyTensor) -> str:
    return f"shape {tensor.shape} of {tensor.dtype}"


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
    if {sizes.dtype.name, strides.dtype.name, offsets.dtype.name} != {"int64"}:
        raise _wrong("sizes, strides and offsets", "int64", f"{sizes.dtype}, {strides.dtype}, {offsets.dtype}")
    if values.ndim != 1 or values.strides is not None:
        raise _wrong("values", "one dimension without gaps", f"shape {values.shape}")
    if strides.shape != sizes.shape or offsets.shape != sizes.shape[:1]:
        raise _wrong("sizes, strides and offsets", "a row for each tensor", f"{sizes.shape}, {strides.shape}")
    if not offsets.shape[0]:
        return
    least, end = indices.facts(_ends, sizes, strides, offsets)
    if least < 0 or end > values.shape[0]:
        got = "a negative number" if least < 0 else f"{end:,}"
        raise _wrong("sizes, strides and offsets", f"elements up to {values.shape[0]:,}", got)


def _ends(sizes: Any, strides: Any, offsets: Any) -> tuple[int, int]:
    """The least of all numbers, and where the elements end.

    As floats, which are exact up to 2**53: no file has as many elements, and no product of them falls back below it.
    """
    least = min(int(numbers.min()) for numbers in (sizes, strides, offsets) if numbers.size)
    if least < 0:
        return least, 0
    reach = ((sizes - 1.0) * strides).sum(axis=1) + offsets + 1.0
    ends = reach[(sizes > 0).all(axis=1)]
    return least, int(max(ends.max() if ends.size else 0, offsets.max()))


def _check_jagged(indices: Indices, parts: Mapping[str, Any]) -> None:
    values, offsets, ragged = _tensor(parts, "values"), indices.tensor(parts, "offsets", 1), parts.get("_ragged_idx", 1)
    if type(ragged) is not int or not 1 <= ragged <= values.ndim:
        raise _wrong("_ragged_idx", f"1 to {values.ndim}", repr(ragged)[:100])
    if not offsets.shape[0]:
        raise _wrong("offsets", "at least one", "none")
    most = values.shape[ragged - 1]
    lengths = None if parts.get("lengths") is None else indices.tensor(parts, "lengths", 1)
    if lengths is not None and (lengths.shape[0] != offsets.shape[0] - 1 or lengths.dtype is not offsets.dtype):
        raise _wrong("lengths", f"{offsets.shape[0] - 1:,} of {offsets.dtype}", _describe(lengths))
    (first, _), (last, _), shortest, _ = indices.facts(_steps, offsets)
    if first < 0 or shortest < 0 or last > most:
        got = "a negative number or step" if min(first, shortest) < 0 else f"{last:,}"
        raise _wrong("offsets", f"rising numbers up to {most:,}", got)
    if lengths is not None and lengths.shape[0]:
        least, end = indices.facts(_reach, offsets, lengths)
        if least < 0 or end > most:
            raise _wrong("lengths", f"0 or more, from the offsets up to {most:,}", f"{least if least < 0 else end:,}")


def _reach(offsets: Any, lengths: Any) -> tuple[int, int]:
    return int(lengths.min()), int((offsets[:-1] + lengths.astype("f8")).max())


# the layout → the outer and inner indices, the axis of the outer ones, whether values are blocks
_LAYOUTS: dict[str, tuple[Any, ...]] = {
    "torch.sparse_csr": ("crow_indices", "col_indices", 0, False),
    "torch.sparse_bsr": ("crow_indices", "col_indices", 0, True),
    "torch.sparse_csc": ("ccol_indices", "row_indices", 1, False),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", 1, True),
}
_KINDS: dict[str, Any] = {
    "torch.sparse_coo": _coo,
    **dict.fromkeys(_LAYOUTS, _check_compressed),
    "torch.nested": _check_nested,
    "torch.jagged": _check_jagged,
}
