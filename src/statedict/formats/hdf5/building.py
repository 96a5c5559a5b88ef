"""Writes an HDF5 file: libhdf5 lays it out in memory, without the data, which the pipeline copies into their places."""

from __future__ import annotations

import io
from contextlib import ExitStack

from statedict.errors import UnsupportedError
from statedict.formats.hdf5.elements import NATIVE
from statedict.formats.hdf5.objects import Group
from statedict.formats.hdf5.stream import import_h5py
from statedict.io.pipeline import Part
from statedict.io.source import BytesSource
from statedict.tensor.lazy import LazyTensor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.io.pipeline import Sink

_PAGE = 4096
_ALIGNED, _ALIGNMENT = 256, 64  # bytes from which on an object begins at a multiple of bytes, so that it can be mapped
_MAX_HEADER = 64_000  # bytes of the attributes of an object that fit into its header


class _Skeleton(io.RawIOBase):
    """A file of which only the pages are kept that someone wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[int, bytearray] = {}
        self.at = self.size = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def truncate(self, size: int | None = None) -> int:
        self.size = self.at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._move(view, True)
        self.size = max(self.size, self.at)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._move(view, False)
        return len(view)

    def _move(self, view: memoryview, write: bool) -> None:
        done = 0
        while done < len(view):
            index, within = divmod(self.at, _PAGE)
            part = view[done : done + _PAGE - within]
            if write:
                self.pages.setdefault(index, bytearray(_PAGE))[within : within + len(part)] = part
            else:
                part[:] = self.pages.get(index, bytes(_PAGE))[within : within + len(part)]
            done, self.at = done + len(part), self.at + len(part)

    def between(self, begin: int, end: int) -> bytes:
        """The bytes of a range; zeros where nobody wrote."""
        data, self.at = bytearray(end - begin), begin
        self._move(memoryview(data), False)
        return bytes(data)


class _Builder:
    def __init__(self) -> None:
        self.data: list[tuple[int, LazyTensor]] = []  # where tensors go
        self.known: dict[object, Any] = {}  # region of a tensor → its dataset

    def add(self, group: Any, plan: Group, path: str) -> None:
        """Add what a plan says to a group of h5py."""
        for name, value in plan.attributes.items():
            _set_attribute(group, name, value)
        for key, one in plan.entries.items():
            where = f"{path}.{key}" if path else key
            check_name(key, where)
            if isinstance(one, Group):
                self.add(group.create_group(key, track_order=True), one, where)
            elif isinstance(one, str):
                group[key] = one
            else:
                self.add_tensor(group, key, one, where)

    def add_tensor(self, group: Any, key: str, tensor: LazyTensor, where: str) -> None:
        """Add a dataset for a tensor; a second name for one that is there already."""
        import h5py
        from h5py import h5d, h5p, h5s

        region = tensor.region
        if region in self.known:
            group[key] = self.known[region]
            return
        if len(tensor.shape) > 32:
            raise UnsupportedError(f"{where}: HDF5 has at most 32 dimensions, not {len(tensor.shape)}; reshape it")
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_layout(h5d.CONTIGUOUS)
        plan.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5d.FILL_TIME_NEVER)
        plan.set_obj_track_times(False)
        space = h5s.create_simple(tensor.shape) if tensor.shape else h5s.create(h5s.SCALAR)
        made = h5d.create(group.id, key.encode(), type_of(tensor, where), space, plan)
        self.known[region] = dataset = h5py.Dataset(made)
        if tensor.dtype.name not in NATIVE and tensor.dtype.name != f"V{tensor.dtype.itemsize}":
            dataset.attrs["dtype"] = tensor.dtype.name
        if tensor.nbytes:
            self.data.append((made.get_offset(), tensor.contiguous()))


def check_name(key: Any, where: str) -> None:
    """Refuse a key that is no name in HDF5."""
    if type(key) is not str or not key or "/" in key or "\0" in key or key == "." or not _is_unicode(key):
        raise UnsupportedError(f"{where!r:.100}: {key!r:.60} is no name in HDF5, which is text without /; rename it")


def _is_unicode(text: str) -> bool:
    return text.isascii() or text.encode("utf-8", "replace").decode() == text


def type_of(tensor: LazyTensor, where: str) -> Any:
    """The type of HDF5 for the elements of a tensor: opaque bytes for those that NumPy does not have."""
    from h5py import h5t

    kind = tensor.dtype
    if not kind.itemsize:
        raise UnsupportedError(f"{where}: HDF5 has no elements of {kind.bits} bits; convert it first")
    if kind.name not in NATIVE:
        return h5t.create(h5t.OPAQUE, kind.itemsize)
    return h5t.py_create(kind.numpy, logical=True)


def _set_attribute(group: Any, name: str, value: Any) -> None:
    """Set a text, or a list of texts, which is cut into several attributes if it is long, as Keras does."""
    import numpy

    if isinstance(value, str):
        group.attrs[name] = value
        return
    names = [text.encode() for text in value]
    width = max(map(len, names), default=1) or 1
    step = max(1, _MAX_HEADER // width)
    array = numpy.array(names, f"S{width}")
    if len(names) <= step:
        group.attrs[name] = array
        return
    for index, begin in enumerate(range(0, len(names), step)):
        group.attrs[f"{name}{index}"] = array[begin : begin + step]


def write_group(root: Group, sink: Sink) -> None:
    """Write a file with these groups, tensors, texts and attributes.

    Raises:
        UnsupportedError: HDF5 cannot hold a name or a dtype.
    """
    h5py = import_h5py()
    skeleton, builder = _Skeleton(), _Builder()
    with ExitStack() as stack:
        options = {"alignment_threshold": _ALIGNED, "alignment_interval": _ALIGNMENT}
        file = stack.enter_context(h5py.File(skeleton, "w", track_order=True, **options))
        builder.add(file, root, "")
        builder.known.clear()
    parts, end = list[Part](), 0
    for begin, tensor in sorted(builder.data, key=lambda row: row[0]):
        head, storage = skeleton.between(end, begin), tensor.storage
        parts.append(Part(begin, storage.source, storage.offset + tensor.offset, tensor.nbytes, head))
        end = begin + tensor.nbytes
    tail = BytesSource(skeleton.between(end, skeleton.size))
    parts.append(Part(end, tail, 0, tail.size))
    sink.reserve(skeleton.size)
    sink.put(parts)
