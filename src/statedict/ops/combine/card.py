"""The card of a model that was made of others: README.md, as the Hugging Face hub shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any


def write_card(record: Mapping[str, Any], recipe: str, transformers: bool) -> bytes:
    """A card that names the method, the parameters and the sources.

    Args:
        record: what the provenance of the model says.
        recipe: the text of the configuration, if it was made by one.
        transformers: whether transformers opens the model.
    """
    sources: Sequence[Mapping[str, Any]] = record["sources"]
    hub = dict.fromkeys(source["hub"].partition("@")[0] for source in sources if "hub" in source)
    lines = ["---"]
    lines += ["base_model:", *(f"- {json.dumps(name)}" for name in hub)] if hub else []
    lines += ["library_name: transformers"] if transformers else []
    lines += ["tags:", "- merge", "---", "", f"# {_title(record['method'])}", ""]
    lines += [f"Made by statedict of {len(sources):,} sources; `verify` checks its files.", ""]
    if record["parameters"]:
        lines += ["| parameter | value |", "|---|---|"]
        lines += [f"| {_code(key)} | {_code(json.dumps(value))} |" for key, value in record["parameters"].items()]
        lines += [""]
    lines += ["| source | share | file | bytes | digest |", "|---|---|---|---|---|"]
    for source in sources:
        share = "" if source.get("share") is None else f"{source['share']:g}"
        for file, about in source.get("files", {"": {}}).items():
            digest = next((f"{key} {about[key]}" for key in ("xxh3_128", "tag") if key in about), "")
            cells = [_code(source["name"]), share, _code(file), f"{about.get('bytes', '')}", _code(digest)]
            lines += [f"| {' | '.join(cells)} |"]
    if recipe:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", recipe)), default=0))
        lines += ["", f"{fence}yaml", recipe.rstrip("\n"), fence]
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def _title(method: str) -> str:
    titles = {"average": "An average of models", "lora": "A model with adapters"}
    return titles.get(method, f"A merge of models by {method}")


def _code(text: str) -> str:
    """Text as code in a cell of a table."""
    plain = " ".join(text.replace("`", "'").replace("|", "\\|").split())
    return f"`{plain}`" if plain else ""
