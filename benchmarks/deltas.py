"""Sizes and speeds of deltas, against peers: `python -m benchmarks.deltas [--directory DIR]`.

The data are 20 checkpoints of a small Llama in training, with AdamW, in bfloat16 and float32. Making them takes
transformers and a few minutes; they stay in the directory. Peers that are not installed are left out and say so.
docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import statedict
from benchmarks.choices import attribute
from benchmarks.harness import markdown
from statedict.tensor.checks import tensors_of

WARM, STEPS = 40, 20
Table = list[tuple[str, ...]]


def train(directory: Path, name: str) -> list[Path]:
    """The checkpoints of one dtype."""
    files = [directory / name / f"{step}.safetensors" for step in range(WARM + 1, WARM + STEPS + 1)]
    if all(file.exists() for file in files):
        return files
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    text = b"".join(file.read_bytes() for file in sorted(Path(os.__file__).parent.glob("*.py")))
    data = torch.tensor(list(text[:3_000_000]))
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=4, **sizes)).to(getattr(torch, name))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    (directory / name).mkdir(parents=True, exist_ok=True)
    for step in range(1, WARM + STEPS + 1):
        batch = torch.stack([data[at : at + 128] for at in torch.randint(0, len(data) - 129, (8,))])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step > WARM:
            statedict.save({"model": model, "optimizer": optimizer, "step": step}, files[step - WARM - 1])
    return files


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    return (
        path.stat().st_size if path.is_file() else sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    )


def timed(work: Callable[[], Any], runs: int = 5) -> tuple[float, Any]:
    """The shortest time of several runs, and the result."""
    best, result = float("inf"), None
    for _ in range(runs):
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    return best, result


def steps(base: Path, tuned: Path, kind: str, place: Path) -> Table:
    """The models of two successive steps: one as the difference from the other."""
    one, other = place / "base.safetensors", place / "tuned.safetensors"
    for source, target in ((base, one), (tuned, other)):
        statedict.save(statedict.load(source).at("model"), target)
    raw, rows = other.stat().st_size, Table()

    def row(name: str, size: int, encode: float, decode: float) -> None:
        rates = (f"{raw / seconds / 1e6:,.0f} MB/s" if seconds else "" for seconds in (encode, decode))
        rows.append((f"{kind}, {name}", f"{size:,}", f"{size / raw:.3f}", *rates))

    encode, _ = timed(lambda: statedict.delta.make(one, other, place / "x.delta", fsync=False))
    decode, _ = timed(
        lambda: statedict.save(statedict.delta.apply(one, place / "x.delta"), place / "y.pth", fsync=False)
    )
    row("statedict delta", size_of(place / "x.delta"), encode, decode)
    before, after = one.read_bytes(), other.read_bytes()
    zstd = attribute("zstandard.ZstdCompressor")
    encode, packed = timed(lambda: zstd(level=19).compress(after), 1)
    row("zstd -19", len(packed), encode, 0)
    itemsize = 2 if kind == "bfloat16" else 4
    pairs = [
        tuple(np.frombuffer(tensor.raw(), f"u{itemsize}") for tensor in two)
        for two in zip(*(dict(tensors_of(statedict.load(file))).values() for file in (one, other)), strict=True)
    ]

    def xor() -> int:
        planes = (np.ascontiguousarray((a ^ b).view("u1")[at::itemsize]) for a, b in pairs for at in range(itemsize))
        return sum(len(zstd(level=3).compress(plane.data)) for plane in planes)

    encode, size = timed(xor)
    row("XOR + planes + zstd -3", size, encode, 0)
    make = attribute("zipnn.ZipNN")
    if make is None:
        rows.append((f"{kind}, zipnn", "not installed"))
    else:
        few = len(before) == len(after)
        zipnn = make(bytearray_dtype=kind, delta_compressed_type="byte" if few else None, input_format="byte")
        more = {"delta_second_data": before} if few else {}
        encode, packed = timed(lambda: zipnn.compress(bytearray(after), **more))
        row("zipnn", len(packed), encode, 0)
    rows += _reminis(one, other, kind, place, raw)
    return rows


def _reminis(one: Path, other: Path, kind: str, place: Path, raw: int) -> Table:
    if attribute("reminis.diff.diff_models") is None:
        return [(f"{kind}, reminis", "not installed")]
    command = [str(Path(sys.executable).with_name("reminis"))]
    for file in (one, other):
        subprocess.run([*command, "convert", str(file), "-o", f"{file}.db"], check=True, capture_output=True)
    began = time.perf_counter()
    arguments = ["diff", f"{one}.db", f"{other}.db", "-o", str(place / "reminis.db")]
    subprocess.run([*command, *arguments], check=True, capture_output=True)
    took = time.perf_counter() - began
    size = size_of(place / "reminis.db")
    return [(f"{kind}, reminis diff", f"{size:,}", f"{size / raw:.3f}", f"{raw / took / 1e6:,.0f} MB/s", "")]


def run(files: list[Path], kind: str, place: Path) -> Table:
    """All checkpoints of a run, saved one after the other."""
    trees = [statedict.load(file) for file in files]
    tensors = [{path: tensor.torch(copy=True) for path, tensor in tensors_of(tree)} for tree in trees]
    raw, rows = len(trees) * sum(tensor.nbytes for _, tensor in tensors_of(trees[0])), Table()

    def row(name: str, folder: Path, seconds: float) -> None:
        size = size_of(folder)
        rows.append((f"{kind}, {name}", f"{size:,}", f"{size / raw:.3f}", f"{raw / seconds / 1e6:,.0f} MB/s", ""))
        shutil.rmtree(folder)

    ways: list[dict[str, Any]] = [{}, {"compress": "planes"}]
    ways += [{"compress": "delta", "full_every": every} for every in (2, 5, 10)]
    for options in ways:
        began = time.perf_counter()
        with statedict.CheckpointManager(place / "run", background=False, **options) as manager:
            for step, tree in enumerate(tensors):
                manager.save(step, tree)
        row(f"CheckpointManager({', '.join(map(str, options.values()))})", place / "run", time.perf_counter() - began)
    make = attribute("moonclip.MoonclipManager")
    if make is None:
        return [*rows, (f"{kind}, moonclip", "not installed")]
    for options in ({}, {"full_every_steps": 5}):
        keep = {"max_full_snapshots": 99, "max_deltas_per_full": 99, "async_save": False}
        peer = make(storage_root=str(place / "peer"), **keep, **options)
        began = time.perf_counter()
        for step, tree in enumerate(tensors):
            peer.save_tensors(step, tree)
        peer.flush()
        row(f"moonclip {options or ''}", place / "peer", time.perf_counter() - began)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.deltas", description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir(), "statedict-benchmarks"))
    options = parser.parse_args()
    for kind in ("bfloat16", "float32"):
        files = train(options.directory, kind)
        for part in (steps, run):
            with tempfile.TemporaryDirectory(dir=options.directory) as folder:
                rows = steps(*files[:2], kind, Path(folder)) if part is steps else run(files, kind, Path(folder))
            columns = (part.__doc__ or "", "bytes", "of raw", "saving", "reading")
            print(markdown(((*row, "", "", "", "")[:5] for row in rows), columns), flush=True)


if __name__ == "__main__":
    main()
