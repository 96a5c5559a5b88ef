"""Make the model of OpenVINO that the tests read, or compare it with the one recorded; see `make peers`.

python -P openvino.py [--write]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).parents[1] / "formats" / "data" / "openvino"
HALVES = (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6)
VALUES: dict[str, tuple[float, ...]] = {
    "f32": HALVES, "f64": HALVES, "f16": HALVES, "bf16": HALVES, "f8e4m3": HALVES, "f8e5m2": HALVES, "f4e2m1": HALVES,
    "f8e8m0": tuple(2.0**n for n in range(-7, 8)), "boolean": (0, 1, 1) * 5, "u1": (0, 1, 1) * 5,
    "u2": (0, 1, 2, 3, 2) * 3, "u3": (0, 1, 7, 3, 2) * 3, "u4": tuple(range(1, 16)), "u6": tuple(range(49, 64)),
    "i4": tuple(range(-8, 7)), "nf4": (0, 1, -1) * 5,
    **{f"u{bits}": tuple(range(15)) for bits in (8, 16, 32, 64)},
    **{f"i{bits}": tuple(range(-8, 7)) for bits in (8, 16, 32, 64)},
}  # fmt: skip
SHAPE = (3, 5)


def make(folder: Path) -> None:
    import numpy
    import openvino
    from openvino import opset13

    def constant(name: str, kind: str = "f32") -> openvino.Node:
        values = numpy.array(VALUES[kind]).reshape(SHAPE)
        values = values.astype("float32") if kind[0] in "bfn" or kind[1:] in "12346" else values.astype("int64")
        node = opset13.constant(values, dtype=getattr(openvino.Type, kind))
        node.set_friendly_name(name)
        return node

    def body(name: str) -> tuple[openvino.Model, openvino.Node, openvino.Node]:
        given = opset13.parameter(SHAPE, openvino.Type.f32)
        result = opset13.result(opset13.add(given, constant(name)))
        return openvino.Model([result], [given], name), given, result

    given, condition = opset13.parameter(SHAPE, openvino.Type.f32, "x"), opset13.parameter([], openvino.Type.boolean)
    branch = opset13.if_op(condition)
    branch.set_friendly_name("branch")
    bodies = [body(name) for name in ("yes", "no")]
    branch.set_then_body(bodies[0][0])
    branch.set_else_body(bodies[1][0])
    branch.set_input(given.output(0), bodies[0][1], bodies[1][1])
    found = branch.set_output(bodies[0][2], bodies[1][2])
    results = [opset13.result(found)]
    results += [opset13.result(opset13.convert(constant(f"layer.{kind}", kind), "f32")) for kind in VALUES]
    results.append(opset13.result(opset13.add(given, constant("tied"))))
    model = openvino.Model(results, [given, condition], "model")
    model.set_rt_info("int4_asym", ["nncf", "weight_compression", "mode"])
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


def read(folder: Path) -> dict[str, bytes]:
    """The files, without what differs each time: the numbers of nodes in names."""
    import re

    texts = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: re.sub(rb"(Result|Convert|Add|Parameter)_\d+", rb"\1_0", data) for name, data in texts.items()}


def main() -> int:
    if "--write" in sys.argv:
        RECORD.mkdir(parents=True, exist_ok=True)
        make(RECORD)
        return 0
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        same = read(Path(name)) == read(RECORD)
    print("openvino: the model is as recorded" if same else "openvino: the model differs from the recorded one")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
