"""Files and storages for `load`: where bytes come from, and where PyTorch's storages go."""

from __future__ import annotations

import io
import os
import tempfile
from mmap import MAP_SHARED

import torch

from statedict.errors import (
    DeviceError,
)
from statedict.formats import places
from statedict.io.memory import allocate
from statedict.io.pipeline import fill
from statedict.io.source import BytesSource, FileSource, Slice
from statedict.io.urls import to_name
from statedict.io.zip import Record
from statedict.pickles.numpy_arrays import IN_PICKLE
from statedict.tensor.arrays import torch_storage
from statedict.tensor.segments import torch_tensors
from statedict.tree.state_dict import realize, torch_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.lazy import LazyTensor, Storage


def open_file(f: Any) -> tuple[ByteSource, int]:
    """The bytes from the file's position on, and that position."""
    if isinstance(f, str | os.PathLike):
        return places.open_checkpoint(to_name(f)), 0
    try:
        f.seek(f.tell())
    except (AttributeError, io.UnsupportedOperation) as error:
        raise type(error)(
            f"{error}. You can only torch.load from a file that is seekable. "
            "Please pre-load the data into a buffer like io.BytesIO and try to load from it instead."
        ) from error
    start, name = f.tell(), str(getattr(f, "name", type(f).__name__))
    file: Any = f.file if isinstance(f, tempfile._TemporaryFileWrapper) else f
    raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) else file
    if type(raw) is io.FileIO:  # and no class of the caller's, which may decode what it reads
        file.flush()
        whole = FileSource(name, os.dup(file.fileno()))
        return Slice(whole, start, whole.size - start), start
    if type(f) is io.BytesIO:
        return BytesSource(memoryview(f.getvalue())[start:], name), start
    f.seek(0, os.SEEK_END)
    data = allocate(f.tell() - start)
    f.seek(start)
    done = 0
    while done < len(data):
        if hasattr(f, "readinto"):
            count = f.readinto(data[done:])
        else:
            piece = f.read(len(data) - done)
            count = len(piece)
            data[done : done + count] = piece
        if not count:
            break
        done += count
    f.seek(start)
    return BytesSource(data[:done], name), start


class Location:
    """What `map_location` says of where tensors go.

    Attributes:
        location: what PyTorch is given for it.
        error: what the caller's own function raised.
    """

    def __init__(self, given: Any) -> None:
        self._given = given
        self.error: Exception | None = None
        self.location = self._call if callable(given) else given

    def _call(self, storage: Any, location: str) -> Any:
        try:
            return self._given(storage, location)
        except Exception as error:
            self.error = error
            raise

    def check(self, devices: set[str], where: str) -> None:
        """Check that PyTorch has the devices that a file's storages go to; what a function says is its own affair.

        Raises:
            DeviceError: it has not.
        """
        if self._given is None or callable(self._given):
            return
        place = placing(self._given)
        for name in sorted(devices):
            try:
                place(torch.UntypedStorage(0), name)
            except RuntimeError as error:
                raise DeviceError(f"{where}: no place for what was saved from {name[:100]!r}: {error}") from error


def placing(map_location: Any) -> Callable[[Any, str], Any]:
    """Where `torch.load` puts a storage: a function of it and of its device when it was saved."""
    default: Any = torch.serialization.default_restore_location
    if map_location is None:
        map_location = "cpu"
    if isinstance(map_location, dict):
        return lambda storage, device: default(storage, map_location.get(device, device))
    if isinstance(map_location, str | bytes | torch.device):
        there = str(map_location) if isinstance(map_location, torch.device) else map_location
        return lambda storage, device: default(storage, there)

    def place(storage: Any, device: str) -> Any:
        placed = map_location(storage, device)
        return default(storage, device) if placed is None else placed

    return place


def read_storages(storages: Mapping[Any, Storage]) -> dict[Any, Any]:
    """The storages read into memory of their own, which nothing in a file can make grow."""
    buffers = {key: allocate(storage.nbytes) for key, storage in storages.items()}
    fill((storage.source, storage.offset, buffers[key]) for key, storage in storages.items())
    empty = torch.UntypedStorage(0)[:0]
    return {key: torch_storage(buffer) if len(buffer) else empty for key, buffer in buffers.items()}


def map_storages(storages: Mapping[Any, Storage], path: Any) -> dict[Any, Any]:
    """The storages as parts of the file in memory; those that do not lie in it as they are, read."""
    whole: Any = None
    made: dict[Any, Any] = {}
    shared = torch.serialization.get_default_mmap_options() == MAP_SHARED
    for key, storage in storages.items():
        if not isinstance(storage.source, Record) or not storage.nbytes:
            continue
        if not shared:
            data = storage.view(private=True)
            if data is not None:
                made[key] = torch_storage(data)
            continue
        archive, begin = storage.source.locate()
        begin += storage.offset
        if whole is None:
            whole = torch.UntypedStorage.from_file(os.fspath(path), True, archive.size)
        made[key] = whole[begin : begin + storage.nbytes]
    return made | read_storages({key: storage for key, storage in storages.items() if key not in made})


def without_memory(storages: Mapping[Any, Storage]) -> dict[Any, Any]:
    """Storages of the same sizes without memory."""
    return {key: torch.UntypedStorage(storage.nbytes, device="meta") for key, storage in storages.items()}


def from_tree(tree: Any, copy: bool, map_location: Any) -> Any:
    """The objects of a tree of data that PyTorch's unpickler does not read."""
    place = None if map_location is None else placing(map_location)

    def tensor(lazy: LazyTensor, real: Any) -> Any:
        if lazy.storage.source.name == IN_PICKLE:
            return real.numpy()
        if place is not None:
            real = real.to(place(real.untyped_storage(), lazy.storage.device).device)
        if lazy.parameter:
            made = torch.nn.Parameter(real, lazy.requires_grad)
        else:
            made = real.requires_grad_(lazy.requires_grad)
        for name, value in (lazy.attributes or {}).items():
            setattr(made, name, from_tree(value, copy, map_location))
        return made

    return realize(tree, lambda lazy: list(map(tensor, lazy, torch_tensors(lazy, copy))), torch_value)
