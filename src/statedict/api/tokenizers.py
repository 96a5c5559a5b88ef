"""The tokenizer of a merge: whose it is, which tokens it has, and its files."""

from __future__ import annotations

from collections.abc import Mapping

from statedict.api.locating import Place
from statedict.api.names import split
from statedict.errors import CombineError
from statedict.formats.chats import choose_template, read_template, replace_template
from statedict.formats.tokenizer import extend, read_added, read_files, read_tokens
from statedict.ops.combine.recipe import Recipe
from statedict.ops.combine.tokens import (
    Table,
    Vocabulary,
    add_tokens,
    find_vocabulary,
)  # fmt: skip
from statedict.ops.combine.vocabulary import measure_vocabulary
from statedict.tree.state_dict import StateDict

Files = tuple[str, dict[str, bytes]]
"""Where a tokenizer comes from, and its files by name."""


def make_tokenizer(
    recipe: Recipe, places: Mapping[str, Place], models: Mapping[str, StateDict]
) -> tuple[Vocabulary | None, Files | None, list[str]]:
    """The vocabulary of the result, the files of its tokenizer with its template of chats, and notes.

    The vocabulary is None if rows stay where they are, the files are if they are those beside the model whose
    configuration the result has.

    Raises:
        CombineError: the configuration asks for tokens, and there is no file that tells them.
    """
    vocabulary, files, notes = _choose(recipe, places, models)
    if recipe.template is None:
        return vocabulary, files, notes
    found = [read_template(split(places[name].path)[0]) for name in models]
    template = choose_template(recipe.template, [one for one in found if one])
    if template is None:
        return vocabulary, files, [*notes, "chat_template: auto, and no model has one"]
    name, parts = files or (recipe.donor(), read_files(split(places[recipe.donor()].path)[0]))
    return vocabulary, (f"{name}, with another template of chats", replace_template(parts, template)), notes


def _choose(
    recipe: Recipe, places: Mapping[str, Place], models: Mapping[str, StateDict]
) -> tuple[Vocabulary | None, Files | None, list[str]]:
    asked, donor = recipe.tokenizer, recipe.donor()
    if asked is None:
        return None, None, []
    chosen = donor if asked.source in ("base", "union") else asked.source
    folders = {name: split(place.path)[0] for name, place in places.items()}
    tables: dict[str, Table] = {name: read_tokens(folders[name]) for name in dict.fromkeys([chosen, donor, *models])}
    silent = [name for name in tables if not tables[name]]
    if chosen in silent:
        if asked.source == "union" or asked.rules or asked.multiple > 1:
            raise CombineError(f"tokenizer: {chosen} has no tokenizer.json that tells its tokens")
        files = None if chosen == donor else (chosen, read_files(folders[chosen]))
        return None, files, [f"{', '.join(silent)}: no tokenizer.json, so rows stay where they are"]
    notes = [f"{name}: no tokenizer.json; its rows are taken to be those of {chosen}" for name in silent]
    tables |= dict.fromkeys(silent, tables[chosen])
    added = {token: about for name in reversed([*models]) for token, about in read_added(folders[name]).items()}
    others = _list_others(models, tables, added) if asked.source == "union" else []
    table: Table = add_tokens(tables[chosen], [*others, *asked.rules])
    for name in (chosen, *(one for one in models if one not in silent)):
        # a tokenizer that has all tokens splits text better than one that some were added to
        if tables[name].keys() == table.keys() and tables[name].items() >= tables[chosen].items():
            chosen, table = name, tables[name]
            break
    new = {token: row for token, row in table.items() if token not in tables[chosen]}
    own = {name: tables[name] for name in models}
    vocabulary = find_vocabulary(asked, table, own, models, recipe.base)
    if chosen == donor and not new:
        return vocabulary, None, notes
    parts = read_files(folders[chosen])
    if new and "tokenizer.json" not in parts:
        raise CombineError(f"tokenizer: {chosen} has no tokenizer.json to which {len(new):,} tokens could be added")
    if new:
        parts["tokenizer.json"] = extend(parts["tokenizer.json"], new, added)
    what = f"{chosen} with {len(new):,} more tokens" if new else chosen
    return vocabulary, (what, parts), notes


def _list_others(
    models: Mapping[str, StateDict], tables: Mapping[str, Table], added: Mapping[str, object]
) -> list[str]:
    """The tokens that models have rows for: those of their vocabularies first, then those that were added to them."""
    found: dict[str, None] = {}
    for name, tree in models.items():
        rows = measure_vocabulary(name, tree)
        found |= dict.fromkeys(
            token for token, row in sorted(tables[name].items(), key=lambda pair: pair[1]) if row < rows
        )
    return sorted(found, key=lambda token: token in added)
