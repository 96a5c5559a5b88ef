#!/usr/bin/env bash
# Versions: torch 2.13.0, ml_dtypes 0.6.0, numpy 2.4.6, Python 3.11, Linux x86-64, CPU.
#
# Behaviour: a number that is too large for an 8-bit float becomes one of three things, by the dtype and by the release.
# `tensor.to(torch.float8_e4m3fn)` takes the largest number, ±448, even for infinity; float8_e4m3fnuz makes NaN, as
# does float8_e5m2fnuz; float8_e5m2 makes infinity. ml_dtypes makes NaN for float8_e4m3fn, and so did PyTorch: 2.6.0 and
# 2.9.1 make NaN of the same call. Nothing warns: a script that quantised without a clamp wrote NaN with the old release
# and writes ±448 with the new one, and NumPy code beside it still writes NaN.
#
# A confident guess: float8_e4m3fn has no infinity, so what is too large is NaN, in PyTorch as in ml_dtypes, in each
# release; or all 8-bit floats saturate alike.
#
# Output seen:
#   float8_e4m3fn [448.0, 448.0, -448.0, 448.0] ml_dtypes [448.0, nan, nan, nan]
#   float8_e4m3fnuz [nan, nan, nan, nan] ml_dtypes [nan, nan, nan, nan]
#   float8_e5m2 [448.0, inf, -inf, inf] ml_dtypes [448.0, inf, -inf, inf]
#   float8_e5m2fnuz [448.0, nan, nan, nan] ml_dtypes [448.0, nan, nan, nan]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 ml_dtypes==0.6.0 numpy==2.4.6
cat > "$work/cast.py" <<'PY'
import ml_dtypes
import numpy
import torch

values = numpy.array([448.0, 1e6, -1e6, numpy.inf], numpy.float32)
for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
    cast = torch.from_numpy(values).to(getattr(torch, name)).float().tolist()
    with numpy.errstate(all="ignore"):
        other = values.astype(getattr(ml_dtypes, name)).astype(numpy.float32).tolist()
    print(name, cast, "ml_dtypes", other)
PY
"$work/venv/bin/python" "$work/cast.py" | tee "$work/output"
diff "$work/output" - <<'SEEN'
float8_e4m3fn [448.0, 448.0, -448.0, 448.0] ml_dtypes [448.0, nan, nan, nan]
float8_e4m3fnuz [nan, nan, nan, nan] ml_dtypes [nan, nan, nan, nan]
float8_e5m2 [448.0, inf, -inf, inf] ml_dtypes [448.0, inf, -inf, inf]
float8_e5m2fnuz [448.0, nan, nan, nan] ml_dtypes [448.0, nan, nan, nan]
SEEN
