"""The template of chats beside a tokenizer: how messages become text, in Jinja.

    chat_template.jinja      the template; wins over the others
    tokenizer_config.json    {"chat_template": TEMPLATE, or [{"name": "default", "template": TEMPLATE}, …], …}
    chat_template.json       {"chat_template": TEMPLATE}, of processors of images and sounds

Templates are moved, not rendered. Source: transformers 5, tokenization_utils_base.py; mergekit 0.1.5, merge.py.
"""

from __future__ import annotations

import json

from statedict.errors import CombineError
from statedict.formats import places
from statedict.io.json import parse, read_document
from statedict.io.location import location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FILE = "chat_template.jinja"
_OTHERS = ("tokenizer_config.json", "chat_template.json")
_KEY = "chat_template"
_MISTRAL_ERROR = "after a system message, which is optional, messages of user and assistant take turns"
TEMPLATES = {  # what they render is what those of that name in mergekit render
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] + '\\n' + message['content'] }}<|im_end|>"
        "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}<|start_header_id|>"
        "{{ message['role'] }}<|end_header_id|>{{ '\\n\\n' + message['content'] | trim }}<|eot_id|>{{ '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{% set first = 1 if messages[0]['role'] == 'system' else 0 %}{{ bos_token }}"
        "{% for message in messages[first:] %}"
        "{% if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
        f"{{{{ raise_exception('{_MISTRAL_ERROR}') }}}}{{% endif %}}"
        "{% if message['role'] == 'user' %}{{ ' [INST] ' }}"
        "{% if loop.first and first %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
        "{{ message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
}


def read_template(folder: str) -> str | None:
    """The template beside a tokenizer, the default one if there are several."""
    names = location(folder).names() or ()
    if _FILE in names:
        file = places.open_file(places.resolve_inside(folder, _FILE))
        return bytes(file.read(0, file.size)).decode(errors="replace")
    for name in _OTHERS:
        if name in names:
            source = places.open_file(places.resolve_inside(folder, name))
            found = parse(read_document(source), source.name, surrogates=True)
            found = found.get(_KEY) if isinstance(found, dict) else None
            if isinstance(found, list):
                found = next((one.get("template") for one in found if one.get("name") == "default"), None)
            if isinstance(found, str):
                return found
    return None


def choose_template(asked: str, found: list[str]) -> str | None:
    """The template that a configuration asks for.

    Args:
        asked: "auto" for the most frequent one, a name, or the template itself.
        found: the templates of the models.

    Raises:
        CombineError: there is none of that name.
    """
    if asked == "auto":
        stripped = [one.strip() for one in found]
        return max(stripped, key=stripped.count, default=None)
    if asked in TEMPLATES:
        return TEMPLATES[asked]
    if len(asked) < 20 or "{" not in asked:
        known = ", ".join(["auto", *TEMPLATES])
        raise CombineError(f"chat_template: expected {known}, or the template itself, got {asked!r:.40}")
    return asked


def replace_template(files: dict[str, bytes], template: str) -> dict[str, bytes]:
    """The files of a tokenizer with another template, wherever they have one."""
    made = {**files, _FILE: template.encode("utf-8", "surrogatepass")}
    for name in _OTHERS:
        tree: Any = parse(files[name], name, surrogates=True) if name in files else None
        if isinstance(tree, dict) and _KEY in tree:
            made[name] = json.dumps(tree | {_KEY: template}, indent=2, ensure_ascii=False).encode(
                "utf-8", "surrogatepass"
            )
    return made
