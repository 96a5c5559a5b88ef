"""A checkpoint in several files with an index, as Hugging Face's libraries write it.

    model.safetensors.index.json or pytorch_model.bin.index.json:
        {"metadata": {"total_size": …}, "weight_map": {NAME: FILE, …}}
    FILE, beside the index: safetensors or a .bin of torch.save, a flat dict of tensors

Opening reads the index and each file's own index. A file that the index names must lie in its folder; a symbolic link
may lead into the same Hugging Face cache (`snapshots/REVISION/…` → `blobs/…`) and nowhere else.

What we write are safetensors. What is no tensor in a tree goes into the index, under `statedict` of its metadata, as
it goes into a safetensors file (skeleton.py); a flat state_dict of tensors makes what everybody else writes.
Source: huggingface_hub `serialization` (`split_state_dict_into_shards`).
"""

from __future__ import annotations

import errno
import json
from functools import partial

from statedict.errors import CorruptFileError, FileError, FormatError, MissingFileError
from statedict.formats import places, safetensors
from statedict.formats.kinds import part_checks, read_part
from statedict.formats.skeleton import KEY, put_together, taken_apart
from statedict.io.json import parse, read_document
from statedict.io.pipeline import put_bytes
from statedict.pickles.budget import Together
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from statedict.io.pipeline import Sink
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found
    from statedict.tensor.lazy import LazyTensor


def read(source: ByteSource) -> Any:
    """The tensors of all files in the index's order, lazily, and what else the index says is in the tree.

    Raises:
        CorruptFileError: the index is no index, or a file lacks what the index promises.
        MissingFileError: a file is missing; the message says how many are.
        FormatError: a file lies outside the folder.
    """
    name = source.name
    files, paths, metadata = _index(source)
    sources = places.open_files(paths.values())
    errors = {path: error for path, error in sources.items() if isinstance(error, FileError)}
    missing = [path for path, error in errors.items() if isinstance(error, MissingFileError)]
    if missing:
        raise MissingFileError(
            errno.ENOENT, f"missing, with {len(missing) - 1} more of {len(paths)} shards; fetch them", missing[0]
        )
    for error in errors.values():
        raise error
    with Together():
        shards = {file: _shard(sources[path]) for file, path in paths.items()}
    state = StateDict()
    for key, file in files.items():
        if key not in shards[file]:
            raise CorruptFileError(
                f"{name}: says that {key!r} is in {file}, but it is not; fetch the index and the file again"
            )
        state[key] = shards[file][key]
    texts = {str(k): v for k, v in metadata.items() if type(v) is str}
    if KEY in texts:
        return put_together(dict(state), texts, name)
    state.metadata = texts
    return state


def files(tree: Any, most: int | None = None) -> Mapping[str, Callable[[Sink], None]]:
    """What to write into a folder: name of each file → what writes it, the index last.

    Tensors are put into shards in their order; one that is larger than `most` bytes has a shard of its own. If all fit
    into one it is `model.safetensors`, without an index.

    Args:
        tree: of LazyTensors and plain values.
        most: bytes of tensors in a shard; all in one by default.

    Raises:
        UnsupportedError: a value that is no data.
    """
    tensors, metadata = taken_apart(tree)
    parts: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if most is not None and parts[-1] and size + tensor.nbytes > most:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    if len(parts) == 1:
        return {"model.safetensors": partial(safetensors.write, tree)}
    names = [f"model-{number:05}-of-{len(parts):05}.safetensors" for number in range(1, len(parts) + 1)]
    weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    about = {key: value for key, value in metadata.items() if key != "format"}
    if KEY not in about:  # else the tree says which ones are tied
        ties = {alias: kept for alias, kept in about.items() if kept in tensors and alias not in tensors}
        weight_map |= {alias: weight_map[kept] for alias, kept in ties.items()}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values()), **about}, "weight_map": weight_map}
    writes = {name: partial(safetensors.write, _shard_of(part, about)) for name, part in zip(names, parts, strict=True)}
    text = json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"
    return writes | {"model.safetensors.index.json": partial(put_bytes, text)}


def _shard_of(part: dict[str, LazyTensor], about: dict[str, str]) -> StateDict:
    """A shard's tensors, with the names of what is tied to them."""
    ties = {alias: part[kept] for alias, kept in about.items() if kept in part and KEY not in about}
    return StateDict(part | ties)


def _index(source: ByteSource) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """What the index says: tensor → file, file → path, and the metadata."""
    name = source.name
    folder = places.beside(source)
    index = parse(read_document(source), name)
    try:
        files = index["weight_map"]
        if not isinstance(files, dict) or not all(type(file) is str for file in files.values()):
            raise TypeError("its weight_map does not map names to files")
    except (TypeError, KeyError) as error:
        raise CorruptFileError(f"{name}: is JSON but no index of shards ({error})") from error
    metadata = index.get("metadata")
    paths = {file: places.inside(folder, file) for file in dict.fromkeys(files.values())}
    return files, paths, metadata if isinstance(metadata, dict) else {}


def checks(source: ByteSource) -> Iterator[Found]:
    """Every shard by itself, and whether the index and the shards name the same tensors and sizes."""
    from dataclasses import replace

    from statedict.tensor.checks import Check, Problem, refusal, within

    files, paths, metadata = _index(source)
    promised: dict[str, set[str]] = {}
    for key, file in files.items():
        promised.setdefault(file, set()).add(key)
    total, sound = 0, True
    sources = places.open_files(paths.values())
    for number, (file, path) in enumerate(paths.items(), 1):
        there: dict[str, LazyTensor] = {}
        problems = 0
        try:
            shard = sources[path]
            if isinstance(shard, FileError):
                raise shard
            for item in within(part_checks(shard), file):
                if isinstance(item, Check):
                    there |= item.tensors
                problems += isinstance(item, Problem)
                yield item
        except (FormatError, FileError) as error:
            found = refusal(error, path, file)
            what = f"shard {number:,} of {len(paths):,}: {found.what}"
            yield replace(found, what=what, remedy=found.remedy or "fetch it", tensors=tuple(sorted(promised[file])))
            problems += 1
        if problems:  # what else differs is their consequence
            sound = False
            continue
        total += sum({t.region: t.nbytes for t in there.values()}.values())
        for names, what in (
            (promised[file] - there.keys(), "which the index says are in it, are not"),
            (there.keys() - promised[file], "which are in it, are not in the index"),
        ):
            if names:
                what = f"{len(names):,} tensors, {what}"
                yield Problem(file, what, remedy="fetch the index and the file again", tensors=tuple(sorted(names)))
    size = metadata.get("total_size")
    if sound and type(size) in (int, float) and size != total:
        remedy = "the index was not made for these shards, or not well; fetch or save them again"
        yield Problem("index", "its total_size is not that of the tensors", f"{total:,}", f"{size:,.0f}", remedy)


def _shard(source: Any) -> dict[Any, Any]:
    tree = read_part(source)
    if not isinstance(tree, dict):
        raise CorruptFileError(f"{source.name}: holds no dict of tensors")
    return tree
