#!/usr/bin/env bash
# Versions: paddlepaddle 3.3.1, numpy 2.4.6, Python 3.11, Linux x86-64, CPU.
#
# Behaviour: `paddle.save` writes a float8 tensor as an int8 NumPy array of its bytes, and nothing in the file says that
# they were floats. `paddle.load` returns an int8 tensor of other numbers: 1.0 comes back as 56. Neither raises or warns;
# `set_state_dict` then refuses the tensor even for a layer like the one saved, since the dtype does not match. bfloat16,
# which NumPy lacks too, comes back as it was. Who knows the dtype gets the values with `tensor.view`; `astype` converts
# the wrong numbers.
#
# A confident guess: what `paddle.save` takes comes back with its dtype and values, as for bfloat16, or it refuses it.
#
# Output seen:
#   float8_e4m3fn: saved [1.0, -2.5, 0.5] loaded int8 [56, -62, 48] viewed [1.0, -2.5, 0.5]
#   float8_e5m2: saved [1.0, -2.5, 0.5] loaded int8 [60, -63, 56] viewed [1.0, -2.5, 0.5]
#   bfloat16: saved [1.0, -2.5, 0.5] loaded bfloat16 [1.0, -2.5, 0.5] viewed [1.0, -2.5, 0.5]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check paddlepaddle==3.3.1 numpy==2.4.6
cat > "$work/float8.py" <<'PY'
import sys

import paddle


def numbers(tensor):
    return tensor.astype("float32").tolist()


for name in ("float8_e4m3fn", "float8_e5m2", "bfloat16"):
    saved = paddle.to_tensor([1.0, -2.5, 0.5]).astype(name)
    paddle.save({"weight": saved}, sys.argv[1])
    loaded = paddle.load(sys.argv[1])["weight"]
    values = loaded.tolist() if loaded.dtype == paddle.int8 else numbers(loaded)
    dtype = str(loaded.dtype).removeprefix("paddle.")
    print(f"{name}: saved {numbers(saved)} loaded {dtype} {values} viewed {numbers(loaded.view(name))}")
PY
"$work/venv/bin/python" -W ignore "$work/float8.py" "$work/state.pdparams" | tee "$work/output"
diff "$work/output" - <<'SEEN'
float8_e4m3fn: saved [1.0, -2.5, 0.5] loaded int8 [56, -62, 48] viewed [1.0, -2.5, 0.5]
float8_e5m2: saved [1.0, -2.5, 0.5] loaded int8 [60, -63, 56] viewed [1.0, -2.5, 0.5]
bfloat16: saved [1.0, -2.5, 0.5] loaded bfloat16 [1.0, -2.5, 0.5] viewed [1.0, -2.5, 0.5]
SEEN
