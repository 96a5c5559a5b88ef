"""What a checkpoint was made of: the files of each source, with their sizes and digests."""

from __future__ import annotations

import os

from statedict.formats import beside, places
from statedict.io.parallel import WORKERS, parallel
from statedict.io.pipeline import compute_sums

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.io.source import ByteSource


def describe_files(path: str) -> dict[str, dict[str, Any]]:
    """The files of a checkpoint by name: bytes and XXH3-128, of files in a store the tag that it gives instead.

    Args:
        path: a file, a folder, or their URL.

    Raises:
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
    return {"bytes": source.size, "xxh3_128": compute_sums(source, 0, source.size, crc=False).digest}
