"""Each format's entry for the conformance suite."""

from __future__ import annotations

import json
import math
import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import h5py
import msgpack
import numpy
import pytest
import safetensors
import torch

import statedict
from statedict.dtypes import BY_CODE, BY_NAME, dtype
from statedict.formats import WRITABLE
from statedict.formats.numpy.npy import encode_header
from statedict.io.source import BytesSource
from statedict.io.zip import ArchiveLayout
from statedict.pickles.writer import dumps
from statedict.tensor.arrays import contiguous_strides
from statedict.tensor.ggml.types import PLAIN
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.testing import Format

from .. import dcp
from . import ggufs


@dataclass(frozen=True)
class Subject(Format):
    """A format under test, with what makes large files of it and what its own library reads."""

    def sparse(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        """Make a file of bfloat16 zeros that are holes, so that its size costs nothing; name → its first byte."""
        sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
        with path.open("wb") as file:
            if self.name in _SPARSE:
                return _SPARSE[self.name](file.fileno(), shapes, sizes)
            begins = [sum(list(sizes.values())[:index]) for index in range(len(sizes))]
            if self.name in ("hdf5", "keras-weights"):
                return _sparse_hdf5(path, shapes, "vars" if self.name == "keras-weights" else "data")
            if self.name == "gguf":
                entries = [ggufs.tensor(n, shapes[n][::-1], 30, at) for n, at in zip(sizes, begins, strict=True)]
                alignment = ggufs.pair("general.alignment", 4, (2).to_bytes(4, "little"))
                size = ggufs.forge(path, [alignment], entries, alignment=2).stat().st_size
                os.truncate(path, size + sum(sizes.values()))
                return {name: size + begin for name, begin in zip(sizes, begins, strict=True)}
            header = json.dumps(
                {
                    name: {"dtype": "BF16", "shape": shapes[name], "data_offsets": [begin, begin + sizes[name]]}
                    for name, begin in zip(sizes, begins, strict=True)
                }
            ).encode()
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + sum(sizes.values()))
            return {name: 8 + len(header) + begin for name, begin in zip(sizes, begins, strict=True)}

    def peer(self, path: Path) -> dict[str, torch.Tensor]:
        """A flat dict of tensors, as the format's own library reads it."""
        if self.name == "torch":
            return torch.load(path, weights_only=True)
        if self.name == "distributed":
            tensors = statedict.load(path).tensors()
            state = {name: torch.empty(t.shape, dtype=t.dtype.torch) for name, t in tensors.items()}
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # that no process group is there
                dcp.load(state, path)
            return state
        if self.name == "gguf":
            return {one.name: _by_gguf(one) for one in gguf.GGUFReader(path).tensors}
        if self.name in ("hdf5", "keras-weights"):
            with h5py.File(path) as file:
                group = file["vars"] if self.name == "keras-weights" else file
                return {name: _as_torch(numpy.asarray(array[()])) for name, array in group.items()}
        if self.name == "flax":
            return {name: _as_torch(array) for name, array in flax_restore(path.read_bytes()).items()}
        if self.name == "npz":
            with numpy.load(path, allow_pickle=False) as arrays:
                return {name: _as_torch(array) for name, array in arrays.items()}
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


_OF_FLAX = tuple(
    kind.name
    for kind in BY_NAME.values()
    if kind.itemsize and "complex32" not in kind.name and kind.numpy.name == kind.name
)
_OF_KERAS = (*(kind.name for kind in BY_CODE.values()), "bfloat16")
SUBJECTS = {
    "torch": Subject("torch", ".pth", views=True, opaque=False),
    "safetensors": Subject("safetensors", ".safetensors", views=False, opaque=True),
    "npz": Subject("npz", ".npz", views=False, opaque=True),
    "distributed": Subject("distributed", "", views=False, opaque=False, folder=True),
    "flax": Subject("flax", ".msgpack", views=False, opaque=False, dtypes=_OF_FLAX),
    "hdf5": Subject(
        "hdf5", ".h5", views=False, opaque=False, dtypes=tuple(k.name for k in BY_NAME.values() if k.itemsize)
    ),
    "keras-weights": Subject("keras-weights", ".weights.h5", views=False, opaque=False, dtypes=_OF_KERAS),
    "gguf": Subject("gguf", ".gguf", views=False, opaque=False, dtypes=tuple(kind.name for kind in PLAIN.values())),
}


def _by_gguf(tensor: gguf.ReaderTensor) -> torch.Tensor:
    array = torch.from_numpy(numpy.array(tensor.data))
    if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
        array = array.view(torch.bfloat16)
    return array.reshape(tensor.shape[::-1].tolist())


def flax_restore(data: bytes) -> Any:
    """What flax.serialization.msgpack_restore makes of arrays; tests/peers/flax.py compares with Flax itself."""
    return msgpack.unpackb(data, ext_hook=_flax_array)


def _flax_array(_: int, data: bytes) -> Any:
    shape, name, content = msgpack.unpackb(data, raw=True)
    return numpy.frombuffer(bytearray(content), "V2" if name == b"bfloat16" else name.decode()).reshape(shape)


def _as_torch(array: Any) -> torch.Tensor:
    """The tensor of an array; NumPy writes and reads bfloat16 as two bytes."""
    return torch.from_numpy(array.view("i2")).view(torch.bfloat16) if array.dtype == "V2" else torch.from_numpy(array)


def _sparse_archive(fd: int, shapes: dict[str, tuple[int, ...]], sizes: dict[str, int]) -> dict[str, int]:
    layout = ArchiveLayout()
    crcs, begins = [], {}
    tensors = {
        name: LazyTensor(dtype("bfloat16"), shape, Storage(BytesSource(b"", name), 0, sizes[name]))
        for name, shape in shapes.items()
    }
    pickle = dumps(tensors, lambda t: (t.storage.source.name, t.storage.nbytes, 0, contiguous_strides(t.shape)))
    records = {"data.pkl": pickle, "byteorder": b"little", **{f"data/{name}": None for name in shapes}, "version": b"3"}
    for name, data in records.items():
        size = sizes[name[5:]] if data is None else len(data)
        begins[name[5:]] = _add_record(fd, layout, "archive/" + name, data or b"", size)
        crcs.append(zlib.crc32(data or b""))  # of the holes nobody computes one
    os.pwrite(fd, layout.directory(crcs), layout.position)
    return {name: begins[name] for name in shapes}


def _sparse_arrays(fd: int, shapes: dict[str, tuple[int, ...]], sizes: dict[str, int]) -> dict[str, int]:
    layout, begins = ArchiveLayout(), {}
    for name, shape in shapes.items():
        head = encode_header(LazyTensor(dtype("bfloat16"), shape, Storage(BytesSource(b"", name), 0, sizes[name])))
        at = _add_record(fd, layout, f"{name}.npy", head, len(head) + sizes[name])
        begins[name] = at + len(head)
    comment = json.dumps({"metadata": {}, "dtypes": dict.fromkeys(shapes, "bfloat16")}, separators=(",", ":")).encode()
    os.pwrite(fd, layout.directory([0] * len(shapes), comment), layout.position)
    return begins


def _sparse_hdf5(path: Path, shapes: dict[str, tuple[int, ...]], group: str) -> dict[str, int]:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind, begins = h5py.h5t.create(h5py.h5t.OPAQUE, 2), {}
    with h5py.File(path, "w") as file:
        holder = file.create_group(group) if group == "vars" else file
        for name, shape in shapes.items():
            made = h5py.h5d.create(holder.id, name.encode(), kind, h5py.h5s.create_simple(shape), plan)
            h5py.Dataset(made).attrs["dtype"] = "bfloat16"
            begins[name] = made.get_offset()
    return begins


def _add_record(fd: int, layout: ArchiveLayout, name: str, data: bytes, size: int) -> int:
    header_at, header, data_at = layout.add(name, size)
    os.pwrite(fd, header, header_at)
    os.pwrite(fd, data, data_at)
    os.pwrite(fd, layout.descriptor(zlib.crc32(data), size), data_at + size)
    return data_at


_SPARSE = {"torch": _sparse_archive, "npz": _sparse_arrays}


# an array of Flax's of over 1 GiB lies in several places
_FILES = [one.name for one in SUBJECTS.values() if not one.folder and one.name != "flax"]
of_one_file = pytest.mark.parametrize("subject", [n for n in _FILES if not SUBJECTS[n].dtypes], indirect=True)
"""A test of the formats whose checkpoints are one file and hold any tree."""
of_any_file = pytest.mark.parametrize("any_subject", _FILES, indirect=True)
"""A test of the formats whose checkpoints are one file."""


ANY_TREE = [name for name in WRITABLE if not SUBJECTS[name].dtypes]


@pytest.fixture(scope="session", params=ANY_TREE)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Every format that holds any tree; one of the table without an entry above fails."""
    return SUBJECTS[request.param]


@pytest.fixture(scope="session", params=WRITABLE)
def any_subject(request: pytest.FixtureRequest) -> Subject:
    """Every format of the table that is written."""
    return SUBJECTS[request.param]
