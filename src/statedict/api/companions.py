"""The files beside a model: what they say of its quantization, and what becomes of them when it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from statedict.api.names import is_path, split
from statedict.io.urls import to_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

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


def complete_steps(source: Any, steps: Iterable[Any]) -> list[Any]:
    """Steps of an edit with what the files beside the model say: how it is quantized, its heads and architecture."""
    done = []
    for step in steps:
        if isinstance(step, Mapping):
            if "dequantize" in step and "config" not in step and (config := find_config(source, ask=True)):
                step = {**step, "config": config}
            if "map" in step:
                step = {**step, **_complete_map(source, step)}
        done.append(step)
    return done


def _complete_map(source: Any, step: Mapping[str, Any]) -> dict[str, Any]:
    heads, family = find_heads(source)
    found: dict[str, Any] = {"heads": [*heads]} if heads and "heads" not in step else {}
    return found | ({"map": f"gguf:{family}"} if family and step["map"] == "gguf" else {})


def find_heads(source: Any) -> tuple[tuple[int, ...], str | None]:
    """How many heads a model has, and how many of keys, and its family of names, as far as its configuration says."""
    from statedict.formats import beside
    from statedict.tree.name_maps import FAMILIES

    if not is_path(source):
        return (), None
    path = split(source)[0]
    documents = dict(beside.read_documents(path, ("config.json", "params.json"))) or {"": beside.read_config(path)}
    config = next((one for one in documents.values() if isinstance(one, dict)), {})
    known = [config.get(ours, config.get(theirs)) for ours, theirs in _HEADS]
    kind = config.get("model_type")
    heads = tuple(n for n in known if type(n) is int and n > 0)
    return heads, FAMILIES.get(kind, kind) if isinstance(kind, str) else None


_HEADS = (("num_attention_heads", "n_heads"), ("num_key_value_heads", "n_kv_heads"))  # of Hugging Face, and Meta


def plan_companions(
    src: Any,
    folder: str,
    before: Any,
    after: Any,
    changes: Mapping[str, Any] | None = None,
    steps: Iterable[Any] = (),
) -> tuple[SideFiles, dict[str, bytes]]:
    """What becomes of the files beside the model in a folder that is written into another, and those to write.

    `steps` were done to the model; one that dequantizes says how it was quantized.
    """
    from statedict.formats import beside
    from statedict.ops.quantization.find import find
    from statedict.reports.outcomes import SideFiles
    from statedict.tensor.checks import count_floats

    if not folder or not is_path(src) or split(src)[1]:
        return SideFiles(), {}
    old, new = (next(iter(count_floats(tree)), "") for tree in (before, after))
    quantized = next((step["config"] for step in steps if isinstance(step, Mapping) and "config" in step), None)
    whole = bool(quantized) and not find(after.tensors(), quantized).report.weights
    return beside.plan_companions(to_name(src), folder, (old, new), changes or {}, whole)
