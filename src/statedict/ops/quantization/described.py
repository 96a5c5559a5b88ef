"""What a checkpoint itself says of its quantized weights, beside the configuration: torchao's objects and metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from statedict.dtypes import DType
from statedict.errors import PathError
from statedict.tree.state_dict import StateDict

_DATA, _INNER = ".qdata", "._weight_qdata"
_NAMES = "tensor_names"  # in the metadata of torchao's files


def add_settings(tree: StateDict, tensors: Iterable[str], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """A configuration with the dtypes that torchao's tensors stand for, module by module."""
    settings = dict(config or {})
    metadata = getattr(tree, "metadata", None) or {}
    for path in tensors:
        if path.endswith(_INNER):
            module = path.removesuffix(_INNER)
            kind = _read_dtype(metadata.get(module + ".weight"))
        elif path.endswith(_DATA):
            name = path.removesuffix(_DATA)
            module, kind = name.removesuffix(".weight"), _find_dtype(tree, name)
        else:
            continue
        if kind is not None:
            known = settings.get(module)
            settings[module] = (known if isinstance(known, dict) else {}) | {"dtype": kind}
    return settings


def _find_dtype(tree: StateDict, name: str) -> str | None:
    try:
        kind = tree.at(f"{name}.dtype")
    except PathError:
        return None
    return kind.name if isinstance(kind, DType) else None


def _read_dtype(text: Any) -> str | None:
    try:
        return str(json.loads(text)["_data"]["dtype"]["_data"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def drop_settings(tree: Any) -> None:
    """Take what torchao's files say of their tensors out of the metadata of a new tree."""
    metadata = getattr(tree, "metadata", None)
    if isinstance(metadata, dict) and _NAMES in metadata:
        tree.metadata = {
            key: value
            for key, value in metadata.items()
            if key != _NAMES and not (isinstance(value, str) and value.startswith('{"_type": '))
        }
