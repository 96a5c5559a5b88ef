"""GGUF files are read by ranges, split ones by the names of their parts, and workers elsewhere convert them."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import gguf
import numpy
from gguf.quants import quantize

import statedict
from statedict.testing.same import assert_same

from ..formats import ggufs
from .servers import Server

FLOATS = numpy.random.default_rng(3).normal(0, 0.02, (2048, 1024)).astype(numpy.float32)
TENSORS = {
    "w": ("Q8_0", quantize(FLOATS, gguf.GGMLQuantizationType.Q8_0)),
    "k": ("Q4_K", ggufs.random_blocks("Q4_K", 2048, 4)),
    "f": FLOATS[:512],
}
PAIRS = {"tokens": ("array", [f"token {number}" for number in range(100_000)])}


def test_a_url_is_read_by_ranges(tmp_path: Path, web: Server) -> None:
    path = ggufs.write(tmp_path / "m.gguf", TENSORS, PAIRS)
    state = statedict.load(f"{web.url}/m.gguf")
    assert state["metadata"]["tokens"][-1] == "token 99999"
    assert web.sent < 4 << 20 < path.stat().st_size
    assert_same(state, statedict.load(path))


def test_a_split_model_at_a_url_is_one(tmp_path: Path, web: Server) -> None:
    ggufs.write(tmp_path / "m.gguf", TENSORS, split_max_tensors=1)
    assert_same(statedict.load(f"{web.url}/m-00002-of-00003.gguf"), statedict.load(tmp_path / "m-00001-of-00003.gguf"))


def test_processes_decode_and_quantize(tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "m.gguf", TENSORS)
    steps = {"a.safetensors": {"dequantize": "bf16"}, "a.gguf": {"quantize": "Q4_0"}}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for name, step in steps.items():
            statedict.edit(path, tmp_path / f"there-{name}", step, executor=pool)
            statedict.edit(path, tmp_path / name, step)
            assert (tmp_path / f"there-{name}").read_bytes() == (tmp_path / name).read_bytes()
