#!/usr/bin/env bash
# Versions: torch 2.15.0, numpy 2.4.6, Python 3.11, Linux x86-64; the same with torch 2.13.0.
#
# Behaviour: `torch.save` writes a nested tensor without components, `torch.nested.nested_tensor([])`, without a word, and
# no `torch.load` reads it again, `weights_only` or not: it stops at an internal assertion, since the sizes were written
# as a tensor of no dimensions where the function that rebuilds it wants two. Everything else in that file is lost with
# it, for `torch.load` raises.
#
# A confident guess: what `torch.save` takes without an error, the same release loads.
#
# Output seen:
#   saved, then RuntimeError: nested_sizes.dim() == 2 INTERNAL ASSERT FAILED
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
PIP_CONFIG_FILE=/dev/null "$work/venv/bin/pip" install --quiet torch==2.15.0 numpy==2.4.6
"$work/venv/bin/python" -W ignore - > "$work/output" <<'PY'
import io

import torch

file = io.BytesIO()
torch.save({"weight": torch.ones(2), "batch": torch.nested.nested_tensor([])}, file)
file.seek(0)
try:
    torch.load(file, weights_only=False)
    print("saved and loaded")
except RuntimeError as error:
    print("saved, then RuntimeError:", str(error).partition(" at ")[0])
PY
cat "$work/output"
diff "$work/output" - <<'SEEN'
saved, then RuntimeError: nested_sizes.dim() == 2 INTERNAL ASSERT FAILED
SEEN
