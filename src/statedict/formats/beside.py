"""What lies in a folder beside the checkpoint that opens it: other checkpoints, configurations, texts.

Trainers put an optimizer, a scheduler and generator states there, accelerate a second model; hubs a configuration and a
tokenizer. `load` opens one of them. Here all are found, read and checked as far as their kind is known, or named.
"""

from __future__ import annotations

import json
import os
import re

from statedict import formats
from statedict.errors import FileError, FormatError, LimitError, UnknownFormatError
from statedict.formats import places, tokenizer
from statedict.io.json import parse, read_document
from statedict.io.location import location
from statedict.io.urls import join, redact
from statedict.reports.outcomes import SideFiles
from statedict.tensor.checks import Check, Problem, Unread, refusal, within
from statedict.values import human_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_CHECKPOINT = re.compile(r"\.(pt|pth|ckpt|bin|safetensors|pkl|index\.json)$")
# what goes along with a model of Hugging Face's libraries: configurations, tokenizers, code, cards and licences
_COMPANION = re.compile(
    r".*\.(json|txt|model|tiktoken|jinja|py|md|vocab|bpe|spm|yaml)|(LICEN[CS]E|NOTICE|USE_POLICY).*", re.IGNORECASE
)
_MARKS = re.compile(r"(.*_)?config\.json")  # one of these makes a folder one of Hugging Face's
_WEIGHTS = "other weights"
_LEFT = (
    (re.compile(r".*/"), "a folder"),
    (re.compile(r".*\.index\.json"), "an index of other shards"),
    (
        re.compile(r"trainer_state\.json|(optimizer|scheduler|rng_state|training_args|random_states).*"),
        "of the training",
    ),
    (re.compile(r".*\.(pt|pth|ckpt|bin|safetensors|pkl|gguf|h5|msgpack|onnx|ot|npz)"), _WEIGHTS),
)
_DTYPE = rb'("(?:torch_)?dtype"\s*:\s*")%s(")'
_DTYPES = ("float16", "bfloat16", "float32", "float64")  # of which a model can be in transformers
_CONFIG = "config.json"
_USUAL = (_CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json", *tokenizer.USUAL)
_QUANTIZED = ("quantization_config", "compression_config", "quantization")  # its keys that say how
_QUANTIZATION = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # files of older tools
_MODULES = "modules.json"
_DEEP = 5
_LARGEST = 64 << 20  # bytes of a file that is read whole


def is_folder(path: str) -> bool:
    """Whether the files that lie beside a checkpoint belong to it, and can be listed."""
    place = location(path)
    if place.has_folders or place.is_folder():
        return place.is_folder() and place.names() is not None
    return (
        not formats.get_suffix(path) and not place.exists() and place.names() is not None
    )  # of a store only asking tells


def list_others(path: str, deep: bool = True) -> list[str]:
    """The files in a folder, and in folders in it if `deep`, that the checkpoint which opens it does not consist of.

    Folders that are not entered, such as those that are hidden, links or too deep, end with `/`.
    """
    found: list[str] = []
    _add(path, "", found, _DEEP if deep else 0, list_own(path))
    return found


def _add(path: str, below: str, found: list[str], depth: int, own: Collection[str] = ()) -> None:
    for name, item in (location(path).contents() or {}).items():
        inner, full = join(path, name), below + name
        if full in own:
            continue
        if not item.folder:
            found.append(full)
        elif name.startswith((".", "__")) or os.path.islink(inner) or not depth:
            found.append(full + "/")
        else:
            _add(inner, full + "/", found, depth - 1, own)


def list_own(folder: str) -> set[str]:
    """The names of the files of the checkpoint that opens a folder."""
    entry = os.path.basename(places.find_entry(folder))
    try:
        return {entry, *_list_named(places.open_checkpoint(folder))}
    except (FormatError, FileError):  # which whoever reads that file is told
        return {entry}


def _list_named(source: ByteSource) -> set[str]:
    module = formats.load_format(formats.detect(source))
    return set(module.list_files(source)) if hasattr(module, "list_files") else set()


def list_checkpoints(path: str) -> list[str]:
    """Those of the other files in a folder that are checkpoints by their names."""
    others = [name for name in list_others(path) if _CHECKPOINT.search(name)]
    named = {shard for name in others if name.endswith((".index.json", ".index")) for shard in _list_shards(path, name)}
    return [name for name in others if name not in named]


def _list_shards(path: str, index: str) -> set[str]:
    try:
        named = _list_named(places.open_file(places.resolve_inside(path, index)))
        return {os.path.join(os.path.dirname(index), file) for file in named}
    except (FormatError, FileError):
        return set()


def read_documents(path: str, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the JSON in files beside a checkpoint on this machine, by name; those that are not JSON are left out."""
    place = location(path)
    if not place.has_folders:
        return
    folder = path if place.is_folder() else os.path.dirname(path)
    for name in names:
        if os.path.isfile(join(folder, name)):
            try:
                source = places.open_file(places.resolve_inside(folder, name))
                if source.size <= _LARGEST:
                    yield name, parse(bytes(source.read(0, source.size)), name, constants=True, surrogates=True)
            except (FormatError, FileError, LimitError):  # `verify` says so
                continue


def check_others(path: str) -> Iterator[Found]:
    """Yield the checks of the other files in a folder, and those that nobody can check."""
    others = list_others(path)
    named = {shard for name in others if name.endswith((".index.json", ".index")) for shard in _list_shards(path, name)}
    for name in others:
        if name not in named:
            yield from _check(path, name)


def _check(path: str, name: str) -> Iterator[Found]:
    if name.endswith(("/", ".distcp")):
        yield Unread(name)
        return
    known = bool(_CHECKPOINT.search(name))
    try:
        source = places.open_file(places.resolve_inside(path, name))
        if source.size or known or name.endswith(".json"):
            formats.detect(source)
            known = False  # else no checkpoint begins so
            yield from within(formats.checks(source)[1], name, name)
    except UnknownFormatError as error:
        yield refusal(error, join(path, name), name) if known else _check_text(source, name)
    except (FormatError, FileError) as error:
        yield refusal(error, join(path, name), name)


def _check_text(source: ByteSource, name: str) -> Check | Problem | Unread:
    """What can be said of a file without tensors: JSON is parsed, text decoded, anything else is not looked at."""
    if source.size <= _LARGEST:
        data = bytes(source.read(0, source.size))
        try:
            if name.endswith(".json"):
                parse(data, name, constants=True, surrogates=True)
            elif b"\0" in data:
                return Unread(name)
            data.decode()
            return Check(name, source, 0, source.size)
        except (LimitError, UnicodeDecodeError):
            pass
        except FormatError as error:
            return refusal(error, name, name)
    return Unread(name)


def read_config(path: str) -> dict[str, Any]:
    """The config.json of a model in a folder; empty if there is none."""
    if _CONFIG not in _list_small(path, [_CONFIG]):
        return {}
    file = places.open_file(places.resolve_inside(path, _CONFIG))
    found = parse(read_document(file), file.name, constants=True, surrogates=True)
    return found if isinstance(found, dict) else {}


def _list_small(folder: str, wanted: Iterable[str]) -> list[str]:
    """The names of the files in a folder, or of those that are wanted, if its server does not list; none of a file."""
    if is_folder(folder) or is_unlisted(folder):
        return location(folder).names_with(wanted) or []
    return []


def is_unlisted(path: str) -> bool:
    """Whether a path is a folder of a server that does not list what is in it."""
    place = location(path)
    return not place.has_folders and path.endswith("/") and place.names() is None


def plan_companions(
    source: str, target: str, dtypes: tuple[str, str], changes: Mapping[str, Any], dequantized: bool = False
) -> tuple[SideFiles, dict[str, bytes]]:
    """Plan which files go along when the model in a folder of Hugging Face's is written into another folder.

    Args:
        source: the folder that is read.
        target: the folder that is written; what it holds already, being the same, stays.
        dtypes: that of most floating-point numbers in the source, and in the target; `config.json` follows.
        changes: path of keys in `config.json`, joined by dots → its new value.
        dequantized: the model was quantized, and is not any more.

    Returns:
        What becomes of each file, and the bytes of those to write, by name.
    """
    names = _list_small(source, _USUAL)
    if not any(map(_MARKS.fullmatch, names)):
        return SideFiles(), {}
    writes: dict[str, bytes] = {}
    left: dict[str, str] = {}
    same = location(source).real_paths("") == location(target).real_paths("")
    unlisted = is_unlisted(source)
    for name in names if unlisted else _list_companions(source):
        why = next((why for pattern, why in _LEFT if pattern.fullmatch(name)), "")
        why = "of the quantization" if dequantized and name in _QUANTIZATION else why
        part = "/" in name.rstrip("/") and why in ("", _WEIGHTS)  # of which statedict reads no tensor
        if part or (not why and _COMPANION.fullmatch(name)):
            file = places.open_file(places.resolve_inside(source, name))
            if not part or file.size <= _LARGEST:
                writes[name] = bytes(file.read(0, file.size))
                continue
            why = f"larger than {human_bytes(_LARGEST)}"
        if not same:
            left[name] = why or "of no known use"
    notes = [f"{redact(source)} does not list its files: those with other names than usual are not copied"] * unlisted
    config = changed = writes.get(_CONFIG, b"")
    if dequantized:
        changed, gone = _drop_quantization(config, dtypes[1])
        notes += [f"config.json has no {key} any more" for key in gone]
    else:
        changed, said = _follow_dtype(config, *dtypes)
        notes += said
    if changes and config:
        changed = _change(changed, changes)
        notes += [f"config.json says {path} {json.dumps(value):.60} now" for path, value in changes.items()]
    if config:
        writes[_CONFIG] = changed
    if same:
        writes = {_CONFIG: changed} if changed != config else {}
    return SideFiles(tuple(writes), left, tuple(notes)), writes


def _follow_dtype(config: bytes, before: str, after: str) -> tuple[bytes, list[str]]:
    """A config.json with another dtype, and what to say of it."""
    changed = re.sub(_DTYPE % re.escape(before.encode()), rb"\g<1>%s\2" % after.encode(), config)
    if before != after and after in _DTYPES and changed != config:
        return changed, [f"config.json says {after} now, not {before}"]
    if before != after and b'dtype"' in config and not re.search(_DTYPE % re.escape(after.encode()), config):
        return config, [f"config.json still has the dtype it had, though the weights are {after} now, not {before}"]
    return changed, []


def _drop_quantization(config: bytes, dtype: str) -> tuple[bytes, list[str]]:
    """A config.json without what it says of the quantization, with the dtype of the weights; the keys that went."""
    tree = parse(config, _CONFIG, constants=True, surrogates=True) if config else None
    gone: list[str] = []
    for part in [tree, *tree.values()] if isinstance(tree, dict) else []:
        if isinstance(part, dict):
            gone += [key for key in _QUANTIZED if part.pop(key, None) is not None]
            if dtype in _DTYPES:
                part |= {key: dtype for key in ("dtype", "torch_dtype") if isinstance(part.get(key), str)}
    if not gone:
        return config, []
    return json.dumps(tree, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n", gone


def _list_companions(folder: str) -> Iterator[str]:
    """The other files in a folder, and those of modules in folders that sentence-transformers' modules.json names."""
    modules: Any = []
    if _MODULES in (location(folder).names() or ()):
        file = places.open_file(places.resolve_inside(folder, _MODULES))
        modules = parse(read_document(file), file.name, constants=True, surrogates=True)
    named = [one.get("path") for one in modules if isinstance(one, dict)] if isinstance(modules, list) else []
    for name in list_others(folder, deep=False):
        inner: list[str] = []
        if name[:-1] in named and name.endswith("/") and not os.path.islink(join(folder, name[:-1])):
            _add(join(folder, name[:-1]), name, inner, _DEEP)
        yield from inner or [name]


def _change(config: bytes, changes: Mapping[str, Any]) -> bytes:
    tree = json.loads(config)
    for path, value in changes.items():
        above, _, key = ("", "", path) if path in tree else path.rpartition(".")
        (tree[above] if above else tree)[key] = value
    return json.dumps(tree, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
