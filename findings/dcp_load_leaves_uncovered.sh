#!/usr/bin/env bash
# Versions: torch 2.15.0, numpy 2.4.6, Python 3.11, Linux x86-64.
#
# Behaviour: `torch.distributed.checkpoint.load` compares the size that the checkpoint states for a tensor with the
# target's, not whether the chunks in the checkpoint cover it. Where only some chunks of a (4, 4) tensor were saved (one
# rank's part by the `CheckpointableTensor` protocol of PyTorch 2.14, `no_dist=True`), the load into a whole (4, 4)
# tensor raises nothing and warns of nothing: the rows that no chunk holds keep whatever the target had before.
#
# A confident guess: a load that is strict by default raises if a part of a tensor is not there.
#
# Output seen:
#   the checkpoint states (4, 4) and holds [((0, 0), (2, 4))]
#   loaded [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], [-1.0, -1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
PIP_CONFIG_FILE=/dev/null "$work/venv/bin/pip" install --quiet torch==2.15.0 numpy==2.4.6
cat > "$work/uncovered.py" <<'PY'
import sys

import torch
import torch.distributed.checkpoint as dcp

part = torch.arange(8.0).reshape(2, 4)
part.global_shape = (4, 4)
part.global_offsets, part.local_offsets, part.local_sizes = [(0, 0)], [(0, 0)], [(2, 4)]
dcp.save({"w": part}, checkpoint_id=sys.argv[1], no_dist=True)
entry = dcp.FileSystemReader(sys.argv[1]).read_metadata().state_dict_metadata["w"]
chunks = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks]
print(f"the checkpoint states {tuple(entry.size)} and holds {chunks}")
target = torch.full((4, 4), -1.0)
dcp.load({"w": target}, checkpoint_id=sys.argv[1], no_dist=True)
print("loaded", target.tolist())
PY
"$work/venv/bin/python" -W ignore "$work/uncovered.py" "$work/checkpoint" | tee "$work/output"
diff "$work/output" - <<'SEEN'
the checkpoint states (4, 4) and holds [((0, 0), (2, 4))]
loaded [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], [-1.0, -1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]]
SEEN
