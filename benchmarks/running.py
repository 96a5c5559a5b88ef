"""The jobs of a training run: 900 MB of a model and its AdamW, saved and restored."""

from __future__ import annotations

from benchmarks.harness import Row, Side

_MODEL = """
import copy, itertools, os, shutil, torch, statedict
model = torch.nn.Sequential(*(torch.nn.Linear(1116, 1116) for _ in range(60)))
optimizer = torch.optim.AdamW(model.parameters())
for parameter in model.parameters():
    parameter.grad = torch.ones_like(parameter)
optimizer.step()
tree = {"model": model, "optimizer": optimizer}
states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
steps = itertools.count()
def change():
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
"""
_ASYNC = (
    _MODEL
    + """
import warnings
import torch.distributed as dist, torch.distributed.checkpoint as dcp
warnings.filterwarnings("ignore")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
future = None
"""
)
_AFTER_ASYNC = """
if future is not None: future.result()
change(); os.sync()
"""
_MANAGER = _MODEL + "manager = statedict.CheckpointManager(out, keep=1)\n"
_AFTER = "manager.wait(); change(); os.sync()"
_FSYNC = """
torch.save(states, out)
fd = os.open(out, os.O_RDWR); os.fsync(fd); os.close(fd)
"""
_RESTORE = (
    _MODEL
    + """
statedict.save({"model": model, "optimizer": optimizer}, out)
manager = statedict.CheckpointManager(out + ".run")
manager.save(1, tree)
manager.wait()
torch.save(states, out)
"""
)
_FRESH = "manager = statedict.CheckpointManager(out + '.run')"
_LOAD = """
found = torch.load(out)
model.load_state_dict(found["model"])
optimizer.load_state_dict(found["optimizer"])
"""
_SMALL = """
import itertools, os, shutil, torch, statedict
state = {f"layers.{i}.weight": torch.randn(250_000) for i in range(10)}
steps = itertools.count()
"""
_FIVE_HUNDRED = """
names = []
for step in range(500):
    state["layers.0.weight"].add_(1e-3)
    names.append(f"{out}.{step}")
    torch.save(state, names[-1])
    fd = os.open(names[-1], os.O_RDWR); os.fsync(fd); os.close(fd)
    if len(names) > 3: os.remove(names.pop(0))
for name in names: os.remove(name)
"""
_MANAGED = """
shutil.rmtree(out, ignore_errors=True)
with statedict.CheckpointManager(out, keep=3) as manager:
    for step in range(500):
        state["layers.0.weight"].add_(1e-3)
        manager.save(step, state)
"""
_DATA = "small-1000.pth"
_BLOCKS = Side("CheckpointManager.save", "manager.save(next(steps), tree)", _MANAGER, _AFTER)

RUNNING: list[Row] = [
    Row(
        "blocked by a save, 900 MB",
        _DATA,
        Side("torch.save", "torch.save(states, out)", _MODEL, "change(); os.sync()"),
        _BLOCKS,
        8,
    ),
    Row(
        "blocked by a save, 900 MB, async",
        _DATA,
        Side("dcp.async_save", "future = dcp.async_save(states, checkpoint_id=out)", _ASYNC, _AFTER_ASYNC),
        _BLOCKS,
        3,
    ),
    Row(
        "blocked by a save, of a copy of 900 MB",
        _DATA,
        Side(
            "copy_ of each tensor",
            "for own, live in copies: own.copy_(live)",
            _MODEL
            + "live = [*states['model'].values()]\n"
            + "live += [v for entry in states['optimizer']['state'].values() for v in entry.values()]\n"
            + "copies = [(torch.zeros_like(one), one) for one in live]\n",
            "change()",
        ),
        _BLOCKS,
        0.6,
    ),
    Row(
        "a whole save with fsync and digests, 900 MB",
        _DATA,
        Side("torch.save + fsync", _FSYNC, _MODEL, "change(); os.sync()"),
        Side("save and wait", "manager.save(next(steps), tree); manager.wait()", _MANAGER, _AFTER),
        1.2,
    ),
    Row(
        "restore the newest, verified, 900 MB",
        _DATA,
        Side("torch.load + load_state_dict", _LOAD, _RESTORE),
        Side("restore", "manager.restore(tree)", _RESTORE + _FRESH),
        2,
        first=True,
    ),
    Row(
        "500 saves of 10 MB, three kept",
        _DATA,
        Side("torch.save + fsync + os.remove", _FIVE_HUNDRED, _SMALL),
        Side("CheckpointManager", _MANAGED, _SMALL),
    ),
]
