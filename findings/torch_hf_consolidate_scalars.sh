#!/usr/bin/env bash
# Versions: torch 2.13.0, safetensors 0.8.0, numpy 2.4.6, Python 3.11, Linux x86-64, CPU, one process.
#
# Behaviour: DCP's `HuggingFaceStorageWriter` with `enable_consolidation=True` writes the shards to `sharded/` and then
# copies them into whole tensors beside it. The copy leaves out tensors without dimensions: their bytes stay 0, so each
# 0-d tensor (a scale, a temperature) is 0.0 in the consolidated file while the shard holds the right number. Save and
# load raise nothing. `consolidate_safetensors_files` alone does the same. (In that path a tensor of integers or bools
# raises `TypeError: torch.finfo() requires a floating point input type`, so that only floats get as far as this.)
#
# A confident guess: the consolidated file holds what the shards hold.
#
# Output seen:
#   shard: scale 0.75, weight [0.5, 1.5]
#   consolidated: scale 0.0, weight [0.5, 1.5]
#   loaded by DCP: scale 0.0, weight [0.5, 1.5]
#   consolidate_safetensors_files: scale 0.0, weight [0.5, 1.5]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cat > "$work/consolidate.py" <<'PY'
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files

folder, again = Path(sys.argv[1], "checkpoint"), Path(sys.argv[1], "again")
state = {"scale": torch.tensor(0.75), "weight": torch.tensor([0.5, 1.5])}


def show(title, tensors):
    print(f"{title}: scale {tensors['scale'].item()}, weight {tensors['weight'].tolist()}")


writer = HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=True)
dcp.save(state, storage_writer=writer, no_dist=True)
show("shard", load_file(folder / "sharded" / "shard-00001-model-00001-of-00001.safetensors"))
show("consolidated", load_file(folder / "model-00001-of-00001.safetensors"))

target = {"scale": torch.tensor(-1.0), "weight": torch.full((2,), -1.0)}
dcp.load(target, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
show("loaded by DCP", target)

again.mkdir()
consolidate_safetensors_files(str(folder / "sharded"), str(again), fqn_to_index_mapping={"scale": 1, "weight": 1})
show("consolidate_safetensors_files", load_file(again / "model-00001-of-00001.safetensors"))
PY
"$work/venv/bin/python" -W ignore "$work/consolidate.py" "$work" | tee "$work/output"
diff "$work/output" - <<'SEEN'
shard: scale 0.75, weight [0.5, 1.5]
consolidated: scale 0.0, weight [0.5, 1.5]
loaded by DCP: scale 0.0, weight [0.5, 1.5]
consolidate_safetensors_files: scale 0.0, weight [0.5, 1.5]
SEEN
