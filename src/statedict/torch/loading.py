"""`load`: what our machine reads first, PyTorch's unpickler makes."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from mmap import MAP_SHARED
from typing import IO, Any, NamedTuple

import torch
from torch.serialization import load as torch_load  # bound now, for whoever puts ours in the place of theirs
from torch.serialization import safe_globals

from statedict import formats, torch_private
from statedict.api.look import inspect
from statedict.collector import Paused
from statedict.errors import (
    CorruptFileError,
    DeviceError,
    EncodingError,
    RefusedError,
    StateDictError,
    UnsupportedError,
    is_failure_of_code,
)
from statedict.formats import places
from statedict.formats.torch import archive as torch_zip
from statedict.formats.torch import legacy as torch_legacy
from statedict.io.pipeline import fill
from statedict.io.source import ByteSource, BytesSource, FileSource, Slice, allocate
from statedict.io.urls import to_name
from statedict.io.zip import Record, refuse_behind
from statedict.pickles.opcodes import as_text
from statedict.pickles.tables import IN_PICKLE
from statedict.pickles.torch_unpickler import Allowed, numpy_globals, unpickle
from statedict.tensor.arrays import torch_storage
from statedict.tensor.checks import tensors_of
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tensor.segments import torch_tensors
from statedict.tree.state_dict import StateDict, realize, torch_value


def load(
    f: str | os.PathLike[str] | IO[bytes],
    map_location: Any = None,
    pickle_module: Any = None,
    *,
    weights_only: bool | None = True,
    mmap: bool | None = None,
    **pickle_load_args: Any,
) -> Any:
    """Load what `torch.save` wrote, as `torch.load` does, without running anything from it.

    Args:
        f: a path, or a file object that can `read`, `seek` and `tell`, which is read from its position on. Every other
            format that `statedict.load` knows opens too, as plain dicts of torch tensors.
        map_location: as for `torch.load`, but None puts everything on the CPU, wherever it was saved.
        pickle_module: None or `pickle`; another one would run code.
        weights_only: ignored: data is loaded, numpy's too, and no code is run. What
            `torch.serialization.add_safe_globals` names is allowed, as with `torch.load`.
        mmap: map the file instead of reading it; for paths of the zip format.
        pickle_load_args: `encoding`, for strings of Python 2; the other arguments of `pickle.load` are ignored.

    Returns:
        The object: tensors that share storages share them again, with `requires_grad`, Parameters, attributes.

    Raises:
        RefusedError: it holds something that could only be made by running code; a `pickle.UnpicklingError`.
        FormatError: it is not a checkpoint, truncated or damaged.

    >>> import io, torch, statedict.torch
    >>> file = io.BytesIO()
    >>> statedict.torch.save({"w": torch.ones(2), "epoch": 3}, file)
    >>> _ = file.seek(0)
    >>> statedict.torch.load(file)
    {'w': tensor([1., 1.]), 'epoch': 3}
    """
    if pickle_module not in (None, pickle):
        raise _refusal("pickle_module", f"the module {pickle_module.__name__!r} would run code from the file")
    unknown = pickle_load_args.keys() - {"encoding", "errors", "fix_imports", "buffers"}
    if unknown:
        raise TypeError(f"load() got an unexpected keyword argument {min(unknown)!r}")
    encoding = pickle_load_args.get("encoding", "utf-8")
    mmap = torch_private.get_user_setting("load.mmap", False) if mmap is None else mmap
    given = _Places(map_location)
    source, start = _open_file(f)
    with Paused():
        allowed = Allowed()
        file = _read(f, source, start, allowed)
        allowed.check(file.tree, file.storages.values(), source.name)
        given.check({storage.device for storage in file.storages.values()}, source.name)
        reason = ""
        if file.pickled[:2] == b"\x80\x02":
            try:
                return _build(f, start, file, given, mmap, encoding)
            except pickle.UnpicklingError as error:
                reason = str(error)
        noted = [tensor.attributes for _, tensor in tensors_of(file.tree) if tensor.attributes]
        labels = inspect(StateDict({"": file.tree, "attributes": noted})).opaque
        if labels:
            raise _refusal(source.name, reason or f"it holds objects of {', '.join(labels)}")
        return from_tree(file.tree, not mmap, map_location)


def _refusal(where: str, why: str) -> RefusedError:
    why = why if why.startswith("Weights only load failed") else f"Weights only load failed. {why}"
    return RefusedError(
        f"{where}: {why}\nNothing was run. statedict.load opens the file with such objects as inert labels; "
        "torch.serialization.add_safe_globals allows a class by name; if you trust the file, "
        "torch.load(..., weights_only=False) runs its code."
    )


def _open_file(f: Any) -> tuple[ByteSource, int]:
    """Open the bytes from the file's position on; return the position, too."""
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
    done, count = 0, 1
    while count and done < len(data):
        if hasattr(f, "readinto"):
            count = f.readinto(data[done:])
        else:
            piece = f.read(len(data) - done)
            count = len(piece)
            data[done : done + count] = piece
        done += count or 0
    f.seek(start)
    return BytesSource(data[:done], name), start


class _File(NamedTuple):
    """What our machine read of a file, and the pickle that PyTorch reads too."""

    format: str
    source: ByteSource
    tree: Any
    storages: Mapping[Any, Storage]
    pickled: bytes


def _read(f: Any, source: ByteSource, start: int, allowed: Allowed) -> _File:
    name = formats.detect(source)
    if name == "torch":
        records = torch_zip.read_members(source)
        if "constants.pkl" in records:
            why = "Cannot use ``weights_only=True`` with TorchScript archives passed to ``torch.load``"
            raise _refusal(source.name, why)
        serialization = torch.serialization
        big = serialization.get_default_load_endianness() is serialization.LoadEndianness.BIG
        tree, storages = torch_zip.unpickle(records, big_endian=big, constructors=allowed.constructors)
        pickled = bytes(records["data.pkl"].read(0, records["data.pkl"].size))
        return _File(name, source, tree, storages, pickled)
    if name == "torch-legacy" and not torch_legacy.is_tar(source):
        tree, storages, (begin, end), size = torch_legacy.unpickle(source, allowed.constructors)
        pickled = bytes(source.read(begin, end - begin))
        if isinstance(f, str | os.PathLike):
            refuse_behind(source, size)
        else:  # what follows may be saved into the same file
            f.seek(start + size)
        return _File(name, source, tree, storages, pickled)
    return _File(name, source, formats.load_format(name).read(source), {}, b"")


def _build(f: Any, start: int, file: _File, given: _Places, mmap: bool, encoding: str) -> Any:
    """Build the objects by PyTorch's unpickler; UnpicklingError if it refuses something."""
    location, where, storages = given.location, file.source.name, file.storages
    is_path = isinstance(f, str | os.PathLike)
    bare = torch_private.writes_no_bytes() or str(location) == "meta"
    mapped = mmap and file.format == "torch" and is_path  # what else is to be mapped, PyTorch refuses with its reason
    try:
        if not torch_private.unpickler_works() or mmap != mapped:
            return _load_by_torch(f, start, location, mmap)
        if bare:  # only PyTorch makes these, of what stands up to our rules
            meta = {key: torch.UntypedStorage(storage.nbytes, device="meta") for key, storage in storages.items()}
            _unpickle(file, meta, lambda storage, _: storage, None, encoding)
            return _load_by_torch(f, start, location, mmap)
        buffers = _map_storages(storages, f) if mapped else _read_storages(storages)
        return _unpickle(file, buffers, given.place, location, encoding)
    except (pickle.UnpicklingError, StateDictError, MemoryError):
        raise
    except Exception as error:
        # of the caller's own function, or of the way of reading that was asked for, or of our code
        if error is given.error or mmap != mapped or is_failure_of_code(error):
            raise
        if isinstance(error, UnicodeDecodeError):
            text = f"{where}: a string of Python 2: {error}; give its encoding, as encoding='latin1'"
            raise EncodingError(text, error) from error
        if bare:
            raise UnsupportedError(f"{where}: PyTorch does not make it without data ({error})") from error
        raise CorruptFileError(
            f"{where}: its pickle does not describe an object ({str(error)[:500]!r}); "
            "it is damaged, or map_location or an allowed class does not fit"
        ) from error


def _load_by_torch(f: Any, start: int, map_location: Any, mmap: bool) -> Any:
    if not isinstance(f, str | os.PathLike):
        f.seek(start)
    device = "cpu" if map_location is None else map_location
    if torch_private.unpickler_works():
        return torch_load(f, map_location=device, weights_only=True, mmap=mmap)
    with safe_globals([*numpy_globals()]):  # for other threads as well meanwhile, for want of a way for this one only
        return torch_load(f, map_location=device, weights_only=True, mmap=mmap)


def _unpickle(
    file: _File, storages: Mapping[Any, Any], place: Callable[[Any, str], Any], map_location: Any, encoding: str
) -> Any:
    placed: dict[Any, Any] = {}
    typed: dict[Any, Any] = {}

    def persistent_load(identifier: Any) -> Any:
        kind, key, device, _, *view = identifier[1:]
        if type(key) is bytes:  # from Python 2, with encoding="bytes"
            key, device = as_text(key), device.decode("ascii")
        if key not in storages:
            raise CorruptFileError(f"{file.source.name}: storage {key!r} is not in the file")
        untyped = placed.get(key)
        if untyped is None:
            untyped = placed[key] = place(storages[key], device)
        name, offset, size = view[0] if view and view[0] is not None else (key, 0, 0)
        dtype = kind.dtype
        if (name, dtype) not in typed:
            part = untyped
            if name != key:
                part = untyped[offset * dtype.itemsize : (offset + size) * dtype.itemsize]
            typed[name, dtype] = torch_private.make_typed_storage(part, dtype)
        return typed[name, dtype]

    return unpickle(file.pickled, persistent_load, encoding, "cpu" if map_location is None else map_location)


class _Places:
    """Where `map_location` puts storages.

    `location` is what PyTorch gets; `error` is what the caller's own function raised.
    """

    def __init__(self, map_location: Any) -> None:
        self.error: Exception | None = None
        self.location = partial(self._ask, map_location) if callable(map_location) else map_location

    def _ask(self, function: Callable[[Any, str], Any], storage: Any, device: str) -> Any:
        try:
            return function(storage, device)
        except Exception as error:
            self.error = error
            raise

    def check(self, devices: set[str], where: str) -> None:
        """Check that PyTorch has the devices, unless the caller's own function decides."""
        if self.location is None or callable(self.location):
            return
        for name in sorted(devices):
            try:
                self.place(torch.UntypedStorage(0), name)
            except RuntimeError as error:
                raise DeviceError(f"{where}: no place for what was saved from {name[:100]!r}: {error}") from error

    def place(self, storage: Any, device: str) -> Any:
        """The storage where it belongs; `device` is where it was saved."""
        restore: Any = torch.serialization.default_restore_location
        where: Any = "cpu" if self.location is None else self.location
        if isinstance(where, dict):
            return restore(storage, where.get(device, device))
        if isinstance(where, str | bytes | torch.device):
            return restore(storage, str(where) if isinstance(where, torch.device) else where)
        placed = where(storage, device)
        return restore(storage, device) if placed is None else placed


def _read_storages(storages: Mapping[Any, Storage]) -> dict[Any, Any]:
    """Read storages into memory of their own, which nothing in a file can make grow."""
    buffers = {key: allocate(storage.nbytes) for key, storage in storages.items()}
    fill((storage.source, storage.offset, buffers[key]) for key, storage in storages.items())
    empty = torch.UntypedStorage(0)[:0]
    return {key: torch_storage(buffer) if len(buffer) else empty for key, buffer in buffers.items()}


def _map_storages(storages: Mapping[Any, Storage], path: Any) -> dict[Any, Any]:
    """Map the file and slice storages out of it; read those that do not lie in it as they are."""
    whole: Any = None
    mapped: dict[Any, Any] = {}
    shared = torch.serialization.get_default_mmap_options() == MAP_SHARED
    for key, storage in storages.items():
        if not isinstance(storage.source, Record) or not storage.nbytes:
            continue
        if shared:
            archive, begin = storage.source.locate()
            begin += storage.offset
            if whole is None:
                whole = torch.UntypedStorage.from_file(os.fspath(path), True, archive.size)
            mapped[key] = whole[begin : begin + storage.nbytes]
        elif (data := storage.view(private=True)) is not None:
            mapped[key] = torch_storage(data)
    return mapped | _read_storages({key: storage for key, storage in storages.items() if key not in mapped})


def from_tree(tree: Any, copy: bool, map_location: Any) -> Any:
    """Build the objects of a tree that PyTorch's unpickler does not read."""
    places = _Places(map_location)

    def tensor(lazy: LazyTensor, real: Any) -> Any:
        if lazy.storage.source.name == IN_PICKLE:
            return real.numpy()
        if places.location is not None:
            real = real.to(places.place(real.untyped_storage(), lazy.storage.device).device)
        grad = lazy.requires_grad
        result = torch.nn.Parameter(real, grad) if lazy.parameter else real.requires_grad_(grad)
        for name, value in (lazy.attributes or {}).items():
            setattr(result, name, build(value))
        return result

    def build(tree: Any) -> Any:
        return realize(tree, lambda lazy: list(map(tensor, lazy, torch_tensors(lazy, copy))), torch_value)

    return build(tree)
