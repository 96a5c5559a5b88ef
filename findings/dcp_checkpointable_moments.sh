#!/usr/bin/env bash
# Versions: torch 2.15.0, numpy 2.4.6, Python 3.11, Linux x86-64, gloo on one machine.
#
# Behaviour: a parameter that is a shard by DCP's `CheckpointableTensor` protocol (PyTorch 2.14) is saved and loaded as
# a shard, but the moments of its optimizer are not. `get_optimizer_state_dict` returns them as plain tensors of the
# local shape without the four attributes, every rank writes the same name, DCP takes them for replicas and keeps those
# of one rank. Save and load raise nothing, the weights come back right, and the other ranks go on with the moments of
# a part of the tensor that is not theirs.
#
# A confident guess: the moments follow their parameter, as they do with DTensor, or the save refuses them.
#
# Output seen:
#   sizes in the checkpoint: model.w (4, 4), optim.state.w.exp_avg (2, 4)
#   rank 0: weights equal True, exp_avg saved 0.1 loaded 0.2
#   rank 1: weights equal True, exp_avg saved 0.2 loaded 0.2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
PIP_CONFIG_FILE=/dev/null "$work/venv/bin/pip" install --quiet torch==2.15.0 numpy==2.4.6
cat > "$work/moments.py" <<'PY'
import logging
import sys
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


def state(model, optimizer):
    return {"model": model.state_dict(keep_vars=True), "optim": get_optimizer_state_dict(model, optimizer)}


def run(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.full((2, 4), 10.0 + rank))
    model.w.global_shape = (4, 4)
    model.w.global_offsets = [(2 * rank, 0)]
    model.w.local_offsets = [(0, 0)]
    model.w.local_sizes = [(2, 4)]
    optimizer = torch.optim.AdamW(model.parameters())
    model.w.grad = torch.full((2, 4), 1.0 + rank)
    optimizer.step()
    weights, moments = model.w.detach().clone(), optimizer.state[model.w]["exp_avg"].clone()
    dcp.save(state(model, optimizer), checkpoint_id=f"{folder}/checkpoint")

    with torch.no_grad():
        model.w.zero_()
    optimizer.state[model.w]["exp_avg"].zero_()
    target = state(model, optimizer)
    dcp.load(target, checkpoint_id=f"{folder}/checkpoint")
    set_optimizer_state_dict(model, optimizer, target["optim"])
    loaded = optimizer.state[model.w]["exp_avg"]

    sizes = dcp.FileSystemReader(f"{folder}/checkpoint").read_metadata().state_dict_metadata
    for turn in range(2):
        dist.barrier()
        if turn == rank:
            if rank == 0:
                names = ("model.w", "optim.state.w.exp_avg")
                print("sizes in the checkpoint:", ", ".join(f"{name} {tuple(sizes[name].size)}" for name in names))
            print(
                f"rank {rank}: weights equal {torch.equal(model.w.detach(), weights)}, "
                f"exp_avg saved {moments[0, 0]:.1f} loaded {loaded[0, 0]:.1f}",
                flush=True,
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(run, (sys.argv[1],), 2)
PY
"$work/venv/bin/python" "$work/moments.py" "$work" | tee "$work/output"
diff "$work/output" - <<'SEEN'
sizes in the checkpoint: model.w (4, 4), optim.state.w.exp_avg (2, 4)
rank 0: weights equal True, exp_avg saved 0.1 loaded 0.2
rank 1: weights equal True, exp_avg saved 0.2 loaded 0.2
SEEN
