"""A drop-in for `torch.load` and `torch.save` that runs nothing from a file.

    import statedict.torch
    checkpoint = statedict.torch.load("model.pth")
    statedict.torch.save(checkpoint, "copy.pth")

`load` reads every pickle twice. First our own machine, which builds nothing and bounds memory and time, checks each
number against the file; then PyTorch's unpickler for `weights_only=True` makes the objects, over storages that were
read on several threads. So they are what `torch.load` makes, and a class that is not allowed is refused by both.
"""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from mmap import MAP_SHARED

import torch
from torch.serialization import load as torch_load  # bound now, for whoever puts ours in the place of theirs
from torch.serialization import safe_globals
from torch.serialization import save as torch_save

from statedict import formats, torch_private
from statedict.api.look import inspect
from statedict.collector import Paused
from statedict.dtypes import dtype as known_dtype
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
from statedict.io.atomic import publish
from statedict.io.memory import allocate
from statedict.io.pipeline import fill
from statedict.io.sink import FileSink, StreamSink
from statedict.io.source import AddressSource, BytesSource, FileSource, Slice
from statedict.io.urls import named
from statedict.io.zip import Record, refuse_behind
from statedict.io.zip_layout import ALIGNMENT
from statedict.pickles.numpy_arrays import IN_PICKLE
from statedict.pickles.opcodes import as_text
from statedict.pickles.torch_unpickler import Allowed, numpy_globals, unpickle
from statedict.tensor.arrays import torch_storage
from statedict.tensor.segments import torch_tensors
from statedict.tree.state_dict import StateDict, realize, torch_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import IO, Any

    from statedict.io.source import ByteSource
    from statedict.tensor.lazy import LazyTensor, Storage

__all__ = ["load", "save"]


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
        f: a path, or a file object that can `read`, `seek` and `tell`; it is read from its position on. Every other
            format that `statedict.load` knows opens too, as plain dicts of torch tensors.
        map_location: as for `torch.load`, but None puts everything on the CPU, wherever it was saved.
        pickle_module: None or `pickle`; another one would run code.
        weights_only: makes no difference: data is loaded, numpy's too, and no code is run. What
            `torch.serialization.add_safe_globals` names is allowed, as with `torch.load`.
        mmap: map the file instead of reading it; for paths of the zip format.
        pickle_load_args: `encoding`, for strings of Python 2; what else `pickle.load` takes makes no difference.

    Returns:
        The object: tensors that share storages share them again, with `requires_grad`, Parameters, attributes.

    Raises:
        RefusedError: it holds something that could only be made by running code; a `pickle.UnpicklingError`.
        FormatError: it is no checkpoint, truncated or damaged.

    >>> import io, torch, statedict.torch
    >>> file = io.BytesIO()
    >>> statedict.torch.save({"w": torch.ones(2), "epoch": 3}, file)
    >>> _ = file.seek(0)
    >>> statedict.torch.load(file)
    {'w': tensor([1., 1.]), 'epoch': 3}
    """
    if pickle_module not in (None, pickle):
        raise _refused("pickle_module", f"the module {pickle_module.__name__!r} would run code from the file")
    unknown = pickle_load_args.keys() - {"encoding", "errors", "fix_imports", "buffers"}
    if unknown:
        raise TypeError(f"load() got an unexpected keyword argument {min(unknown)!r}")
    encoding = pickle_load_args.get("encoding", "utf-8")
    mmap = torch_private.setting("load.mmap", False) if mmap is None else mmap
    given = _Location(map_location)
    map_location = given.location
    source, start = _open(f)
    with Paused():
        name = formats.detect(source)
        storages: Mapping[Any, Storage] = {}
        pickled, allowed = b"", Allowed()
        if name == "torch":
            records = torch_zip.members(source)
            if "constants.pkl" in records:
                raise _refused(
                    source.name, "Cannot use ``weights_only=True`` with TorchScript archives passed to ``torch.load``"
                )
            serialization = torch.serialization
            big = serialization.get_default_load_endianness() is serialization.LoadEndianness.BIG
            tree, storages = torch_zip.unpickle(records, big_endian=big, constructors=allowed.constructors)
            pickled = bytes(records["data.pkl"].read(0, records["data.pkl"].size))
        elif name == "torch-legacy" and not torch_legacy.is_tar(source):
            tree, storages, (begin, end), size = torch_legacy.unpickle(source, allowed.constructors)
            pickled = bytes(source.read(begin, end - begin))
            if isinstance(f, str | os.PathLike):
                refuse_behind(source, size)
            else:  # what follows may be saved into the same file
                f.seek(start + size)
        else:
            tree = formats.by_name(name).read(source)
        refusal = ""
        allowed.check(tree, storages.values(), source.name)
        given.check({storage.device for storage in storages.values()}, source.name)
        if pickled[:2] == b"\x80\x02":
            is_path = isinstance(f, str | os.PathLike)
            bare = torch_private.writes_no_bytes() or str(map_location) == "meta"
            mapped = mmap and name == "torch" and is_path  # what else is to be mapped, PyTorch refuses with its reason
            try:
                if not torch_private.unpickler_works() or mmap != mapped:
                    return _by_torch(f, start, map_location, mmap)
                if bare:  # only PyTorch makes these, of what stands up to our rules
                    _unpickle(pickled, _empty(storages), lambda storage, _: storage, None, encoding, source.name)
                    return _by_torch(f, start, map_location, mmap)
                own = _mapped(storages, f) if mapped else _owned(storages)
                return _unpickle(pickled, own, _placing(map_location), map_location, encoding, source.name)
            except pickle.UnpicklingError as error:
                refusal = str(error)
            except (StateDictError, MemoryError):
                raise
            except Exception as error:
                # of the caller's own function, or of the way of reading that was asked for, or of our code
                if error is given.error or mmap != mapped or is_failure_of_code(error):
                    raise
                if isinstance(error, UnicodeDecodeError):
                    text = f"{source.name}: a string of Python 2: {error}; give its encoding, as encoding='latin1'"
                    raise EncodingError(text, error) from error
                if bare:
                    raise UnsupportedError(f"{source.name}: PyTorch does not make it without data ({error})") from error
                raise CorruptFileError(
                    f"{source.name}: its pickle describes no object ({str(error)[:500]!r}); "
                    "it is damaged, or map_location or an allowed class does not fit"
                ) from error
        labels = inspect(StateDict({"": tree})).opaque
        if labels:
            raise _refused(source.name, refusal or f"it holds objects of {', '.join(labels)}")
        return from_tree(tree, not mmap, map_location)


def _refused(where: str, why: str) -> RefusedError:
    why = why if why.startswith("Weights only load failed") else f"Weights only load failed. {why}"
    return RefusedError(
        f"{where}: {why}\nNothing was run. statedict.load opens the file with such objects as inert labels; "
        "torch.serialization.add_safe_globals allows a class by name; if you trust the file, "
        "torch.load(..., weights_only=False) runs its code."
    )


def _open(f: Any) -> tuple[ByteSource, int]:
    """The bytes from the file's position on, and that position."""
    if isinstance(f, str | os.PathLike):
        return places.opened(named(f)), 0
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


class _Location:
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
        place = _placing(self._given)
        for name in sorted(devices):
            try:
                place(torch.UntypedStorage(0), name)
            except RuntimeError as error:
                raise DeviceError(f"{where}: no place for what was saved from {name[:100]!r}: {error}") from error


def _by_torch(f: Any, start: int, map_location: Any, mmap: bool) -> Any:
    """What `torch.load` makes of a file that our machine has read."""
    if not isinstance(f, str | os.PathLike):
        f.seek(start)
    device = "cpu" if map_location is None else map_location
    if torch_private.unpickler_works():
        return torch_load(f, map_location=device, weights_only=True, mmap=mmap)
    with safe_globals([*numpy_globals()]):  # for other threads as well meanwhile, for want of a way for this one only
        return torch_load(f, map_location=device, weights_only=True, mmap=mmap)


def _placing(map_location: Any) -> Callable[[Any, str], Any]:
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


def _owned(storages: Mapping[Any, Storage]) -> dict[Any, Any]:
    """The storages read into memory of their own, which nothing in a file can make grow."""
    buffers = {key: allocate(storage.nbytes) for key, storage in storages.items()}
    fill((storage.source, storage.offset, buffers[key]) for key, storage in storages.items())
    empty = torch.UntypedStorage(0)[:0]
    return {key: torch_storage(buffer) if len(buffer) else empty for key, buffer in buffers.items()}


def _mapped(storages: Mapping[Any, Storage], path: Any) -> dict[Any, Any]:
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
    return made | _owned({key: storage for key, storage in storages.items() if key not in made})


def _empty(storages: Mapping[Any, Storage]) -> dict[Any, Any]:
    """Storages of the same sizes without memory."""
    return {key: torch.UntypedStorage(storage.nbytes, device="meta") for key, storage in storages.items()}


def _unpickle(
    data: bytes,
    storages: Mapping[Any, Any],
    place: Callable[[Any, str], Any],
    map_location: Any,
    encoding: str,
    where: str,
) -> Any:
    """What PyTorch makes of the pickle over these storages."""
    placed: dict[Any, Any] = {}
    made: dict[Any, Any] = {}

    def persistent_load(identifier: Any) -> Any:
        kind, key, device, _, *view = identifier[1:]
        if type(key) is bytes:  # from Python 2, with encoding="bytes"
            key, device = as_text(key), device.decode("ascii")
        if key not in storages:
            raise CorruptFileError(f"{where}: storage {key!r} is not in the file")
        untyped = placed.get(key)
        if untyped is None:
            untyped = placed[key] = place(storages[key], device)
        name, offset, size = view[0] if view and view[0] is not None else (key, 0, 0)
        dtype = kind.dtype
        if (name, dtype) not in made:
            part = untyped
            if name != key:
                part = untyped[offset * dtype.itemsize : (offset + size) * dtype.itemsize]
            made[name, dtype] = torch_private.typed_storage(part, dtype)
        return made[name, dtype]

    return unpickle(data, persistent_load, encoding, "cpu" if map_location is None else map_location)


def from_tree(tree: Any, copy: bool, map_location: Any) -> Any:
    """The objects of a tree of data that PyTorch's unpickler does not read."""
    place = None if map_location is None else _placing(map_location)

    def tensor(lazy: LazyTensor, real: Any) -> Any:
        if lazy.storage.source.name == IN_PICKLE:
            return real.numpy()
        if place is not None:
            real = real.to(place(real.untyped_storage(), lazy.storage.device).device)
        if lazy.parameter:
            return torch.nn.Parameter(real, lazy.requires_grad)
        return real.requires_grad_(lazy.requires_grad)

    return realize(tree, lambda lazy: list(map(tensor, lazy, torch_tensors(lazy, copy))), torch_value)


def save(
    obj: object,
    f: str | os.PathLike[str] | IO[bytes],
    pickle_module: Any = pickle,
    pickle_protocol: int = 2,
    _use_new_zipfile_serialization: bool = True,
    _disable_byteorder_record: bool = False,
) -> None:
    """Write what `torch.save` writes, with digests that `statedict verify` checks.

    Like `torch.save` it pickles whatever it is given; `statedict.save` writes data only.

    Args:
        obj: anything that pickle takes.
        f: a path, which is replaced whole or not at all, or a file object that can `write`.
        pickle_module: another one than `pickle`, and what `torch.utils.serialization.config.save` changes in the
            file, is left to PyTorch's own writer.
        pickle_protocol: of the pickle within the file.

    Raises:
        FileError: the file system refuses; what was there is unchanged.

    >>> import statedict.torch, tempfile, torch
    >>> path = tempfile.mkdtemp() + "/w.pth"
    >>> statedict.torch.save({"w": torch.ones(2)}, path)
    >>> torch.load(path)
    {'w': tensor([1., 1.])}
    """
    if not isinstance(f, str | os.PathLike) and not hasattr(f, "write"):
        raise AttributeError("expected 'f' to be string, path, or a file-like object with a 'write' attribute")
    plain = pickle_module is pickle and _use_new_zipfile_serialization and not torch_private.writes_no_bytes()
    plain = plain and torch.serialization.get_crc32_options()
    plain = plain and torch_private.setting("save.storage_alignment", ALIGNMENT) == ALIGNMENT
    archive = _archive(obj, pickle_protocol, not _disable_byteorder_record) if plain else None

    def write(file: Any) -> None:
        torch_save(obj, file, pickle_module, pickle_protocol, _use_new_zipfile_serialization, _disable_byteorder_record)

    def publishable(sink: FileSink) -> None:
        if archive is not None:
            torch_zip.pack(sink, *archive)
        else:
            with open(sink.fd, "wb", closefd=False) as file:
                write(file)

    if isinstance(f, str | os.PathLike):
        publish(os.fsdecode(f), publishable)
    elif archive is not None:
        torch_zip.pack(StreamSink(f.write), *archive)
        f.flush()
    else:
        write(f)


def _archive(obj: object, protocol: int, order: bool) -> tuple[bytes, list[Any], dict[str, bytes]] | None:
    """The pickle, the storages and the small records of a file; None where a storage has no bytes."""
    storages: list[Any] = []
    keys: dict[int, str] = {}
    dtypes: dict[int, torch.dtype] = {}

    def persistent_id(value: Any) -> Any:
        if isinstance(value, torch.storage.TypedStorage):
            storage, dtype = torch_private.storage_of(value), value.dtype
            kind = torch_private.storage_class(value, known_dtype(dtype).storage)
            numel = storage.nbytes() // dtype.itemsize
        elif isinstance(value, torch.UntypedStorage):
            storage, dtype, numel = value, torch.uint8, value.nbytes()
            kind = torch.serialization.normalize_storage_type(type(value))
        else:
            return None
        address = 0 if storage.device.type == "meta" else storage.data_ptr()
        if address and dtypes.setdefault(address, dtype) != dtype:
            raise RuntimeError(
                "Cannot save multiple tensors or storages that view the same data as different types; clone one of them"
            )
        key = keys.setdefault(id(storage), str(len(keys)))  # PyTorch keeps one object for each, as long as that lives
        if len(keys) > len(storages):
            storages.append(storage)
        return "storage", kind, key, torch.serialization.location_tag(storage), numel

    file = io.BytesIO()
    pickler: Any = pickle.Pickler(file, protocol)
    pickler.persistent_id = persistent_id  # no subclass: a class is a cycle, and would hold the storages for a while
    pickler.dump(obj)
    if any(storage.device.type == "meta" for storage in storages):
        return None
    memory = [storage.cpu() for storage in storages]
    records = {"byteorder": b"little"} if order else {}
    if sum(m.nbytes() for m in memory) < 1 << 31 and all(m.nbytes() for m in memory):
        # PyTorch may compute where the records are, as its own writer would have placed them: so are ours then
        records = {".format_version": b"1", ".storage_alignment": str(ALIGNMENT).encode()} | records
    return file.getvalue(), [(AddressSource(m.data_ptr(), m.nbytes(), m), 0, m.nbytes()) for m in memory], records
