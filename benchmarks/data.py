"""The files that the jobs read, made at first use.

large.pth, large.safetensors          300 bfloat16 tensors of 2048 × 1685, 2.07 GB
twin.pth, twin.safetensors            the tensors of large
altered.pth, altered.safetensors      the tensors of large, each tenth of which is another
wide.pth, wide.safetensors, wide.npz  150 float32 tensors of 2048 × 1685, 2.07 GB, and one of 1 MB
small-N.pth, small-N.safetensors      N float32 tensors of 64 elements
llama.gguf                            300 tensors of 12 million zeros as Q4_K, 2 GB, and Llama 3's size of vocabulary
blocks.gguf                           Q4_K, Q6_K, Q8_0 and Q4_0, 5 tensors of 4096 × 4096 each
arrays.orbax                          a directory of Orbax: 470 arrays of 1024 × 1024 and as many of 1024, float32, 2 GB
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LARGE_MB = 300 * 2048 * 1685 * 2 / 1e6
COUNTS = (1_000, 10_000, 50_000, 100_000)

_MAKE = """
import os, sys, torch
from safetensors.torch import save_file
kind, _, count = os.path.basename(sys.argv[1]).partition(".")[0].partition("-")
torch.manual_seed(0)
if kind in ("large", "twin", "altered"):
    tensors = {f"layers.{i}.weight": torch.randn(2048, 1685).bfloat16() for i in range(300)}
    for name in list(tensors)[::10] if kind == "altered" else ():
        tensors[name] += 0.01 * torch.randn(2048, 1685)
elif kind == "wide":
    tensors = {f"layers.{i}.weight": torch.randn(2048, 1685) for i in range(150)} | {"head": torch.randn(1 << 18)}
else:
    tensors = {f"layers.{i}.weight": torch.randn(64) for i in range(int(count))}
savers = {".pth": torch.save, ".safetensors": save_file}
if kind == "wide":
    import numpy
    savers[".npz"] = lambda tensors, path: numpy.savez(open(path, "wb"), **{k: v.numpy() for k, v in tensors.items()})
for suffix, save in savers.items():
    save(tensors, sys.argv[1] + suffix + ".part")
    os.replace(sys.argv[1] + suffix + ".part", sys.argv[1] + suffix)
"""

_MAKE_GGUF = """
import gguf, numpy, os, sys
writer = gguf.GGUFWriter(sys.argv[1] + ".gguf.part", "llama")
random = numpy.random.default_rng(0)

def add(name, kind, shape, fill):
    elements, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = fill(shape[0] * shape[1] // elements, nbytes)
    writer.add_tensor(name, blocks.reshape(shape[0], -1), raw_dtype=gguf.GGMLQuantizationType[kind])

def bits(count, nbytes):  # with a scale of 0.001 wherever one may lie
    blocks = random.integers(0, 256, (count, nbytes), dtype=numpy.uint8)
    for at in (0, 2, nbytes - 2):
        blocks[:, at : at + 2] = numpy.array([0.001], "<f2").view(numpy.uint8)
    return blocks

if os.path.basename(sys.argv[1]) == "llama":
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(128256)])
    writer.add_array("tokenizer.ggml.token_type", [1] * 128256)
    writer.add_array("tokenizer.ggml.merges", [f"tok en{number}" for number in range(280147)])
    for number in range(300):
        add(f"blk.{number}.weight", "Q4_K", (3072, 4096), lambda count, nbytes: numpy.zeros((count, nbytes), "u1"))
else:
    for kind in ("Q4_K", "Q6_K", "Q8_0", "Q4_0"):
        for number in range(5):
            add(f"{kind}.{number}", kind, (4096, 4096), bits)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
os.replace(sys.argv[1] + ".gguf.part", sys.argv[1] + ".gguf")
"""

_MAKE_ORBAX = """
import jax.numpy, numpy, os, orbax.checkpoint as ocp, sys
random = numpy.random.default_rng(0)
kernel, bias = (jax.numpy.asarray(random.standard_normal(shape, "f4")) for shape in ((1024, 1024), (1024,)))
with ocp.StandardCheckpointer() as checkpointer:
    path = os.path.abspath(sys.argv[1] + ".orbax")
    checkpointer.save(path, {"layers": [{"kernel": kernel, "bias": bias} for _ in range(470)]})
"""
_MAKERS = {"gguf": _MAKE_GGUF, "orbax": _MAKE_ORBAX}


def ensure(directory: Path, names: set[str]) -> None:
    """Make the files that are not there yet, in another process, so that this one stays small."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(name.startswith(("twin", "altered")) for name in names):  # their counterparts
        names = names | {"large.pth", "twin.pth"}
    for stem, suffix in _missing(directory, names):
        print(f"making {directory / stem}.{suffix}", file=sys.stderr, flush=True)
        make = _MAKERS.get(suffix, _MAKE)
        subprocess.run([sys.executable, "-c", make, str(directory / stem)], check=True)


def _missing(directory: Path, names: set[str]) -> list[tuple[str, str]]:
    """Stem and suffix of the files to make; .pth and .safetensors of a stem are made together."""
    pairs = {tuple(name.split(".")) for name in names if not (directory / name).exists()}
    return sorted({(stem, suffix if suffix in _MAKERS else "pth") for stem, suffix in pairs})
