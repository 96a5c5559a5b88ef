"""The files that the jobs read, made at first use.

large.pth, large.safetensors          300 bfloat16 tensors of 2048 × 1685, 2.07 GB
twin.pth, twin.safetensors            the tensors of large
altered.pth, altered.safetensors      the tensors of large, each tenth of which is another
wide.pth, wide.safetensors            150 float32 tensors of 2048 × 1685, 2.07 GB, and one of 1 MB
small-N.pth, small-N.safetensors      N float32 tensors of 64 elements
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
for suffix, save in ((".pth", torch.save), (".safetensors", save_file)):
    save(tensors, sys.argv[1] + suffix + ".part")
    os.replace(sys.argv[1] + suffix + ".part", sys.argv[1] + suffix)
"""


def ensure(directory: Path, names: set[str]) -> None:
    """Make the files that are not there yet, in another process, so that this one stays small."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(name.startswith(("twin", "altered")) for name in names):  # their counterparts
        names = names | {"large.pth", "twin.pth"}
    for stem in sorted({name.partition(".")[0] for name in names if not (directory / name).exists()}):
        print(f"making {directory / stem}.{{pth,safetensors}}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-c", _MAKE, str(directory / stem)], check=True)
