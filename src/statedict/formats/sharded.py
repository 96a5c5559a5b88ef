"""A checkpoint in several files with an index, as Hugging Face's libraries write it.

    model.safetensors.index.json or pytorch_model.bin.index.json:
        {"metadata": {"total_size": …}, "weight_map": {NAME: FILE, …}}
    FILE, beside the index: safetensors or a .bin of torch.save, a flat dict of tensors

Opening reads the index and each file's own index. A file that the index names must lie in its folder; a symbolic link
may lead into the same Hugging Face cache (`snapshots/REVISION/…` → `blobs/…`) and nowhere else.

We write safetensors. What is not a tensor goes into the index, under `statedict` of its metadata, as in a safetensors
file (skeleton.py); a flat state_dict of tensors makes what everybody else writes.
Source: huggingface_hub `serialization` (`split_state_dict_into_shards`).
"""

from __future__ import annotations

import errno
import json
import math
from functools import partial

from statedict.errors import CorruptFileError, FileError, FormatError, MissingFileError
from statedict.formats import coded, places, safetensors
from statedict.formats.kinds import check_part, detect, read_part
from statedict.formats.skeleton import KEY, put_together, take_apart
from statedict.io.json import parse, read_document
from statedict.io.parallel import batches
from statedict.io.pipeline import put_bytes
from statedict.pickles.budget import Together
from statedict.tensor.checks import Check, Problem, refusal, within
from statedict.tensor.segments import count_bytes
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from statedict.io.pipeline import Sink
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found
    from statedict.tensor.lazy import LazyTensor


def read(source: ByteSource, read_delta: Callable[[ByteSource], Any] = coded.read) -> Any:
    """Read the tensors of all files in the index's order, lazily, and the rest of the tree from the index.

    `read_delta` reads the shards that are deltas.
    """
    name = source.name
    files, sources, metadata = _open_index(source)
    errors = [opened for opened in sources.values() if isinstance(opened, FileError)]
    missing = [error for error in errors if isinstance(error, MissingFileError)]
    if missing:
        what = f"missing, with {len(missing) - 1} more of {len(sources)} shards; fetch them"
        raise MissingFileError(errno.ENOENT, what, missing[0].filename)
    for error in errors:
        raise error
    with Together():
        shards = {
            file: (read_delta if detect(shard) == "coded" else read_part)(shard) for file, shard in sources.items()
        }
    state = StateDict()
    for file, tree in shards.items():
        if not isinstance(tree, dict):
            raise CorruptFileError(f"{sources[file].name}: does not hold a dict of tensors")
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


def _open_index(source: ByteSource) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
    """Read the index and open its files: tensor → file, file → source or error, and the metadata."""
    name = source.name
    folder = places.get_folder(source)
    index = parse(read_document(source), name)
    try:
        files = index["weight_map"]
        if not isinstance(files, dict) or not all(type(file) is str for file in files.values()):
            raise TypeError("its weight_map does not map names to files")
    except (TypeError, KeyError) as error:
        raise CorruptFileError(f"{name}: is JSON but not an index of shards ({error})") from error
    metadata = index.get("metadata")
    return files, places.open_files(folder, files.values()), metadata if isinstance(metadata, dict) else {}


def list_files(source: ByteSource) -> list[str]:
    """List the files that the index names."""
    return list(parse(read_document(source), source.name)["weight_map"].values())


def files(
    tree: Any,
    most: int | None = None,
    stem: str = "model",
    write: Callable[[Any, Sink], object] = safetensors.write,
) -> Mapping[str, Callable[[Sink], object]]:
    """Map each file of the folder to the function that writes it, the index last.

    Tensors fill shards in order; one larger than `most` bytes gets its own. A single shard is `model.safetensors` and
    needs no index. `stem` stands for `model`; `write` writes a shard.
    """
    tensors, metadata = take_apart(tree)
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    parts = list(batches(sizes, most, sizes.__getitem__, math.inf))
    if len(parts) <= 1:
        return {f"{stem}.safetensors": partial(write, tree)}
    names = [f"{stem}-{number:05}-of-{len(parts):05}.safetensors" for number in range(1, len(parts) + 1)]
    shards = {name: StateDict({key: tensors[key] for key in part}) for name, part in zip(names, parts, strict=True)}
    weight_map = {key: name for name, shard in shards.items() for key in shard}
    about = {key: value for key, value in metadata.items() if key != "format"}
    if KEY not in about:  # else the tree says which ones are tied
        for alias, kept in about.items():
            if kept in tensors and alias not in tensors:
                weight_map[alias] = weight_map[kept]
                shards[weight_map[kept]][alias] = tensors[kept]
    index = {"metadata": {"total_size": sum(sizes.values()), **about}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"
    writes = {name: partial(write, shard) for name, shard in shards.items()}
    return writes | {f"{stem}.safetensors.index.json": partial(put_bytes, text)}


def checks(source: ByteSource) -> Iterator[Found]:
    """Check every shard, and that the index and the shards name the same tensors and sizes."""
    files, sources, metadata = _open_index(source)
    promised: dict[str, set[str]] = {}
    for key, file in files.items():
        promised.setdefault(file, set()).add(key)
    total, sound = 0, True
    for number, (file, shard) in enumerate(sources.items(), 1):
        there: dict[str, LazyTensor] = {}
        problems = 0
        try:
            if isinstance(shard, FileError):
                raise shard
            is_coded = detect(shard) == "coded"
            for item in within(coded.checks(shard), file) if is_coded else check_part(shard, file):
                if isinstance(item, Check):
                    there |= item.tensors
                problems += isinstance(item, Problem)
                yield item
        except (FormatError, FileError) as error:
            where = error.filename if isinstance(error, FileError) else shard.name
            problem = refusal(error, where, file, sorted(promised[file]))
            what = f"shard {number:,} of {len(sources):,}: {problem.what}"
            yield problem._replace(what=what, remedy=problem.remedy or "fetch it")
            problems += 1
        if problems:  # what else differs is their consequence
            sound = False
            continue
        total += count_bytes([*there.values()])
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
