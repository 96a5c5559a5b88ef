"""Write compressed checkpoints and deltas, see coded.py.

    tree ─▶ tensors, each once ─▶ blocks, coded on a few threads ─▶ the file, in order ─▶ its header

The sizes of coded tensors are known only at the end. So the header gets as much room as it could need, and is written
last. A stream, which begins with it, is made in a temporary file first.
"""

from __future__ import annotations

import json
from collections import namedtuple
from itertools import groupby
from operator import itemgetter
from tempfile import TemporaryDirectory

from statedict.dtypes import BY_NAME
from statedict.errors import UnsupportedError
from statedict.formats.coded import Base
from statedict.formats.safetensors import CODING, DIGESTS, MAX_HEADER, encode_header, reserve_digests, sign
from statedict.formats.skeleton import take_apart
from statedict.io.location import location
from statedict.io.parallel import REMOTE_WORKERS, WORKERS, check_wanted, parallel
from statedict.io.pipeline import BLOCK, Part, Sums, meter
from statedict.io.source import BytesSource
from statedict.io.urls import join
from statedict.tensor import coding
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor, Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from typing import Any

_LEAST = 256  # bytes of a tensor that is worth coding
_NOTHING = BytesSource(b"")
_AHEAD = 16  # blocks that are coded, or wait to be written

_Job = namedtuple("_Job", "name tensor index base")
_Result = namedtuple("_Result", "name block coder planes")
_Row = namedtuple("_Row", "shape digest rows size content")  # of a coded tensor that is written


class NullSink:
    """A file that nobody reads."""

    in_order = False

    def put(self, parts: list[Part]) -> list[Sums]:
        """Write nothing; the sums are not those of the parts."""
        return [Sums(0, "0" * 32)] * len(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Write nothing."""


def write(tree: Any, sink: Any, base: Base | None = None) -> tuple[int, int]:
    """Write a tree compressed, as a delta if there is a base.

    Returns:
        The size of the file, and how many tensors are differences.
    """
    coding.import_zstandard()
    if not sink.in_order:
        return _Writing(tree, sink, base).run()
    with TemporaryDirectory() as folder:
        place, found = location(join(folder, "coded")), list[tuple[int, int]]()
        place.publish(lambda below: found.append(_Writing(tree, below, base).run()), fsync=False)
        source = place.open()
        sink.reserve(source.size)
        sink.put([Part(0, source, 0, source.size)])
    return found[0]


class _Writing:
    """One file while it is written."""

    def __init__(self, tree: Any, sink: Any, base: Base | None) -> None:
        self._sink, self._base = sink, base
        self._deltas: set[str] = set()  # names of the tensors that are differences
        tensors, self._metadata = take_apart(tree)
        self._coded = {name: tensor for name, tensor in tensors.items() if _is_worth_coding(tensor)}
        plain = [name for name in tensors if name not in self._coded]
        # larger elements first keeps every plain tensor aligned
        self._plain = {name: tensors[name] for name in sorted(plain, key=lambda name: -tensors[name].dtype.itemsize)}
        self._before = {name: _find_before(name, tensor, base) for name, tensor in self._coded.items()}

    def run(self) -> tuple[int, int]:
        """Write it; its size, and how many tensors are differences."""
        bounds = {name: tensor.nbytes for name, tensor in self._plain.items()}
        bounds |= {name: _bound(tensor) for name, tensor in self._coded.items()}
        room = len(self._encode(bounds, dict.fromkeys(bounds, "0" * 32), bounds))
        room += -(8 + room) % 64
        if room > MAX_HEADER:
            raise UnsupportedError(f"the header takes {room:,} bytes, safetensors allows {MAX_HEADER:,}")
        meter().expect(sum(tensor.nbytes for tensor in (*self._plain.values(), *self._coded.values())))
        position, parts = 8 + room, list[Part]()
        for tensor in self._plain.values():
            parts.append(Part(position, tensor.storage.source, tensor.storage.offset + tensor.offset, tensor.nbytes))
            position += tensor.nbytes
        sums = dict(zip(self._plain, (one.digest for one in self._sink.put(parts)), strict=True))
        sizes, contents = {name: tensor.nbytes for name, tensor in self._plain.items()}, dict[str, str]()
        for name, size, digest, content in self._write_coded(position):
            sizes[name], sums[name], contents[name] = size, digest, content
        raw = self._encode({name: sizes[name] for name in bounds}, contents, self._deltas)
        raw = sign(raw + b" " * (room - len(raw)), [sums[name] for name in bounds])
        self._sink.write(0, room.to_bytes(8, "little") + raw)
        return 8 + room + sum(sizes.values()), len(self._deltas)

    def _encode(self, sizes: Mapping[str, int], contents: Mapping[str, str], deltas: Collection[str]) -> bytes:
        """The header of tensors with these sizes, digests of what they decode to, and names of differences."""
        entries = {
            name: [tensor.dtype.name, tensor.shape, contents[name], name if name in deltas else None]
            for name, tensor in self._coded.items()
        }
        described: dict[str, Any] = {"version": 1, "tensors": entries}
        if self._base is not None and (deltas or "step" not in self._base.names):
            described["base"] = {"digest": self._base.digest, **self._base.names}
        metadata = {CODING: json.dumps(described, separators=(",", ":"))}
        metadata |= self._metadata | {DIGESTS: reserve_digests(len(sizes))}
        stored, places, position = dict(self._plain), dict[str, tuple[int, int]](), 0
        for name, size in sizes.items():
            places[name] = position, position + size
            position += size
        for name in self._coded:
            stored[name] = LazyTensor(BY_NAME["uint8"], (sizes[name],), Storage(_NOTHING, 0, 0))
        return encode_header(stored, metadata, places)

    def _write_coded(self, position: int) -> Iterator[tuple[str, int, str, str]]:
        """Write the coded tensors; name, size, digest and digest of what it decodes to, of each."""
        from xxhash import xxh3_128

        tensors = [one for one in (*self._coded.values(), *self._before.values()) if one is not None]
        workers = REMOTE_WORKERS if any(one.storage.source.remote for one in tensors[:64]) else WORKERS
        results = parallel(_encode_block, self._jobs(), workers=workers, ahead=_AHEAD)
        here = meter()
        for name, group in groupby(results, key=itemgetter(0)):
            begin, rows, digest, content = position, list[tuple[int, list[int]]](), xxh3_128(), xxh3_128()
            for result in group:
                content.update(result.block)
                if result.coder == coding.DELTA:
                    self._deltas.add(name)
                rows.append((result.coder, [len(plane) for plane in result.planes]))
                data = b"".join(result.planes)
                position += self._append(position, data, digest)
                here.advance(len(result.block))
            position += self._append(position, coding.pack_table(rows), digest)
            yield name, position - begin, digest.hexdigest(), content.hexdigest()

    def _append(self, position: int, data: bytes, digest: Any) -> int:
        digest.update(data)
        self._sink.write(position, data)
        return len(data)

    def _jobs(self) -> Iterator[_Job]:
        for name, tensor in self._coded.items():
            for index in range(coding.count_blocks(tensor.nbytes)):
                yield _Job(name, tensor, index, self._before[name])


def _is_worth_coding(tensor: LazyTensor) -> bool:
    return tensor.nbytes >= _LEAST and not isinstance(tensor, Labelled) and tensor.dtype.kind != "raw"


def _find_before(name: str, tensor: LazyTensor, base: Base | None) -> LazyTensor | None:
    """The tensor of the base that a tensor is a difference from, if there is one like it."""
    found: LazyTensor | None = None if base is None else base.tensors.get(name)
    if found is None or found.dtype is not tensor.dtype or found.shape != tensor.shape:
        return None
    return found.contiguous()


def _bound(tensor: LazyTensor) -> int:
    return tensor.nbytes + coding.table_size(tensor.nbytes, coding.unit_of(tensor.dtype)[0])


def _encode_block(job: _Job) -> _Result:
    check_wanted()
    block = _read_block(job.tensor, job.index)
    before = None if job.base is None else _read_block(job.base, job.index)
    coder, planes = coding.encode(block, before, *coding.unit_of(job.tensor.dtype))
    return _Result(job.name, block, coder, planes)


def _read_block(tensor: LazyTensor, index: int) -> memoryview:
    source, start = tensor.storage.source, tensor.storage.offset + tensor.offset + index * BLOCK
    size = min(BLOCK, tensor.nbytes - index * BLOCK)
    memory = source.view() if source.in_memory else None
    return memoryview(source.read(start, size)) if memory is None else memory[start : start + size]
