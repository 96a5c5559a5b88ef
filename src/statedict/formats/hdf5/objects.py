"""The groups and datasets of an HDF5 file, as dicts and tensors.

A dataset whose bytes lie side by side is a range of the source. One in chunks, or in a form that no dtype has, is
decoded by libhdf5 when it is read, in panels of many rows. Links to other files, and datasets that lie in other files,
are named and never followed.
"""

from __future__ import annotations

import json
import math
import re
from collections import namedtuple
from functools import partial

from statedict.errors import CorruptFileError, LimitError, TruncatedError
from statedict.formats.hdf5.elements import find_element
from statedict.formats.hdf5.stream import Hdf5File
from statedict.io.source import BytesSource, swap_bytes
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.boxes import PANEL, BoxSource, raw_dtype
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tree.walk import MAX_DEPTH
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.formats.hdf5.elements import Element
    from statedict.io.source import ByteSource

# a group: name → Group or what a dataset becomes; and its attributes, texts, numbers and lists of them
Group = namedtuple("Group", "entries attributes")

_MAX_TEXT = 64 << 20  # bytes of text in one dataset
_MAX_TEXTS = 1 << 20  # texts in one dataset
_MAX_ATTRIBUTE = 1 << 24
_MAX_CHUNK = 1 << 30
_RESERVE, _FACTOR = 64 << 20, 1100  # what a dataset may unpack to, per byte that it has; deflate packs 1032 to 1
_HARD, _SOFT, _EXTERNAL = 0, 1, 64  # kinds of links


def read_objects(source: ByteSource) -> Group:
    """Read all groups, and the headers of the datasets.

    Raises:
        CorruptFileError: the file is damaged.
        LimitError: it has too many entries for its size, or is nested too deep.
    """
    return _Reader(Hdf5File(source)).group_at_root()


class _Reader:
    def __init__(self, file: Hdf5File) -> None:
        self.file, self.source = file, file.source
        self.left = 1000 + file.source.size // 8  # entries that a file of this size can have
        self.known: dict[int, Any] = {}  # address of an object → what it became; None while it is read

    def group_at_root(self) -> Group:
        from h5py import h5g

        with self.file.errors(""):
            root = h5g.open(self.file.file.id, b"/")
        found: Group = self.read(root, "", 0)
        return found

    def read(self, node: Any, path: str, depth: int) -> Any:
        """What an object of the file becomes."""
        from h5py import h5o

        with self.file.errors(path):
            info = h5o.get_info(node)
        if info.addr in self.known:
            found = self.known[info.addr]
            if found is None:
                raise CorruptFileError(f"{self.source.name}: {path}: is a group that it lies in; the file is forged")
            return found
        self.known[info.addr] = None
        if depth > MAX_DEPTH:
            raise LimitError(f"{self.source.name}: {path[:80]}: nested over {MAX_DEPTH} deep")
        with self.file.errors(path):
            attributes = self.attributes(node, path) if info.num_attrs else {}
            if info.type == h5o.TYPE_GROUP:
                found = Group({}, attributes)
                for name, link in self.links(node, path):
                    key = name.decode("utf-8", "backslashreplace")
                    found.entries[key] = self.follow(node, name, link, f"{path}/{key}" if path else key, depth)
            elif info.type == h5o.TYPE_DATASET:
                found = self.dataset(node, path, attributes)
            else:
                found = Opaque("a named type of HDF5")
        self.known[info.addr] = found
        return found

    def links(self, group: Any, path: str) -> list[tuple[bytes, int]]:
        """Name and kind of each link in a group, in the order in which they were made if the file tells."""
        from h5py import h5, h5p

        found: list[tuple[bytes, int]] = []

        def add(name: bytes, info: Any) -> bool | None:
            found.append((name, info.type))
            return True if len(found) > self.left else None

        order = h5.INDEX_NAME
        if group.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED:
            order = h5.INDEX_CRT_ORDER
        group.links.iterate(add, info=True, idx_type=order)
        self.left -= len(found)
        if self.left < 0:
            raise LimitError(
                f"{self.source.name}: {path}: too many entries for its size; the file is damaged or forged"
            )
        return found if order == h5.INDEX_CRT_ORDER else sorted(found, key=lambda row: _natural(row[0]))

    def follow(self, group: Any, name: bytes, link: int, path: str, depth: int) -> Any:
        """What a link leads to."""
        from h5py import h5o

        if link == _HARD:
            return self.read(h5o.open(group, name), path, depth + 1)
        if link in (_SOFT, _EXTERNAL):
            target = group.links.get_val(name)
            where = b" in ".join(reversed(target)) if isinstance(target, tuple) else target
            return Opaque(f"a link to {where.decode('utf-8', 'backslashreplace')[:200]}, which is not followed")
        return Opaque("a link of an unknown kind")

    def attributes(self, node: Any, path: str) -> dict[str, Any]:
        """The attributes of an object that are texts, numbers, or lists of them."""
        import h5py
        from h5py import h5a

        found: dict[str, Any] = {}
        holder = h5py.AttributeManager(_Holder(node))
        for index in range(h5a.get_num_attrs(node)):
            one = h5a.open(node, index=index)
            name = one.name.decode("utf-8", "backslashreplace")
            size = math.prod(one.shape or ()) * one.get_type().get_size()
            if size <= _MAX_ATTRIBUTE and find_element(one.get_type()).label in ("", "text"):
                found[name] = _as_plain(holder[name])
        return found

    def dataset(self, node: Any, path: str, attributes: dict[str, Any]) -> Any:
        """What a dataset becomes: a tensor, text, None if it is empty, or an Opaque."""
        from h5py import h5d, h5s

        where = f"{self.source.name}: {path}"
        plan = node.get_create_plist()
        layout = plan.get_layout()
        if layout == h5d.VIRTUAL or plan.get_external_count():
            return Opaque("a dataset that lies in other files, which are not opened")
        space = node.get_space()
        if space.get_simple_extent_type() == h5s.NULL:
            return None
        noted = attributes.get("dtype")
        element = find_element(node.get_type(), noted if type(noted) is str else "")
        shape = (*map(int, space.shape), *element.inner)
        if element.label == "text":
            return self.text(node, where, shape)
        if element.kind is None:
            return Opaque(f"a dataset of {element.label}", (shape,))
        size = element.kind.itemsize
        if fault := find_shape_fault(shape, size):
            raise CorruptFileError(f"{where}: a dataset of shape {str(shape)[:100]}: {fault}")
        nbytes = math.prod(shape) * size
        begin = node.get_offset() if layout == h5d.CONTIGUOUS and element.stored else None
        if begin is not None:
            if begin + nbytes > self.source.size:
                raise TruncatedError(
                    f"{where}: its data, bytes {begin:,} to {begin + nbytes:,}, lie past the end "
                    f"({self.source.size:,} bytes); the file looks truncated, fetch it again"
                )
            if element.swapped:
                swapped = swap_bytes(self.source, begin, nbytes, element.kind)
                return LazyTensor(element.kind, shape, Storage(swapped, 0, nbytes))
            return LazyTensor(element.kind, shape, Storage(self.source, begin, nbytes))
        if not nbytes:
            return LazyTensor(element.kind, shape, Storage(BytesSource(b"", where), 0, 0))
        self.check_packed(plan, node, nbytes, where)
        return self.decoded(node, element, shape, where)

    def check_packed(self, plan: Any, node: Any, nbytes: int, where: str) -> None:
        """Refuse a dataset that libhdf5 could not decode, or only in more memory than its bytes justify."""
        from h5py import h5d, h5z

        for index in range(plan.get_nfilters()):
            code, _, _, name = plan.get_filter(index)
            if not h5z.filter_avail(code):
                known = name.decode("utf-8", "backslashreplace") or str(code)
                remedy = "pip install hdf5plugin, import it first, or save it without"
                raise LimitError(f"{where}: is packed by {known!r:.60}, which libhdf5 lacks; {remedy}")
        stored = node.get_storage_size()
        if nbytes > _RESERVE + _FACTOR * stored:
            raise LimitError(f"{where}: {stored:,} bytes claim to unpack to {nbytes:,}; refused")
        if plan.get_layout() == h5d.CHUNKED:
            chunk = math.prod(plan.get_chunk()) * node.get_type().get_size()
            if chunk > _MAX_CHUNK:
                raise LimitError(f"{where}: a chunk of {chunk:,} bytes, over {_MAX_CHUNK:,}; save it in smaller chunks")

    def decoded(self, node: Any, element: Element, shape: tuple[int, ...], where: str) -> LazyTensor:
        """The tensor of a dataset that libhdf5 decodes."""
        from h5py import h5i

        at = partial(_decode_box, self.file, h5i.get_name(node), element)
        reader = BoxSource(element.kind, shape, at, where, _get_panel, self.source.remote)
        return LazyTensor(element.kind, shape, Storage(reader, 0, reader.size))

    def text(self, node: Any, where: str, shape: tuple[int, ...]) -> Any:
        """Text as a string, or as nested lists; an Opaque if it is long."""
        import h5py

        kind = node.get_type()
        count = math.prod(shape)
        if kind.is_variable_str():
            size = count if count > _MAX_TEXTS else _measure(node, self.source, count)
        else:
            size = count * kind.get_size()
        if count > _MAX_TEXTS or size > _MAX_TEXT:
            return Opaque(f"a dataset of text, {count:,} of them", (shape,))
        value = h5py.Dataset(node)[()]
        return _as_plain(value)


def _natural(name: bytes) -> list[Any]:
    """A key that sorts `dense_2` before `dense_10`."""
    return [int(part) if part.isdigit() else part for part in re.split(rb"(\d{1,18})", name)]


def _get_panel() -> int:
    return PANEL


class _Holder:
    """What h5py's AttributeManager asks for."""

    def __init__(self, node: Any) -> None:
        self.id = node


def _measure(node: Any, source: ByteSource, count: int) -> int:
    """Bytes of the texts of a dataset, as their descriptors say; many if these do not lie in one place."""
    begin = node.get_offset()
    if begin is None or 16 * count + begin > source.size:
        return 0 if begin is None and not node.get_storage_size() else _MAX_TEXT + (count > 4096)
    data = source.read(begin, 16 * count)
    return sum(int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 16))


def _as_plain(value: Any) -> Any:
    """Text, a number, or nested lists of them, from what h5py gives; None for what is empty."""
    import numpy

    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, numpy.ndarray | numpy.generic):
        if value.dtype.kind == "V":
            return value.tobytes().hex()
        return _texts(value.tolist())
    return value if isinstance(value, str | int | float | bool | complex) else None


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(one) for one in value]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _decode_box(file: Hdf5File, path: bytes, element: Element, corner: Any, out: Any) -> None:
    """Fill an array of raw elements with a box of the dataset at a path."""
    import numpy
    from h5py import h5o, h5s, h5t

    if not out.size:
        return
    outer, kind = len(corner) - len(element.inner), element.kind
    box = numpy.empty((*out.shape[:outer], *element.inner), raw_dtype(kind.itemsize))  # whole elements
    with file.errors(path.decode("utf-8", "backslashreplace")):
        node = h5o.open(file.file.id, path)
        space = node.get_space()
        if outer:
            space.select_hyperslab(tuple(corner[:outer]), out.shape[:outer])
        memory = h5s.create_simple(out.shape[:outer]) if outer else h5s.create(h5s.SCALAR)
        target = node.get_type()
        if not element.stored:
            target = h5t.py_create(numpy.dtype((kind.numpy, element.inner)))
        node.read(memory, space, box, target)
    if element.swapped:
        part = kind.component.itemsize
        box = box.view(f"u{part}").byteswap().view(box.dtype)
    inside: Any = [slice(at, at + n) for at, n in zip(corner[outer:], out.shape[outer:], strict=True)]
    out[...] = box[(..., *inside)]


def describe_attributes(path: str, attributes: dict[str, Any]) -> dict[str, str]:
    """Attributes as strings that go along with a tree: texts as they are, others as JSON."""
    found: dict[str, str] = {}
    for name, value in attributes.items():
        if value is not None:
            try:
                text = value if type(value) is str else json.dumps(value)
            except (TypeError, ValueError):
                continue
            found[f"{path}@{name}" if path else name] = text
    return found
