"""The jobs that read one file and write another, or a part of it."""

from __future__ import annotations

from benchmarks.harness import HERE, Row, Side

GONE = """
import os, shutil
for one in (out, out + '.pth', out + '.safetensors'):
    if os.path.isdir(one): shutil.rmtree(one)
    elif os.path.exists(one): os.unlink(one)
os.sync()
"""
_PEERS = "import os, torch\nfrom safetensors.torch import load_file, save_file"
SYNC_OUT = """
for one in ([os.path.join(out, name) for name in os.listdir(out)] if os.path.isdir(out) else [out]):
    fd = os.open(one, os.O_RDWR); os.fsync(fd); os.close(fd)
"""


def _changes(
    name: str, data: str, peer: str, call: str, ours: str, target: float, setup: tuple[str, str] = ("", "")
) -> list[Row]:
    """Reading one file and writing another, without and with fsync on both sides; `ours` ends in `fsync=`."""
    most = 150 if "cast" in name else 100
    theirs, here = _PEERS + "\n" + setup[0], "import statedict\n" + setup[1]
    plain = Row(name, data, Side(peer, call, theirs, GONE), Side("", f"{ours}False)", here, GONE), target, most=most)
    synced = Row(
        f"{name}, fsync",
        data,
        Side(f"{peer}, fsync", call + SYNC_OUT, theirs, GONE),
        Side("", f"{ours}True)", here, GONE),
        most=most,
    )
    return [plain, synced]


_SHARDED = """
import os
folder = path + '.shards'
if not os.path.exists(folder):
    import statedict
    statedict.convert(path, folder, max_shard_size='500MB')
"""
_IN_PLACE = """
import os, statedict
copy = out + os.path.splitext(path)[1]
statedict.convert(path, copy)
before, after = 'layers', 'blocks'
"""
_RENAME_IN_PLACE = """
statedict.edit(copy, None, [{'rename': {before + '.{n}.weight': after + '.{n}.weight'}}])
before, after = after, before
"""
_EDIT = "result = statedict.edit(path, None, [{}], dry_run=True)"
_STEPS = (
    "{'rename': {'layers.{n}': 'blocks.{n}'}}",
    "{'cast': 'bf16'}",
    "{'drop': 'blocks.1*'}",
    "{'prefix': 'model.'}",
)
_SERVE = """
import os, sys
sys.path.insert(0, {!r})
from benchmarks.server import Ranges, serve
url = serve(os.path.dirname(path)) + '/' + os.path.basename(path)
"""
_DOWNLOAD = """
import urllib.request
urllib.request.urlretrieve(url, out)
result = load_file(out)['head'].clone()
"""
_FETCH = """
Ranges.sent = 0
result = statedict.load(url)['head'].numpy()
assert result.nbytes == 1 << 20 and Ranges.sent < 2_000_000, Ranges.sent
"""

CHANGES: list[Row] = [
    *_changes(
        "convert 2 GB .pth to .safetensors",
        "large.pth",
        "torch.load(mmap) + save_file",
        "save_file(torch.load(path, mmap=True), out)",
        "statedict.convert(path, out, format='safetensors', fsync=",
        2.5,
    ),
    *_changes(
        "convert 2 GB .safetensors to .pth",
        "large.safetensors",
        "load_file + torch.save",
        "torch.save(load_file(path), out)",
        "statedict.convert(path, out, format='torch', fsync=",
        2,
    ),
    *_changes(
        "rename all keys of 2 GB",
        "large.safetensors",
        "load_file + save_file",
        "save_file({'model.' + k: v for k, v in load_file(path).items()}, out)",
        "statedict.edit(path, out, [{'prefix': 'model.'}], fsync=",
        1.5,
    ),
    *(
        Row(
            f"rename all keys of 2 GB .{suffix} in place",
            f"large.{suffix}",
            None,
            Side("", _RENAME_IN_PLACE, _IN_PLACE),
            within=0.01,
        )
        for suffix in ("safetensors", "pth")
    ),
    *(
        Row(
            f"plan {name} of 20,000 tensors, .{suffix}",
            f"small-20000.{suffix}",
            Side("load alone", "result = statedict.load(path)", "import statedict"),
            Side("edit(dry_run=True)", _EDIT.format(", ".join(steps)), "import statedict"),
            target,
        )
        for suffix in ("safetensors", "pth")
        for name, steps, target in (("a rename", _STEPS[:1], 1 / 2), ("four steps", _STEPS, 1 / 4))
    ),
    *_changes(
        "cast 2 GB from float32 to bfloat16",
        "wide.safetensors",
        "a loop over load_file",
        "save_file({k: v.to(torch.bfloat16) for k, v in load_file(path).items()}, out)",
        "statedict.edit(path, out, [{'cast': 'bf16'}], format='safetensors', fsync=",
        2,
    ),
    *_changes(
        "split 2 GB into shards",
        "large.safetensors",
        "huggingface_hub's, which save_pretrained uses",
        "os.makedirs(out, exist_ok=True)\nsave_torch_state_dict(load_file(path), out, max_shard_size='500MB')",
        "statedict.convert(path, out, max_shard_size='500MB', fsync=",
        1.5,
        ("from huggingface_hub import save_torch_state_dict", ""),
    ),
    *_changes(
        "join shards of 2 GB",
        "large.safetensors",
        "a loop over load_file",
        "state = {}\n"
        "for name in sorted(os.listdir(folder)):\n"
        "    if name.endswith('safetensors'): state |= load_file(os.path.join(folder, name))\n"
        "save_file(state, out)\n"
        "del state",
        "statedict.convert(folder, out, format='safetensors', fsync=",
        1.5,
        (_SHARDED, _SHARDED),
    ),
    Row(
        "read 1 MB of 2 GB by HTTP",
        "wide.safetensors",
        Side("the whole download", _DOWNLOAD, _PEERS + _SERVE.format(str(HERE.parent))),
        Side("load(url)", _FETCH, "import statedict\n" + _SERVE.format(str(HERE.parent))),
        10,
    ),
]
