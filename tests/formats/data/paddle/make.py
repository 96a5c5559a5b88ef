"""Made the files beside it, with paddlepaddle 3.3.1 and numpy 2.4.6: `python make.py`."""

from pathlib import Path

import paddle

HERE = Path(__file__).parent

paddle.set_device("cpu")
values = paddle.arange(6, dtype="float32").reshape([2, 3])
state = {"w": values, "half": values.astype("bfloat16"), "small": values.astype("float16"), "n": paddle.arange(3)}
paddle.save(state, str(HERE / "flat.pdparams"))
paddle.save(state, str(HERE / "protocol2.pdparams"), protocol=2)
paddle.save(state["half"], str(HERE / "one.pdparams"))
paddle.save({"model": state, "epoch": 3, "list": [state["half"]]}, str(HERE / "nested.pdparams"))
paddle.save(state["half"], str(HERE / "binary.pdtensor"), use_binary_format=True)
