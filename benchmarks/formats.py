"""The jobs on files of other formats, against the libraries that wrote them."""

from __future__ import annotations

from benchmarks.changes import GONE, SYNC_OUT
from benchmarks.harness import SYNC, Row, Side

_PEER_LIST = """
from gguf import GGUFReader
for tensor in GGUFReader(path).tensors:
    print(tensor.name, tuple(tensor.shape), tensor.tensor_type)
"""
_OURS_LIST = """
import statedict
for name, tensor in statedict.load(path).tensors().items():
    print(name, tensor.shape, tensor.dtype)
"""
_SHOW = "import sys\nsys.argv = ['statedict', 'show', path]\nfrom statedict.cli import main\nmain()"
_PEER_CONVERT = """
tensors = {}
for tensor in GGUFReader(path).tensors:
    tensors[tensor.name] = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).bfloat16()
save_file(tensors, out)
"""
_PEER_SETUP = "import os, torch\nfrom gguf import GGUFReader\nfrom gguf.quants import dequantize\n"
_PEER_SETUP += f"from safetensors.torch import save_file\n{SYNC}"
_OURS_CONVERT = "statedict.edit(path, out, {'dequantize': 'bf16'}, fsync=False, format='safetensors')"
_HEADERS = """
import zipfile
from numpy.lib import format
with zipfile.ZipFile(path) as archive:
    for name in archive.namelist():
        with archive.open(name) as member:
            version = format.read_magic(member)
            read = format.read_array_header_1_0 if version == (1, 0) else format.read_array_header_2_0
            shape, _, kind = read(member)
            print(name, shape, kind)
"""
_ORBAX_LIST = """
import orbax.checkpoint
with orbax.checkpoint.StandardCheckpointer() as checkpointer:
    for number, layer in enumerate(checkpointer.metadata(path).item_metadata.tree["layers"]):
        for name, array in layer.items():
            print(number, name, array.shape, array.dtype)
"""
_NPZ_CONVERT = "with numpy.load(path) as arrays:\n    save_file(dict(arrays), out)\n"

FORMATS: list[Row] = [
    Row(
        "list 2 GB .gguf",
        "llama.gguf",
        Side("GGUFReader", _PEER_LIST),
        Side("load", _OURS_LIST),
        10,
        new_process=True,
        most=150,
    ),
    Row(
        "show 2 GB .gguf", "llama.gguf", Side("GGUFReader", _PEER_LIST), Side("statedict show", _SHOW), new_process=True
    ),
    Row(
        "dequantize 0.3 GB .gguf to bf16 .safetensors",
        "blocks.gguf",
        Side("dequantize + save_file", _PEER_CONVERT, _PEER_SETUP),
        Side("edit, dequantize", _OURS_CONVERT, "import statedict\n" + SYNC),
        3,
        most=150,
    ),
    Row(
        "list 2 GB .npz",
        "wide.npz",
        Side("numpy's headers", _HEADERS),
        Side("load", _OURS_LIST),
        3,
        new_process=True,
        most=40,
    ),
    Row(
        "list 2 GB of Orbax",
        "arrays.orbax",
        Side("StandardCheckpointer.metadata", _ORBAX_LIST),
        Side("load", _OURS_LIST),
        3,
        new_process=True,
        most=40,
    ),
    Row(
        "2 GB .npz to .safetensors",
        "wide.npz",
        Side(
            "numpy.load, save_file",
            _NPZ_CONVERT + SYNC_OUT,
            "import numpy\nfrom safetensors.numpy import save_file",
            GONE,
        ),
        Side("convert", "statedict.convert(path, out, format='safetensors')", "import statedict", GONE),
        2,
        most=100,
    ),
]
