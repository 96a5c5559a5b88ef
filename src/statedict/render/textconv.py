"""A checkpoint as lines of text that can be compared line by line: one for each tensor and for each other value.

    model.fc.weight = float32[10, 84]  min -0.2818  max 0.3481  l2 3.253  xxh3_128 6be0…
    epoch = 60

The same content gives the same text, whatever the format and the order: lines are sorted, with numbers by size.
Optimizer state is listed under the names of its parameters, as in entries.py. The digest is that of the elements in
order, as in the safetensors files that we write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from statedict.ops.diff.entries import Entries, match_optimizers
from statedict.ops.diff.match import digests
from statedict.ops.stats.survey import survey
from statedict.reports.stats import TensorStats
from statedict.reports.summary import mark_inferred
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

_LONGEST = 200
_FIGURES = ("min", "max", "l2")


def lines(state: Any) -> list[str]:
    """The lines of a tree of dicts, lists, arrays and values. It reads the tensors block by block.

    >>> import numpy
    >>> for line in lines({"model": {"fc.bias": numpy.array([1.0, 2.0, 2.0])}, "epoch": 60}):
    ...     print(line)
    epoch = 60
    model.fc.bias = float64[3]  min 1  max 2  l2 3  xxh3_128 ...
    """
    entries = Entries(state)
    match_optimizers(entries, Entries({}))
    tensors = survey(StateDict(entries.tensors)).tensors  # first, because it limits repeated reads
    sums = digests(entries.tensors)
    found = [(one.name, _tensor(one, sums[one.name])) for one in tensors]
    found += [(path, _short(_text(value))) for path, value in entries.values.items()]
    found += _members(entries)
    metadata = {key: text for key, text in entries.extra.get("metadata", {}).items() if key != "format"}
    found += [(f"__metadata__.{key}", _short(repr(text))) for key, text in metadata.items()]
    return [f"{path} = {text}" for path, text in sorted(found, key=_place)]


def _tensor(tensor: TensorStats, digest: str) -> str:
    if tensor.elements == 1 and tensor.mean is not None:
        figures = [f"value {tensor.min if type(tensor.min) is int else format(tensor.mean, '.9g')}"]
    else:
        figures = [f"{name} {value:.4g}" for name in _FIGURES if (value := getattr(tensor, name)) is not None]
    figures += [f"{name} {count}" for name in ("nan", "inf") if (count := getattr(tensor, name))]
    return "  ".join([f"{tensor.dtype}{list(tensor.shape)}", *figures, f"xxh3_128 {digest}"])


def _text(value: Any) -> str:
    """A value as Python writes it, with sets sorted."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({', '.join(sorted(map(_text, value)))})"
    if type(value) in (list, tuple):
        items = ", ".join(map(_text, value))
        return f"[{items}]" if type(value) is list else f"({items}{',' * (len(value) == 1)})"
    return f"object of {value.name}" if isinstance(value, Opaque) else repr(value)


def _short(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    from xxhash import xxh3_128_hexdigest

    digest = xxh3_128_hexdigest(text.encode("utf-8", "backslashreplace"))
    return f"{text[: _LONGEST // 2]} …  {len(text)} characters, xxh3_128 {digest}"


def _members(entries: Entries) -> Iterator[tuple[str, str]]:
    """The parameters of each group that have names."""
    for path in entries.optimizers:
        names, inferred = entries.find_names(path)
        dot = path + "." if path else ""
        for number, group in enumerate(names or ()):
            yield from ((f"{dot}param_groups.{number}.params", mark_inferred(name, inferred)) for name in group)


def _place(line: tuple[str, str]) -> str:
    """The path as a sort key in which 2 comes before 10."""
    return re.sub(r"\d+", lambda number: f"{len(number[0]):09}{number[0]}", line[0])
