"""What the choices inside rest on, in small: `python -m benchmarks.choices [word…] [--directory DIR]`.

Hashes, JSON, huge pages, sizes of blocks, numbers of workers. What is not installed is left out and says so.
docs/decisions/ has what follows from the figures.
"""

from __future__ import annotations

import argparse
import importlib
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.harness import environment, markdown
from statedict.io import pipeline
from statedict.io.disk import Descriptor
from statedict.io.source import BytesSource, FileSource, allocate

Table = Iterator[tuple[str, ...]]
RUNS = 5
SPAN = 1 << 30
PART = 128 << 20


def seconds(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Median of several runs after an untimed one; `before` is not timed."""
    times: list[float] = []
    for _ in range(RUNS + 1):
        before()
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def attribute(name: str) -> Any:
    """`package.module.attribute`, or None where the package is not installed."""
    module, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), last)
    except ImportError:
        return None


def hashes(_: Path) -> Table:
    """CRC-32 and digests of 64 MB, in blocks as the pipeline has them."""
    block = os.urandom(pipeline.BLOCK)
    for name in ("zlib.crc32", "isal.isal_zlib.crc32", "zlib_ng.zlib_ng.crc32"):
        crc = attribute(name)
        yield name, *_rate(crc and partial(crc, block), len(block))
    for name in ("xxhash.xxh3_128", "blake3.blake3", "hashlib.sha256"):
        make = attribute(name)
        yield name, *_rate(make and (lambda make=make: make(block).digest()), len(block))


def _rate(work: Callable[[], object] | None, size: int) -> tuple[str]:
    if work is None:
        return ("not installed",)
    return (f"{16 * size / seconds(lambda: [work() for _ in range(16)]) / 1e9:.1f} GB/s",)


def jsons(directory: Path) -> Table:
    """The header of 50,000 tensors, and what the import costs a new process."""
    data.ensure(directory, {"small-50000.safetensors"})
    with open(directory / "small-50000.safetensors", "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    for name, read, write in (
        ("json", "json.loads", "json.dumps"),
        ("msgspec", "msgspec.json.decode", "msgspec.json.encode"),
    ):
        loads, dumps = attribute(read), attribute(write)
        if loads is None:
            yield name, "not installed", "", ""
            continue
        tree = loads(header)
        took = [
            seconds(partial(loads, header)),
            seconds(partial(dumps, tree)),
            _import_seconds(name + ".json" * (name != "json")),
        ]
        yield name, *(f"{1000 * value:.1f} ms" for value in took)


def _import_seconds(module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    took = [
        float(subprocess.run(command, capture_output=True, check=True, env=environment()).stdout) for _ in range(RUNS)
    ]
    return statistics.median(took)


def pages(directory: Path) -> Table:
    """Reading 1 GB of a cached file into fresh memory of each kind."""
    source = _large(directory)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    kinds: dict[str, Callable[[], Any]] = {
        "bytearray": lambda: bytearray(SPAN),
        "mmap, shared (Python's default)": lambda: mmap.mmap(-1, SPAN),
        "mmap, shared, MADV_HUGEPAGE": lambda: _advised(mmap.mmap(-1, SPAN)),
        "mmap, private": lambda: mmap.mmap(-1, SPAN, flags=private),
        "mmap, private, MADV_HUGEPAGE": lambda: _advised(mmap.mmap(-1, SPAN, flags=private)),
    }
    for name, make in kinds.items():
        yield name, f"{seconds(lambda make=make: pipeline.fill([(source, 0, memoryview(make()))])):.3f} s"  # type: ignore[misc]


def _advised(buffer: mmap.mmap) -> mmap.mmap:
    buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def _large(directory: Path) -> FileSource:
    data.ensure(directory, {"large.safetensors"})
    return FileSource(str(directory / "large.safetensors"))


def blocks(directory: Path) -> Table:
    """Blocks of 256 KB to 64 MB, and 1, 2 and 4 workers: 1 GB read into memory, copied from a file, and saved."""
    source = _large(directory)
    buffer = allocate(SPAN)
    source.readinto(0, buffer)
    out = directory / "out.blocks"
    defaults = pipeline.BLOCK, pipeline.READ, pipeline.WORKERS
    settings = [(block << 10, block << 10, defaults[2]) for block in (256, 1024, 4096, 16384, 65536)]
    settings += [(*defaults[:2], workers) for workers in (1, 2, 4)]
    try:
        for pipeline.BLOCK, pipeline.READ, pipeline.WORKERS in settings:
            name = f"{pipeline.BLOCK >> 10:,} KB ({pipeline.READ >> 10:,} KB), {pipeline.WORKERS} workers"
            read = seconds(lambda: pipeline.fill([(source, 0, buffer)]))
            copy, plain, summed = (
                seconds(lambda a=a, c=c: _write(out, a, c), lambda: _clean(out))  # type: ignore[misc]
                for a, c in ((source, False), (BytesSource(buffer), False), (BytesSource(buffer), True))
            )
            yield name, *(f"{value:.3f} s" for value in (read, copy, plain, summed))
    finally:
        pipeline.BLOCK, pipeline.READ, pipeline.WORKERS = defaults
        out.unlink(missing_ok=True)


def _write(out: Path, source: Any, crc: bool) -> None:
    with open(out, "wb") as file:
        parts = [pipeline.Part(at, source, at, PART) for at in range(0, SPAN, PART)]
        pipeline.FileSink(Descriptor(os.dup(file.fileno()))).put(parts, crc=crc)


def _clean(out: Path) -> None:
    out.unlink(missing_ok=True)
    os.sync()


CHOICES: dict[str, tuple[Callable[[Path], Table], tuple[str, ...]]] = {
    "hashes": (hashes, ("hash", "speed")),
    "json": (jsons, ("JSON of 50,000 tensors", "read", "write", "import")),
    "pages": (pages, ("fresh memory", "read 1 GB")),
    "blocks": (
        blocks,
        ("blocks of writes (reads)", "read 1 GB", "file to file", "save, digest", "save, digest and CRC-32"),
    ),
}


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser("python -m benchmarks.choices", description=main.__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *CHOICES])
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir(), "statedict-benchmarks"))
    options = parser.parse_args()
    for name in options.names or CHOICES:
        table, columns = CHOICES[name]
        print(markdown(table(options.directory), columns), "\n", flush=True)


if __name__ == "__main__":
    main()
