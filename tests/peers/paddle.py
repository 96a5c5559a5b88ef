"""Make the files of Paddle that the tests read, or compare them with those recorded; see `make peers`.

python -P paddle.py [--write]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).parents[1] / "formats" / "data" / "paddle"


def make(folder: Path) -> None:
    import paddle

    paddle.set_device("cpu")
    values = paddle.arange(6, dtype="float32").reshape([2, 3])
    state = {"w": values, "half": values.astype("bfloat16"), "small": values.astype("float16"), "n": paddle.arange(3)}
    paddle.save(state, str(folder / "flat.pdparams"))
    paddle.save(state, str(folder / "protocol2.pdparams"), protocol=2)
    paddle.save(state["half"], str(folder / "one.pdparams"))
    paddle.save({"model": state, "epoch": 3, "list": [state["half"]]}, str(folder / "nested.pdparams"))
    paddle.save(state["half"], str(folder / "binary.pdtensor"), use_binary_format=True)


def main() -> int:
    if "--write" in sys.argv:
        make(RECORD)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    wrong = [path.name for path in RECORD.iterdir() if found.pop(path.name, b"") != path.read_bytes()] + [*found]
    print("\n".join(wrong) or "paddle: the files are as recorded")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
