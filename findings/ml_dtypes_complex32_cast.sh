#!/usr/bin/env bash
# Versions: ml_dtypes 0.6.0, numpy 2.4.6, Python 3.11, Linux x86-64.
#
# Behaviour: `astype` between ml_dtypes' two 32-bit complex dtypes, complex32 (two float16) and bcomplex32 (two
# bfloat16), goes through bool: every number that is not 0 becomes 1, in both directions, without a warning. By way of
# complex64 the values are right, and both dtypes convert rightly to and from all other complex ones.
#
# A confident guess: a cast between two dtypes of complex numbers keeps the numbers, rounded.
#
# Output seen:
#   complex32 → bcomplex32: [0j, (1+0j), (1+0j), (1+0j)]
#   bcomplex32 → complex32: [0j, (1+0j), (1+0j), (1+0j)]
#   by way of complex64: [0j, (1.5+0j), (3+0j), (-2+1j)]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ml-dtypes==0.6.0 numpy==2.4.6
"$work/venv/bin/python" - > "$work/output" <<'PY'
import ml_dtypes
import numpy

values = numpy.array([0, 1.5, 3, -2 + 1j], "complex64")
for before, after in ((ml_dtypes.complex32, ml_dtypes.bcomplex32), (ml_dtypes.bcomplex32, ml_dtypes.complex32)):
    cast = values.astype(before).astype(after).astype("complex64")
    print(f"{numpy.dtype(before)} → {numpy.dtype(after)}: {cast.tolist()}")
detour = values.astype(ml_dtypes.complex32).astype("complex64").astype(ml_dtypes.bcomplex32)
print("by way of complex64:", detour.astype("complex64").tolist())
PY
cat "$work/output"
diff "$work/output" - <<'SEEN'
complex32 → bcomplex32: [0j, (1+0j), (1+0j), (1+0j)]
bcomplex32 → complex32: [0j, (1+0j), (1+0j), (1+0j)]
by way of complex64: [0j, (1.5+0j), (3+0j), (-2+1j)]
SEEN
