"""The files beside a model: what they say of its quantization, and what becomes of them when it is written."""

from __future__ import annotations

from typing import Any

from statedict.api.names import is_path, split
from statedict.io.urls import to_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from statedict.reports.outcomes import SideFiles


def find_config(source: Any, config: Mapping[str, Any] | None = None, ask: bool = False) -> Mapping[str, Any] | None:
    """How a model is quantized, if it is given, or if a file beside a checkpoint says so; `ask` servers too."""
    from statedict.formats import beside
    from statedict.ops.quantization.config import FILES, of_document

    if config is not None or not is_path(source):
        return config
    path = split(source)[0]
    documents = dict(beside.read_documents(path, FILES))
    if ask and not documents:
        documents = {FILES[0]: beside.read_config(path)}
    return next(filter(None, (of_document(name, document) for name, document in documents.items())), None)


def find_for(source: Any, steps: Iterable[Any]) -> Mapping[str, Any] | None:
    """How a model is quantized, if steps need to know."""
    from statedict.ops.alter.steps import is_dequantizing

    return find_config(source, ask=True) if any(map(is_dequantizing, steps)) else None


def plan_companions(
    src: Any,
    folder: str,
    before: Any,
    after: Any,
    changes: Mapping[str, Any] | None = None,
    quantized: Mapping[str, Any] | None = None,
) -> tuple[SideFiles, dict[str, bytes]]:
    """What becomes of the files beside the model in a folder that is written into another, and those to write.

    `quantized` says how the model was quantized, if a step was to dequantize it.
    """
    from statedict.formats import beside
    from statedict.ops.quantization.find import find
    from statedict.reports.outcomes import SideFiles
    from statedict.tensor.checks import count_floats

    if not folder or not is_path(src) or split(src)[1]:
        return SideFiles(), {}
    old, new = (next(iter(count_floats(tree)), "") for tree in (before, after))
    whole = bool(quantized) and not find(after.tensors(), quantized).report.weights
    return beside.plan_companions(to_name(src), folder, (old, new), changes or {}, whole)
