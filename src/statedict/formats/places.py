"""Where the files of a checkpoint are: the file by which a folder is opened, what lies beside it, and no further."""

from __future__ import annotations

import os
import re

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
from statedict.io.source import FileSource
from statedict.io.urls import folder_of, join, redact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

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
    "saved_model.pb",  # for its message
)


def open_checkpoint(path: str) -> FileSource | RemoteSource:
    """The file of a path or URL, or the one by which a folder is opened.

    Raises:
        FileError: it is missing or cannot be read.
        UnknownFormatError: the folder holds no checkpoint.
    """
    if location(path).is_folder():
        return open_file(entry(path))
    try:
        return open_file(path)
    except MissingFileError:
        inner = entry(path)  # of a store only asking tells whether it is a file or a folder
        if inner == path:
            raise
        return open_file(inner)


def open_file(path: str) -> FileSource | RemoteSource:
    """The file.

    Raises:
        FileError: it is missing or cannot be read; the message says what else may be known.
    """
    try:
        return location(path).open()
    except FileError as error:
        from statedict.formats.causes import explain_unopened

        raise explain_unopened(path, error) from error.__cause__


def open_files(paths: Iterable[str]) -> dict[str, FileSource | RemoteSource | FileError]:
    """The files of a checkpoint, several at a time where they are far away; an error in place of what is not opened."""
    wanted = list(paths)
    workers = max((location(path).workers for path in wanted), default=1)
    return dict(zip(wanted, parallel(_opened_or_not, wanted, workers=workers), strict=True))


def _opened_or_not(path: str) -> FileSource | RemoteSource | FileError:
    try:
        return open_file(path)
    except FileError as error:
        return error


def entry(path: str) -> str:
    """The file by which a folder is opened; any other path as it is.

    Raises:
        UnknownFormatError: the folder holds no checkpoint, or several.
        FormatError: that file is a link out of the folder.
    """
    names = location(path).names_with(_ENTRIES)
    if names is None:
        return path
    found = [name for name in _ENTRIES if name in names] or _others(names)
    if not found or (len(found) > 1 and found[0] not in _ENTRIES):
        from statedict.formats.causes import of_folder

        held = f"has several: {', '.join(found)}" if found else f"holds {', '.join(names[:3]) or 'nothing'}"
        raise UnknownFormatError(
            (not found and of_folder(path, names))
            or f"{redact(path)}: is a folder without .metadata, model.safetensors, pytorch_model.bin or one "
            f"*.index.json; it {held}; name the file to open"
        )
    return inside(path, found[0])


def _others(names: list[str]) -> list[str]:
    """The indexes among the files of a folder, or the files of weights that are no shards."""
    indexes = [name for name in names if re.search(r"\.index\.([^.]+\.)?json$", name)]
    weights = [name for name in names if re.search(r"\.safetensors$|^(diffusion_)?pytorch_model\..*bin$", name)]
    return indexes or [name for name in weights if not re.search(r"-\d+-of-\d+\.", name)]


def inside(folder: str, file: str) -> str:
    """The path of what a checkpoint's folder, its index or another document names, if it lies in that folder.

    Every name that comes out of a file goes through here. What comes out is no URL, or one below that of the folder.
    The one link that may leave it is that of a Hugging Face cache, from `snapshots/REVISION/…` to `blobs/…`.

    Raises:
        FormatError: it does not, by its name or by a symbolic link.
    """
    refused = bool(
        file in ("", os.curdir)
        or "\0" in file
        or not _is_text(file)
        or os.path.isabs(file)
        or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]", file)
        or ".." in file.replace("\\", "/").split("/")
    )
    direct = os.path.basename(file) == file
    if not refused and (not direct or os.path.islink(join(folder, file))):
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


def beside(source: ByteSource) -> str:
    """The folder in which the other files of a checkpoint lie.

    Raises:
        FormatError: the source is no file of its own, but lies in an archive.
    """
    name = getattr(source, "url", source.name if isinstance(source, FileSource) else None)
    if name is None:
        raise FormatError(f"{source.name}: names files beside it and lies in an archive; unpack the archive first")
    return folder_of(name)


def replaced_path(path: str, kind: str) -> tuple[str, str]:
    """What is written to replace a checkpoint in place: its file, or its folder; and its format.

    Args:
        path: as it was opened.
        kind: the format that was found there.

    Raises:
        UnsupportedError: the format is not written, or not in place.
    """
    if kind == "distributed":
        inner = path.rstrip("/").endswith("/.metadata") or path == ".metadata"
        return (folder_of(path) or os.curdir) if inner else path, kind
    kind = "torch" if kind == "torch-legacy" else kind
    if kind not in ("torch", "safetensors"):
        raise UnsupportedError(f"{redact(path)}: is {kind}, which is not altered in place; name another file or folder")
    return entry(path) if location(path).is_folder() else path, kind


def check_folder(folder: str, files: Iterable[str], sources: Iterable[ByteSource]) -> None:
    """Whether files can be written into a folder, and are what it is opened by then.

    Raises:
        ExistingFileError: it holds another checkpoint, by which it would still be opened.
        UnsupportedError: it is a remote one that is read while it is written.
    """
    wanted = {*files}
    entry_file = next((name for name in _ENTRIES if name in wanted), _ENTRIES[0])
    before = _ENTRIES[: _ENTRIES.index(entry_file)]
    inside = folder.rstrip("/") + "/"
    if any(source.remote and source.name.startswith(inside) for source in sources):
        raise UnsupportedError(f"{redact(folder)}: is read while it is written, file by file; name another folder")
    other = [name for name in location(folder).names() or () if name in before]
    if other:
        raise ExistingFileError(
            f"{redact(join(folder, other[0]))}: is another checkpoint, by which that folder would still be opened; "
            "name another folder, or take it away"
        )


def _is_text(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True
