"""A new index for a file of torch.save, to be appended to it: nothing that is in the file is written again.

`structure.py` says what the file is then.
"""

from __future__ import annotations

from statedict.formats.torch import archive
from statedict.formats.torch.archive import encode_our_record, get_notes, refuse_place
from statedict.formats.torch.structure import INDEX, build_directory, read_entries
from statedict.io.disk import same_file
from statedict.io.pipeline import compute_sums
from statedict.io.source import BytesSource
from statedict.io.zip import OURS, ArchiveLayout, Record, find_end
from statedict.io.zip_table import CENTRAL, END
from statedict.pickles.writer import dumps
from statedict.tensor.checks import tensors_of
from statedict.tensor.lazy import LazyTensor
from statedict.tree.walk import walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.formats.torch.structure import Records
    from statedict.io.source import ByteSource

    Region = tuple[str, int, int, int]


def rewrite(tree: Any, source: ByteSource, before: Any) -> tuple[int, bytes] | None:
    """As `formats.rewrite`."""
    records = archive.read_records(source)
    folder = archive.find_folder(records, source.name)
    old = read_entries(source, records)
    if not _can_be_appended_to(source, records, folder, old[folder + "data.pkl"]):
        return None
    tensors = {id(tensor): tensor for _, tensor in tensors_of(tree)}
    regions = _find_regions(list(tensors.values()), source)
    if regions is None or regions != _find_regions([tensor for _, tensor in tensors_of(before)], source):
        return None
    notes = get_notes(tree, (leaf for _, leaf in walk(tree)))
    if any(notes) and folder + OURS not in records:
        return None

    def place(tensor: LazyTensor) -> tuple[str, int, int, tuple[int, ...]]:
        record = tensor.storage.source
        if id(tensor) not in tensors or not isinstance(record, Record):
            refuse_place(tensor)
        return record.entry.name.removeprefix(f"{folder}data/"), record.size, tensor.offset, tensor.stride()

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
        return str(sums.digest)

    digest = add("data.pkl", dumps(tree, place))
    if folder + OURS in records:
        _, digests = archive.parse_our_record(records[folder + OURS])
        names = [name.removeprefix(folder) for name in records]
        by_name = dict(zip(records, digests, strict=False)) if archive.is_in_order(names, digests) else {}
        add(OURS, encode_our_record([digest, *(by_name[name] for name in kept)] if by_name else [], notes))
    return source.size, b"".join([*parts, build_directory(layout, crcs, kept.values())])


def _can_be_appended_to(source: ByteSource, records: Records, folder: str, entry: bytes) -> bool:
    """Whether torch.save wrote the archive and nothing follows it; `entry` is that of data.pkl."""
    encoded = (folder + "data.pkl").encode()
    return (
        entry[46 : 46 + CENTRAL.unpack_from(entry)[10]] == encoded  # else it is no UTF-8
        and find_end(source).at + END.size == source.size
        and not any(name.startswith((f"{folder}code/", f"{folder}constants")) for name in records)  # TorchScript
        and archive.read_byteorder(records, folder) in (None, b"little")
    )


def _find_regions(tensors: list[LazyTensor], source: ByteSource) -> set[Region] | None:
    """List the bytes that tensors see; None if one lies elsewhere, or shares a record but not its storage."""
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
