"""Turn the checkpoint of a training library into data, and drop the rest."""

from __future__ import annotations

import enum
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from statedict.adapters import join, leaf, qualified_name
from statedict.api.look import inspect
from statedict.errors import RefusedError, UnsupportedError
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

_GONE: Any = object()
_LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")


def data(checkpoint: dict[str, Any], optional: Collection[str] = ()) -> dict[str, Any]:
    """Convert a checkpoint to plain data; state_dicts stay the same objects.

    Below the `optional` keys of the root what is not data is dropped with a warning; elsewhere it is an error.

    >>> import pathlib, types
    >>> data({"args": types.SimpleNamespace(root=pathlib.PurePosixPath("/data"), lr=0.1)})
    {'args': {'root': '/data', 'lr': 0.1}}
    """
    left: list[str] = []
    plain = {key: _convert(value, str(key), left if key in optional else None) for key, value in checkpoint.items()}
    _warn(left, "is saved without what is not data")
    return {key: value for key, value in plain.items() if value is not _GONE}


def without_objects(state: StateDict, optional: Collection[str], refusal: RefusedError) -> StateDict:
    """Convert inert objects below the `optional` keys of a checkpoint to data; raise `refusal` if others exist."""
    left: list[str] = []
    kept = StateDict()
    for key, value in state.items():
        made = _convert(value, str(key), left) if key in optional else value
        if made is _GONE:
            continue
        if inspect(StateDict({"": made})).opaque:
            raise refusal
        kept[key] = made
    _warn(left, "is loaded without what only code could make")
    return kept


def _convert(value: Any, path: str, left: list[str] | None) -> Any:
    """A value as data, the same object if it is. Adds what it drops to `left`; raises if that is None."""
    if isinstance(value, Opaque):
        held = _unwrap(value)
        return _drop(value.name, path, left) if held is _GONE else _convert(held, path, left)
    if isinstance(value, enum.Enum):
        return _convert(value.value, path, left)
    if leaf(value) is not ...:
        return value
    if isinstance(value, Namespace | SimpleNamespace):
        return _convert(vars(value), path, left)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is not None and isinstance(value, omegaconf.Container):
        return _convert(omegaconf.OmegaConf.to_container(value, resolve=False), path, left)
    if not isinstance(value, dict | list | tuple):
        return _drop(qualified_name(type(value)), path, left)
    children = dict(value if isinstance(value, dict) else enumerate(value))
    new = {key: _convert(child, join(path, key), left) for key, child in children.items()}
    if all(new[key] is child for key, child in children.items()):
        return value
    plain = {key: child for key, child in new.items() if child is not _GONE}
    return plain if isinstance(value, dict) else (tuple if isinstance(value, tuple) else list)(plain.values())


def _unwrap(value: Opaque) -> Any:
    """The data in an inert object of a kind that is known to hold nothing else."""
    module, _, kind = value.name.rpartition(".")
    state = value.state if isinstance(value.state, dict) else {}
    if kind == "AttributeDict" and module.split(".")[0] in _LIGHTNING:
        return StateDict(value.entries or {})
    if value.name in ("argparse.Namespace", "types.SimpleNamespace"):
        return StateDict(state)
    if module == "pathlib" and kind.endswith("Path") and all(isinstance(part, str) for part in value.args or ()):
        return os.path.join("", *(value.args or ()))
    if module.split(".")[0] == "omegaconf":
        return state.get("_content", state.get("_val", _GONE))
    return _GONE


def _drop(kind: str, path: str, left: list[str] | None) -> Any:
    if left is None:
        raise UnsupportedError(f"{path}: a {kind} is not data; put its state_dict() there, or a value")
    left.append(f"{path} ({kind})")
    return _GONE


def _warn(left: list[str], what: str) -> None:
    if left:
        shown = ", ".join(left[:5]) + (", …" if len(left) > 5 else "")
        warnings.warn(f"the checkpoint {what}: {shown}; pass it when you make the module", stacklevel=4)
