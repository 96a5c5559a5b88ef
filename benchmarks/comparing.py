"""The jobs that compare two files."""

from __future__ import annotations

from benchmarks.harness import Row, Side

_BOTH = "import os, sys\nother = os.path.join(os.path.dirname(path), 'large.pth')"
_EQUAL = """
a, b = torch.load(other, mmap=True), torch.load(path, mmap=True)
for name in a:
    if not torch.equal(a[name], b[name]):
        x, y = a[name].float(), b[name].float()
        gap = x - y
        print(
            name,
            gap.abs().max().item(),
            (gap.norm() / x.norm()).item(),
            torch.nn.functional.cosine_similarity(x.flatten(), y.flatten(), 0).item(),
            (gap != 0).float().mean().item(),
            file=sys.stderr,
        )
del a, b
"""
_PEER = Side("torch.load(mmap) + torch.equal", _EQUAL, _BOTH + "\nimport torch")
_COMMAND = _BOTH + "\nsys.argv = ['statedict', 'diff', other, path]\nfrom statedict.cli import main\nmain()"

COMPARING: list[Row] = [
    Row(
        "compare two equal files of 2 GB",
        "twin.pth",
        _PEER,
        Side("diff", "assert statedict.diff(other, path).same", _BOTH + "\nimport statedict"),
        4,
        most=200,
    ),
    Row(
        "compare two equal files of 2 GB, as a command",
        "twin.pth",
        Side("torch.load(mmap) + torch.equal", _BOTH + "\nimport torch" + _EQUAL),
        Side("statedict diff", _COMMAND),
        6,
        new_process=True,
        most=200,
    ),
    Row(
        "compare 2 GB, a tenth of the tensors changed",
        "altered.pth",
        Side("torch.load(mmap) + a loop", _EQUAL, _PEER.setup),
        Side("diff", "assert len(statedict.diff(other, path).changed) == 30", _BOTH + "\nimport statedict"),
        3,
        most=200,
    ),
    Row(
        "compare 50,000 .pth with .safetensors",
        "small-50000.safetensors",
        None,
        Side(
            "diff",
            "assert statedict.diff(path.rpartition('.')[0] + '.pth', path).same",
            "import statedict",
        ),
    ),
]
