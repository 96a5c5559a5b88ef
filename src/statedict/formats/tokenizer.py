"""The files of a tokenizer beside a model, and which token stands for which row, as far as JSON tells.

    tokenizer.json: {"model": {"vocab": {TOKEN: ID} or [[TOKEN, SCORE], …]}, "added_tokens": [{"content", "id"}, …], …}

Source: huggingface/tokenizers 0.23, and the files of transformers 5.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

from statedict.errors import CombineError
from statedict.formats import places
from statedict.io.json import parse, read_document
from statedict.io.location import location
from statedict.io.urls import redact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_FILES = re.compile(
    r"tokenizer.*\.(json|model)|(special_tokens_map|added_tokens|vocab)\.json|(merges|vocab)\.txt|"
    r"(spiece|sentencepiece.*)\.model|.*\.(tiktoken|spm|bpe)|chat_template\.(jinja|json)"
)
_NAME = "tokenizer.json"
USUAL = (  # those of most tokenizers, which a server that does not list is asked for
    _NAME, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_MOST = 1 << 24  # rows of the largest vocabulary, of which lists are made
_ORDINARY = {
    "id": 0, "content": "", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
    "special": False,
}  # fmt: skip


def is_of_tokenizer(name: str) -> bool:
    """Whether a file of that name belongs to the tokenizer of a model."""
    return _FILES.fullmatch(name) is not None


def read_files(folder: str) -> dict[str, bytes]:
    """The files of the tokenizer in a folder."""
    found = {}
    for name in filter(is_of_tokenizer, location(folder).names_with(USUAL) or ()):
        file = places.open_file(places.resolve_inside(folder, name))
        found[name] = bytes(file.read(0, file.size))
    return found


def read_tokens(folder: str) -> dict[str, int]:
    """Token → row, as tokenizer.json tells, else vocab.json and added_tokens.json, else vocab.txt; empty without them.

    Raises:
        CombineError: one has another form.
    """
    tokens = _read_tokens(folder)
    for token, row in tokens.items():
        if type(row) is not int or not 0 <= row < _MOST:
            what = f"gives {token!r:.40} the row {row!r:.40}, not a whole number below {_MOST:,}"
            raise CombineError(f"{redact(folder)}: its tokenizer {what}")
    return tokens


def _read_tokens(folder: str) -> dict[str, Any]:
    names = location(folder).names_with(USUAL) or ()
    if _NAME in names:
        tree = _read(folder, _NAME)
        with _explained(folder, _NAME):
            vocabulary: Any = tree["model"]["vocab"]
            rows = [(token, row) for row, (token, _) in enumerate(vocabulary)] if isinstance(vocabulary, list) else ()
            return dict(rows or vocabulary) | {token: one["id"] for token, one in _list_added(tree).items()}
    if "vocab.json" in names:
        with _explained(folder, "vocab.json"):
            parts = [_read(folder, name) for name in ("vocab.json", "added_tokens.json") if name in names]
            return {token: row for part in parts for token, row in part.items()}
    if "vocab.txt" in names:
        file = places.open_file(places.resolve_inside(folder, "vocab.txt"))
        lines = bytes(file.read(0, file.size)).decode(errors="replace").removesuffix("\n").split("\n")
        return {token.removesuffix("\r"): row for row, token in enumerate(lines)}  # other line breaks are tokens
    return {}


def read_added(folder: str) -> dict[str, dict[str, Any]]:
    """What tokenizer.json says of tokens that were added to the vocabulary, by token, such as which are special."""
    if _NAME not in (location(folder).names_with([_NAME]) or ()):
        return {}
    with _explained(folder, _NAME):
        return _list_added(_read(folder, _NAME))


def extend(data: bytes, tokens: Mapping[str, int], added: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A tokenizer.json with further tokens.

    Args:
        data: the file.
        tokens: the further ones, with their rows.
        added: what is said of tokens, as `read_added` tells; others are ordinary.
    """
    tree = json.loads(data)
    rows = sorted(tokens.items(), key=lambda pair: pair[1])
    entries = [{**_ORDINARY, **added.get(token, {}), "id": row, "content": token} for token, row in rows]
    tree["added_tokens"] = [*(tree.get("added_tokens") or ()), *entries]
    return json.dumps(tree, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _read(folder: str, name: str) -> Any:
    source = places.open_file(places.resolve_inside(folder, name))
    return parse(read_document(source), source.name, surrogates=True)


def _list_added(tree: Any) -> dict[str, dict[str, Any]]:
    return {one["content"]: one for one in tree.get("added_tokens") or ()}


@contextmanager
def _explained(folder: str, name: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = "is not a vocabulary as the packages tokenizers and transformers write it"
        raise CombineError(f"{redact(folder)}/{name}: {what} ({error})") from error
