"""PyTorch's formats before 1.6: the stream of pickles, and the tar archive before 0.1.10.

Stream, what `torch.save(..., _use_new_zipfile_serialization=False)` still writes:

    pickle   0x1950A86A20F9469CFC6C, the magic number
    pickle   1001, the protocol
    pickle   {"protocol_version", "little_endian", "type_sizes"}
    pickle   the tree; storages by persistent id ("storage", type, key, location, number of elements, view)
             with view = None, or (key, offset, size) for a storage that is a part of another
    pickle   [key, …], the order of what follows
    for each key: 8 bytes, the number of elements, then the elements

Tar archive, with the members `sys_info`, `pickle`, `storages` and `tensors`:

    storages   pickle N, then N times pickle (key, location, type), 8 bytes number of elements, elements;
               pickle [(key, root key, offset, size), …], the views
    tensors    pickle N, then N times pickle (key, storage key, type), 4 bytes number of dimensions, 4 bytes unused,
               sizes, strides, offset as 8 bytes each
    pickle     the tree; tensors by persistent id, their key

The index stands in the middle of the file, so opening reads the pickles and skips over the storages.
Source: torch/serialization.py `_legacy_save` and `_legacy_load` (PyTorch 2.13).
"""

from __future__ import annotations

import struct

from statedict.errors import CorruptFileError, FormatError, LimitError, TruncatedError, UnknownFormatError
from statedict.io.source import swap_bytes
from statedict.io.tar import read_members
from statedict.io.zip import refuse_behind
from statedict.pickles.budget import Together
from statedict.pickles.constructors import StorageType, TypedStorage, storage_type, tensor
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.tensor.checks import Problem, by_storage
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from statedict.dtypes import DType
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

MAGIC = 0x1950A86A20F9469CFC6C
_TAR = ("storages", "tensors", "pickle")
_WINDOW = 1 << 16
_MAX_PICKLE = 1 << 30
_CONTAINERS = (tuple, list, dict, set, frozenset)  # none of which is a key


class _Stream:
    def __init__(
        self,
        source: ByteSource,
        position: int = 0,
        end: int | None = None,
        constructors: Mapping[str, Any] = DATA,
        longest: int = _MAX_PICKLE,
    ) -> None:
        self.source, self.position, self._constructors, self._longest = source, position, constructors, longest
        self.end = source.size if end is None else end

    def read_pickle(self, persistent_load: Callable[[Any], Any] | None = None) -> Any:
        """Read the next pickle, in growing pieces, as nothing says how long it is."""
        window = min(_WINDOW, self._longest)
        while True:
            data = self.source.read(self.position, min(window, self.end - self.position))
            try:
                where = f"{self.source.name}: from byte {self.position:,}"
                value, length = load(data, self._constructors, persistent_load, where)
            except TruncatedError:
                if self.position + len(data) == self.end:
                    raise
                if window >= self._longest:
                    what = f"a pickle of over {self._longest:,} bytes"
                    raise LimitError(f"{self.source.name}: byte {self.position:,}: {what}") from None
                window *= 4
            else:
                self.position += length
                return value

    def read_numbers(self, layout: str) -> tuple[int, ...]:
        size = struct.calcsize("<" + layout)
        if self.position + size > self.end:
            raise TruncatedError(f"{self.source.name}: ends at byte {self.end:,} within a header; fetch it again")
        found = struct.unpack("<" + layout, self.source.read(self.position, size))
        self.position += size
        return found

    def place_storage(self, storage: Storage, kind: DType, what: str, swap: bool = False) -> None:
        """Read the number of a storage's elements, note where they are and skip them."""
        (numel,) = self.read_numbers("q")
        start, nbytes = self.position, numel * kind.itemsize
        if numel < 0 or nbytes < storage.nbytes:
            raise CorruptFileError(f"{self.source.name}: {what} has {numel:,} elements, its tensors need more")
        if start + nbytes > self.end:
            raise TruncatedError(
                f"{self.source.name}: {what}: bytes {start:,} to {start + nbytes:,} lie past the end of the file "
                f"({self.end:,} bytes); the file looks truncated, fetch it again"
            )
        self.position, storage.offset, storage.nbytes = start + nbytes, start, nbytes
        if swap:
            storage.source, storage.offset = swap_bytes(self.source, start, nbytes, kind), 0

    def read_entries(self) -> Iterator[tuple[Any, Any, Any]]:
        """Read a count and yield as many tuples of three; the caller reads what follows each."""
        count = self.read_pickle()
        if type(count) is not int or not 0 <= count <= self.end:
            raise CorruptFileError(f"{self.source.name}: an impossible count")
        for _ in range(count):
            yield _check_fields(self.read_pickle(), 3)


def read(source: ByteSource) -> Any:
    """Read the tree, lazily."""
    with Together():
        return _read_tar(source) if is_tar(source) else _unpickle_alone(source)[0]


def checks(source: ByteSource) -> Iterator[Found]:
    """List the storages, which have no checksums, and check that the file ends with the last one."""
    if is_tar(source):
        yield from by_storage(_read_tar(source))
        return
    tree, storages, end = _unpickle_alone(source)
    yield from by_storage(tree, {storage: f"storage {key}" for key, storage in storages.items()})
    if end < source.size:
        what = f"{source.size - end:,} bytes follow the last storage, from byte {end:,}"
        yield Problem("end of file", what, remedy="find out what they are, or save it again without them")


def _unpickle_alone(source: ByteSource) -> tuple[Any, dict[Any, Storage], int]:
    """Return the tree, the storages by key and where they end; refuse an archive behind them."""
    tree, storages, _, end = unpickle(source)
    refuse_behind(source, end)
    return tree, storages, end


def is_tar(source: ByteSource) -> bool:
    """Whether the file is the tar archive, not the stream."""
    return source.size > 262 and bytes(source.read(257, 5)) == b"ustar"


def unpickle(
    source: ByteSource, constructors: Mapping[str, Any] = DATA, longest: int = _MAX_PICKLE
) -> tuple[Any, dict[Any, Storage], tuple[int, int], int]:
    """Return the tree in a stream, its storages by key, the range of its pickle, and where the file ends."""
    stream = _Stream(source, constructors=constructors, longest=longest)
    if stream.read_pickle() != MAGIC:
        raise CorruptFileError(f"{source.name}: begins with a pickle that is not PyTorch's magic number")
    if stream.read_pickle() != 1001:
        raise CorruptFileError(f"{source.name}: a legacy file of an unknown protocol")
    system = stream.read_pickle()
    swap = isinstance(system, dict) and system.get("little_endian") is False
    storages: dict[Any, tuple[Storage, StorageType]] = {}

    def load_persistent(identifier: Any) -> Any:
        if type(identifier) is tuple and identifier[:1] in (("module",), (b"module",)) and len(identifier) > 1:
            return identifier[1]  # a class with its source text; the class is all that the tree refers to
        if type(identifier) is not tuple or len(identifier) != 6 or identifier[0] not in ("storage", b"storage"):
            raise CorruptFileError("a persistent id that does not name a storage")
        _, kind, key, device, numel, view = identifier
        if type(key) not in (str, bytes) or type(numel) is not int or numel < 0 or storage_type(kind, 0, 0) is None:
            raise CorruptFileError("a storage that is described wrongly")
        if type(kind) is not StorageType:
            raise FormatError(
                f"a {kind.name}, a class that this version does not know, and this format does not say how large "
                "its elements are; update statedict, or save the file anew with torch.save, which writes a zip archive"
            )
        if key not in storages:
            device = device.decode("ascii", "replace") if type(device) is bytes else device
            if type(device) is not str:
                raise CorruptFileError("a storage whose device has no name")
            storages[key] = Storage(source, 0, numel * kind.dtype.itemsize, device), kind
        storage = storages[key][0]
        if view is not None:
            if type(view) is not tuple or len(view) != 3 or not all(type(n) is int and n >= 0 for n in view[1:]):
                raise CorruptFileError("a view of a storage that is described wrongly")
            return TypedStorage(storage, kind.dtype, view[1], view[2])
        return TypedStorage(storage, kind.dtype, 0, numel)

    start = stream.position
    tree = stream.read_pickle(load_persistent)
    end = stream.position
    keys = stream.read_pickle()
    if type(keys) is not list:
        raise CorruptFileError(f"{source.name}: the list of storages is missing")
    for key in keys:
        if type(key) not in (str, bytes) or key not in storages:
            raise CorruptFileError(f"{source.name}: the list of storages names one that nothing refers to")
        storage, kind = storages[key]
        stream.place_storage(storage, kind.dtype, f"storage {key}", swap)
    missing = storages.keys() - set(keys)
    if missing:
        raise CorruptFileError(f"{source.name}: storage {next(iter(missing))!r} is missing; save it again")
    return tree, {key: storage for key, (storage, _) in storages.items()}, (start, end), stream.position


def _read_tar(source: ByteSource) -> Any:
    members = _list_members(source)
    for name in _TAR:
        if name not in members:
            foreign = members and not members.keys() & {"sys_info", *_TAR}
            remedy = f"unpack it, it holds {', '.join(list(members)[:3])}" if foreign else "fetch or save it again"
            kind = UnknownFormatError if foreign else CorruptFileError
            raise kind(f"{source.name}: a tar archive without {name!r}, so torch.save did not write it; {remedy}")
    stream = _Stream(source, *members["storages"])
    storages: dict[Any, TypedStorage] = {}
    for key, device, kind in stream.read_entries():
        if type(kind) is not StorageType:
            raise CorruptFileError(f"{source.name}: storage {key!r} without a type")
        storage = Storage(source, 0, 0, str(device))
        stream.place_storage(storage, kind.dtype, f"storage {key}")
        storages[key] = TypedStorage(storage, kind.dtype)
    for view in stream.read_pickle() or ():
        key, root, shift, numel = _check_fields(view, 4)
        if root not in storages or type(shift) is not int or type(numel) is not int or min(shift, numel) < 0:
            raise CorruptFileError(f"{source.name}: the view {key!r} of a storage is described wrongly")
        storages[key] = TypedStorage(storages[root].storage, storages[root].dtype, shift, numel)
    stream = _Stream(source, *members["tensors"])
    tensors: dict[str, LazyTensor] = {}
    for key, root, _ in stream.read_entries():
        (ndim,) = stream.read_numbers("ixxxx")
        if not 0 <= ndim <= 64 or root not in storages:
            raise CorruptFileError(f"{source.name}: tensor {key!r} is described wrongly")
        shape, strides = stream.read_numbers(f"{ndim}q"), stream.read_numbers(f"{ndim}q")
        (offset,) = stream.read_numbers("q")
        typed = storages[root]
        tensors[str(key)] = tensor(typed.storage, typed.dtype, typed.place(offset), shape, strides)

    def load_persistent(identifier: Any) -> Any:
        if type(identifier) is tuple and identifier:
            return identifier[0]  # a class with its source text
        key = str(identifier) if type(identifier) in (int, str) else ""
        if key not in tensors:
            raise CorruptFileError(f"tensor {key[:40]!r} is missing from the archive")
        return tensors[key]

    return _Stream(source, *members["pickle"]).read_pickle(load_persistent)


def _check_fields(value: Any, count: int) -> Any:
    if type(value) is not tuple or len(value) != count or any(isinstance(item, _CONTAINERS) for item in value):
        raise CorruptFileError("an index entry that is described wrongly")
    return value


def _list_members(source: ByteSource) -> dict[str, tuple[int, int]]:
    members: dict[str, tuple[int, int]] = {}
    for name, kind, begin, size in read_members(source):
        if kind == "0":
            members[name] = begin, begin + size
    return members
