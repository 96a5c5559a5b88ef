"""The configuration of a model, config.json of Hugging Face's libraries: what it says of layers, rows and ties.

What changes is a path of keys → its new value. Nested configurations, such as `text_config`, count too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from statedict.ops.combine.modules import is_of_module

_LAYERS = frozenset((
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "num_encoder_layers",
    "encoder_layers", "decoder_layers", "depth",
))  # fmt: skip
_OF_EACH = re.compile(r"layer|block|types")  # in the names of lists with an entry for each layer
_ROWS = "vocab_size"
_TIED = "tie_word_embeddings"


def count_layers(config: Mapping[str, Any]) -> set[int]:
    """The numbers of layers that a configuration names.

    >>> count_layers({"num_hidden_layers": 4, "vision_config": {"depth": 2}}) == {2, 4}
    True
    """
    return {value for path, value in _entries(config) if path.rpartition(".")[2] in _LAYERS and type(value) is int}


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a model without a head takes its embedding for it, as transformers does unless the file says no."""
    return bool(config) and not any(value is False for _, value in _ties(config))


def is_said_tied(config: Mapping[str, Any]) -> bool:
    """Whether the file says that the head is the embedding."""
    return any(value is True for _, value in _ties(config))


def set_ties(config: Mapping[str, Any], tied: bool | None, added: bool) -> dict[str, Any]:
    """What changes for a model whose head is its embedding or not.

    Args:
        config: as it is.
        tied: how the tensors are; None if there is no head among them.
        added: whether a head was made of an embedding, so that a configuration that is silent does not do.

    >>> set_ties({"text_config": {"tie_word_embeddings": True}}, False, False)
    {'text_config.tie_word_embeddings': False}
    """
    if tied is None or not config:
        return {}
    said = _ties(config)
    changes = {path: tied for path, value in said if value is not tied}
    return changes if said or not (tied or added) else {_TIED: tied}


def _ties(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(path, value) for path, value in _entries(config) if path.rpartition(".")[2] == _TIED]


def resize(config: Mapping[str, Any], before: int, after: int) -> dict[str, Any]:
    """What changes for a vocabulary of another size.

    >>> resize({"vocab_size": 32}, 32, 40)
    {'vocab_size': 40}
    """
    sizes = ((path, value) for path, value in _entries(config) if path.rpartition(".")[2] == _ROWS)
    return {path: after for path, value in sizes if value == before and after != before}


def restack(
    config: Mapping[str, Any], before: int, taken: Sequence[tuple[Mapping[str, Any], int, int]], module: str = ""
) -> dict[str, Any]:
    """What changes for other layers: their number, and lists with an entry for each.

    Args:
        config: of the model whose configuration the result has.
        before: how many layers that has.
        taken: for each slice the configuration of its first source, the first layer that is taken and the end.
        module: the part of the model whose layers they are; "" for the only one.

    >>> restack({"num_layers": 2, "layer_types": ["a", "b"]}, 2, [({"layer_types": ["a", "b"]}, 1, 2)])
    {'num_layers': 1, 'layer_types': ['b']}
    """
    after = sum(end - begin for _, begin, end in taken)
    changes: dict[str, Any] = {}
    counts = [path for path, _ in _entries(config) if path.rpartition(".")[2] in _LAYERS]
    for path, value in _entries(config):
        name = path.rpartition(".")[2]
        if path in counts and not is_of_module(module, path, counts):
            continue
        if name in _LAYERS and value == before and after != before:
            changes[path] = after
        elif isinstance(value, list) and len(value) == before and _OF_EACH.search(name):
            parts: list[Any] = [dict(_entries(other)).get(path) for other, _, _ in taken]
            if all(isinstance(part, list) for part in parts):
                new = [entry for part, (_, begin, end) in zip(parts, taken, strict=True) for entry in part[begin:end]]
                changes |= {path: new} if new != value and len(new) == after else {}
    return changes


def _entries(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of a configuration and of those in it."""
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("_config") and not above:
            yield from _entries(value, f"{key}.")
        else:
            yield above + key, value
