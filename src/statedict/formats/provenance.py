"""What a checkpoint was made of: the files of each source, with their sizes and digests.

They are read whole for that, and compared with the digests that they carry themselves meanwhile.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress

from statedict import formats
from statedict.errors import CorruptFileError, FormatError
from statedict.formats import beside, places
from statedict.formats.guard import Guard
from statedict.io.parallel import WORKERS, parallel
from statedict.io.pipeline import compute_sums

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Check, Found


def describe_files(path: str) -> dict[str, dict[str, Any]]:
    """The files of a checkpoint by name: bytes and XXH3-128, of files in a store the tag that it gives instead.

    Args:
        path: a file, a folder, or their URL.

    Raises:
        CorruptFileError: a part of a file is not what the file says of it.
        StateDictError: it cannot be read.

    >>> sorted(describe_files("examples/checkpoint.pth")["checkpoint.pth"])
    ['bytes', 'xxh3_128']
    """
    if beside.is_folder(path):
        names = sorted(beside.list_own(path))
        sources: list[ByteSource] = [places.open_file(places.resolve_inside(path, name)) for name in names]
    else:
        sources = [places.open_checkpoint(path)]
        names = [os.path.basename(sources[0].name)]
    return dict(zip(names, parallel(_describe, sources, workers=WORKERS), strict=True))


def _describe(source: ByteSource) -> dict[str, Any]:
    tag = getattr(source, "tag", "")
    if tag:
        return {"bytes": source.size, "tag": tag}
    reading = _Reading(source)
    digest = compute_sums(source, 0, source.size, crc=False, use=reading.take).digest
    return {"bytes": source.size, "xxh3_128": digest}


class _Reading:
    """The parts of a file, compared with their sums while the file is read from its begin to its end."""

    def __init__(self, source: ByteSource) -> None:
        found: Iterable[Found] = ()
        with suppress(FormatError):  # it is not a checkpoint itself
            found = formats.checks(source)[1]
        self._waiting = deque(Guard(found).parts(source))
        self._begun: list[tuple[int, Check, Any]] = []  # with their sum so far

    def take(self, at: int, block: Any) -> None:
        """The next bytes."""
        from xxhash import xxh3_128

        while self._waiting and self._waiting[0][0] < at + len(block):
            start, check = self._waiting.popleft()
            self._begun.append((start, check, xxh3_128() if check.digest is not None else _Crc()))
        left = []
        for start, check, sums in self._begun:
            sums.update(block[max(start - at, 0) : start + check.size - at])
            if start + check.size > at + len(block):
                left.append((start, check, sums))
                continue
            wanted = f"{check.crc:08x}" if check.digest is None else check.digest
            if sums.hexdigest() != wanted:
                where = f"{check.source.name}: tensor {check.tensors[0][0]!r}" if check.tensors else check.source.name
                raise CorruptFileError(
                    f"{where}: {check.part}: its {'CRC-32' if check.digest is None else 'digest'} differs, so its "
                    f"bytes are damaged: expected {wanted}, got {sums.hexdigest()}; fetch the file again; if another "
                    "program rewrote it, convert it first and pass verify=False"
                )
        self._begun = left


class _Crc:
    """CRC-32, with the methods of a digest."""

    def __init__(self) -> None:
        self._sum = 0

    def update(self, data: Any) -> None:
        """Add bytes."""
        from zlib_ng.zlib_ng import crc32

        self._sum = crc32(data, self._sum)

    def hexdigest(self) -> str:
        """It, as `verify` writes it."""
        return f"{self._sum:08x}"
