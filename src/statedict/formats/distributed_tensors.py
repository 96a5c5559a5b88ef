"""The tensors of a `torch.distributed.checkpoint` directory, assembled from chunks.

A tensor whose chunks are not all there (a rank's file is missing, or not every rank saved) opens all the same. It knows
which boxes are there (`LazyTensor.present_boxes`); these can be read, and reading another is an error that names them.
"""

from __future__ import annotations

from functools import partial
from math import prod

from statedict.dtypes import DType, is_torch_dtype, labelled_dtype
from statedict.errors import CorruptFileError, LimitError
from statedict.formats.kinds import read_part
from statedict.pickles.objects import Global
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.assembled import assemble, covers, missing_error
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import EXPANDED, LazyTensor
from statedict.values import Opaque, Size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from statedict.io.source import Slice
    from statedict.tensor.boxes import Box, Shape
    from statedict.tensor.lazy import Storage


OURS = "statedict"  # an attribute of the index, which PyTorch does not have: what the names do not say of the tree


def format_key(key: Any) -> str:
    """Format a key as PyTorch's planner does in names."""
    return f"torch.{key}" if isinstance(key, DType) else str(key)


def get_fields(value: Any) -> dict[str, Any]:
    """Return the attributes of an object in the metadata."""
    return value.state if isinstance(value, Opaque) and isinstance(value.state, dict) else {}


class Tensors:
    """Assembles the tensors of a directory.

    `places` maps (name, offsets of a chunk), or (name, None) for a value, to where it lies in the files. `where` names
    the index in messages; `lost` lists the missing files.
    """

    def __init__(self, places: dict[tuple[Any, ...], Slice], where: str, lost: Sequence[str] = ()) -> None:
        self.places, self.where, self.lost = places, where, lost
        self._storages: dict[tuple[Any, ...], Storage] = {}  # names that share a chunk are tied

    def make(self, name: str, entry: dict[str, Any]) -> LazyTensor:
        """Make a tensor from its description; FormatError if the index contradicts itself or claims too much."""
        where = f"{self.where}: {name!r}"
        size, (kind, grad) = entry.get("size"), _read_properties(entry.get("properties"))
        if not isinstance(size, Size) or kind is None or not (kind.itemsize or kind.kind == "raw"):
            raise CorruptFileError(f"{where} has no size or dtype")
        if fault := find_shape_fault(size, kind.itemsize or 1):
            raise CorruptFileError(f"{where} has a size that no tensor has: {fault}")
        shape = tuple(size)
        boxes = [self._read_box(name, shape, get_fields(chunk)) for chunk in entry["chunks"]]
        whole = covers(where, shape, boxes)
        chunks = [(*box, place) for box in boxes if (place := self.places.get((name, box[0]))) is not None]
        if not kind.bits:
            kind = _infer_size(kind, [place for _, sizes, place in chunks if 0 not in sizes], name)
        there = sum(place.size for _, _, place in chunks)
        nbytes = sum(prod(sizes) for _, sizes, _ in chunks) * kind.itemsize
        if nbytes > max(EXPANDED, 1024 * there):
            raise LimitError(f"{where} takes {nbytes:,} bytes, its chunks have {there:,}; the metadata is forged")
        first = chunks[0][2] if chunks else None
        parts = [(offsets, partial(_read_chunk, kind, sizes, place, name)) for offsets, sizes, place in chunks]
        held = tuple((offsets, sizes) for offsets, sizes, _ in chunks)
        complete = whole and len(chunks) == len(boxes)
        lack = None if complete else (held, partial(missing_error, where, shape, held, self.lost))
        source = first.name if first else name
        tensor = assemble(kind, shape, parts, source, remote=bool(first and first.remote), lack=lack)
        storage = tensor.storage
        if first is not None and len(chunks) == 1 and storage.nbytes:
            file, begin = first.locate()
            storage = self._storages.setdefault((id(file), begin, first.size, shape, kind.name, held), storage)
        return tensor.replace(storage=storage, requires_grad=grad)

    def _read_box(self, name: str, shape: Shape, chunk: dict[str, Any]) -> Box:
        offsets, sizes = chunk.get("offsets"), chunk.get("sizes")
        if not isinstance(offsets, Size) or not isinstance(sizes, Size) or not len(offsets) == len(sizes) == len(shape):
            raise CorruptFileError(f"{self.where}: a chunk of {name!r} is described wrongly")
        if any(o < 0 or n < 0 or o + n > total for o, n, total in zip(offsets, sizes, shape, strict=True)):
            raise CorruptFileError(f"{self.where}: a chunk of {name!r} lies outside of the tensor")
        return tuple(offsets), tuple(sizes)


def _read_properties(properties: Any) -> tuple[DType | None, bool]:
    """Return dtype and requires_grad of TensorProperties, whose state is a tuple or, in old ones, a dict."""
    state = properties.state if isinstance(properties, Opaque) else None
    if isinstance(state, dict):
        state = tuple(map(state.get, ("dtype", "layout", "requires_grad")))
    found, _, grad, *_ = (*state, None, None, None) if type(state) is tuple else (None, None, None)
    name = found.name.removeprefix("torch.") if type(found) is Global else ""
    kind = labelled_dtype(name) if is_torch_dtype(name) else found
    return kind if isinstance(kind, DType) else None, grad is True


def _infer_size(kind: DType, places: list[Slice], name: str) -> DType:
    """Give a dtype from no table the element size of the first chunk."""
    if not places:
        return labelled_dtype(kind.name, 8)
    tensor = read_part(places[0])
    if not isinstance(tensor, Labelled) or tensor.dtype.name != kind.name:
        raise _no_chunk_error(places[0], name)
    return labelled_dtype(kind.name, 8 * tensor.element_bytes())


def _read_chunk(kind: DType, sizes: Shape, place: Slice, name: str) -> LazyTensor:
    tensor = read_part(place)
    if isinstance(tensor, Labelled) and tensor.dtype.name == kind.name and tensor.element_bytes() * 8 == kind.bits:
        tensor = LazyTensor(kind, tensor.shape, tensor.storage)
    if not isinstance(tensor, LazyTensor) or tensor.shape != sizes or tensor.dtype is not kind:
        raise _no_chunk_error(place, name)
    return tensor


def _no_chunk_error(place: Slice, name: str) -> CorruptFileError:
    return CorruptFileError(f"{place.name}: the chunk of {name!r} is not the tensor that the metadata describes")
