"""Every command works on a GGUF file, without torch."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy
import pytest
from gguf.quants import dequantize, quantize

import statedict

from ..formats import ggufs
from .conftest import Run

FLOATS = numpy.random.default_rng(3).normal(0, 0.02, (16, 512)).astype(numpy.float32)
Q8 = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with one quantized weight."""
    tensors = {"blk.0.w.weight": ("Q8_0", quantize(FLOATS, Q8)), "norm.weight": FLOATS[0]}
    pairs = {"general.name": ("string", "tiny"), "tokens": ("array", [f"token {n}" for n in range(300)])}
    return ggufs.write(tmp_path / "m.gguf", tensors, pairs)


def test_show_names_types_counts_stored_bytes_and_shortens_vocabularies(model: Path, run: Run) -> None:
    done = run("show", "m.gguf", torch=False)
    assert done.returncode == 0, done.stderr
    assert "GGUF 8-bit Q8_0 in groups of 32: 1 weight, 8,192 parameters in 8.7 kB, 8.50 bits each" in done.stdout
    assert "parameters 8,704" in done.stdout
    assert "'tiny'" in done.stdout
    assert "['token 0', 'token 1', 't" in done.stdout
    assert len(done.stdout.splitlines()) < 30
    found = json.loads(run("show", "m.gguf", "--json", torch=False).stdout)
    weight = next(tensor for tensor in found["tensors"] if tensor["name"] == "blk.0.w.weight")
    assert (weight["dtype"], weight["shape"], weight["nbytes"]) == ("Q8_0", [16, 512], 8704)


def test_stats_and_diff_are_of_the_numbers(model: Path, run: Run, tmp_path: Path) -> None:
    numbers = dequantize(quantize(FLOATS, Q8), Q8)
    stats = json.loads(run("stats", "m.gguf", "--json", torch=False).stdout)
    figures = next(tensor for tensor in stats["tensors"] if tensor["name"] == "blk.0.w.weight")
    assert figures["max"] == numbers.max()
    assert figures["mean"] == pytest.approx(numbers.mean(dtype=float), rel=1e-9)
    statedict.save({"blk.0.w.weight": FLOATS, "norm.weight": FLOATS[0]}, tmp_path / "o.safetensors")
    found = json.loads(run("diff", "o.safetensors", "m.gguf", "--json", torch=False).stdout)
    (changed,) = found["changed"]
    assert changed["name"] == "blk.0.w.weight"
    assert changed["max_abs"] == pytest.approx(abs(numbers - FLOATS).max())


def test_verify_reads_the_numbers_and_scan_finds_nothing_to_run(model: Path, run: Run) -> None:
    done = run("verify", "m.gguf", "--values", torch=False)
    assert (done.returncode, "m.gguf: fine (gguf, 2 tensors" in done.stdout) == (0, True), done.stdout + done.stderr
    done = run("scan", "m.gguf", torch=False)
    assert (done.returncode, "no pickle in it" in done.stdout) == (0, True)


def test_convert_edit_and_report_write_files(model: Path, run: Run, tmp_path: Path) -> None:
    for words in (
        ("convert", "m.gguf", "m.safetensors"),
        ("edit", "m.gguf", "half.safetensors", "--dequantize", "bf16"),
        ("edit", "half.safetensors", "small.gguf", "--quantize", "blk.*=q4_0", "--only", "blk.*"),
        ("report", "m.gguf", "-o", "m.html"),
    ):
        done = run(*words, torch=False)
        assert done.returncode == 0, done.stderr
    assert statedict.load(tmp_path / "m.safetensors")["blk.0.w.weight"].dtype == "float32"
    assert statedict.load(tmp_path / "half.safetensors")["blk.0.w.weight"].dtype == "bfloat16"
    (tensor,) = gguf.GGUFReader(tmp_path / "small.gguf").tensors
    assert tensor.tensor_type.name == "Q4_0"
