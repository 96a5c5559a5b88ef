"""Valid files of other runtimes, for `seeds.py`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

_DATA = Path(__file__).parents[1] / "tests" / "formats" / "data"


def copy(library: str, name: str, main: str, folder: Path) -> None:
    """Copy the files NAME.* that a library made, the one with the suffix `main` as `input`."""
    for file in (_DATA / library).glob(f"{name}.*"):
        shutil.copy(file, folder / file.name.replace(name, "input").removesuffix(main))


def copy_package(name: str, main: str, folder: Path) -> None:
    """Copy a package of Core ML, or the folder in it of which `main` is a file, and name that `input`."""
    shutil.copytree((_DATA / "coreml" / f"{name}.mlpackage" / main).parent, folder, dirs_exist_ok=True)
    (folder / Path(main).name).rename(folder / "input")


def by_tar() -> bytes:
    """An archive with a checkpoint, a text, and a long name."""
    import io
    import tarfile

    from safetensors.numpy import save

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.GNU_FORMAT) as archive:
        for name, data in (("a/" * 60 + "w.safetensors", save({"w": _ones()})), ("config.yaml", b"a: 1\n")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _ones() -> Any:
    import numpy

    return numpy.ones((2, 3), "float32")


def by_joblib() -> bytes:
    """Arrays of every kind, between the opcodes of a pickle."""
    import io

    import joblib
    import numpy

    buffer = io.BytesIO()
    arrays = {"w": _ones(), "turned": numpy.asfortranarray(_ones()), "texts": numpy.array(["a", "bc"])}
    joblib.dump(arrays | {"objects": numpy.array([None, {"a": 1}], object), "big": _ones().astype(">f8")}, buffer)
    return buffer.getvalue()


def by_mindspore() -> bytes:
    """A tensor, one in two values, and a text; with the sum of all."""
    import zlib

    def pack(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    def value(tag: bytes, kind: bytes, content: bytes, count: int) -> bytes:
        tensor = bytes([8, count]) + pack(2, kind) + pack(3, content)
        return pack(1, pack(1, tag) + pack(2, tensor))

    data = value(b"w", b"Float32", bytes(24), 6) + value(b"note", b"str", b"text", 1)
    data += value(b"parts", b"Int64", bytes(8), 2) * 2
    return data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big")


def by_onnx(raw: bool) -> bytes:
    """A model with tensors of every type, in raw_data or in typed fields, in subgraphs and in a function."""
    import numpy
    from onnx import TensorProto, helper, numpy_helper

    def tensor(name: str, code: int) -> TensorProto:
        array = (numpy.arange(6) % 2).reshape(2, 3).astype(helper.tensor_dtype_to_np_dtype(code))
        if raw:
            return numpy_helper.from_array(array, name)
        return helper.make_tensor(name, code, (2, 3), array.reshape(-1).tolist())

    names = {name: code for name, code in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")}
    value = helper.make_tensor_value_info("a", 1, [1])
    constant = helper.make_node("Constant", [], ["c"], value=tensor("", 1))
    body = helper.make_graph([constant], "body", [value], [value], [tensor("inner", 1)])
    nodes = [constant, helper.make_node("Loop", ["a"], ["b"], body=body)]
    texts = helper.make_tensor("texts", TensorProto.STRING, (2,), [b"a", b"b"])
    sparse = helper.make_sparse_tensor(tensor("sparse", 1), tensor("", 7), [3, 4])
    tensors = [*(tensor(name, code) for name, code in names.items()), texts]
    graph = helper.make_graph(nodes, "g", [value], [value], tensors, sparse_initializer=[sparse])
    function = helper.make_function("lab", "F", ["a"], ["b"], [constant], [helper.make_opsetid("", 20)])
    model = helper.make_model(graph, functions=[function])
    helper.set_model_props(model, {"author": "A"})
    return model.SerializeToString()  # type: ignore[no-any-return]


def layers() -> dict[str, Any]:
    """Layers under the names that Keras gives, with a state of an optimizer."""
    import torch

    return {
        "dense": {"kernel": torch.ones(3, 2), "bias": torch.ones(2)},
        "lstm": {
            "lstm_cell": {"kernel": torch.ones(2, 8), "recurrent_kernel": torch.ones(2, 8), "bias": torch.ones(8)}
        },
        "optimizer": {"iteration": torch.tensor(1), "learning_rate": torch.tensor(0.1), "2": torch.ones(3, 2)},
    }


def by_keras(folder: Path) -> None:
    """Weights as Keras 3 lays them out."""
    import statedict

    statedict.save(layers(), folder / "input", format="keras-weights")


def by_h5py(folder: Path) -> None:
    """Datasets, texts, attributes and links of every kind."""
    import h5py
    import numpy

    with h5py.File(folder / "input", "w") as file:
        data = numpy.arange(60, dtype="f4").reshape(6, 10)
        file["plain"], file["text"], file["texts"], file["empty"] = data, "λ", ["a", "bc"], h5py.Empty("f4")
        file.create_dataset("packed", data=data, chunks=(4, 3), compression="gzip", shuffle=True)
        file.create_dataset("swapped", data=data.astype(">f8"), chunks=(2, 5), fletcher32=True)
        file["group/opaque"] = numpy.arange(3, dtype="u2").view("V2")
        file["group/opaque"].attrs["dtype"] = "bfloat16"
        file["group"].attrs["names"], file.attrs["author"] = ["x", "yz"], "Ada"
        file["tied"], file["soft"], file["outside"] = (
            file["plain"],
            h5py.SoftLink("/plain"),
            h5py.ExternalLink("o", "/x"),
        )
        file["records"] = numpy.zeros(4, [("a", "f4"), ("b", "i4")])
