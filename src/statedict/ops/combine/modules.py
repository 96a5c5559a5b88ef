"""Modules of models, such as an encoder and a decoder: which tensors belong to which, found from their names.

mergekit lists the tensors of each module for each architecture. Here the innermost part of a name that stands for a
module decides: `model.visual.merger.mlp.0.weight` belongs to the projector, not to the vision tower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from statedict.errors import CombineError
from statedict.values import abbreviate

_VISION = r"vision_tower|vision_model|visual|vision_encoder"
_FAMILIES: tuple[Mapping[str, str], ...] = (  # module → what stands for it in names; "" takes the rest
    {
        "text_decoder": "",
        "multi_modal_projector": r"multi_modal_projector|merger|deepstack_merger_list|mm_projector",
        "vision_tower": _VISION,
        "vision_model": _VISION,
    },
    {"encoder": "encoder", "decoder": "decoder", "shared": ""},
)
_REST = "default"
_OF_CONFIG = {"vision_tower": "vision", "vision_model": "vision", "text_decoder": "text", "decoder": "decoder"}


def split_modules(modules: Sequence[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Module → the tensors that belong to it; those that belong to none are left out.

    Args:
        modules: their names; a single one may be all of the model.
        names: of the tensors.

    Raises:
        CombineError: a module has no tensors.

    >>> split_modules(["encoder", "decoder"], ["encoder.block.0.w", "decoder.block.0.w", "shared.w"])
    {'encoder': ['encoder.block.0.w'], 'decoder': ['decoder.block.0.w']}
    """
    family = next((one for one in _FAMILIES if {*modules} <= one.keys()), None)
    known = family or {module: "" if module == _REST else re.escape(module) for module in modules}
    known = {module: text for module, text in known.items() if module in modules or text != _VISION}
    rest = next((module for module, text in known.items() if not text), "")
    patterns = {module: re.compile(rf"(?:^|\.)(?:{text})(?=\.|$)") for module, text in known.items() if text}
    found: dict[str, list[str]] = {module: [] for module in modules}
    names = [*names]
    for name in names:
        ends = [(match.end(), module) for module, text in patterns.items() for match in text.finditer(name)]
        found.get(max(ends, default=(0, rest))[1], []).append(name)
    if len(modules) == 1 and not found[modules[0]]:
        return {modules[0]: names}
    for module, held in found.items():
        if not held:
            raise CombineError(f"modules: {module}: no tensor is of it by its name; there are {abbreviate(names)}")
    return found


def is_of_module(module: str, path: str, paths: Iterable[str]) -> bool:
    """Whether an entry of config.json that counts layers is that of a module.

    Args:
        module: its name; "" for the whole model.
        path: of the entry.
        paths: of all such entries.

    >>> counts = ["num_layers", "num_decoder_layers"]
    >>> [[is_of_module(module, path, counts) for path in counts] for module in ("encoder", "decoder", "")]
    [[True, False], [False, True], [True, True]]
    """
    told = {one: next((word for word in ("vision", "decoder", "text") if word in one), "") for one in paths}
    word = _OF_CONFIG.get(module, "")
    if module and word in told.values():
        return told[path] == word
    return not module or not told[path] or not word
