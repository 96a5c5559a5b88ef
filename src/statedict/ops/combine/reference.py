"""How a configuration of mergekit names a model.

    PATH, or ORG/NAME of the hub, [@REVISION] [+ADAPTER[@REVISION]]
    {model: PATH or {path, revision}, lora: PATH or {path, revision}, override_architecture: NAME}

Both are read as text, the second with blanks around the `+`, where it can be nothing else. Source: mergekit 0.1.5,
common.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from statedict.errors import CombineError

_KEYS = ("model", "lora", "override_architecture")


def read_reference(node: Any, where: str, notes: list[str]) -> str:
    """The name of a model, as text.

    Raises:
        CombineError: it has another form.

    >>> read_reference({"model": {"path": "org/name", "revision": "v2"}, "lora": "adapter"}, "models", [])
    'org/name@v2 + adapter'
    """
    if not isinstance(node, Mapping) or "path" in node:
        return _read_path(node, where)
    unknown = [key for key in node if key not in _KEYS]
    if unknown or "model" not in node:
        raise CombineError(f"{where}: model: expected the keys {', '.join(_KEYS)}, got {dict(node)!r:.60}")
    if node.get("override_architecture") is not None:
        notes.append(f"{where}: override_architecture has no effect: tensors are found by their names in the files")
    name, lora = _read_path(node["model"], where), node.get("lora")
    return name if lora is None else f"{name} + {_read_path(lora, where)}"


def split_reference(name: str) -> tuple[str, str, bool]:
    """A model and its adapter, and whether the name can be that of a file too.

    >>> split_reference("org/name + adapter"), split_reference("a+b"), split_reference("a")
    (('org/name', 'adapter', False), ('a', 'b', True), ('a', '', True))
    """
    sign = " + " if " + " in name else "+"
    base, _, adapter = name.partition(sign)
    return base, adapter, sign == "+" and not name.startswith("hf://")


def _read_path(node: Any, where: str) -> str:
    known = isinstance(node, Mapping) and {*node} <= {"path", "revision"}
    path, revision = (node.get("path"), node.get("revision")) if known else (node, None)
    if not isinstance(path, str) or not path or not isinstance(revision, str | None):
        raise CombineError(f"{where}: model: expected a path or OWNER/NAME of the hub, got {node!r:.60}")
    return path if revision is None else f"{path}@{revision}"
