"""`load`: what our machine reads first, PyTorch's unpickler makes."""

from __future__ import annotations

import os
import pickle
from typing import Any, NamedTuple

import torch
from torch.serialization import load as torch_load  # bound now, for whoever puts ours in the place of theirs
from torch.serialization import safe_globals

from statedict import formats, torch_private
from statedict.api.look import inspect
from statedict.collector import Paused
from statedict.errors import (
    CorruptFileError,
    EncodingError,
    RefusedError,
    StateDictError,
    UnsupportedError,
    is_failure_of_code,
)
from statedict.formats.torch import archive as torch_zip
from statedict.formats.torch import legacy as torch_legacy
from statedict.io.zip import refuse_behind
from statedict.pickles.opcodes import as_text
from statedict.pickles.torch_unpickler import Allowed, numpy_globals, unpickle
from statedict.tensor.checks import tensors_of
from statedict.torch.storages import (
    Location,
    from_tree,
    map_storages,
    open_file,
    placing,
    read_storages,
    without_memory,
)
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import IO, Any

    from statedict.io.source import ByteSource
    from statedict.tensor.lazy import Storage


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
        raise _refuse("pickle_module", f"the module {pickle_module.__name__!r} would run code from the file")
    unknown = pickle_load_args.keys() - {"encoding", "errors", "fix_imports", "buffers"}
    if unknown:
        raise TypeError(f"load() got an unexpected keyword argument {min(unknown)!r}")
    encoding = pickle_load_args.get("encoding", "utf-8")
    mmap = torch_private.user_setting("load.mmap", False) if mmap is None else mmap
    given = Location(map_location)
    source, start = open_file(f)
    with Paused():
        allowed = Allowed()
        found = _read(f, source, start, allowed)
        allowed.check(found.tree, found.storages.values(), source.name)
        given.check({storage.device for storage in found.storages.values()}, source.name)
        refusal = ""
        if found.pickled[:2] == b"\x80\x02":
            try:
                return _build(f, start, found, given, mmap, encoding)
            except pickle.UnpicklingError as error:
                refusal = str(error)
        noted = [tensor.attributes for _, tensor in tensors_of(found.tree) if tensor.attributes]
        labels = inspect(StateDict({"": found.tree, "attributes": noted})).opaque
        if labels:
            raise _refuse(source.name, refusal or f"it holds objects of {', '.join(labels)}")
        return from_tree(found.tree, not mmap, given.location)


def _refuse(where: str, why: str) -> RefusedError:
    why = why if why.startswith("Weights only load failed") else f"Weights only load failed. {why}"
    return RefusedError(
        f"{where}: {why}\nNothing was run. statedict.load opens the file with such objects as inert labels; "
        "torch.serialization.add_safe_globals allows a class by name; if you trust the file, "
        "torch.load(..., weights_only=False) runs its code."
    )


class _Found(NamedTuple):
    """What our machine read of a file, and the bytes of the pickle that PyTorch reads too."""

    format: str
    source: ByteSource
    tree: Any
    storages: Mapping[Any, Storage]
    pickled: bytes


def _read(f: Any, source: ByteSource, start: int, allowed: Allowed) -> _Found:
    name = formats.detect(source)
    if name == "torch":
        records = torch_zip.members(source)
        if "constants.pkl" in records:
            raise _refuse(
                source.name, "Cannot use ``weights_only=True`` with TorchScript archives passed to ``torch.load``"
            )
        serialization = torch.serialization
        big = serialization.get_default_load_endianness() is serialization.LoadEndianness.BIG
        tree, storages = torch_zip.unpickle(records, big_endian=big, constructors=allowed.constructors)
        pickled = bytes(records["data.pkl"].read(0, records["data.pkl"].size))
        return _Found(name, source, tree, storages, pickled)
    if name == "torch-legacy" and not torch_legacy.is_tar(source):
        tree, storages, (begin, end), size = torch_legacy.unpickle(source, allowed.constructors)
        pickled = bytes(source.read(begin, end - begin))
        if isinstance(f, str | os.PathLike):
            refuse_behind(source, size)
        else:  # what follows may be saved into the same file
            f.seek(start + size)
        return _Found(name, source, tree, storages, pickled)
    return _Found(name, source, formats.by_name(name).read(source), {}, b"")


def _build(f: Any, start: int, found: _Found, given: Location, mmap: bool, encoding: str) -> Any:
    """The objects that PyTorch's unpickler makes.

    Raises:
        pickle.UnpicklingError: it refuses something.
    """
    location, where, storages = given.location, found.source.name, found.storages
    is_path = isinstance(f, str | os.PathLike)
    bare = torch_private.writes_no_bytes() or str(location) == "meta"
    mapped = mmap and found.format == "torch" and is_path  # what else is to be mapped, PyTorch refuses with its reason
    try:
        if not torch_private.unpickler_works() or mmap != mapped:
            return _by_torch(f, start, location, mmap)
        if bare:  # only PyTorch makes these, of what stands up to our rules
            _unpickle(found.pickled, without_memory(storages), lambda storage, _: storage, None, encoding, where)
            return _by_torch(f, start, location, mmap)
        own = map_storages(storages, f) if mapped else read_storages(storages)
        return _unpickle(found.pickled, own, placing(location), location, encoding, where)
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
            f"{where}: its pickle describes no object ({str(error)[:500]!r}); "
            "it is damaged, or map_location or an allowed class does not fit"
        ) from error


def _by_torch(f: Any, start: int, map_location: Any, mmap: bool) -> Any:
    """What `torch.load` makes of a file that our machine has read."""
    if not isinstance(f, str | os.PathLike):
        f.seek(start)
    device = "cpu" if map_location is None else map_location
    if torch_private.unpickler_works():
        return torch_load(f, map_location=device, weights_only=True, mmap=mmap)
    with safe_globals([*numpy_globals()]):  # for other threads as well meanwhile, for want of a way for this one only
        return torch_load(f, map_location=device, weights_only=True, mmap=mmap)


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
