"""Make the checkpoints of TensorFlow that the tests read, or compare them with those recorded; see `make peers`.

python -P tensorflow.py [--write]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "formats" / "data" / "tensorflow"


def make(folder: Path) -> None:
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    import numpy
    import tensorflow

    class Layer(tensorflow.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tensorflow.Variable(numpy.arange(6, dtype="float32").reshape(2, 3))
            self.bias = tensorflow.Variable(numpy.ones(3, "float32"))

    class Net(tensorflow.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [Layer(), Layer()]
            self.named = {"a/b.c": Layer()}
            self.tied = self.blocks[0].kernel
            self.half = tensorflow.Variable(tensorflow.cast([1, 2, 3], tensorflow.bfloat16))
            eight = tensorflow.dtypes.experimental.float8_e4m3fn
            self.eight = tensorflow.Variable(tensorflow.cast(tensorflow.constant([1.0, 2.0, 3.0]), eight))
            self.flags = tensorflow.Variable([True, False])
            self.texts = tensorflow.Variable(["a", "λ"])
            self.complex = tensorflow.Variable([1 + 2j, 3j])
            self.four = tensorflow.Variable(tensorflow.cast([1, -2, 3], tensorflow.dtypes.experimental.int4))
            self.scalar = tensorflow.Variable(3, dtype=tensorflow.int64)
            self.nothing = tensorflow.Variable(numpy.zeros((0, 4), "float32"))

    net, optimizer = Net(), tensorflow.compat.v1.train.MomentumOptimizer(0.5, 0.9)
    optimizer.apply_gradients([(tensorflow.ones(3), net.blocks[1].bias)])
    step = tensorflow.Variable(7, dtype=tensorflow.int64)
    tensorflow.train.Checkpoint(model=net, optimizer=optimizer, step=step).write(str(folder / "objects"))
    write_names(folder)


def write_names(folder: Path) -> None:
    """A checkpoint of TensorFlow 1, with a variable in two parts."""
    import numpy
    import tensorflow.compat.v1 as tensorflow

    with tensorflow.Graph().as_default(), tensorflow.Session() as session:
        with tensorflow.variable_scope("scope", partitioner=tensorflow.fixed_size_partitioner(2)):
            whole: Any = tensorflow.get_variable("part", (5, 3))
        tensorflow.get_variable("w/inner", initializer=numpy.ones(2, "float32"))
        session.run(tensorflow.global_variables_initializer())
        first, second = whole
        session.run([first.assign(numpy.arange(9).reshape(3, 3)), second.assign(numpy.arange(9, 15).reshape(2, 3))])
        tensorflow.train.Saver().save(session, str(folder / "names"), write_meta_graph=False, write_state=False)


def main() -> int:
    if "--write" in sys.argv:
        RECORD.mkdir(parents=True, exist_ok=True)
        make(RECORD)
        return 0
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        found = {path.name: path.read_bytes() for path in Path(name).iterdir()}
    wrong = [path.name for path in RECORD.iterdir() if found.pop(path.name, b"") != path.read_bytes()] + [*found]
    print("\n".join(wrong) or "tensorflow: the files are as recorded")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
