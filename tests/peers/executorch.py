"""Make the files of ExecuTorch that the tests read, or compare them with those recorded; see `make peers`.

python -P executorch.py [--write]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).parents[1] / "formats" / "data" / "executorch"


def make(folder: Path) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)
            self.register_buffer("steps", torch.arange(4))
            self.register_buffer("state", torch.ones(2))
            with torch.no_grad():
                self.linear.weight.copy_(torch.arange(6.0).reshape(2, 3))
                self.linear.bias.copy_(torch.tensor([0.5, -0.5]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.state.add_(1)
            return self.linear(x) * self.steps.sum() + self.state

    def export() -> torch.export.ExportedProgram:
        return torch.export.export(Net(), (torch.ones(1, 3),))

    for name, external in (("plain", False), ("apart", True)):
        program = to_edge_transform_and_lower(export()).to_executorch(
            ExecutorchBackendConfig(external_constants=external)
        )
        (folder / f"{name}.pte").write_bytes(program.buffer)
        if external:
            program.write_tensor_data_to_file(str(folder))
    lowered = to_edge_transform_and_lower(export(), partitioner=[XnnpackPartitioner()]).to_executorch()
    (folder / "lowered.pte").write_bytes(lowered.buffer)


def main() -> int:
    if "--write" in sys.argv:
        RECORD.mkdir(parents=True, exist_ok=True)
        make(RECORD)
        return 0
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        found = {path.name: path.read_bytes() for path in Path(name).iterdir()}
    wrong = [path.name for path in RECORD.iterdir() if found.pop(path.name, b"") != path.read_bytes()] + [*found]
    print("\n".join(wrong) or "executorch: the files are as recorded")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
