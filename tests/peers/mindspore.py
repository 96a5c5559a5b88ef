"""Make the checkpoints of MindSpore that the tests read, or compare them with those recorded; see `make peers`.

python -P mindspore.py [--write]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).parents[1] / "formats" / "data" / "mindspore"


def make(folder: Path) -> None:
    import mindspore
    import numpy

    tensors = {
        "w": mindspore.Tensor(numpy.arange(6, dtype="float32").reshape(2, 3)),
        "layer.half": mindspore.Tensor(numpy.ones(3), mindspore.bfloat16),
        "n": mindspore.Tensor(7, mindspore.int64),
        "flags": mindspore.Tensor([True, False]),
        "small": mindspore.Tensor(numpy.arange(3, dtype="float16")),
    }
    saved = [{"name": name, "data": tensor} for name, tensor in tensors.items()]
    mindspore.save_checkpoint(saved, str(folder / "plain.ckpt"))
    mindspore.save_checkpoint(saved, str(folder / "summed.ckpt"), crc_check=True)
    appended = {"epoch": 3, "rate": 0.5, "note": "λx"}
    mindspore.save_checkpoint(saved, str(folder / "appended.ckpt"), append_dict=appended)


def main() -> int:
    if "--write" in sys.argv:
        RECORD.mkdir(parents=True, exist_ok=True)
        make(RECORD)
        return 0
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        found = {path.name: path.read_bytes() for path in Path(name).iterdir()}
    wrong = [path.name for path in RECORD.iterdir() if found.pop(path.name, b"") != path.read_bytes()] + [*found]
    print("\n".join(wrong) or "mindspore: the files are as recorded")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
