"""load, save, convert, edit: from a source to a tree, from a tree to a file. Dispatch only."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from functools import partial

from statedict import formats
from statedict.api.companions import complete_steps, plan_companions
from statedict.api.guarding import guard_edit, open_guard
from statedict.api.names import Path, is_path, split
from statedict.collector import Paused
from statedict.errors import AlterError, FileError, PathError, UnsupportedError
from statedict.formats import places
from statedict.io.urls import folder_of, redact, to_name
from statedict.tensor.lazy import as_lazy
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import check_bounds
from statedict.values import parse_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor
    from typing import Any

    from statedict.formats.guard import Guard
    from statedict.reports.outcomes import EditReport, SideFiles


def load(path: Path, *, format: str | None = None) -> StateDict:
    """Open a checkpoint lazily: its index is read, no tensor is.

    Args:
        path: a file, or its URL (`s3://`, `gs://`, `az://`, `https://`, `hf://`, `file://`); its content decides what
            it is, never its suffix. Or a folder of Hugging Face or `torch.distributed.checkpoint`.
            `model.pth::optimizer` is what stands at that path in the file.
        format: read it as this format: `"torch"`, `"safetensors"`, or another name in `formats.FORMATS`.

    Returns:
        Its tree. A file whose root is not a dict (a bare tensor, a list) comes under the key `""`.

    Raises:
        MissingFileError: there is no such file.
        UnknownFormatError: it is not a checkpoint; the message says what it seems to be.
        UnsupportedError: it is a tree or bytes, not a path.
        CorruptFileError: it is truncated or damaged.
        PathError: nothing stands at that path in it.

    >>> import statedict
    >>> state = statedict.load("examples/checkpoint.pth")
    >>> state["model_state"]["conv1.weight"].shape
    (6, 3, 5, 5)
    """
    if not is_path(path):
        advice = "name it by a str or pathlib.Path" if isinstance(path, bytes) else "pass it on as it is, or save it"
        raise UnsupportedError(f"load opens a file, and a {type(path).__name__} is not a path; {advice}")
    name, at = split(path)
    source = places.open_checkpoint(name)
    with Paused():
        tree = wrap_root(formats.read(source, format))
    if not at:
        return tree
    try:
        return wrap_root(tree.at(at))
    except PathError as error:
        raise PathError(f"{redact(name)}: {error}") from error


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
        path: a file, or a URL (`s3://`, `gs://`, `az://`), replaced at the end in one step; it may be the file that the
            tree was loaded from. A name that ends in `/` is a folder, which gets `model.safetensors`.
        format: `"torch"`, `"safetensors"`, or `"distributed"` for a folder that `torch.distributed.checkpoint` loads;
            by default what the suffix says (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`, `.safetensors`). Without a
            suffix it is torch, or a distributed checkpoint where it replaces one.
        max_shard_size: write a folder of files with at most so many bytes of tensors each, `"5GB"`: safetensors with
            an index, as Hugging Face's libraries name them, or a distributed checkpoint.
        overwrite: if false, an existing file is an error; otherwise shards and indexes of the model before go, too.
        fsync: wait until it is on the disk.
        executor: any `concurrent.futures.Executor` for the reading, computing and writing, instead of a few threads; of
            processes, or of machines that see the files under the same names. The bytes are the same.

    Raises:
        FormatError: the suffix belongs to no format that is written, or a folder would get the name of a file.
        UnsupportedError: a value that the format cannot hold, named by its path; or a folder in a format of one file.
        FileError: the file system refuses; what was there is unchanged.

    >>> import statedict, numpy, tempfile
    >>> path = tempfile.mkdtemp() + "/weights.safetensors"
    >>> statedict.save({"w": numpy.ones((2, 3), "float32"), "epoch": 3}, path)
    >>> statedict.load(path)
    {'w': LazyTensor(float32, (2, 3), 24 B, '...weights.safetensors'), 'epoch': 3}
    """
    Target(path, format, max_shard_size, overwrite=overwrite, fsync=fsync, executor=executor).write(tree)


def convert(
    src: Any,
    dst: Path,
    *,
    format: str | None = None,
    read_as: str | None = None,
    only: Sequence[str] | str | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
    fsync: bool = True,
    verify: bool = True,
    executor: Executor | None = None,
) -> None:
    """Write a checkpoint anew in another format; bytes are copied, never decoded.

    They are compared with the digests and CRC-32 that the source has of them, and nothing is written of damaged ones.

    Args:
        src: the file to read, as for `load`, or a tree, as for `save`.
        dst: the file or folder to write, as `path` of `save`. If `src` is a folder, a name without a suffix is one too.
        format: as for `save`.
        read_as: the format to read `src` as, as `format` of `load`.
        only: patterns of what to keep; everything by default.
        max_shard_size: as for `save`.
        overwrite: as for `save`.
        fsync: as for `save`.
        verify: if false, damaged bytes are taken as they are.
        executor: as for `save`.

    Raises:
        CorruptFileError: a tensor is not what the source says of it.
        PatternError: a pattern matches nothing.
        StateDictError: what `load` and `save` raise.

    >>> import statedict, tempfile
    >>> path = tempfile.mkdtemp() + "/checkpoint.safetensors"
    >>> statedict.convert("examples/checkpoint.pth", path)
    >>> list(statedict.load(path))
    ['epoch', 'model_state', 'optimizer_state']
    """
    how: dict[str, Any] = {"verify": verify, "overwrite": overwrite, "fsync": fsync, "executor": executor}
    write_converted(src, dst, format=format, read_as=read_as, only=only, max_shard_size=max_shard_size, **how)


def write_converted(
    src: Any,
    dst: Path,
    *,
    format: str | None,
    read_as: str | None,
    only: Sequence[str] | str | None,
    max_shard_size: int | str | None,
    verify: bool = True,
    **how: Any,
) -> SideFiles:
    """`convert`, which says what became of the files beside the model."""
    target = Target(dst, format, max_shard_size, src, **how)
    before = state = tree_of(src, format=read_as)
    if only is not None:
        from statedict.ops.alter.verbs import select

        state = select(state, only)
    side, companions = plan_companions(src, target.model_folder, before, state)
    target.write(state, companions, open_guard(src, read_as, state, state) if verify else None)
    return side


def edit(
    src: Any,
    dst: Path | None,
    steps: Iterable[Mapping[str, Any]] | Mapping[str, Any],
    *,
    format: str | None = None,
    read_as: str | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
    fsync: bool = True,
    verify: bool = True,
    dry_run: bool = False,
    executor: Executor | None = None,
) -> EditReport:
    """Write a checkpoint altered by a list of operations; tensors go through in blocks, never whole.

    Args:
        src: as for `convert`.
        dst: the file or folder to write, as for `convert`; it may be `src`. None edits in place: names, values and
            metadata in milliseconds and not atomically if the file has room for them, anything else atomically.
        steps: one or a list of them, such as `{"cast": "bf16", "only": "model.*"}`; docs/altering.md has them.
        format: as for `save`.
        read_as: as for `convert`.
        max_shard_size: as for `save`.
        overwrite: as for `save`.
        fsync: as for `save`.
        verify: as for `convert`. Tensors that others are computed of are read once more for it.
        dry_run: report, and write nothing.
        executor: as for `save`.

    Returns:
        What each step did, and the bytes before and after.

    Raises:
        AlterError, RenameError: a step cannot be done; nothing was written.
        StateDictError: as `convert`.

    >>> import statedict, tempfile
    >>> path = tempfile.mkdtemp() + "/model.safetensors"
    >>> print(statedict.edit("examples/checkpoint.pth", path, [{"strip": True}, {"cast": "bf16"}]))
    strip True: 40 removed: epoch, model_state.conv1.weight, …; 10 added: conv1.weight, conv1.bias, …
    cast 'bf16': 10 altered: conv1.weight, conv1.bias, …
    20 tensors, 496.0 kB → 10 tensors, 124.0 kB
    """
    from statedict.ops.alter.steps import apply_steps

    target = _open_target(src, dst, format, max_shard_size, overwrite=overwrite, fsync=fsync, executor=executor)
    with Paused():
        before = tree_of(src, format=read_as)
        state, report = apply_steps(before, steps := complete_steps(src, _list_steps(steps)), not dry_run)
        folder = to_name(src) if target is None else target.model_folder
        side, companions = plan_companions(src, folder, before, state, steps=steps)
        if not dry_run:
            guard = guard_edit(src, read_as, before, steps, state) if verify else None
            if target is not None:
                target.write(state, companions, guard)
            else:
                _write_in_place(to_name(src), state, before, format, companions, guard, fsync=fsync, executor=executor)
        del before, state  # while the collector is off
    return report.with_files(side)


def _open_target(
    src: Any, dst: Path | None, format: str | None, max_shard_size: int | str | None, **how: Any
) -> Target | None:
    """Where an edit goes; None if that is the source."""
    if dst is not None:
        return Target(dst, format, max_shard_size, src, **how)
    if not is_path(src) or split(src)[1]:
        raise UnsupportedError("only a whole file is edited in place; name a file to write")
    if max_shard_size is not None:
        raise AlterError(f"{redact(to_name(src))}: max_shard_size=… makes a folder; name that as the target")
    return None


def _list_steps(steps: Any) -> list[Any]:
    return [*steps] if isinstance(steps, Iterable) and not isinstance(steps, Mapping) else [steps]


class Target:
    """Where and how a tree is written, checked before anything is read.

    Raises:
        FormatError, UnsupportedError: as `save`.
    """

    def __init__(
        self,
        path: Path,
        format: str | None = None,
        max_shard_size: int | str | None = None,
        src: Any = None,
        **how: Any,
    ) -> None:
        from statedict.io.location import location

        self.path, self._max_size, self._how = to_name(path), max_shard_size, how
        if "\0" in self.path:
            raise FileError(errno.EINVAL, "a name cannot hold a NUL", self.path)
        unnamed = format is None and is_path(src) and not formats.get_suffix(self.path)
        if unnamed and location(split(src)[0]).names() is not None:
            self.path = os.path.join(self.path, "")  # a folder, as the source
        beside = is_path(src) and os.path.abspath(folder_of(split(src)[0])) == os.path.abspath(self.path)
        self._others = src is not None and not beside  # whether weights of another format are replaced too
        self._module, self._folder = formats.choose_writer(self.path, format, max_shard_size is not None)
        self._location = location(self.path)

    @property
    def model_folder(self) -> str:
        """The folder, if it is one as Hugging Face's libraries have it; else nothing."""
        return self.path if self._folder and self._module is formats.load_format("sharded") else ""

    def write(self, tree: Any, companions: Mapping[str, bytes] | None = None, guard: Guard | None = None) -> None:
        """Write a tree, and into a folder further files with it; a guard checks what is copied."""
        from statedict.io.pipeline import put_bytes
        from statedict.tensor.checks import tensors_of
        from statedict.tensor.segments import covered_bytes

        with Paused():
            root = to_writable(tree)
            if not self._folder:
                write = partial(self._module.write, root)
                self._location.publish(write if guard is None else guard.watch(write), **self._how)
                return
            files = self._module.files(root, None if self._max_size is None else parse_bytes(self._max_size))
            tensors = [tensor for _, tensor in tensors_of(root)]
            stale = places.find_stale(self.path, files, self._how.get("overwrite", True), self._others)
            if guard is not None:
                files = {name: guard.watch(write) for name, write in files.items()}
            places.check_folder(self.path, files, [tensor.storage.source for tensor in tensors], stale)
            files = {name: partial(put_bytes, data) for name, data in (companions or {}).items()} | dict(files)
            self._location.publish_folder(files, stale, nbytes=covered_bytes(tensors), **self._how)


def _write_in_place(
    path: str,
    state: StateDict,
    before: StateDict,
    format: str | None,
    companions: Mapping[str, bytes],
    guard: Guard | None,
    **how: Any,
) -> None:
    """Give the file the names and values of a state if it has all its tensors and room for them, or write it anew."""
    from statedict.io.disk import overwrite
    from statedict.io.source import FileSource

    with Paused():
        source = places.open_checkpoint(path)
        change = formats.rewrite(to_writable(state), source, before, format) if isinstance(source, FileSource) else None
    if isinstance(source, FileSource) and change is not None:
        overwrite(source, *change)
    else:
        target, kind = places.resolve_target(path, formats.detect(source))
        Target(target, format or kind, **how).write(state, None, guard)
    places.write_files(path, companions)


def tree_of(source: Any, lazy: bool = True, format: str | None = None) -> StateDict:
    """The state that a verb works on, of any source.

    Args:
        source: a path, a URL or `file::path`, as for `load`; or a tree of dicts, lists, arrays, plain values and live
            objects, as for `save`.
        lazy: as `save` writes it, which takes whole tensors. False leaves arrays as they are.
        format: of a file, as for `load`.

    Raises:
        StateDictError: what `load` and `save` raise.
    """
    if is_path(source):
        return load(source, format=format)
    from statedict.adapters.collect import collect

    if isinstance(source, bytes):
        raise UnsupportedError(f"{source!r:.40}: bytes are neither a path nor a tree; name a file by a str")
    check_bounds(source)  # before anything follows what is shared
    return wrap_root(collect(source, as_lazy) if lazy else collect(source))


def name_of(source: Any) -> str:
    """What a report calls a source."""
    return redact(to_name(source)) if is_path(source) else "memory"


def to_writable(tree: Any) -> Any:
    """What is written of a tree: live objects as their states, lazily, and a bare root as it is."""
    from statedict.adapters.collect import collect

    if isinstance(tree, StateDict):
        check_bounds(tree)  # before anything follows what is shared
    return unwrap_root(collect(tree, as_lazy))


def wrap_root(tree: Any) -> StateDict:
    """A tree, under the key `""` if its root is not a dict."""
    return tree if isinstance(tree, StateDict) else StateDict({"": tree})


def unwrap_root(tree: Any) -> Any:
    """A tree without the key that a root which is not a dict was given."""
    alone = isinstance(tree, StateDict) and list(tree) == [""] and not isinstance(tree[""], StateDict)
    return tree[""] if alone else tree
