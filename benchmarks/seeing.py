"""The jobs that look into the tensors of a file."""

from __future__ import annotations

from benchmarks.harness import Row, Side

_EACH = """
for t in torch.load(path, mmap=True).values():
    wide = t.float()
    wide.min(), wide.max(), wide.mean(), wide.std(), wide.norm(), (t == 0).sum(), t.isnan().sum(), t.isinf().sum()
    wide.histc(16)
"""
_OURS = "assert statedict.stats(path).total.elements"

SEEING: list[Row] = [
    Row(
        f"figures and histogram of 2 GB of {kind}",
        data,
        Side("an expression of torch each, cast once", _EACH, "import torch"),
        Side("stats", _OURS, "import statedict"),
        target,
        most=150,
    )
    for kind, data, target in (("bfloat16", "large.pth", 5), ("float32", "wide.pth", None))
]
