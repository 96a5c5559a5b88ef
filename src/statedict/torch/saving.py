"""`save`: the archive that PyTorch writes, with digests."""

from __future__ import annotations

import io
import os
import pickle
from typing import IO, Any

import torch
from torch.serialization import save as torch_save

from statedict import torch_private
from statedict.dtypes import dtype as known_dtype
from statedict.formats.torch.archive import RECORDS, Packing
from statedict.io.location import Location
from statedict.io.pipeline import FileSink, StreamSink
from statedict.io.source import AddressSource
from statedict.io.zip import ALIGNMENT
from statedict.tensor.segments import Segment


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
        pickle_module: another one than `pickle` is left to PyTorch's own writer, and so is what
            `torch.utils.serialization.config.save` changes in the file.
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
    plain = plain and torch_private.get_user_setting("save.storage_alignment", ALIGNMENT) == ALIGNMENT
    archive = _lay_out(obj, pickle_protocol, not _disable_byteorder_record) if plain else None

    def write(file: Any) -> None:
        torch_save(obj, file, pickle_module, pickle_protocol, _use_new_zipfile_serialization, _disable_byteorder_record)

    def write_file(sink: FileSink) -> None:
        if archive is not None:
            archive.write(sink)
        else:
            with open(sink.fd, "wb", closefd=False) as file:
                write(file)

    if isinstance(f, str | os.PathLike):
        Location(os.fsdecode(f)).publish(write_file)
    elif archive is not None:
        archive.write(StreamSink(f.write))
        f.flush()
    else:
        write(f)


def _lay_out(obj: object, protocol: int, order: bool) -> Packing | None:
    """Lay out the archive of an object; None if a storage has no bytes."""
    storages: list[Any] = []
    keys: dict[int, str] = {}
    dtypes: dict[int, torch.dtype] = {}

    def persistent_id(value: Any) -> Any:
        if isinstance(value, torch.storage.TypedStorage):
            storage, dtype = torch_private.get_storage(value), value.dtype
            kind = torch_private.get_storage_class(value, known_dtype(dtype).storage)
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
    records = RECORDS if order else {}
    if sum(m.nbytes() for m in memory) < 1 << 31 and all(m.nbytes() for m in memory):
        # PyTorch may compute where the records are, as its own writer would have placed them: so are ours then
        records = {".format_version": b"1", ".storage_alignment": str(ALIGNMENT).encode()} | records
    segments = [Segment(AddressSource(m.data_ptr(), m.nbytes(), m), 0, m.nbytes()) for m in memory]
    return Packing(file.getvalue(), segments, records=records)
