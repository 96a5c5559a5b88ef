#!/usr/bin/env bash
# Versions: auto-round 0.15.1, torch 2.13.0, transformers 5.17.0, numpy 2.4.6, Python 3.11, Linux x86-64, CPU.
#
# Behaviour: auto-round's `QuantLinear` for GPTQ takes `g_idx=True` for layers whose groups are in the order of
# activations. With it the forward pass cuts the columns of the scales, which are outputs, into pieces as long as there
# are inputs. A layer with more outputs than inputs, as `gate_proj` and `up_proj` are, then computes as many outputs
# as it has inputs, and raises; one with as many or fewer works, by luck. It should cut rows. Without `g_idx`,
# the default, all shapes work.
#
# A confident guess: the order of groups is a matter of rows, and has nothing to do with how many outputs there are.
#
# Output seen:
#   32 inputs, 64 outputs, without g_idx: 1 64
#   32 inputs, 64 outputs, with g_idx: RuntimeError: shape '[1, 64]' is invalid for input of size 32
#   64 inputs, 64 outputs, without g_idx: 1 64
#   64 inputs, 64 outputs, with g_idx: 1 64
#   64 inputs, 32 outputs, without g_idx: 1 32
#   64 inputs, 32 outputs, with g_idx: 1 32
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 auto-round==0.15.1 transformers==5.17.0 \
    numpy==2.4.6
cat > "$work/order.py" <<'PY'
import torch
from auto_round_extension.torch.qlinear_torch import QuantLinear

for inputs, outputs in ((32, 64), (64, 64), (64, 32)):
    for order in (False, True):
        torch.manual_seed(0)
        layer = QuantLinear(4, 32, inputs, outputs, False, g_idx=order)
        layer.qweight.random_(-(2**31), 2**31)
        layer.scales.uniform_(0.5, 1.5)
        title = f"{inputs} inputs, {outputs} outputs, {'with' if order else 'without'} g_idx:"
        try:
            print(title, *layer(torch.ones(1, inputs, dtype=torch.float16)).shape)
        except RuntimeError as error:
            print(title, f"RuntimeError: {error}")
PY
"$work/venv/bin/python" -W ignore "$work/order.py" 2> /dev/null | tee "$work/output"
diff "$work/output" - <<'SEEN'
32 inputs, 64 outputs, without g_idx: 1 64
32 inputs, 64 outputs, with g_idx: RuntimeError: shape '[1, 64]' is invalid for input of size 32
64 inputs, 64 outputs, without g_idx: 1 64
64 inputs, 64 outputs, with g_idx: 1 64
64 inputs, 32 outputs, without g_idx: 1 32
64 inputs, 32 outputs, with g_idx: 1 32
SEEN
