"""Names in the tree of a Keras model, which its files and live models share."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import count

from statedict.errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    Row = tuple[list[str], str, str, dict[str, str]]
    """Path of a layer in a tree, its group in a file, its name, and variable → key in the group."""

GROUPS = "keras.groups"
"""The entry of a tree's metadata that tells the groups of its layers, as JSON."""
OPTIMIZER = "optimizer"
SEED = "seed_generator_state"
"""A variable that Keras's files do not hold."""


def read_rows(tree: Any) -> list[Row]:
    """What the metadata of a tree say of its layers; empty if they say nothing.

    Raises:
        UnsupportedError: they are damaged.
    """
    text = getattr(tree, "metadata", {}).get(GROUPS, "[]")
    try:
        rows = [(list(labels), path, name, dict(names)) for labels, path, name, names in json.loads(text)]
        texts = [text for row in rows for text in (*row[0], row[1], row[2], *row[3], *row[3].values())]
        if all(type(text) is str for text in texts):
            return rows
    except (ValueError, TypeError, RecursionError):
        pass
    raise UnsupportedError(f"the tree's metadata {GROUPS!r} are damaged; remove them, or read the tree again")


def write_rows(rows: Iterable[Row]) -> dict[str, str]:
    """The metadata of a tree that tell the groups of its layers."""
    return {GROUPS: json.dumps(sorted(rows, key=lambda row: row[1]), separators=(",", ":"))}


def label_layers(above: str, layers: Sequence[tuple[str, str]], taken: Iterable[str]) -> Iterator[str]:
    """What each layer is called within the layer of the group `above`: its name, or its group if that is shared.

    Args:
        above: the group of the layer around.
        layers: name and group of each.
        taken: what else is there.

    >>> [*label_layers("b", [("same", "b/blocks/dense"), ("same", "b/blocks/dense_1"), ("out", "b/o")], [])]
    ['blocks/dense', 'blocks/dense_1', 'out']
    """
    called = [name or group.rpartition("/")[2] for name, group in layers]
    used = {*taken}
    wanted = Counter([*used, *called])
    start = len(above) + 1 if above else 0
    for label, (_, group) in zip(called, layers, strict=True):
        label = group[start:].removeprefix("layers/") if wanted[label] > 1 else label
        label = next(label + "/" * more for more in count() if label + "/" * more not in used)
        used.add(label)
        yield label


def split_number(name: str) -> tuple[str, int]:
    """A name that Keras made, without its number, and the number.

    >>> split_number("dense_3"), split_number("dense")
    (('dense', 3), ('dense', 0))
    """
    match = re.fullmatch(r"(.+?)_(\d{1,9})", name)
    return (match[1], int(match[2])) if match else (name, 0)


def walk_keys(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[list[Any], Any]]:
    """Keys and leaf of each entry of nested dicts."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from walk_keys(value, (*above, key))
        else:
            yield [*above, key], value
