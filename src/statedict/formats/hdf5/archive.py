"""A `.keras` file: a zip archive, whose members are stored.

    metadata.json       the version of Keras
    config.json         the model; a Lambda layer has code in it, which is not looked at
    model.weights.h5    the weights and the optimizer's state, see `keras.py`
    assets/…            vocabularies

The tree is that of the weights; the configuration names the variables and orders the layers. Both JSON texts are in its
metadata; texts among the assets are under `assets`.

Source: keras 3.15.1, saving/saving_lib.py.
"""

from __future__ import annotations

from contextlib import suppress

from statedict.errors import CorruptFileError, FormatError
from statedict.formats.hdf5.model import build
from statedict.formats.hdf5.objects import read_objects
from statedict.io.json import parse
from statedict.io.zip import read_directory
from statedict.tensor.checks import refusal, tensors_of
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.io.zip import Inflated, Record
    from statedict.tensor.checks import Found

WEIGHTS, CONFIG = "model.weights.h5", "config.json"
_TEXTS = (CONFIG, "metadata.json")
_ASSETS = "assets/"
_MAX_TEXT = 64 << 20


def read(source: ByteSource) -> StateDict:
    """Read the tree lazily."""
    return _read_tree(source, read_directory(source))


def _read_tree(source: ByteSource, records: dict[str, Record | Inflated]) -> StateDict:
    texts = {name: text for name in _TEXTS if (text := _read_text(records.get(name))) is not None}
    if WEIGHTS not in records:
        raise CorruptFileError(f"{source.name}: has no {WEIGHTS}; the archive is damaged, save the model again")
    config = parse(texts[CONFIG].encode(), f"{source.name}: {CONFIG}", constants=True) if CONFIG in texts else None
    tree = build(read_objects(records[WEIGHTS]), f"{source.name}: {WEIGHTS}", config)
    tree.metadata |= texts
    for name, record in records.items():
        if name.startswith(_ASSETS) and not name.endswith("/"):
            text = _read_text(record)
            below = tree.setdefault(_ASSETS[:-1], StateDict())
            below[name.removeprefix(_ASSETS)] = Opaque(f"a file of {record.size:,} bytes") if text is None else text
    return tree


def _read_text(record: Record | Inflated | None) -> str | None:
    if record is not None and record.size <= _MAX_TEXT:
        with suppress(UnicodeDecodeError):
            return bytes(record.read(0, record.size)).decode()
    return None


def checks(source: ByteSource) -> Iterator[Found]:
    """List the members with their CRC-32; check the archive's structure."""
    from statedict.formats.torch.structure import find_faults, make_check

    records, tensors = read_directory(source), list["Any"]()
    try:
        tensors = tensors_of(_read_tree(source, records))
    except FormatError as error:
        yield refusal(error, source.name)
    for name, record in records.items():
        yield make_check(name, record, tuple(tensors) if name == WEIGHTS else ())
    yield from find_faults(source, records)
