"""Where a tensor stands in the depth of its model, as the numbers in its path tell."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d+")


def place(path: str) -> tuple[str, tuple[int, ...]]:
    """The series of tensors like it, as a pattern, and its depth in it; no depth for a path without numbers.

    Keys that are numbers, and the numbers in the names of modules that hold modules, are depth; where there are none,
    the numbers in the name of the module itself. The module's own number is none if others stand above it.

    >>> place("model.layers.11.attn.q.weight"), place("layer3.0.conv2.weight"), place("conv2.weight")
    (('model.layers.*.attn.q.weight', (11,)), ('layer*.*.conv2.weight', (3, 0)), ('conv*.weight', (2,)))
    """
    keys = path.split(".")
    deep = [key.isdecimal() or (at < len(keys) - 2 and bool(_NUMBER.search(key))) for at, key in enumerate(keys)]
    if deep.count(True) > 1 and len(keys) > 1:
        deep[-2] = False  # a part of a layer, such as `mlp.0` and `mlp.2`
    if not any(deep):
        deep = [at == len(keys) - 2 for at in range(len(keys))]
    numbers = [int(found) for key, counts in zip(keys, deep, strict=True) if counts for found in _NUMBER.findall(key)]
    if not numbers or max(numbers) > 1 << 31:
        return "", ()
    return ".".join(_NUMBER.sub("*", key) if counts else key for key, counts in zip(keys, deep, strict=True)), (
        *numbers,
    )
