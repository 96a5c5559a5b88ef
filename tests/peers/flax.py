"""Make the files of Flax that the tests read, or compare them with those recorded; see `make peers`.

python -P flax.py [--write]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "formats" / "data" / "flax"
KINDS = (
    "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8", "uint8",
    "uint32", "bool", "complex64",
)  # fmt: skip


def make() -> dict[str, bytes]:
    import flax.linen as nn
    import jax
    import ml_dtypes  # noqa: F401  registers its dtypes with numpy
    import numpy
    import optax
    from flax import serialization
    from flax.training.train_state import TrainState

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            return nn.Dense(3, param_dtype="bfloat16")(x.reshape(len(x), -1))

    net = Net()
    variables = net.init(jax.random.key(0), numpy.ones((1, 4, 4, 1), "float32"))
    state = TrainState.create(apply_fn=net.apply, params=variables["params"], tx=optax.adam(1e-3))
    state = state.apply_gradients(grads=jax.tree.map(numpy.ones_like, state.params))
    arrays = {kind: (numpy.arange(6) % 2).astype(kind).reshape(2, 3) for kind in KINDS}
    plain = {
        "none": None, "true": True, "int": 3, "large": 2**40, "negative": -70_000, "float": 0.5, "complex": 1 + 2j,
        "text": "λ" * 40, "bytes": b"\0\1", "empty": {}, "scalar": numpy.int64(7), "none of it": numpy.zeros((0, 3)),
        "many": {f"layer {index}": index for index in range(20)}, "int4": numpy.ones(3, "int4"),
    }  # fmt: skip
    files = {
        "training": serialization.to_bytes(state),
        "arrays": serialization.msgpack_serialize(arrays, in_place=True),
        "plain": serialization.msgpack_serialize(plain, in_place=True),
        "lists": serialization.to_bytes({"a": [numpy.ones(1), (2, 3)]}),
        "array": serialization.to_bytes(numpy.arange(3.0)),
    }
    serialization.MAX_CHUNK_SIZE = 16
    pieces = {"w": numpy.arange(10, dtype="float32").reshape(2, 5), "n": numpy.int64(1)}
    return files | {"pieces": serialization.msgpack_serialize(pieces, in_place=True)}


def main() -> int:
    found = {f"{name}.msgpack": data for name, data in make().items()}
    if "--write" in sys.argv:
        RECORD.mkdir(parents=True, exist_ok=True)
        for name, data in found.items():
            (RECORD / name).write_bytes(data)
        return 0
    wrong = [path.name for path in RECORD.iterdir() if found.pop(path.name, b"") != path.read_bytes()] + [*found]
    print("\n".join(wrong) or "flax: the files are as recorded")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
