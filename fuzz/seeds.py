"""Valid files to begin from: `python -m fuzz.seeds FOLDER` writes FOLDER/TARGET/NAME/…, each NAME one checkpoint.

They are written by a process of its own, so that the one that opens their forgeries has neither PyTorch nor
safetensors imported and nothing in them could be found there.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import pickle
import struct
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fuzz import models

TARGETS = (
    "torch", "torchscript", "legacy", "tar", "safetensors", "whole", "sharded", "distributed", "pickle", "zip",
    "gguf", "numpy", "flax", "orbax", "onnx", "tensorflow", "openvino", "coreml", "executorch", "hdf5", "mindspore",
    "run", "foreign", "dropin", "dropin-legacy",
)  # fmt: skip
_ORBAX = ("store", "folders3", "pieces3", "items")
_FLAX = Path(__file__).parents[1] / "tests" / "formats" / "data" / "flax"
REAL = {"dropin", "dropin-legacy"}
"""Targets of which PyTorch's own tensors are made too."""


def write(folder: Path) -> None:
    """Write the seeds of every target."""
    warnings.simplefilter("ignore")  # of the beta parts of PyTorch that are among the seeds
    for target in TARGETS:
        for name, make in SEEDS[target].items():
            (folder / target / name).mkdir(parents=True)
            make(folder / target / name)


def training() -> dict[str, Any]:
    """What a training script saves."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}


def values() -> dict[Any, Any]:
    """Views, ties and every kind of plain value."""
    import torch

    base = torch.arange(24.0).reshape(4, 6)
    return collections.OrderedDict(
        a={"all": base, "tied": base, "turned": base.t(), "steps": base[::2, 1::2], "wide": base[:1].expand(5, 6)},
        b=[(torch.nn.Parameter(base[1]), 1), {"c": [True, None, "text", 2.5, 1j, b"raw", 1 << 70, {1, 2}]}],
        c={1: torch.Size([2, 3]), (1, "k"): torch.device("cuda:1"), "dtype": torch.float16},
        d=torch.zeros(2, dtype=torch.bfloat16),
        e=torch.ones(2, dtype=torch.complex64).conj(),
    )


def unknown() -> dict[str, Any]:
    """Tensors of dtypes that no table has."""
    from statedict.dtypes import labelled_dtype
    from statedict.io.source import BytesSource
    from statedict.tensor.labelled import Labelled
    from statedict.tensor.lazy import LazyTensor, Storage

    def storage() -> Storage:
        return Storage(BytesSource(bytes(range(24))), 0, 24)

    return {
        "whole": Labelled(labelled_dtype("float9_e4m4"), (3, 4), storage(), parameter=True),
        "class": LazyTensor(labelled_dtype("NovelStorage", 16, storage="NovelStorage"), (3, 4), storage()),
    }


def views_of_unknown() -> dict[str, Any]:
    """The same, and a view, which only PyTorch's formats hold."""
    from statedict.tensor.labelled import Labelled

    made = unknown()
    return made | {"view": Labelled(made["whole"].dtype, (2, 3), made["class"].storage, 1, (1, 2))}


def _codes() -> bytes:
    """A file with codes that nobody knows."""
    header = {"a": ("F9", [2, 3], [0, 12]), "b": ("BLOCK", [32], [12, 29]), "c": ("F9", [0, 3], [29, 29])}
    fields = ("dtype", "shape", "data_offsets")
    raw = json.dumps({name: dict(zip(fields, entry, strict=True)) for name, entry in header.items()}).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(range(29))


def foreign() -> dict[str, Any]:
    """Tensors that are more than memory, arrays, and objects of classes."""
    import numpy
    import torch

    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "attribute"
    return {
        "sparse": torch.eye(2).to_sparse(),
        "csr": torch.eye(2).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.5, 1, torch.qint8),
        "channel": torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.quint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "meta": torch.empty(2, device="meta"),
        "parameter": parameter,
        "arrays": [numpy.arange(6.0).reshape(2, 3), numpy.asfortranarray(numpy.ones((2, 2), ">i4")), numpy.float64(1)],
        "objects": numpy.array(["a", None], dtype=object),
        "arguments": argparse.Namespace(lr=0.1, names=["a"]),
        "counter": collections.Counter("abca"),
        "default": collections.defaultdict(list, a=[1]),
        "module": torch.nn.Linear(2, 1),
    }


def plain() -> dict[str, Any]:
    """What PyTorch's own unpickler takes of `foreign`."""
    return {key: value for key, value in foreign().items() if key not in ("objects", "arguments", "module", "default")}


def composites() -> dict[str, Any]:
    """Tensors that PyTorch makes of numbers and of tensors of indices."""
    import torch

    def block(layout: str, *size: Any) -> Any:
        return getattr(torch.eye(4), f"to_sparse_{layout}")(*size)

    return {
        "hybrid": torch.ones(2, 3, 2).to_sparse(2),
        **{layout: block(layout, *[(2, 2)] * (layout[0] == "b")) for layout in ("csr", "csc", "bsr", "bsc")},
        "batched": torch.ones(2, 2, 2).to_sparse_csr(),
        "jagged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "nested": torch.nested.nested_tensor([torch.ones(2, 1), torch.ones(1, 3)]),
        "channel": torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 1, torch.qint8),
        "meta": torch.empty(2, 3, device="meta"),
        "size": [torch.Size([2, 3]), torch.device("cuda:1"), torch.device("cpu")],
        "bits": torch.ones(2, dtype=torch.complex64).conj().imag,
        "young": torch.ones(2, dtype=torch.uint16),
    }


def arrays() -> dict[str, Any]:
    """What scikit-learn's people pickle."""
    import numpy

    return {
        "w": numpy.arange(6, dtype="f4").reshape(2, 3),
        "scalar": numpy.int64(3),
        "set": {1, "a"},
        "frozen": frozenset((1, 2)),
        "raw": bytearray(b"abc"),
        "list": [1.5, (None, True), "text"],
    }


def _numpy_arrays() -> dict[str, Any]:
    import numpy

    record = [("i", "<i4"), ("x", ">f8", (2,)), ("inner", [("a", "u1"), ("b", "<f4")])]
    return {
        "w": numpy.asfortranarray(numpy.arange(6, dtype=">f4").reshape(2, 3)),
        "texts": numpy.array([["ab", "c"]]),
        "records": numpy.zeros(2, record),
        "objects": numpy.array([1, "a"], object),
    }


def _by_numpy(save: str, *arrays: Any, **named: Any) -> bytes:
    import numpy

    buffer = io.BytesIO()
    for array in arrays:
        getattr(numpy, save)(buffer, array)
    if named:
        getattr(numpy, save)(buffer, **named)
    return buffer.getvalue()


def by_torch(tree: Any, **options: Any) -> bytes:
    """The bytes of torch.save."""
    import torch

    buffer = io.BytesIO()
    torch.save(tree, buffer, **options)
    return buffer.getvalue()


def pack(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The bytes of a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def one(make: Callable[[], bytes]) -> Callable[[Path], None]:
    """A checkpoint of one file."""
    return lambda folder: (folder / "input").write_bytes(make()) and None


def _legacy(make: Callable[[], Any], **options: Any) -> Callable[[Path], None]:
    return one(lambda: by_torch(make(), _use_new_zipfile_serialization=False, **options))


def _deflated(tree: Any) -> bytes:
    with zipfile.ZipFile(io.BytesIO(by_torch(tree))) as archive:
        return pack({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)


def _ours(make: Callable[[], Any], suffix: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        import statedict

        statedict.save(make(), folder / f"x{suffix}", fsync=False)
        (folder / f"x{suffix}").rename(folder / "input")

    return write


class Stored:
    """Pickles as the persistent id that it holds."""

    def __init__(self, identifier: Any) -> None:
        self.identifier = identifier


class Call:
    """Pickles as a call of a function that has another signature by now."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class _Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    def persistent_id(self, value: Any) -> Any:
        return value.identifier if isinstance(value, Stored) else None


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def _stream() -> bytes:
    """A legacy file as PyTorch before 0.4 wrote it, on a machine of the other byte order."""
    import torch

    root = Stored(("storage", torch.FloatStorage, "77", "cpu", 10, None))
    view = Stored(("storage", torch.FloatStorage, "77", "cpu", 10, ("78", 4, 6)))
    tree = {
        "root": Call(torch._utils._rebuild_tensor, root, 1, (2, 3), (3, 1)),
        "view": Call(torch._utils._rebuild_tensor, view, 0, (2, 2), (2, 1)),
        "class": Stored(("module", torch.nn.Linear, "linear.py", "class Linear: pass")),
    }
    system = {"protocol_version": 1001, "little_endian": False, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(map(_pickled, (0x1950A86A20F9469CFC6C, 1001, system, tree, ["77"])))
    return head + struct.pack("<q", 10) + bytes(40)


def _tar() -> bytes:
    """Two storages, a view of the first, three tensors."""
    import torch

    storages = _pickled(2)
    for key, kind, size in ((1, torch.FloatStorage, 4), (2, torch.LongStorage, 8)):
        storages += _pickled((key, "cpu", kind)) + struct.pack("<q", 6) + bytes(6 * size)
    storages += _pickled([(3, 1, 2, 4)])
    tensors = _pickled(3)
    for key, storage, shape, strides in ((10, 1, (2, 3), (3, 1)), (11, 2, (2, 3), (1, 2)), (12, 3, (), ())):
        tensors += _pickled((key, storage, torch.FloatTensor)) + struct.pack("<ixxxx", len(shape))
        tensors += struct.pack(f"<{2 * len(shape)}qq", *shape, *strides, 0)
    tree = collections.OrderedDict(a=Stored(10), b={"c": [Stored(11), Stored(10)]}, d=Stored(12), epoch=3)
    members = {"sys_info": _pickled({}), "pickle": _pickled(tree), "storages": storages, "tensors": tensors}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _script(trace: bool) -> bytes:
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
    constant = torch.ones(3, 2)
    made = torch.jit.trace(lambda x: x + constant, torch.zeros(3, 2)) if trace else torch.jit.script(module)
    buffer = io.BytesIO()
    torch.jit.save(made, buffer)
    return buffer.getvalue()


def _shards(suffix: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        import torch
        from safetensors.torch import save

        parts = {"a": {"x.w": torch.ones(2, 3), "x.b": torch.ones(2)}, "b": {"y.w": torch.arange(4)}}
        files = {name: f"model-{name}{suffix}" for name in parts}
        for name, part in parts.items():
            (folder / files[name]).write_bytes(by_torch(part) if suffix == ".bin" else save(part))
        found = {key: files[name] for name, part in parts.items() for key in part}
        index = {"metadata": {"total_size": 64, "format": "pt"}, "weight_map": found}
        (folder / "input").write_text(json.dumps(index, indent=2))

    return write


def _distributed(tree: Callable[[], Any], chunked: bool = False, rows: int = 4) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        import torch
        from tests import dcp
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

        dcp.save(tree(), folder)
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        if chunked:  # as two ranks leave it, with two chunks of one content
            raw = by_torch(torch.ones(2, 4))
            (folder / "__0_0.distcp").write_bytes(raw)
            (place,) = metadata.storage_data.values()
            place.offset, place.length = 0, len(raw)
            offsets = [torch.Size((0, 0)), torch.Size((2, 0))]
            metadata.state_dict_metadata["w"].size = torch.Size((rows, 4))
            metadata.state_dict_metadata["w"].chunks = [ChunkStorageMetadata(o, torch.Size((2, 4))) for o in offsets]
            metadata.storage_data = {MetadataIndex("w", o): place for o in offsets}
        (folder / ".metadata").unlink()
        (folder / "input").write_bytes(pickle.dumps(metadata))

    return write


def _aliases() -> bytes:
    import torch
    from safetensors.torch import save

    tensors = {"w": torch.ones(2, 3), "half": torch.ones(4, dtype=torch.bfloat16), "none": torch.ones(0)}
    return save(tensors, {"format": "pt", "tied": "w"})


def _gguf(big: bool = False) -> Callable[[Path], None]:
    """Metadata of every type, plain tensors, and all types of blocks."""

    def write(folder: Path) -> None:
        import gguf
        import numpy

        order = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
        writer = gguf.GGUFWriter(folder / "input", "llama", endianess=order)
        writer.add_custom_alignment(64)
        for kind, value in (("uint8", 3), ("int64", -3), ("float64", 0.1), ("bool", True), ("string", "text")):
            getattr(writer, f"add_{kind}")(f"a.{kind}", value)
        for name, values in (("texts", ["a", "bc", ""]), ("numbers", [1, -2]), ("nested", [["a"], ["b"]])):
            writer.add_array(f"a.{name}", values)
        writer.add_tensor("f32", numpy.ones((2, 3), numpy.float32))
        writer.add_tensor("i16", numpy.arange(4, dtype=numpy.int16))
        for kind, (_, nbytes) in gguf.GGML_QUANT_SIZES.items():
            if nbytes > 8:
                blocks = numpy.arange(2 * nbytes, dtype=numpy.uint32).astype(numpy.uint8).reshape(2, nbytes)
                writer.add_tensor(kind.name, blocks, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write


def _members() -> dict[str, bytes]:
    import torch

    return {
        "data": b'{"gamma": 0.99}',
        "policy.pth": by_torch({"w": torch.ones(2, 3)}),
        "weights.safetensors": _aliases(),
        "old.pkl": pickle.dumps(arrays(), 4),
        "version": b"2.3.0",
    }


def _orbax(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        from tests.formats.orbaxes import unpack

        unpack(folder, name).rename(folder / "input")
        if name == "items":
            (folder / "input" / "7").rename(folder / "step")
            (folder / "input").rmdir()
            (folder / "step").rename(folder / "input")

    return write


def _run(format: str) -> Callable[[Path], None]:
    """A run of ours, with a pin, a step that was not committed, and what is left over."""

    def write(folder: Path) -> None:
        import numpy

        import statedict

        random = numpy.random.default_rng(0)
        with statedict.CheckpointManager(folder / "input", format=format, background=False) as manager:
            for step in (1, 2, 3):
                tree = {"model": {"w": random.standard_normal((2, 3), "f4"), "b": numpy.ones(3)}, "epoch": step}
                manager.save(step, tree, metrics={"loss": 1 / step, "odd": float("nan")})
        (folder / "input" / "pins.json").write_text(json.dumps({"pinned": [1]}))
        (folder / "input" / ".lock").write_text(json.dumps({"host": "a", "pid": 1, "id": "b", "time": 1.5}))
        (folder / "input" / "4").mkdir()
        (folder / "input" / "4" / "manifest.json").write_text("{}")

    return write


def _others(folder: Path) -> None:
    """What other libraries leave in a directory."""
    import torch

    run = folder / "input"
    (run / "checkpoint-7").mkdir(parents=True)
    weights = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    (run / "checkpoint-7" / "pytorch_model.bin").write_bytes(by_torch(weights))
    log = {"log_history": [{"step": 7, "loss": 0.5, "epoch": 1.0}, {"step": 3, "loss": float("nan")}], "global_step": 7}
    (run / "checkpoint-7" / "trainer_state.json").write_text(json.dumps(log))
    _shards(".bin")(run)
    (run / "input").rename(run / "model.step-5.index.json")
    state = {"pytorch-lightning_version": "2.5", "state_dict": weights, "callbacks": {"M": {
        "monitor": "loss", "best_model_path": "/x/epoch=1-step=9.ckpt", "best_model_score": torch.tensor(0.5),
        "best_k_models": {"/x/epoch=1-step=9.ckpt": torch.tensor(0.5)}, "current_score": 1.5}}}  # fmt: skip
    (run / "epoch=1-step=9.ckpt").write_bytes(by_torch(state))
    (run / "last.ckpt").symlink_to("epoch=1-step=9.ckpt")


def _matrix() -> dict[str, Any]:
    import torch

    return {"w": torch.ones(4, 4)}


SEEDS: dict[str, dict[str, Callable[[Path], None]]] = {
    "torch": {
        "training": one(lambda: by_torch(training())),
        "values": one(lambda: by_torch(values())),
        "foreign": one(lambda: by_torch(foreign(), pickle_protocol=4)),
        "deflated": one(lambda: _deflated(values())),
        "ours": _ours(training, ".pth"),
        "unknown": _ours(views_of_unknown, ".pth"),
    },
    "dropin": {
        "values": one(lambda: by_torch(values())),
        "foreign": one(lambda: by_torch(plain())),
        "numbers": one(lambda: by_torch(composites())),
    },
    "dropin-legacy": {"values": _legacy(values), "foreign": _legacy(plain), "numbers": _legacy(composites)},
    "torchscript": {"script": one(lambda: _script(False)), "trace": one(lambda: _script(True))},
    "legacy": {
        "training": _legacy(training),
        "values": _legacy(values),
        "foreign": _legacy(foreign),
        "protocol4": _legacy(values, pickle_protocol=4),
        "old": one(_stream),
    },
    "tar": {"tar": one(_tar), "nemo": one(models.by_tar)},
    "safetensors": {
        "aliases": one(_aliases),
        "flat": _ours(lambda: training()["model"], ".safetensors"),
        "codes": one(_codes),
    },
    "whole": {
        "training": _ours(training, ".safetensors"),
        "values": _ours(values, ".safetensors"),
        "unknown": _ours(unknown, ".safetensors"),
    },
    "sharded": {"safetensors": _shards(".safetensors"), "bin": _shards(".bin")},
    "distributed": {
        "training": _distributed(training),
        "chunks": _distributed(_matrix, chunked=True),
        "lacking": _distributed(_matrix, chunked=True, rows=6),
    },
    "pickle": {f"protocol{n}": one(lambda n=n: pickle.dumps(arrays(), n)) for n in (2, 3, 4, 5)}
    | {"joblib": one(models.by_joblib)},
    "gguf": {"little": _gguf(), "big": _gguf(big=True)},
    "numpy": {
        "npy": one(lambda: _by_numpy("save", *_numpy_arrays().values())),
        "npz": one(lambda: _by_numpy("savez", **_numpy_arrays())),
        "packed": one(lambda: _by_numpy("savez_compressed", **_numpy_arrays())),
        "ours": _ours(training, ".npz"),
    },
    "flax": {name: one((_FLAX / f"{name}.msgpack").read_bytes) for name in ("training", "plain", "pieces", "lists")},
    "onnx": {"raw": one(lambda: models.by_onnx(True)), "typed": one(lambda: models.by_onnx(False))},
    "orbax": {name: _orbax(name) for name in _ORBAX},
    "tensorflow": {name: partial(models.copy, "tensorflow", name, ".index") for name in ("objects", "names")},
    "openvino": {"model": partial(models.copy, "openvino", "model", ".xml")},
    "coreml": {
        "package": partial(models.copy_package, "int4", "Manifest.json"),
        "model": partial(models.copy_package, "uint3", "Data/com.apple.CoreML/model.mlmodel"),
    },
    "executorch": {
        name: one((_FLAX.parent / "executorch" / name).read_bytes)
        for name in ("plain.pte", "lowered.pte", "_default_external_constant.ptd")
    },
    "hdf5": {"any": models.by_h5py, "keras": models.by_keras, "legacy": _ours(models.layers, ".h5")},
    "mindspore": {"plain": one(models.by_mindspore)},
    "run": {"safetensors": _run("safetensors"), "torch": _run("torch")},
    "foreign": {"others": _others},
    "zip": {"stored": one(lambda: pack(_members())), "deflated": one(lambda: pack(_members(), zipfile.ZIP_DEFLATED))},
}

if __name__ == "__main__":
    write(Path(sys.argv[1]))
