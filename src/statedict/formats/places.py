"""Locate the files of a checkpoint and their parts."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from itertools import pairwise

from statedict.errors import (
    ExistingFileError,
    FileError,
    FormatError,
    MissingFileError,
    UnknownFormatError,
    UnsupportedError,
)
from statedict.io.location import location
from statedict.io.parallel import parallel
from statedict.io.pipeline import put_bytes
from statedict.io.source import BytesSource, FileSource
from statedict.io.urls import folder_of, join, redact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from statedict.io.remote import RemoteSource
    from statedict.io.source import ByteSource

# what a folder is opened by, in this order; without any of them by the only index or the only whole file of weights in
# it, such as `model.fp16.safetensors`
_ENTRIES = (
    ".metadata",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "checkpoint.safetensors",  # one of a training run
    "checkpoint.pth",
    "_METADATA",  # of Orbax; of a step, in which each item has one
    "_CHECKPOINT_METADATA",
    "delta.safetensors",
    "delta.safetensors.index.json",
    "saved_model.pb",
    "openvino_model.xml",
    "model.weights.h5",  # of Keras
    "tf_model.h5",
    "Manifest.json",  # of Core ML
    "model_index.json",  # of diffusers
)
_NEMO = {"context", "weights"}  # the folders of a checkpoint of NeMo 2
# an entry that we write → the names that its files and those of its predecessors have
_MODEL, _DELTA = (
    re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?") for stem in ("model", "delta")
)
_FAMILIES = {
    ".metadata": re.compile(r"__\d+_\d+\.distcp"),
    "model.safetensors": _MODEL,
    "model.safetensors.index.json": _MODEL,
    "delta.safetensors": _DELTA,
    "delta.safetensors.index.json": _DELTA,
    "": re.compile(r"(?!)"),
}
_GGUF = re.compile(r"(?<!-of-\d{5})\.gguf$|-00001-of-\d{5}\.gguf$")  # whole, or the first file of a split model
_OTHERS = _GGUF, re.compile(r"\.onnx$"), re.compile(r"\.index$"), re.compile(r"\.xml$")
_BINS = r"pytorch_model(-\d{5}-of-\d{5})?\.bin(\.index\.json)?"


class Listing(BytesSource):
    """Stands for the index of a folder whose files, one or more of each rank, have none."""

    def __init__(self, folder: str) -> None:
        self.folder, self.files = folder, [name for name in location(folder).names() or () if is_part(name)]
        super().__init__(json.dumps({"DCP_SHARDING_INFO": self.files}).encode(), redact(folder))


def is_part(name: str) -> bool:
    """Whether it is the name of a file that `torch.distributed.checkpoint` writes for one rank, without an index."""
    return re.fullmatch(r"shard-\d+-model-\d+-of-\d+\.safetensors", name) is not None


def open_checkpoint(path: str) -> FileSource | RemoteSource | Listing:
    """Open the file at a path or URL, or the entry file of a folder."""
    if location(path).is_folder():
        return _open_entry(path, find_entry(path))
    try:
        return open_file(path)
    except MissingFileError:
        if location(path + ".index").exists():  # a checkpoint of TensorFlow, which calls it so
            return open_file(path + ".index")
        inner = find_entry(path)  # of a store only asking tells whether it is a file or a folder
        if inner == path:
            raise
        return _open_entry(path, inner)


def _open_entry(folder: str, entry: str) -> FileSource | RemoteSource | Listing:
    return Listing(folder) if is_part(os.path.basename(entry)) else open_file(entry)


def open_file(path: str) -> FileSource | RemoteSource:
    """Open a file; the error names the cause if it can be told."""
    place = location(path)
    try:
        return place.open()
    except FileError as error:
        if not place.has_folders:
            raise
        from statedict.formats.causes import explain_unopened

        raise explain_unopened(path, error) from error.__cause__


def open_files(folder: str, files: Iterable[str]) -> dict[str, FileSource | RemoteSource | FileError]:
    """Open the files that an index names; one that cannot be opened maps to its error."""
    paths = {file: resolve_inside(folder, file) for file in dict.fromkeys(files)}
    return dict(zip(paths, parallel(_open_or_error, paths.values(), workers=location(folder).workers), strict=True))


def _open_or_error(path: str) -> FileSource | RemoteSource | FileError:
    try:
        return open_file(path)
    except FileError as error:
        return error


def find_entry(path: str) -> str:
    """Return the file that opens a folder, or any other path unchanged."""
    names = location(path).names_with(_ENTRIES)
    if names is None:
        return path
    found = [name for name in _ENTRIES if name in names] or _find_weights(names)
    if not found and {*names} >= _NEMO:
        return find_entry(resolve_inside(path, "weights"))
    if not found or (len(found) > 1 and found[0] not in _ENTRIES):
        from statedict.formats.causes import describe_folder

        held = f"has several: {', '.join(found)}" if found else f"holds {', '.join(names[:3]) or 'nothing'}"
        raise UnknownFormatError(
            (not found and describe_folder(path, names))
            or f"{redact(path)}: is a folder without .metadata, model.safetensors, pytorch_model.bin or one "
            f"*.index.json; it {held}; name the file to open"
        )
    return resolve_inside(path, found[0])


def _find_weights(names: list[str]) -> list[str]:
    """The indexes in a folder; without any weights that are no shards, a rank's first part, or models of others."""
    indexes = [name for name in names if re.search(r"\.index\.([^.]+\.)?json$", name)]
    weights = [name for name in names if re.search(r"\.safetensors$|^(diffusion_)?pytorch_model\..*bin$", name)]
    shards = [name for name in weights if is_part(name) or re.search(r"-\d+-of-(?!0*1\.)\d+\.", name)]
    whole = [name for name in weights if name not in shards]
    others = ([name for name in names if pattern.search(name)] for pattern in _OTHERS)
    return indexes or whole or [*filter(is_part, shards)][:1] or next(filter(None, others), [])


def resolve_inside(folder: str, file: str) -> str:
    """Resolve a name from a file, such as an index, and refuse it if it leads out of the folder.

    Every name that comes from a file goes through here. The result is a URL only if the folder is one. Only links in a
    Hugging Face cache may leave the folder, from `snapshots/REVISION/…` to `blobs/…`.
    """
    refused = bool(
        file in ("", os.curdir)
        or "\0" in file
        or not _is_encodable(file)
        or os.path.isabs(file)
        or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]", file)
        or ".." in file.replace("\\", "/").split("/")
    )
    if not refused and (os.path.basename(file) != file or os.path.islink(join(folder, file))):
        root, real = location(folder).real_paths(file)
        cache, is_snapshot, _ = root.rpartition("/snapshots/")
        allowed = [root.rstrip(os.sep) + os.sep] + ([cache + "/blobs/"] if is_snapshot else [])
        refused = not real.startswith(tuple(allowed))
    if refused:
        raise FormatError(
            f"{redact(folder) or os.curdir}: refers to {file!r}, which lies outside of the folder; refused, "
            "open that file by itself if you trust it"
        )
    return join(folder, file)


def _is_encodable(name: str) -> bool:
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False


def get_folder(source: ByteSource) -> str:
    """Return the folder that holds the other files of a checkpoint."""
    name = getattr(source, "url", source.name if isinstance(source, FileSource) else None)
    if name is None:
        raise FormatError(f"{source.name}: names files beside it and lies in an archive; unpack the archive first")
    return folder_of(name)


def resolve_target(path: str, kind: str) -> tuple[str, str]:
    """Return the file or folder to write, and its format, to replace a checkpoint of the format `kind`."""
    if kind == "distributed":
        inner = path.rstrip("/").endswith("/.metadata") or path == ".metadata"
        return (folder_of(path) or os.curdir) if inner else path, kind
    if kind == "distributed-safetensors" and not is_part(os.path.basename(find_entry(path))):
        kind = "safetensors"
    kind = "torch" if kind == "torch-legacy" else kind
    if kind not in ("torch", "safetensors", "gguf"):
        raise UnsupportedError(f"{redact(path)}: is {kind}, which is not altered in place; name another file or folder")
    target = find_entry(path) if location(path).is_folder() else path
    if kind == "gguf" and re.search(r"-of-\d{5}\.gguf$", target):
        raise UnsupportedError(f"{redact(target)}: is a part of a split model, which is not altered in place")
    return target, kind


def find_stale(folder: str, files: Iterable[str], overwrite: bool, others: bool = False) -> list[str]:
    """The files of the checkpoint in a folder that new files replace and do not overwrite, an index first.

    Args:
        folder: the folder, which may not exist.
        files: the names of the new files.
        overwrite: whether they may replace anything.
        others: whether that includes the weights of another format by which the folder is opened so far.

    Raises:
        ExistingFileError: there are such files, and `overwrite` is off.
    """
    wanted = {*files}
    names = location(folder).names() or []
    family = next((pattern for entry, pattern in _FAMILIES.items() if entry in wanted), _FAMILIES[""])
    entry = next((name for name in _ENTRIES if name in names), "")
    if others and entry.startswith("pytorch_model."):
        family = re.compile(rf"{family.pattern}|{_BINS}")
    stale = [name for name in names if family.fullmatch(name) and name not in wanted]
    if stale and not overwrite:
        raise ExistingFileError(
            f"{redact(join(folder, stale[0]))}: is of the checkpoint there, and overwrite is off; choose another "
            "folder or allow overwriting"
        )
    return sorted(stale, key=lambda name: (not name.endswith(".json"), name))


def check_folder(folder: str, files: Iterable[str], sources: Iterable[ByteSource], stale: Collection[str] = ()) -> None:
    """Check that files can be written into a folder, and that the folder opens by them once `stale` are removed."""
    wanted = {*files}
    entry_file = next((name for name in _ENTRIES if name in wanted), _ENTRIES[0])
    inside = folder.rstrip("/") + "/"
    if any(source.remote and source.name.startswith(inside) for source in sources):
        raise UnsupportedError(f"{redact(folder)}: is read while it is written, file by file; name another folder")
    before = _ENTRIES[: _ENTRIES.index(entry_file)]
    if other := [name for name in location(folder).names() or () if name in before and name not in stale]:
        raise ExistingFileError(
            f"{redact(join(folder, other[0]))}: is another checkpoint, by which that folder would still be opened; "
            "name another folder, or take it away"
        )


def write_files(folder: str, files: Mapping[str, bytes]) -> None:
    """Replace small files in a folder."""
    for name, data in files.items():
        location(join(folder, name)).publish(partial(put_bytes, data))


def find_gaps(ranges: Iterable[tuple[int, int]], size: int, unit: str = "byte") -> Iterator[str]:
    """Say where ranges (begin, end) do not cover so many bytes once each.

    >>> list(find_gaps([(3, 5), (0, 2)], 5))
    ['leave a hole at byte 2 (to 3)']
    """
    for (_, end), (begin, _) in pairwise([(0, 0), *sorted(ranges), (size, size)]):
        if begin != end:
            what = "overlap" if begin < end else "leave a hole"
            yield f"{what} at {unit} {min(begin, end):,} (to {max(begin, end):,})"
