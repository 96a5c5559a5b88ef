"""The files of a tokenizer beside a model, and which token stands for which row, as far as JSON tells.

    tokenizer.json: {"model": {"vocab": {TOKEN: ID} or [[TOKEN, SCORE], …]}, "added_tokens": [{"content", "id"}, …], …}

Source: huggingface/tokenizers 0.23, and the files of transformers 5.
"""

from __future__ import annotations

import re

from statedict.errors import CombineError
from statedict.formats import places
from statedict.io.json import parse, read_document
from statedict.io.location import location
from statedict.io.urls import redact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_FILES = re.compile(
    r"tokenizer.*\.(json|model)|(special_tokens_map|added_tokens|vocab)\.json|(merges|vocab)\.txt|"
    r"(spiece|sentencepiece.*)\.model|.*\.(tiktoken|spm|bpe)|chat_template\.(jinja|json)"
)
_NAME = "tokenizer.json"


def is_of_tokenizer(name: str) -> bool:
    """Whether a file of that name belongs to the tokenizer of a model."""
    return _FILES.fullmatch(name) is not None


def read_files(folder: str) -> dict[str, bytes]:
    """The files of the tokenizer in a folder."""
    found = {}
    for name in filter(is_of_tokenizer, location(folder).names() or ()):
        file = places.open_file(places.resolve_inside(folder, name))
        found[name] = bytes(file.read(0, file.size))
    return found


def read_tokens(folder: str) -> dict[str, int]:
    """Token → row, as tokenizer.json has them; empty if there is none.

    Raises:
        CombineError: it has another form.
    """
    if _NAME not in (location(folder).names() or ()):
        return {}
    source = places.open_file(places.resolve_inside(folder, _NAME))
    tree = parse(read_document(source), source.name, surrogates=True)
    try:
        vocabulary: Any = tree["model"]["vocab"]
        rows = [(token, row) for row, (token, _) in enumerate(vocabulary)] if isinstance(vocabulary, list) else ()
        tokens = dict(rows or vocabulary)
        tokens |= {token["content"]: token["id"] for token in tree.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CombineError(f"{redact(source.name)}: is not a tokenizer of the package tokenizers ({error})") from error
    return tokens


def check_tokens(tokens: Mapping[str, Mapping[str, int]]) -> None:
    """Check that the vocabularies of models have the same token for each row that several have.

    Raises:
        CombineError: a token has another row in another model, or a row another token.
    """
    rows: dict[Any, tuple[str, Any]] = {}
    words: dict[Any, tuple[str, Any]] = {}
    for name, table in tokens.items():
        for token, row in table.items():
            for known, key, value in ((rows, token, row), (words, row, token)):
                other, before = known.setdefault(key, (name, value))
                if before != value:
                    what = f"{key!r:.40} is {value!r:.40} in the tokenizer of {name}, {before!r:.40} in that of {other}"
                    raise CombineError(
                        f"{what}; rows are not permuted: leave out tokenizer_source if embeddings shall be merged row "
                        "by row, or bring the models to one vocabulary first"
                    )
