#!/usr/bin/env bash
# Versions: bitsandbytes 0.50.2, torch 2.13.0, numpy 2.4.6, Python 3.11, Linux x86-64, CPU, one process.
#
# Behaviour: `Linear4bit(quant_storage=torch.bfloat16)`, the storage that FSDP with QLoRA needs, keeps its packed 4-bit
# numbers in a bfloat16 tensor. `.half()` on the layer, or on any model around it, casts that tensor by value: the bits
# change, two 4-bit numbers in each byte. Nothing is raised or warned, the layer still runs, and its weights are finite:
# 87% of them are others than before. The same layer with the default storage, uint8, is unharmed, for `.half()` casts
# floating-point tensors only. With `.float()` the size changes too, and the layer raises when it is used, not when it
# is cast. (transformers refuses `.half()` on its own models; a plain module of torch has nobody to do so.)
#
# A confident guess: the storage dtype is only how bytes are kept, so a cast of the module leaves them alone, as it does
# with uint8.
#
# Output seen:
#   uint8 .half(): stored as uint8, 0% of the weights changed, 0 are NaN, the output is off by 0.14
#   bfloat16 .half(): stored as float16, 87% of the weights changed, 0 are NaN, the output is off by 5.68
#   bfloat16 .bfloat16(): stored as bfloat16, 0% of the weights changed, 0 are NaN, the output is off by 0.14
#   bfloat16 .float(): RuntimeError: shape '[64, 32]' is invalid for input of size 4096
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 bitsandbytes==0.50.2 numpy==2.4.6
cat > "$work/half.py" <<'PY'
import bitsandbytes as bnb
import torch


def attempt(storage, cast):
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 64, bias=False)
    layer = bnb.nn.Linear4bit(
        64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4", quant_storage=storage
    )
    layer.load_state_dict(plain.state_dict())
    layer = layer.to("cpu")  # quantizes
    before = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    getattr(layer, cast)()
    title = f"{str(storage).removeprefix('torch.')} .{cast}():"
    try:
        after = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        inputs = torch.ones(1, 64)
        off = (layer(inputs) - plain(inputs)).abs().max().item()
    except RuntimeError as error:
        print(title, f"RuntimeError: {error}")
        return
    changed, nan = (before != after).float().mean().item(), after.isnan().sum().item()
    stored = str(layer.weight.dtype).removeprefix("torch.")
    print(title, f"stored as {stored}, {changed:.0%} of the weights changed, {nan} are NaN, the output is off by {off:.2f}")


attempt(torch.uint8, "half")
for cast in ("half", "bfloat16", "float"):
    attempt(torch.bfloat16, cast)
PY
"$work/venv/bin/python" -W ignore "$work/half.py" 2> /dev/null | tee "$work/output"
diff "$work/output" - <<'SEEN'
uint8 .half(): stored as uint8, 0% of the weights changed, 0 are NaN, the output is off by 0.14
bfloat16 .half(): stored as float16, 87% of the weights changed, 0 are NaN, the output is off by 5.68
bfloat16 .bfloat16(): stored as bfloat16, 0% of the weights changed, 0 are NaN, the output is off by 0.14
bfloat16 .float(): RuntimeError: shape '[64, 32]' is invalid for input of size 4096
SEEN
