"""A recipe carried out: the parts that its slices cut from models, each merged by the method, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from statedict.ops.alter.outline import drop_hashes
from statedict.ops.combine.align import Aligned, align
from statedict.ops.combine.layers import Model, cut
from statedict.ops.combine.methods import merge
from statedict.ops.combine.recipe import Recipe
from statedict.ops.combine.tokens import Vocabulary, permute
from statedict.ops.combine.vocabulary import fit
from statedict.reports.combine import CombineReport
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import matches, no_match_error


def build(
    recipe: Recipe,
    models: Mapping[str, Model],
    seed: int = 0,
    integers: Mapping[str, str] | None = None,
    vocabulary: str | None = None,
    tokens: Vocabulary | None = None,
) -> tuple[StateDict, CombineReport, dict[str, int]]:
    """The merged state, how it is made, and the rows of vocabularies that differ: by model, of the result under "".

    Args:
        recipe: what goes where.
        models: those of the recipe, by name.
        seed: of random choices.
        integers: pattern → rule, for integers that differ.
        vocabulary: what to do if vocabularies differ, as `vocabulary.fit`.
        tokens: the vocabulary of the result, if rows are moved.

    Raises:
        CombineError: a model lacks layers, or as `merge`.
        PatternError: a pattern matches nothing.
    """
    parts, left = cut(recipe, models)
    unlisted = [(name, "in none of the modules") for name in left]
    rows: dict[str, int] = {}
    if tokens is not None and {*tokens.sizes.values()} != {tokens.rows}:
        rows = {**tokens.sizes, "": tokens.rows}
    aligned, notes = [], [*recipe.notes]
    for part in parts:
        states: Sequence[StateDict] = part.states
        if tokens is not None:
            states, more = permute(part.names, states, tokens)
            notes += more
        some, sizes = fit(align([*zip(part.names, states, strict=True)]), vocabulary)
        aligned.append(some)
        if sizes:
            rows |= dict(zip(part.names, sizes, strict=True)) | {"": (max if vocabulary == "pad" else min)(sizes)}
    integers = integers or {}
    for glob in integers:
        if not any(_has(some, glob) for some in aligned):
            raise no_match_error(glob, sum(len(some.values) for some in aligned), "entry")
    tree, reports = StateDict(), []
    for part, some in zip(parts, aligned, strict=True):
        rules = {glob: rule for glob, rule in integers.items() if _has(some, glob)}
        state, report = merge(some, recipe.method, part.based, part.parameters, seed, rules, recipe.kind)
        tree.update(state)
        reports.append(report)
    tree.metadata = models[recipe.donor()].tensors.metadata
    drop_hashes(tree)
    report = replace(
        reports[0],
        sources=tuple((name, None) for name in dict.fromkeys([recipe.donor(), *recipe.models()])),
        tensors=sum(report.tensors for report in reports),
        nbytes=sum(report.nbytes for report in reports),
        rules=tuple(rule for report in reports for rule in report.rules),
        left_out=tuple(dict.fromkeys([*(entry for report in reports for entry in report.left_out), *unlisted])),
        notes=tuple(dict.fromkeys([*notes, *(note for report in reports for note in report.notes)])),
    )
    return tree, report, rows


def _has(aligned: Aligned, glob: str) -> bool:
    return any(matches(path, (glob,)) for path in aligned.values)
