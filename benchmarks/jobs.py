"""The jobs, as data: what PyTorch or safetensors does, what we do, and how much faster that has to be."""

from __future__ import annotations

from benchmarks.changes import CHANGES
from benchmarks.combining import COMBINING
from benchmarks.comparing import COMPARING
from benchmarks.data import COUNTS, LARGE_MB
from benchmarks.formats import FORMATS
from benchmarks.harness import SYNC, Row, Side
from benchmarks.running import RUNNING
from benchmarks.seeing import SEEING

_LIST = "for name, tensor in {}: print(name, tuple(tensor.shape), tensor.dtype)"
_FSYNC = "\nfd = os.open(out, os.O_RDWR); os.fsync(fd); os.close(fd)"
_MODEL = """
import torch, statedict
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        make = lambda: torch.nn.Linear(1685, 2048, bias=False, dtype=torch.bfloat16)
        self.layers = torch.nn.ModuleList([make() for _ in range(300)])
with torch.device("meta"):
    model = Model()
model.to_empty(device="cpu")
for parameter in model.parameters():
    torch.nn.init.zeros_(parameter)
small = torch.nn.Linear(4, 4)
torch.save(small.state_dict(), out + ".pth")
small.load_state_dict(torch.load(out + ".pth"))
statedict.restore(small, out + ".pth")
"""
_MANY = """
import torch, statedict
state = statedict.load(path)
model = torch.nn.Module()
model.layers = torch.nn.ModuleList([torch.nn.Module() for _ in state])
for layer, tensor in zip(model.layers, state.values()):
    layer.weight = torch.nn.Parameter(torch.zeros(tensor.shape))
statedict.restore(model, state, dry_run=True)
"""

TORCH_MMAP = Side("torch.load(mmap=True)", "import torch\n" + _LIST.format("torch.load(path, mmap=True).items()"))
TORCH_MMAP_PTH = Side("the same of the .pth", "path = path.rpartition('.')[0] + '.pth'\n" + TORCH_MMAP.run)
SAFE_OPEN = Side(
    "safe_open(np)",
    "from safetensors import safe_open\n"
    "with safe_open(path, 'np') as file:\n"
    "    for name in file.keys():\n"
    "        part = file.get_slice(name)\n"
    "        print(name, tuple(part.get_shape()), part.get_dtype())",
)
LIST = Side("load", "import statedict\n" + _LIST.format("statedict.load(path).items()"))
SHOW = Side(
    "statedict show",
    "import sys\nsys.argv = ['statedict', 'show', path]\nfrom statedict.cli import main\nmain()",
)
SCAN = Side(
    "statedict scan",
    "import sys\nsys.argv = ['statedict', 'scan', path]\nfrom statedict.cli import main\nmain()",
)
_WARM = "\nlarge, path = path, path.replace('large', 'small-1000')\n{0}\npath = large\ndel result"


def _loads(name: str, run: str, imports: str) -> Side:
    """A side that loads, warmed on a small file: what it imports and compiles is no part of what a load costs."""
    return Side(name, run, imports + _WARM.format(run))


TORCH_INDEX = _loads("torch.load", "result = torch.load(path, weights_only=True)", "import torch")
LOAD_FILE = _loads("load_file", "result = load_file(path)", "from safetensors.torch import load_file")
LOAD_FILE_OWNED = _loads(
    "load_file + clone",
    "result = {k: v.clone() for k, v in load_file(path).items()}",
    "from safetensors.torch import load_file",
)
INDEX = _loads("load", "result = statedict.load(path)", "import statedict")
OWNED = _loads("load().torch(copy=True)", "result = statedict.load(path).torch(copy=True)", "import statedict, torch")
OWNED_NUMPY = _loads(
    "load().numpy(copy=True)", "result = statedict.load(path).numpy(copy=True)", "import statedict, numpy"
)

_TREE = "import os, torch, statedict\nfrom safetensors.torch import load_file, save_file\n"
_LARGE_TREE = _TREE + "tree = torch.load(path.rpartition('.')[0] + '.pth')"
_SMALL_TREE = _TREE + "tree = {k: v.clone() for k, v in load_file(path.rpartition('.')[0] + '.safetensors').items()}"


_READ = """
import os
from concurrent.futures import ThreadPoolExecutor
from threading import local
from statedict.io.parallel import WORKERS
own = local()
def read(piece):
    own.block = getattr(own, 'block', None) or memoryview(bytearray(1 << 20))
    for at in range(*piece, 1 << 20):
        os.preadv(file, [own.block], at)
file, size = os.open(path, os.O_RDONLY), os.path.getsize(path)
with ThreadPoolExecutor(WORKERS) as pool:
    list(pool.map(read, [(at, min(at + (8 << 20), size)) for at in range(0, size, 8 << 20)]))
os.close(file)
"""
_OURS = "import statedict\nstatedict.convert(path, out)\npath = out"
_TESTZIP = Side("zipfile.testzip", "assert zipfile.ZipFile(path).testzip() is None", "import zipfile")


def _verifies(name: str, data: str, setup: str) -> Row:
    """Verifying a file as against reading it by as many threads, from the page cache."""
    ours = Side("verify", "assert statedict.verify(path).ok", setup)
    return Row(name, data, Side("plain reading", _READ, setup), ours, 0.7, most=100)


def _saves(name: str, data: str, target: float, most: float | None = None) -> list[Row]:
    """Saving the tensors of a file in its format, without and with fsync on both sides."""
    peer, call = (
        ("save_file", "save_file(tree, out)")
        if data.endswith("safetensors")
        else ("torch.save", "torch.save(tree, out)")
    )
    ours, tree = "statedict.save(tree, out, fsync={})", _LARGE_TREE if data.startswith("large") else _SMALL_TREE
    return [
        Row(name, data, Side(peer, call, tree, SYNC), Side("save", ours.format(False), tree, SYNC), target, most=most),
        Row(
            name + ", fsync",
            data,
            Side(peer + ", fsync", call + _FSYNC, tree, SYNC),
            Side("save, fsync", ours.format(True), tree, SYNC),
        ),
    ]


ROWS: list[Row] = [
    *CHANGES,
    *SEEING,
    *COMPARING,
    *COMBINING,
    *RUNNING,
    *FORMATS,
    Row("list 2 GB .pth", "large.pth", TORCH_MMAP, LIST, 20, new_process=True, most=40),
    Row("list 2 GB .safetensors", "large.safetensors", SAFE_OPEN, LIST, 2.5, new_process=True, most=40),
    Row("show 2 GB .pth", "large.pth", TORCH_MMAP, SHOW, 6, new_process=True),
    Row("show 2 GB .safetensors", "large.safetensors", TORCH_MMAP_PTH, SHOW, 6, new_process=True),
    Row("scan 2 GB .pth", "large.pth", None, SCAN, new_process=True),
    *(
        Row(
            f"index {count:,} .{suffix}",
            f"small-{count}.{suffix}",
            *((peer, INDEX, target) if count == 50_000 else (None, INDEX)),
        )
        for suffix, peer, target in (("pth", TORCH_INDEX, 5), ("safetensors", LOAD_FILE, 2))
        for count in COUNTS
    ),
    *(
        Row(f"load 2 GB {name}{when}", f"large.{name.partition(',')[0][1:]}", peer, ours, target, first=not when)
        for when, target in (("", 4), (", again", None))
        for name, peer, ours in (
            (".pth, torch", TORCH_INDEX, OWNED),
            (".pth, numpy", TORCH_INDEX, OWNED_NUMPY),
            (".safetensors, torch", LOAD_FILE_OWNED, OWNED),
        )
    ),
    _verifies("verify 2 GB .pth of torch.save", "large.pth", "import statedict"),
    _verifies("verify 2 GB .pth of ours", "large.pth", _OURS),
    _verifies("verify 2 GB .safetensors of ours", "large.safetensors", _OURS),
    Row(
        "verify 2 GB .pth, CRC-32",
        "large.pth",
        _TESTZIP,
        Side("verify", "assert statedict.verify(path).ok", "import statedict"),
        3,
        most=100,
    ),
    *_saves("save 2 GB .pth", "large.pth", 1.5, 1.3 * LARGE_MB),
    *_saves("save 2 GB .safetensors", "large.safetensors", 0.95, 1.3 * LARGE_MB),
    *_saves("save 50,000 .pth", "small-50000.pth", 2),
    *_saves("save 50,000 .safetensors", "small-50000.safetensors", 2),
    *(
        Row(
            f"plan a restore of {count:,}",
            f"small-{count}.safetensors",
            None,
            Side("restore(dry_run=True)", "statedict.restore(model, state, dry_run=True)", _MANY),
        )
        for count in COUNTS[:3]
    ),
    *(
        Row(
            f"restore 2 GB .{suffix}",
            f"large.{suffix}",
            Side(
                "load_state_dict(torch.load)",
                "model.load_state_dict(torch.load(path.rpartition('.')[0] + '.pth'))",
                _MODEL,
            ),
            Side("restore", "statedict.restore(model, path)", _MODEL),
            3,
            most=1.3 * LARGE_MB,
            first=True,
        )
        for suffix in ("pth", "safetensors")
    ),
]
