"""Make the packages of Core ML that the tests read, or compare their weights with those recorded; see `make peers`.

python -P coreml.py [--write]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "formats" / "data" / "coreml"
WEIGHTS = {  # name → the weights, as what they are stored
    "float32": [[(row * 8 + column) / 4 for column in range(8)] for row in range(16)],
    "float16": [[(row * 8 + column) / 4 for column in range(8)] for row in range(16)],
    "int4": [[(7, -3, row % 7, -7)[column % 4] for column in range(8)] for row in range(16)],
    **{
        f"uint{bits}": [[float((row * 8 + column) * 5 % (1 << bits)) for column in range(8)] for row in range(16)]
        for bits in (1, 2, 3, 4, 6)
    },
}


def make(folder: Path) -> None:
    import coremltools
    import numpy
    from coremltools.converters.mil import Builder
    from coremltools.optimize import coreml

    def build(values: Any) -> Any:
        @Builder.program(input_specs=[Builder.TensorSpec(shape=(1, 8))], opset_version=coremltools.target.iOS18)
        def program(x: Any) -> Any:
            weight = Builder.const(val=numpy.array(values, "float32"), name="weight")
            bias = Builder.const(val=numpy.arange(16, dtype="float32"), name="bias")
            return Builder.linear(x=x, weight=weight, bias=bias, name="out")

        return program

    for name, values in WEIGHTS.items():
        precision = coremltools.precision.FLOAT32 if name == "float32" else coremltools.precision.FLOAT16
        model = coremltools.convert(
            build(values), convert_to="mlprogram", compute_precision=precision,
            minimum_deployment_target=coremltools.target.iOS18, skip_model_load=True,
        )  # fmt: skip
        if name == "int4":
            how: Any = coreml.OpLinearQuantizerConfig(
                mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=4, weight_threshold=100
            )
            model = coreml.linear_quantize_weights(model, coreml.OptimizationConfig(global_config=how))
        elif name.startswith("uint"):
            how = coreml.OpPalettizerConfig(mode="unique", weight_threshold=100)
            model = coreml.palettize_weights(model, coreml.OptimizationConfig(global_config=how))
        model.save(str(folder / f"{name}.mlpackage"))


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        found = {path.relative_to(name): path.read_bytes() for path in Path(name).rglob("weight.bin")}
        if "--write" in sys.argv:
            shutil.rmtree(RECORD, ignore_errors=True)
            shutil.copytree(name, RECORD)
            return 0
    recorded = {path.relative_to(RECORD): path.read_bytes() for path in RECORD.rglob("weight.bin")}
    print("coreml: the weights are as recorded" if found == recorded else "coreml: the weights differ")
    return int(found != recorded)


if __name__ == "__main__":
    sys.exit(main())
