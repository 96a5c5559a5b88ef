"""A checkpoint in several files with an index, as Hugging Face's libraries write it.

    model.safetensors.index.json or pytorch_model.bin.index.json:
        {"metadata": {"total_size": …}, "weight_map": {NAME: FILE, …}}
    FILE, beside the index: safetensors or a .bin of torch.save, a flat dict of tensors

Opening reads the index and each file's own index. A file that the index names must lie in its folder; a symbolic link
may lead into the same Hugging Face cache (`snapshots/REVISION/…` → `blobs/…`) and nowhere else.
Source: huggingface_hub `serialization` (`split_state_dict_into_shards`).
"""

from __future__ import annotations

import errno
import json
import os

from statedict import formats
from statedict.errors import CorruptFileError, FormatError, MissingFileError
from statedict.io.source import FileSource
from statedict.tree import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.io.source import ByteSource

_MAX_INDEX = 256 << 20


def read(source: ByteSource) -> StateDict:
    """The tensors of all files in the index's order, lazily.

    Raises:
        CorruptFileError: the index is no index, or a file lacks what the index promises.
        MissingFileError: a file is missing; the message says how many are.
        FormatError: a file lies outside the folder.
    """
    name = source.name
    if not isinstance(source, FileSource):
        raise FormatError(f"{name}: an index of shards that is not a file of its own; unpack the archive first")
    if source.size > _MAX_INDEX:
        raise FormatError(f"{name}: an index of {source.size:,} bytes is larger than any; it is something else")
    try:
        index = json.loads(bytes(source.read(0, source.size)))
        files = index["weight_map"]
        if not isinstance(files, dict) or not all(type(file) is str for file in files.values()):
            raise TypeError("its weight_map does not map names to files")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptFileError(f"{name}: is JSON but no index of shards ({error})") from error
    folder = os.path.dirname(name)
    paths = {file: formats.inside(folder, file) for file in dict.fromkeys(files.values())}
    missing = [path for path in paths.values() if not os.path.exists(path)]
    if missing:
        raise MissingFileError(
            errno.ENOENT, f"missing, with {len(missing) - 1} more of {len(paths)} shards; fetch them", missing[0]
        )
    shards = {file: _shard(path) for file, path in paths.items()}
    state = StateDict()
    for key, file in files.items():
        if key not in shards[file]:
            raise CorruptFileError(
                f"{name}: says that {key!r} is in {file}, but it is not; fetch the index and the file again"
            )
        state[key] = shards[file][key]
    if isinstance(index.get("metadata"), dict):
        state.metadata = {str(k): v for k, v in index["metadata"].items() if type(v) is str}
    return state


def _shard(path: str) -> dict[Any, Any]:
    tree = formats.read_part(FileSource(path))
    if not isinstance(tree, dict):
        raise CorruptFileError(f"{path}: holds no dict of tensors")
    return tree
