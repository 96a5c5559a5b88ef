#!/usr/bin/env bash
# Versions: keras 3.15.1, jax 0.10.2, h5py 3.16.0, numpy 2.4.6 (from PyPI), Python 3.11, Linux x86-64.
#
# Behaviour: two layers of a subclassed model, both with a name of their own, are assigned to attributes in __init__.
# Swap these two lines, and `load_weights` puts each layer's weights into the other one, in silence. With attributes
# whose names sort before "layers" the same swap is harmless: they are saved under the attribute. Those that sort
# after it are saved under `layers/dense`, `layers/dense_1`, by class and order, since the property `layers` of the
# model is visited in between. The file has the right name of each layer in an attribute, which is not compared.
#
# A confident guess: `load_weights` goes by attributes or by names of layers, for both are the same in the two models;
# and what the first letter of an attribute is does not matter.
#
# Output seen:
#   attributes alpha, beta: groups ['alpha', 'beta'], loaded right: True
#   attributes query, value: groups ['layers/dense', 'layers/dense_1'], loaded right: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 jax==0.10.2 h5py==3.16.0 \
    numpy==2.4.6
cat > "$work/swap.py" <<'PY'
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
import h5py
import keras
import numpy

path = os.path.join(sys.argv[1], "x.weights.h5")


class Net(keras.Model):
    def __init__(self, order):
        super().__init__(name="net")
        self.order = order
        for attribute in order:
            setattr(self, attribute, keras.layers.Dense(3, name=attribute))

    def call(self, x):
        for attribute in sorted(self.order):
            x = getattr(self, attribute)(x)
        return x


def make(order):
    model = Net(order)
    model(numpy.ones((1, 3), "float32"))
    return model


found = []
for first, second in (("alpha", "beta"), ("query", "value")):
    saved, loaded = make([first, second]), make([second, first])
    saved.save_weights(path)
    loaded.load_weights(path)
    groups = []
    with h5py.File(path) as file:
        file.visititems(lambda name, node: groups.append(name[:-7]) if name.endswith("/vars/0") else None)
    right = all(
        numpy.array_equal(getattr(saved, name).get_weights()[0], getattr(loaded, name).get_weights()[0])
        for name in (first, second)
    )
    print(f"attributes {first}, {second}: groups {groups}, loaded right: {right}")
    found.append(right)
sys.exit(found != [True, False])
PY
"$work/venv/bin/python" "$work/swap.py" "$work"
