#!/usr/bin/env bash
# Versions: orbax-checkpoint 0.12.8, jax 0.10.2, numpy 2.4.6 (from PyPI), Python 3.11, Linux x86-64.
#
# Behaviour: Orbax names an array by the keys of its leaf, joined by dots and not escaped. The key "a.b" and the keys
# "a", "b" are one name, so both leaves are written to one array and the second write replaces the first. Saving and
# restoring say nothing of it, `_METADATA` lists both leaves, and both come back with the same numbers. Which of the two
# survives is not a matter of their order. Only where the shapes differ is there an error.
#
# A confident guess: names are escaped, or leaves whose names clash are an error.
#
# Output seen:
#   saved:    a.b [1. 1.], a → b [0. 0.]
#   restored: both leaves are equal: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 numpy==2.4.6
cat > "$work/dots.py" <<'PY'
import sys

import jax.numpy as jnp
import numpy
import orbax.checkpoint as ocp

tree = {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}
print("saved:    a.b", numpy.asarray(tree["a.b"]), end=", ")
print("a → b", numpy.asarray(tree["a"]["b"]))
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(f"{sys.argv[1]}/checkpoint", tree)
    checkpointer.wait_until_finished()
    found = checkpointer.restore(f"{sys.argv[1]}/checkpoint")
print("restored: both leaves are equal:", numpy.array_equal(found["a.b"], found["a"]["b"]))
PY
"$work/venv/bin/python" "$work/dots.py" "$work" 2> /dev/null | tee "$work/output"
diff "$work/output" - <<'SEEN'
saved:    a.b [1. 1.], a → b [0. 0.]
restored: both leaves are equal: True
SEEN
