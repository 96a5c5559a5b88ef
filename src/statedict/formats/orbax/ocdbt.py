"""OCDBT, the key-value store in which Orbax keeps the chunks of arrays: a B+tree of keys over data files.

    manifest.ocdbt    magic 0cdb3a2a, length u64, version, compression │ settings, data files, roots │ CRC-32C
    d/NAME            values, and nodes of the tree: magic 0cdb20de, … │ height, data files, entries │ CRC-32C
    ocdbt.process_N/  the store that a process wrote; the nodes of the merged tree point to its data files

The middle part may be compressed by Zstandard. Numbers are varints if nothing else is said. A data file is named
relative to the node that names it: `base` + `relative`, where the nodes in that file get `base` as their own prefix.
An entry of a leaf is a key with a value, inline or as (file, offset, length); one of another node is a child.
Only the latest version of the store is read.

Source: tensorstore/kvstore/ocdbt/index.rst (tensorstore 0.1.86).
Limits: 48 MiB + 17 n of memory for nodes of n bytes, each of which is read once.
"""

from __future__ import annotations

from typing import NamedTuple

from statedict.errors import CorruptFileError, FileError, FormatError, LimitError, TruncatedError
from statedict.formats import places
from statedict.io.source import BytesSource, Slice
from statedict.tensor.zstd import unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from statedict.io.source import ByteSource

MANIFEST = "manifest.ocdbt"
_MANIFEST, _NODE = 0x0CDB3A2A, 0x0CDB20DE
_RESERVE, _FACTOR, _ENTRY = 48 << 20, 17, 100  # bytes of memory that nodes may take, for a byte of them, for an entry
_LARGEST = 256 << 20  # bytes of a node, packed
_NOTHING = (1 << 64) - 1  # the offset of a root that is not there
_MAX_HEIGHT = 32
_REMEDY = "it is damaged, fetch it again"


class Place(NamedTuple):
    """A range of a data file; `base` is the prefix for files that a node in it names."""

    file: str
    base: str
    offset: int
    length: int


class Store:
    """The keys of a store, each with its value's bytes or where they are. Files are opened as they are needed."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.values: dict[str, Place | bytes] = {}
        self.nodes: list[Place] = []
        self._files: dict[str, ByteSource] = {}
        self._left = _RESERVE
        manifest = places.open_file(places.resolve_inside(folder, MANIFEST))
        self.name = manifest.name
        root = _read_roots(self._unpack(manifest, _MANIFEST), self.name)
        if root is not None:
            self._read_tree(*root)

    def files(self) -> set[str]:
        """The data files that hold values or nodes."""
        return {value.file for value in (*self.values.values(), *self.nodes) if isinstance(value, Place)}

    @property
    def remote(self) -> bool:
        """Whether reading asks a server."""
        return any(source.remote for source in self._files.values())

    def get(self, key: str) -> ByteSource | None:
        """The bytes of a value; None if there is no such key."""
        value = self.values.get(key)
        if value is None:
            return None
        return BytesSource(value, self.name) if isinstance(value, bytes) else self.read(value)

    def read(self, place: Place) -> ByteSource:
        """A range of a data file."""
        return Slice(self._open(place.file), place.offset, place.length)

    def _open(self, file: str) -> ByteSource:
        if file not in self._files:
            opened = places.open_files(self.folder, [file])[file]
            if isinstance(opened, FileError):
                raise opened
            self._files[file] = opened
        return self._files[file]

    def open_all(self) -> None:
        """Open all data files, several at a time where they are far away."""
        for file, opened in places.open_files(self.folder, sorted(self.files() - self._files.keys())).items():
            if isinstance(opened, FileError):
                raise opened
            self._files[file] = opened

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """Name, expected and got of each CRC-32C of the manifest and nodes that differs."""
        manifest = places.open_file(places.resolve_inside(self.folder, MANIFEST))
        for source in (manifest, *map(self.read, self.nodes)):
            data = bytes(source.read(0, source.size))
            expected, got = data[-4:][::-1].hex(), f"{crc32c(data[:-4]):08x}"
            if expected != got:
                yield source.name, expected, got

    def _unpack(self, source: ByteSource, magic: int) -> _Reader:
        if source.size > _LARGEST:
            raise LimitError(f"{source.name}: an index of arrays of {source.size:,} bytes; {_REMEDY}")
        self._left += _FACTOR * source.size
        body, packed = split(bytes(source.read(0, source.size)), magic, source.name)
        if packed:
            body = unpack(body, self._left, source.name)
        return _Reader(body, source.name, self._left - len(body))

    def _read_tree(self, root: Place, height: int) -> None:
        waiting = [(root, height, b"")]
        seen: set[tuple[str, int]] = set()
        while waiting:
            place, height, prefix = waiting.pop()
            if (place.file, place.offset) in seen or height > _MAX_HEIGHT:
                raise CorruptFileError(f"{self.name}: two nodes are one, or nest too deep; {_REMEDY}")
            seen.add((place.file, place.offset))
            self.nodes.append(place)
            reader = self._unpack(self.read(place), _NODE)
            if reader.byte() != height:
                raise CorruptFileError(f"{reader.name}: a node has another height than its parent says; {_REMEDY}")
            if height:
                waiting += [(child, height - 1, prefix + key) for key, child in _read_children(reader, place.base)]
            else:
                for key, value in _read_leaf(reader, place.base):
                    self._add(prefix + key, value)
            self._left = reader.left

    def _add(self, key: bytes, value: Place | bytes) -> None:
        try:
            text = key.decode()
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"{self.name}: the key {key!r:.60} is not UTF-8; {_REMEDY}") from error
        if text in self.values:
            raise CorruptFileError(f"{self.name}: the key {text!r:.60} stands twice; {_REMEDY}")
        self.values[text] = value


class _Reader:
    """Reads numbers and bytes from a part of a file, unpacked."""

    def __init__(self, data: bytes, name: str, left: int) -> None:
        self.data, self.at, self.name, self.left = data, 0, name, left

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if self.at + count > len(self.data):
            raise TruncatedError(f"{self.name}: ends within a number or text of the store; {_REMEDY}")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def number(self) -> int:
        """The next varint."""
        value = shift = 0
        while True:
            code = self.byte()
            value |= (code & 0x7F) << shift
            if code < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise CorruptFileError(f"{self.name}: a number of the store has over 64 bits; {_REMEDY}")

    def numbers(self, count: int) -> list[int]:
        """So many varints."""
        if count > len(self.data) - self.at:
            raise TruncatedError(f"{self.name}: says that {count:,} entries follow, and ends before; {_REMEDY}")
        self.spend(_ENTRY * count)
        return [self.number() for _ in range(count)]

    def spend(self, count: int) -> None:
        """Count bytes of memory; LimitError if they are too many for the size of the nodes."""
        self.left -= count
        if self.left < 0:
            raise LimitError(f"{self.name}: too many or too long keys for its size; it is damaged or forged")

    def texts(self, count: int, between: Callable[[], list[int]] | None = None) -> tuple[list[bytes], list[int]]:
        """So many texts, of which each but the first begins as the one before; and what `between` read amid them."""
        prefixes = [0, *self.numbers(count - 1)] if count else []
        suffixes = self.numbers(count)
        extra = between() if between else []
        found: list[bytes] = []
        before = b""
        for prefix, suffix in zip(prefixes, suffixes, strict=True):
            if prefix > len(before):
                raise CorruptFileError(f"{self.name}: a key begins as more than the one before it has; {_REMEDY}")
            before = before[:prefix] + self.take(suffix)
            self.spend(len(before))
            found.append(before)
        return found, extra

    def files(self, base: str) -> list[tuple[str, str]]:
        """The table of data files: name of each, and the prefix of what nodes in it name."""
        count = self.number()
        paths, lengths = self.texts(count, lambda: self.numbers(count))
        try:
            return [(base + path.decode(), base + path[:n].decode()) for path, n in zip(paths, lengths, strict=True)]
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"{self.name}: the name of a data file is not UTF-8; {_REMEDY}") from error

    def places(self, files: list[tuple[str, str]], lengths: list[int] | None, count: int) -> list[Place]:
        """References into data files; `lengths` follow their offsets if they are not known."""
        which, offsets = self.numbers(count), self.numbers(count)
        lengths = self.numbers(count) if lengths is None else lengths
        if any(index >= len(files) for index in which):
            raise CorruptFileError(f"{self.name}: refers to a data file that is not in its table; {_REMEDY}")
        return [Place(*files[i], at, n) for i, at, n in zip(which, offsets, lengths, strict=True)]


def split(data: bytes, magic: int, name: str) -> tuple[bytes, bool]:
    """The body of a manifest or node, and whether it is packed."""
    if len(data) < 18 or int.from_bytes(data[:4], "big") != magic:
        raise CorruptFileError(f"{name}: is not a part of an OCDBT store, or ends within its header; {_REMEDY}")
    if int.from_bytes(data[4:12], "little") != len(data):
        raise TruncatedError(f"{name}: a part of {len(data):,} bytes says that it has another length; {_REMEDY}")
    if data[12] or data[13] > 1:
        raise FormatError(f"{name}: version {data[12]} of OCDBT, compression {data[13]}; only version 0 is read")
    return data[14:-4], bool(data[13])


def _read_roots(reader: _Reader, name: str) -> tuple[Place, int] | None:
    """The root of the latest version, and its height; None if the store is empty."""
    reader.take(16)
    kind, _, _ = reader.numbers(3)
    reader.byte()
    if reader.number():
        reader.take(4)
    if kind:
        raise FormatError(f"{name}: keeps its versions in numbered manifests, which are not read; open it with orbax")
    files = reader.files("")
    count = reader.number()
    reader.numbers(count)
    heights = reader.take(count)
    latest = reader.places(files, None, count) if count else []
    if not latest or latest[-1].offset == _NOTHING:
        return None
    return latest[-1], heights[-1]


def _read_children(reader: _Reader, base: str) -> list[tuple[bytes, Place]]:
    files, count = reader.files(base), reader.number()
    keys, common = reader.texts(count, lambda: reader.numbers(count))
    return [(key[:n], place) for key, n, place in zip(keys, common, reader.places(files, None, count), strict=True)]


def _read_leaf(reader: _Reader, base: str) -> list[tuple[bytes, Place | bytes]]:
    files, count = reader.files(base), reader.number()
    keys, _ = reader.texts(count)
    lengths, kinds = reader.numbers(count), reader.numbers(count)
    apart = [length for length, kind in zip(lengths, kinds, strict=True) if kind]
    indirect = iter(reader.places(files, apart, len(apart)))
    values = [next(indirect) if kind else reader.take(length) for length, kind in zip(lengths, kinds, strict=True)]
    return list(zip(keys, values, strict=True))


_TABLE: list[int] = []


def crc32c(data: bytes) -> int:
    """CRC-32C of bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    if not _TABLE:
        for value in range(256):
            for _ in range(8):
                value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
            _TABLE.append(value)
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
