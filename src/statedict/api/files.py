"""load, save, convert, capture, restore: dispatch only."""

from __future__ import annotations

import os
from functools import partial

from statedict import formats
from statedict.collector import Paused
from statedict.formats import places
from statedict.io.urls import named
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import walk
from statedict.values import parsed_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Executor
    from typing import Any

    from statedict.reports.edit import EditReport

Path = str | os.PathLike[str]


def load(path: Path, *, format: str | None = None) -> StateDict:
    """Open a checkpoint lazily: its index is read, no tensor is.

    Args:
        path: the file, or its URL (`s3://`, `gs://`, `az://`, `https://`, `hf://`, `file://`). Its content decides what
            it is, never its suffix. Or a folder: of Hugging Face (with `model.safetensors`, `pytorch_model.bin` or an
            index of shards) or of `torch.distributed.checkpoint`.
        format: read it as this format: `"torch"`, `"safetensors"`, or another name in `formats.FORMATS`.

    Returns:
        Its tree. A file whose root is no dict (a bare tensor, a list) comes under the key `""`.

    Raises:
        MissingFileError: there is no such file.
        UnknownFormatError: it is no checkpoint; the message says what it seems to be.
        CorruptFileError: it is truncated or damaged.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")
    >>> state["model_state"]["conv1.weight"].shape
    (6, 3, 5, 5)
    """
    source = places.opened(named(path))
    with Paused():
        tree = formats.read(source, format)
    return tree if isinstance(tree, StateDict) else StateDict({"": tree})


def save(
    tree: Any,
    path: Path,
    *,
    format: str | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
    fsync: bool = True,
    executor: Executor | None = None,
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        tree: a model, an optimizer, a StateDict, or dicts and lists of them with arrays and plain values.
            `{"model": model, "optimizer": optimizer, "epoch": 3}` captures each by its adapter.
        path: the file, or a URL (`s3://`, `gs://`, `az://`); an existing one is replaced at the end, in one step. It
            may be the file that the tree was loaded from.
        format: `"torch"`, `"safetensors"`, or `"distributed"` for a folder that `torch.distributed.checkpoint`
            loads; by default what the suffix says, torch for unknown ones. A folder that holds a distributed
            checkpoint is replaced by one.
        max_shard_size: write a folder of safetensors of at most so many bytes of tensors each, `"5GB"`, with an
            index, as Hugging Face's libraries name them; or several files in a distributed checkpoint. What else is
            in the folder stays.
        overwrite: if false, an existing file is an error.
        fsync: wait until it is on the disk.
        executor: any `concurrent.futures.Executor`, to carry out the reading, computing and writing instead of a few
            threads: of processes, or of many machines (`dask.distributed.Client.get_executor()`) that see the files
            under the same names. The bytes are the same.

    Raises:
        UnsupportedError: a value that the format cannot hold; the message names its path.
        FileError: the file system refuses; what was there is unchanged.

    >>> import statedict, numpy, tempfile
    >>> path = tempfile.mkdtemp() + "/weights.safetensors"
    >>> statedict.save({"w": numpy.ones((2, 3), "float32"), "epoch": 3}, path)
    >>> statedict.load(path)
    {'w': LazyTensor(float32, (2, 3), 24 B, '...weights.safetensors'), 'epoch': 3}
    """
    from statedict.io.files import publish, publish_folder
    from statedict.tensor.checks import tensors_of
    from statedict.tensor.segments import covered_bytes

    target, sharded = named(path), max_shard_size is not None
    name = format or formats.for_writing(target, sharded)
    module, folder = formats.writer(name), formats.folder_writer(name, sharded)
    with Paused():
        root = rooted(tree)
        if folder is not None:
            files = folder.files(root, None if max_shard_size is None else parsed_bytes(max_shard_size))
            tensors = [tensor for _, tensor in tensors_of(root)]
            places.check_folder(target, files, [tensor.storage.source for tensor in tensors])
            nbytes = covered_bytes(tensors)
            publish_folder(target, files, overwrite=overwrite, fsync=fsync, executor=executor, nbytes=nbytes)
        else:
            publish(target, partial(module.write, root), overwrite=overwrite, fsync=fsync, executor=executor)


def convert(
    src: Path,
    dst: Path,
    *,
    format: str | None = None,
    only: Sequence[str] | str | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
    fsync: bool = True,
    executor: Executor | None = None,
) -> None:
    """Write a checkpoint anew in another format; bytes are copied, never decoded.

    Args:
        src: the file to read.
        dst: the file to write; its suffix says the format unless `format` does.
        format: as for `save`.
        only: patterns of what to keep; everything by default.
        max_shard_size: as for `save`.
        overwrite: as for `save`.
        fsync: as for `save`.
        executor: as for `save`.

    Raises:
        AlterError: a pattern matches nothing.
        StateDictError: what `load` and `save` raise.

    >>> import statedict, tempfile
    >>> path = tempfile.mkdtemp() + "/checkpoint.safetensors"
    >>> statedict.convert("examples/checkpoint.pth", path)
    >>> list(statedict.load(path))
    ['epoch', 'model_state', 'optimizer_state']
    """
    state = load(src)
    if only is not None:
        from statedict.ops.alter.verbs import select

        state = select(state, only)
    save(state, dst, format=format, max_shard_size=max_shard_size, overwrite=overwrite, fsync=fsync, executor=executor)


def edit(
    src: Path,
    dst: Path | None,
    steps: Iterable[Mapping[str, Any]],
    *,
    format: str | None = None,
    overwrite: bool = True,
    fsync: bool = True,
    dry_run: bool = False,
    executor: Executor | None = None,
) -> EditReport:
    """Write a checkpoint altered by a list of operations; tensors go through in blocks, never whole.

    Args:
        src: the file to read.
        dst: the file to write; it may be the one that is read. None edits in place: where only names, values and
            metadata change, a new index is appended to a .pth, and the header of a safetensors file is overwritten if
            it has the room, in milliseconds and not atomically; anything else is written anew, atomically.
        steps: such as `{"drop": "head.*"}`, `{"rename": {"layers.{n}": "blocks.{n}"}}`,
            `{"cast": "bf16", "only": "model.*"}`, `{"split": "qkv", "into": ["q", "k", "v"], "dim": 0}`; see
            docs/altering.md.
        format: as for `save`.
        overwrite: as for `save`.
        fsync: as for `save`.
        executor: as for `save`.
        dry_run: report, and write nothing.

    Returns:
        What each step did, and the bytes before and after.

    Raises:
        AlterError: a step cannot be done; nothing was written.
        RenameError: a rule is malformed or matches nothing, or two entries get one path.
        StateDictError: what `load` and `save` raise.

    >>> import statedict, tempfile
    >>> path = tempfile.mkdtemp() + "/model.safetensors"
    >>> print(statedict.edit("examples/checkpoint.pth", path, [{"strip": True}, {"cast": "bf16"}]))
    strip True: 40 removed: epoch, model_state.conv1.weight, …; 10 added: conv1.weight, conv1.bias, …
    cast 'bf16': 10 altered: conv1.weight, conv1.bias, …
    20 tensors, 496.0 kB → 10 tensors, 124.0 kB
    """
    from statedict.ops.alter.edited import edited

    with Paused():
        before = load(src)
        state, report = edited(before, steps, not dry_run)
    if dry_run:
        return report
    if dst is not None:
        save(state, dst, format=format, overwrite=overwrite, fsync=fsync, executor=executor)
    elif not _rewritten(named(src), state, before, format):
        target, kind = places.whole(named(src), formats.detect(places.opened(named(src))))
        save(state, target, format=format or kind, fsync=fsync, executor=executor)
    return report


def _rewritten(path: str, state: StateDict, before: StateDict, format: str | None) -> bool:
    """Whether the file has all tensors of a state, and has its names and values now."""
    from statedict.io.in_place import overwrite
    from statedict.io.source import FileSource

    with Paused():
        source = places.opened(path)
        found = formats.rewrite(rooted(state), source, before, format) if isinstance(source, FileSource) else None
    if found is None or not isinstance(source, FileSource):
        return False
    overwrite(source, *found)
    return True


def rooted(tree: Any) -> Any:
    """What is written of a tree: live objects as their states, lazily, and a bare root as it is."""
    from statedict.adapters.collect import collect, lazily

    if isinstance(tree, StateDict):
        walk(tree)  # an error beyond its bounds, before anything follows what is shared
    return bare(lazily(collect(tree)))


def bare(tree: Any) -> Any:
    """A tree whose root is no dict without the key that it was given."""
    alone = isinstance(tree, StateDict) and list(tree) == [""] and not isinstance(tree[""], StateDict)
    return tree[""] if alone else tree
