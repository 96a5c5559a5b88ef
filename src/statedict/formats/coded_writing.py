"""Write compressed checkpoints and deltas, see coded.py.

    tree ─▶ tensors, each once ─▶ blocks, coded on a few threads ─▶ the file, in order ─▶ its header

The sizes of coded tensors are known only at the end. So the header gets as much room as it could need, and is written
last. A stream, which begins with it, is made in a temporary file first.
"""

from __future__ import annotations

import json
from collections import namedtuple
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from tempfile import TemporaryDirectory

from statedict.dtypes import BY_NAME
from statedict.errors import UnsupportedError
from statedict.formats.coded import Base, join_tensors
from statedict.formats.guard import compare_coded, watch_too
from statedict.formats.safetensors import CODING, DIGESTS, MAX_HEADER, encode_header, reserve_digests, sign
from statedict.formats.skeleton import take_apart
from statedict.io.location import location
from statedict.io.parallel import REMOTE_WORKERS, WORKERS, batches, check_spawned, check_wanted, parallel
from statedict.io.pipeline import BLOCK, Part, Sums, compute_sums, meter, read_block
from statedict.io.source import BytesSource, FileSource, find_base
from statedict.io.urls import join
from statedict.tensor import coding
from statedict.tensor.coded import CodedSource
from statedict.tensor.labelled import Labelled
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tree.walk import free_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from concurrent.futures import Executor
    from typing import Any

    from statedict.io.source import ByteSource

_LEAST = 256  # bytes of a tensor that is worth coding
_SMALL = 16 << 10  # tensors of fewer bytes are coded together: by itself one takes as long as 100 kB of a larger one
_NOTHING = BytesSource(b"")
_AHEAD = 16  # batches that are coded, or wait to be written
_JOB = 4 << 20  # bytes that a worker of an executor takes at a time

# what is coded as one: its unit, its bytes as a tensor, those of the base if it has the like, and its tensors by name
_Stored = namedtuple("_Stored", "unit tensor base members")
_Block = namedtuple("_Block", "name index size unit data base")  # `data` and `base` are (source, start)
_Result = namedtuple("_Result", "name index data coder sizes coded lost")  # `lost`: a difference was not worth it


class NullSink:
    """A file that nobody reads."""

    in_order = False

    def __init__(self, executor: Executor | None = None) -> None:
        self.executor = executor

    def put(self, parts: list[Part], crc: bool = False) -> list[Sums]:
        """Write nothing; the sums of the parts, which are read."""
        return [compute_sums(part.source, part.start, part.size, crc) for part in parts]

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
        place.publish(lambda below: found.append(_Writing(tree, watch_too(sink, below), base).run()), fsync=False)
        source = place.open()
        sink.reserve(source.size)
        sink.put([Part(0, source, 0, source.size)])
    return found[0]


class _Writing:
    """One file while it is written."""

    def __init__(self, tree: Any, sink: Any, base: Base | None) -> None:
        self._sink, self._base = sink, base
        self._deltas: set[str] = set()  # what is stored as a difference
        tensors, self._metadata = take_apart(tree)
        coded = {name: tensor for name, tensor in tensors.items() if _is_worth_coding(tensor)}
        self._coded = dict(_gather(coded, base, tensors))
        plain = [name for name in tensors if name not in coded]
        # larger elements first keeps every plain tensor aligned
        self._plain = {name: tensors[name] for name in sorted(plain, key=lambda name: -tensors[name].dtype.itemsize)}

    def run(self) -> tuple[int, int]:
        """Write it; its size, and how many tensors are differences."""
        bounds = {name: tensor.nbytes for name, tensor in self._plain.items()}
        bounds |= {name: _bound(stored) for name, stored in self._coded.items()}
        names = [name for stored in self._coded.values() for name in stored.members]
        room = len(self._encode(bounds, dict.fromkeys(names, "0" * 32), self._coded))
        room += -(8 + room) % 64
        if room > MAX_HEADER:
            raise UnsupportedError(f"the header takes {room:,} bytes, safetensors allows {MAX_HEADER:,}")
        tensors = [*self._plain.values(), *(stored.tensor for stored in self._coded.values())]
        meter().expect(sum(tensor.nbytes for tensor in tensors))
        position, parts = 8 + room, list[Part]()
        for tensor in self._plain.values():
            parts.append(Part(position, tensor.storage.source, tensor.storage.offset + tensor.offset, tensor.nbytes))
            position += tensor.nbytes
        sums = dict(zip(self._plain, (one.digest for one in self._sink.put(parts)), strict=True))
        sizes, contents = {name: tensor.nbytes for name, tensor in self._plain.items()}, dict[str, str]()
        for name, size, digest, digests in self._write_coded(position):
            sizes[name], sums[name] = size, digest
            contents |= zip(self._coded[name].members, digests, strict=True)
        raw = self._encode({name: sizes[name] for name in bounds}, contents, self._deltas)
        raw = sign(raw + b" " * (room - len(raw)), [sums[name] for name in bounds])
        self._sink.write(0, room.to_bytes(8, "little") + raw)
        return 8 + room + sum(sizes.values()), sum(len(self._coded[name].members) for name in self._deltas)

    def _encode(self, sizes: Mapping[str, int], contents: Mapping[str, str], deltas: Collection[str]) -> bytes:
        """The header of tensors with these sizes, digests of what they decode to, and names of differences."""
        entries = {
            name: [tensor.dtype.name, tensor.shape, contents[name], name if held in deltas else None]
            + ([] if name == held else [held])
            for held, stored in self._coded.items()
            for name, tensor in stored.members.items()
        }
        described: dict[str, Any] = {"version": 1, "tensors": entries}
        if self._base is not None and (deltas or "step" not in self._base.names):
            described["base"] = {"digest": self._base.digest, **self._base.names}
        metadata = {CODING: json.dumps(described, separators=(",", ":"))}
        metadata |= self._metadata | {DIGESTS: reserve_digests(len(sizes))}
        tensors, places, position = dict(self._plain), dict[str, tuple[int, int]](), 0
        for name, size in sizes.items():
            places[name] = position, position + size
            position += size
        for name in self._coded:
            tensors[name] = LazyTensor(BY_NAME["uint8"], (sizes[name],), Storage(_NOTHING, 0, 0))
        return encode_header(tensors, metadata, places)

    def _write_coded(self, position: int) -> Iterator[tuple[str, int, str, list[str]]]:
        """Write the coded tensors; name, size, digest and digests of what it decodes to, of each."""
        from xxhash import xxh3_128

        executor: Executor | None = getattr(self._sink, "executor", None)
        below = (one for stored in self._coded.values() for one in (stored.tensor, stored.base) if one is not None)
        remote = any(one.storage.source.remote for one in below)
        if remote and executor is not None:
            check_spawned(executor)
        jobs = batches(self._jobs(executor is not None), BLOCK if executor is None else _JOB)
        workers = REMOTE_WORKERS if remote else WORKERS
        work = partial(_encode_blocks, executor is not None)
        results = chain.from_iterable(parallel(work, jobs, executor, workers, _AHEAD))
        here = meter()
        for name, group in groupby(results, key=itemgetter(0)):
            begin, rows, digest = position, list[tuple[int, list[int]]](), xxh3_128()
            content = _Digests(tensor.nbytes for tensor in self._coded[name].members.values())
            for result in group:
                content.update(result.data)
                if result.coder != coding.PLANES:
                    self._deltas.add(name)
                if result.lost and self._base is not None:
                    self._base.lost.add((name, result.index))
                rows.append((result.coder, result.sizes))
                position += self._append(position, result.coded, digest)
                here.advance(len(result.data))
            position += self._append(position, coding.pack_table(rows), digest)
            compare_coded(self._sink, self._coded[name].members.values(), content.found)
            yield name, position - begin, digest.hexdigest(), content.found

    def _append(self, position: int, data: bytes, digest: Any) -> int:
        digest.update(data)
        self._sink.write(position, data)
        return len(data)

    def _jobs(self, elsewhere: bool) -> Iterator[_Block]:
        """The blocks; if they go elsewhere, with the bytes of what lies in memory."""
        lost = () if self._base is None else self._base.lost
        for name, stored in self._coded.items():
            size = stored.tensor.nbytes
            for index in range(coding.count_blocks(size)):
                places = stored.tensor, None if (name, index) in lost else stored.base
                count = min(BLOCK, size - index * BLOCK)
                data, base = (None if one is None else _locate(one, index, count, elsewhere) for one in places)
                yield _Block(name, index, count, stored.unit, data, base)


class _Digests:
    """The digests of parts of these sizes, of bytes that come one after the other."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self.found: list[str] = []
        self._sizes = iter(sizes)
        self._begin()

    def _begin(self) -> None:
        from xxhash import xxh3_128

        self._sum, self._left = xxh3_128(), next(self._sizes, 0)

    def update(self, data: memoryview | bytes) -> None:
        rest = memoryview(data)
        while rest:
            part, rest = rest[: self._left], rest[self._left :]
            self._sum.update(part)
            self._left -= len(part)
            if not self._left:
                self.found.append(self._sum.hexdigest())
                self._begin()


def _is_worth_coding(tensor: LazyTensor) -> bool:
    return tensor.nbytes >= _LEAST and not isinstance(tensor, Labelled) and tensor.dtype.kind != "raw"


def _gather(
    coded: Mapping[str, LazyTensor], base: Base | None, taken: Mapping[str, Any]
) -> Iterator[tuple[str, _Stored]]:
    """What is coded as one, by name: a tensor, or all small ones of a dtype that the base has, or has not."""
    groups: dict[tuple[str, bool], list[tuple[str, LazyTensor, LazyTensor | None]]] = {}
    for name, tensor in coded.items():
        before = _find_before(name, tensor, base)
        if tensor.nbytes < _SMALL:
            groups.setdefault((tensor.dtype.name, before is None), []).append((name, tensor, before))
        else:
            yield name, _Stored(coding.unit_of(tensor.dtype), tensor, before, {name: tensor})
    for (kind, alone), rows in groups.items():
        names, tensors, befores = zip(*rows, strict=True)
        name = names[0] if len(names) == 1 else free_name(f"small.{kind}{'.alone' * alone}", taken)
        whole, below = join_tensors(tensors), None if alone else join_tensors(befores)
        yield name, _Stored(coding.unit_of(BY_NAME[kind]), whole, below, dict(zip(names, tensors, strict=True)))


def _find_before(name: str, tensor: LazyTensor, base: Base | None) -> LazyTensor | None:
    """The tensor of the base that a tensor is a difference from, if there is one like it."""
    found: LazyTensor | None = None if base is None else base.tensors.get(name)
    if found is None or found.dtype is not tensor.dtype or found.shape != tensor.shape:
        return None
    return found.contiguous()


def _bound(stored: _Stored) -> int:
    size: int = stored.tensor.nbytes
    return size + coding.table_size(size, stored.unit[0])


def _locate(tensor: LazyTensor, index: int, size: int, elsewhere: bool) -> tuple[ByteSource, int]:
    """Where a block is; in memory if it is to go elsewhere, and its source would not be opened there."""
    source, start = tensor.storage.source, tensor.storage.offset + tensor.offset + index * BLOCK
    if not elsewhere or source.remote or isinstance(find_base(source)[0], FileSource | CodedSource):
        return source, start
    return BytesSource(source.read(start, size), source.name), 0


def _encode_blocks(elsewhere: bool, batch: list[_Block]) -> list[_Result]:
    results = [_encode_block(block) for block in batch]
    return [one._replace(data=bytes(one.data)) for one in results] if elsewhere else results


def _encode_block(block: _Block) -> _Result:
    check_wanted()
    source, start = block.data
    data = _read(source, start, block.size)
    before = alone = None
    if block.base is not None:
        source, start = block.base
        alone = source.size_alone(start, block.size) if isinstance(source, CodedSource) else None
        before = read_block(source, start, block.size, block.index > 0)
    unit, signed = block.unit
    coder, sizes, coded = coding.encode(data, before, unit, signed, alone)
    lost = before is not None and coder == coding.PLANES
    return _Result(block.name, block.index, data, coder, sizes, coded, lost)


def _read(source: ByteSource, start: int, size: int) -> memoryview:
    memory = source.view() if source.in_memory else None
    return memoryview(source.read(start, size)) if memory is None else memory[start : start + size]
