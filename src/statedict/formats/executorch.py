"""ExecuTorch: the weights in a program, .pte, and in a file of named data, .ptd.

    .pte    a FlatBuffer of the kind ET12, a Program; at byte 8: eh00, u32: bytes of this header, u64: bytes of the
            program, u64: where the segments begin
    .ptd    a FlatBuffer of the kind FT01, a FlatTensor; at byte 8: FH01, u32: bytes of this header, u64: where its
            tables begin, u64: their bytes, u64: where the segments begin
    Program         execution_plan 1, constant_buffer 2, backend_delegate_data 3, segments 4, constant_segment 5,
                    mutable_data_segments 6, named_data 7
    ExecutionPlan   name 0, values 2 (type 0: 5 is a Tensor; value 1), delegates 7 (id 0, processed 1: location 0,
                    index 1)
    Tensor          scalar_type 0, sizes 2, dim_order 3, data_buffer_idx 5, allocation_info 6, extra_tensor_info 9
                    (mutable_data_segments_idx 0, fully_qualified_name 1, location 2)
    FlatTensor      version 0, segments 1 (offset 0, size 1), named_data 2 (key 0, segment_index 1, tensor_layout 2:
                    scalar_type 0, sizes 1, dim_order 2)

The tree of a program has its constants, and the first values of what it alters, under their names, or the number of the
value where the program has none; of several methods each is a dict. What a backend keeps is bytes: below `delegates`,
as METHOD.NUMBER.BACKEND, and below `named_data`. A tensor that lies in a .ptd is inert; that file opens by itself.

Source: program.fbs and flat_tensor.fbs of executorch 1.5. Limits: as FlatBuffers have, 2 GB without segments.
"""

from __future__ import annotations

from math import prod
from typing import Any

from statedict.dtypes import BY_NAME
from statedict.errors import CorruptFileError, TruncatedError, UnsupportedError
from statedict.io.flatbuffers import Buffer, Table
from statedict.tensor.arrays import contiguous_strides, find_shape_fault
from statedict.tensor.checks import by_storage
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_TYPES = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool",
    12: "qint8", 13: "quint8", 14: "qint32", 15: "bfloat16", 16: "quint4x2", 17: "quint2x4", 22: "bits16",
    23: "float8_e5m2", 24: "float8_e4m3fn", 25: "float8_e5m2fnuz", 26: "float8_e4m3fnuz", 27: "uint16", 28: "uint32",
    29: "uint64",
}  # fmt: skip
_TENSOR = 5  # in the union of values
_BYTE = BY_NAME["uint8"]


def read(source: ByteSource) -> StateDict:
    """Read the tree lazily: the tables are read, no tensor is."""
    head = bytes(source.read(0, min(source.size, 64)))
    return _read_data(source, head) if head[4:8] == b"FT01" else _Program(source, head).read()


def checks(source: ByteSource) -> Iterator[Found]:
    """List the tensors; ExecuTorch has no sums."""
    yield from by_storage(read(source))


def _read_data(source: ByteSource, head: bytes) -> StateDict:
    if head[8:12] != b"FH01" or len(head) < 48:
        raise TruncatedError(f"{source.name}: has no header of named data; it looks truncated, fetch it again")
    begin, size, base = (int.from_bytes(head[at : at + 8], "little") for at in (16, 24, 32))
    root = Buffer(source, 0, begin + size).root()
    segments = _Segments(source, root.tables(1), base)
    tree = StateDict()
    for entry in root.tables(2):
        key, layout = entry.text(0), entry.table(2)
        place = segments.find(entry.number(1, "I"), key)
        if key in tree:
            raise CorruptFileError(f"{source.name}: two entries are called {key!r:.80}; the file is damaged")
        tree[key] = (
            _as_bytes(place) if layout is None else _make(layout, (0, 1, 2), place, f"{source.name}: {key!r:.80}")
        )
    return tree


class _Segments:
    """The segments of a file, whose offsets count from `base`."""

    def __init__(self, source: ByteSource, tables: list[Table], base: int) -> None:
        self.source = source
        self.ranges = [(base + one.number(0, "Q"), one.number(1, "Q")) for one in tables]
        self.storages: dict[int, Storage] = {}

    def find(self, index: int, what: str) -> Storage:
        """A segment."""
        if index >= len(self.ranges):
            raise CorruptFileError(f"{self.source.name}: {what!r:.80} is in segment {index:,} of {len(self.ranges):,}")
        begin, size = self.ranges[index]
        if begin + size > self.source.size:
            raise TruncatedError(
                f"{self.source.name}: segment {index:,}, bytes {begin:,} to {begin + size:,}, lies past the end "
                f"({self.source.size:,} bytes); the file looks truncated, fetch it again"
            )
        return self.storages.setdefault(index, Storage(self.source, begin, size))


def _as_bytes(storage: Storage) -> LazyTensor:
    return LazyTensor(_BYTE, (storage.nbytes,), storage)


def _make(table: Table, fields: tuple[int, int, int], place: Storage, where: str) -> LazyTensor:
    """The tensor at the begin of a storage that a table describes in its fields scalar_type, sizes, dim_order."""
    code, shape = table.number(fields[0], "b"), table.numbers(fields[1], "i")
    if code not in _TYPES:
        raise UnsupportedError(f"{where} has the scalar type {code}, which executorch 1.5 does not have")
    kind = BY_NAME[_TYPES[code]]
    order = table.numbers(fields[2], "B") or tuple(range(len(shape)))
    if sorted(order) != [*range(len(shape))]:
        raise CorruptFileError(f"{where} has the order {order} of {len(shape)} dimensions; the file is damaged")
    fault = "a negative size" if min(shape, default=0) < 0 else find_shape_fault(shape, kind.itemsize)
    nbytes = prod(shape) * kind.itemsize
    if fault or nbytes > place.nbytes:
        fault = fault or f"{nbytes:,} bytes, and there are {place.nbytes:,}"
        raise CorruptFileError(f"{where} has the shape {list(shape)!s:.80}: {fault}; the file is damaged")
    steps = contiguous_strides(tuple(shape[axis] for axis in order))
    strides = tuple(steps[order.index(axis)] for axis in range(len(shape)))
    same = all(n == 1 or a == b for n, a, b in zip(shape, strides, contiguous_strides(shape), strict=True))
    return LazyTensor(kind, shape, place, strides=None if same or 0 in shape else strides)


class _Program:
    """A .pte."""

    def __init__(self, source: ByteSource, head: bytes) -> None:
        size, base = source.size, 0
        if head[8:12] == b"eh00":
            size, base = (int.from_bytes(head[at : at + 8], "little") for at in (16, 24))
        self.source = source
        self.root = Buffer(source, 0, min(size, source.size)).root()
        self.segments = _Segments(source, self.root.tables(4), base)
        self.buffers = [one.vector(0, 1) for one in self.root.tables(2)]
        self.constants = self._offsets(self.root.table(5))
        self.mutable = [self._offsets(one) for one in self.root.tables(6)]
        self.storages: dict[tuple[int, int], Storage] = {}

    def read(self) -> StateDict:
        plans, delegates = StateDict(), StateDict()
        for plan in self.root.tables(1):
            name = plan.text(0)
            self._put(plans, name, self._plan(plan))
            for number, delegate in enumerate(plan.tables(7)):
                found = self._delegate(delegate)
                if found is not None:
                    self._put(delegates, f"{name}.{number}.{delegate.text(0)}", found)
        tree = next(iter(plans.values())) if len(plans) == 1 else plans
        named = StateDict()
        for entry in self.root.tables(7):
            self._put(named, entry.text(0), _as_bytes(self.segments.find(entry.number(1, "I"), entry.text(0))))
        for key, part in (("delegates", delegates), ("named_data", named)):
            if part:
                self._put(tree, key, part)
        return tree

    def _offsets(self, table: Table | None) -> tuple[int, tuple[int, ...]]:
        return (0, ()) if table is None else (table.number(0, "I"), table.numbers(1, "Q"))

    def _put(self, tree: StateDict, name: str, value: Any) -> None:
        if name in tree:
            raise CorruptFileError(f"{self.source.name}: two entries are called {name!r:.80}; the file is damaged")
        tree[name] = value

    def _plan(self, plan: Table) -> StateDict:
        tree = StateDict()
        for number, entry in enumerate(plan.tables(2)):
            tensor = entry.table(1) if entry.number(0, "B") == _TENSOR else None
            if tensor is None:
                continue
            extra = tensor.table(9)
            name = (extra.text(1) if extra else "") or str(number)
            where = f"{self.source.name}: tensor {name!r:.80}"
            if extra and extra.number(2, "b") == 1:
                self._put(tree, name, Opaque("a tensor in a .ptd file"))
                continue
            place = self._find(tensor, extra, where)
            if place is not None:
                made = _make(tensor, (0, 2, 3), place, where)
                if name in tree and tree[name].region == made.region:
                    continue
                self._put(tree, name, made)
        return tree

    def _find(self, tensor: Table, extra: Table | None, where: str) -> Storage | None:
        """Where the bytes of a tensor begin, to the end of their segment; None if it has none in the file."""
        index = tensor.number(5, "I")
        if not index:
            return None
        if self.buffers:
            if index >= len(self.buffers):
                raise CorruptFileError(f"{where} is in buffer {index:,} of {len(self.buffers):,}; the file is damaged")
            return self.storages.setdefault((-1, index), Storage(self.source, *self.buffers[index]))
        which = extra.number(0, "Q") if extra and tensor.table(6) else 0
        if which >= max(len(self.mutable), 1):
            raise CorruptFileError(f"{where} is in mutable segment {which:,} of {len(self.mutable):,}; it is damaged")
        segment, offsets = self.mutable[which] if which or (tensor.table(6) and self.mutable) else self.constants
        if index >= len(offsets):
            raise CorruptFileError(f"{where} is constant {index:,} of {len(offsets):,}; the file is damaged")
        whole = self.segments.find(segment, where)
        if offsets[index] > whole.nbytes:
            raise CorruptFileError(f"{where} begins at {offsets[index]:,} of {whole.nbytes:,} bytes; it is damaged")
        rest = Storage(self.source, whole.offset + offsets[index], whole.nbytes - offsets[index])
        return self.storages.setdefault((segment, offsets[index]), rest)

    def _delegate(self, delegate: Table) -> LazyTensor | None:
        """What a backend keeps."""
        processed = delegate.table(1)
        if processed is None:
            return None
        index = processed.number(1, "I")
        if processed.number(0, "b") == 1:
            return _as_bytes(self.segments.find(index, delegate.text(0)))
        inline = self.root.tables(3)
        if index >= len(inline):
            raise CorruptFileError(f"{self.source.name}: a delegate's data is {index:,} of {len(inline):,}")
        return _as_bytes(Storage(self.source, *inline[index].vector(0, 1)))
