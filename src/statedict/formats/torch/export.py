"""Archives of `torch.export.save`, .pt2: weights and constants by name, and no graph.

    NAME/archive_format                             "pt2"
    NAME/models/MODEL.json                          the graph, which is never looked at
    NAME/data/weights/MODEL_weights_config.json     {"config": {FQN: {path_name, use_pickle, tensor_meta}}}
    NAME/data/weights/weight_0 …                    storages as bytes; with use_pickle, a file of torch.save each
    NAME/data/constants/MODEL_constants_config.json, tensor_0 …    the same for constants
    NAME/data/sample_inputs/MODEL.pt                a file of torch.save

A model opens as its state_dict, with `constants` and `sample_inputs` beside it; several stand under their names.
Archives before 2.9 are ordinary zip archives of torch.save's files. Source: torch/export/pt2_archive/_package.py and
torch/_export/serde/schema.py (PyTorch 2.13).
"""

from __future__ import annotations

from statedict.dtypes import BY_NAME, labelled_dtype
from statedict.errors import CorruptFileError, UnknownFormatError, is_failure_of_code
from statedict.formats.kinds import read_part
from statedict.io.json import parse
from statedict.io.zip import Inflated, read_directory
from statedict.pickles.budget import Together
from statedict.pickles.constructors import as_parameter, tensor
from statedict.tensor.checks import group_tensors
from statedict.tensor.lazy import Storage
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.io.zip import Record
    from statedict.tensor.checks import Found

    Records = dict[str, Record | Inflated]

# the codes of dtypes in the schema
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip
_CONFIGS = {"": "data/weights/", "constants": "data/constants/"}
_INPUTS = "data/sample_inputs/"


def read(source: ByteSource) -> StateDict:
    """Read the tree of the models, lazily."""
    return _read_tree(read_directory(source), source.name)[0]


def checks(source: ByteSource) -> Iterator[Found]:
    """List every record with its CRC-32 and its tensors; check the archive's structure."""
    from statedict.formats.torch.structure import NO_SUMS, find_faults, has_sums, make_check

    records = read_directory(source)
    summed = has_sums(records)
    if not summed:
        yield NO_SUMS
    yield from find_faults(source, records)
    tree, places = _read_tree(records, source.name)
    tensors = group_tensors(tree, lambda storage: places.get(storage, ""))
    for name, record in records.items():
        yield make_check(name, record, tuple(tensors.get(name, ())), summed=summed)


def _read_tree(records: Records, where: str) -> tuple[StateDict, dict[Storage, str]]:
    root = next((name[: -len("archive_format")] for name in records if name.endswith("/archive_format")), None)
    if root is None:
        raise UnknownFormatError(f"{where}: is a zip archive that torch.export did not write")
    made: dict[tuple[str, bool], Any] = {}
    models: dict[str, StateDict] = {}
    together = Together()
    for part, below in _CONFIGS.items():
        folder, suffix = root + below, f"_{below.split('/')[1]}_config.json"
        for name, record in records.items():
            if not (name.startswith(folder) and name.endswith(suffix)):
                continue
            found = parse(bytes(_check_stored(record).read(0, record.size)), record.label)
            try:
                config = dict(found["config"])
            except (ValueError, TypeError, KeyError) as error:
                raise CorruptFileError(
                    f"{record.label}: describes no tensors ({error}); the file is damaged"
                ) from error
            model = models.setdefault(name[len(folder) : -len(suffix)], StateDict())
            entries = StateDict()
            for key, entry in config.items():
                with together:
                    entries[key] = _read_entry(records, made, folder, entry, f"{where}: {key!r:.80}")
            if not part:
                model.update(entries)
            elif entries:
                model.setdefault(part, entries)
    folder = root + _INPUTS
    for name, record in records.items():
        if name.startswith(folder) and name.endswith(".pt"):
            with together:
                inputs = read_part(_check_stored(record))
            models.setdefault(name[len(folder) : -3], StateDict()).setdefault("sample_inputs", inputs)
    tree = next(iter(models.values())) if len(models) == 1 else StateDict(models)
    return tree, {storage: name for (name, pickled), storage in made.items() if not pickled}


def _check_stored(record: Record | Inflated) -> Record:
    """Return a record if it is not compressed, so that it is not larger than the archive."""
    if isinstance(record, Inflated):
        raise CorruptFileError(f"{record.label}: is compressed, which PyTorch does not do; save it again")
    return record


def _read_entry(records: Records, made: dict[tuple[str, bool], Any], folder: str, entry: Any, where: str) -> Any:
    """Make a tensor; `made` caches storages and the trees of torch.save's files by name."""
    try:
        name = folder + entry["path_name"]
        record = records[name]
        if entry["use_pickle"]:
            if (name, True) not in made:
                made[name, True] = read_part(_check_stored(record))
            return made[name, True]
        meta = entry["tensor_meta"]
        code = meta["dtype"]
        if type(code) is not int or code < 1:
            raise KeyError(code)
        kind = BY_NAME[_DTYPES[code]] if code in _DTYPES else labelled_dtype(f"ScalarType {code}")
        shape, strides = (tuple(n["as_int"] for n in meta[field]) for field in ("sizes", "strides"))
        offset, grad = meta["storage_offset"]["as_int"], meta["requires_grad"]
    except (KeyError, TypeError, AttributeError) as error:
        if is_failure_of_code(error):
            raise
        raise CorruptFileError(
            f"{where}: is described wrongly or missing ({error!r:.100}); the file is damaged"
        ) from error
    storage = made.setdefault((name, False), Storage(record, 0, record.size))
    try:
        found = tensor(storage, kind, offset, shape, strides, grad)
    except CorruptFileError as error:
        raise CorruptFileError(f"{where}: {error}") from error
    return as_parameter(found, grad is True) if entry.get("is_param") is True else found
