"""A new index for a file of torch.save, to be appended to it: nothing that is in the file is written again.

See `statedict.formats.torch.replaced_index` for what the file is then.
"""

from __future__ import annotations

from statedict.formats.torch.archive import directory as records_of
from statedict.formats.torch.archive import folder_of, in_order, parse_our_record, placeless
from statedict.formats.torch.packing import OURS, our_record
from statedict.formats.torch.replaced_index import INDEX, directory, entries
from statedict.io.descriptor import same_file
from statedict.io.pipeline import compute_sums
from statedict.io.source import BytesSource
from statedict.io.zip import Record, find_end
from statedict.io.zip_ends import END
from statedict.io.zip_table import CENTRAL, ArchiveLayout
from statedict.pickles.writer import dumps
from statedict.tensor.checks import tensors_of
from statedict.tensor.lazy import LazyTensor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.formats.torch.replaced_index import Records
    from statedict.io.source import ByteSource

    Region = tuple[str, int, int, int]


def rewrite(tree: Any, source: ByteSource, before: Any) -> tuple[int, bytes] | None:
    """As `statedict.formats.torch.in_place.rewrite`."""
    records = records_of(source)
    folder = folder_of(records, source.name)
    old = entries(source, records)
    if not _can_be_appended_to(source, records, folder, old[folder + "data.pkl"]):
        return None
    tensors = {id(tensor): tensor for _, tensor in tensors_of(tree)}
    regions = _regions(list(tensors.values()), source)
    if regions is None or regions != _regions([tensor for _, tensor in tensors_of(before)], source):
        return None
    metadata = getattr(tree, "metadata", None)
    if metadata and folder + OURS not in records:
        return None

    def place(tensor: LazyTensor) -> tuple[str, int, int, tuple[int, ...]]:
        record = tensor.storage.source
        if id(tensor) not in tensors or not isinstance(record, Record):
            raise placeless(tensor)
        return record.entry.name.removeprefix(f"{folder}data/"), record.size, tensor.offset, tensor.stride()

    pickle = dumps(tree, place)
    replaced = {folder + name for name in INDEX}
    kept = {name: entry for name, entry in old.items() if name not in replaced}
    layout = ArchiveLayout()
    layout.position = source.size
    parts: list[bytes] = []
    crcs: list[int] = []

    def add(name: str, data: bytes) -> str:
        sums = compute_sums(BytesSource(data), 0, len(data))
        parts.extend((layout.add(folder + name, len(data))[1], data, layout.descriptor(sums.crc, len(data))))
        crcs.append(sums.crc)
        return sums.digest

    digest = add("data.pkl", pickle)
    if folder + OURS in records:
        digests = _digests(records, folder)
        add(OURS, our_record([digest, *(digests[name] for name in kept)] if digests else [], metadata))
    return source.size, b"".join([*parts, directory(layout, crcs, kept.values())])


def _can_be_appended_to(source: ByteSource, records: Records, folder: str, entry: bytes) -> bool:
    """Whether it is an archive as torch.save writes them, with nothing behind it; `entry` is that of data.pkl."""
    encoded = (folder + "data.pkl").encode()
    order = records.get(folder + "byteorder")
    return (
        entry[46 : 46 + CENTRAL.unpack_from(entry)[10]] == encoded  # else it is no UTF-8
        and find_end(source)[3] + END.size == source.size
        and not any(name.startswith((f"{folder}code/", f"{folder}constants")) for name in records)  # TorchScript
        and (order is None or bytes(order.read(0, min(order.size, 16))).strip() == b"little")
    )


def _regions(tensors: list[LazyTensor], source: ByteSource) -> set[Region] | None:
    """The bytes of the file that tensors see; None where one lies elsewhere, or shares a record but not its storage."""
    found: set[Region] = set()
    storages: dict[str, object] = {}
    for tensor in tensors:
        storage = tensor.storage
        record = storage.source
        if not isinstance(record, Record) or not same_file(record.base, source):
            return None
        if storages.setdefault(record.entry.name, storage) is not storage:
            return None
        found.add((record.entry.name, tensor.offset, tensor.span, tensor.nbytes))
    return found


def _digests(records: Records, folder: str) -> dict[str, str]:
    """The digests of the records of an archive of ours by their names; empty where they cannot be told apart."""
    digests = parse_our_record(records[folder + OURS])["digests"]
    order = [name.removeprefix(folder) for name in records]
    return dict(zip(records, digests, strict=False)) if in_order(order, digests) else {}
