"""Plans as data: each step names one operation and its arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import statedict
from statedict.ops.recipe import VERBS, apply, parsed_index, read_plan


def state() -> statedict.StateDict:
    return statedict.StateDict(a=torch.ones(4, 2), b=torch.ones(4, 2))


EXAMPLES: dict[str, dict[str, Any]] = {
    "keep": {"keep": "a"},
    "drop": {"drop": ["a"]},
    "strip": {"strip": True},
    "rename": {"rename": {"a": "c"}},
    "prefix": {"prefix": "m.", "only": "a"},
    "cast": {"cast": "bf16", "only": "a"},
    "transpose": {"transpose": "a", "dims": [1, 0]},
    "reshape": {"reshape": "a", "shape": [8]},
    "slice": {"slice": "a", "index": "1:3"},
    "pad": {"pad": "a", "shape": [5, -1], "value": 1.5},
    "split": {"split": "a", "into": ["c", "d"], "dim": 0, "sizes": [1, 3]},
    "fuse": {"fuse": ["a", "b"], "into": "c", "dim": 1},
    "tie": {"tie": {"c": "a"}},
    "untie": {"untie": "a"},
    "set": {"set": "n", "value": 3},
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_operation_can_stand_in_a_plan(verb: str) -> None:
    assert isinstance(apply(state(), EXAMPLES[verb]), statedict.StateDict)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({}, "names no operation; name one of keep, drop"),
        ({"drop": "a", "keep": "b"}, "names drop and keep; name one"),
        ({"split": "a"}, "split 'a': needs 'into'"),
        ({"drop": "a", "dim": 3}, "drop 'a', dim 3: has no argument 'dim'"),
        ({"reshape": "a", "shape": 3}, "reshape 'a', shape 3: "),
        ({"pad": "a", "shape": ["x"]}, r"pad 'a', shape \['x'\]: "),
        ({"rename": 3}, "rename 3: "),
    ],
)
def test_a_step_that_is_none_says_why(step: dict[str, Any], message: str) -> None:
    with pytest.raises(statedict.StateDictError, match=message):
        apply(state(), step)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a = [", "plan.toml: is no TOML"), ("x = 1", r"expected \[\[step\]\] tables"), ("step = 3", "expected")],
)
def test_a_file_that_is_no_plan_says_so(text: str, message: str) -> None:
    with pytest.raises(statedict.AlterError, match=message):
        read_plan(text, "plan.toml")


def test_an_index_is_numpy_s() -> None:
    import numpy

    array = numpy.arange(60).reshape(3, 4, 5)
    for text in ("1", "0:2", "...,1", ":, 1:3, ::2", "-1,:,0"):
        assert (array[parsed_index(text)] == eval(f"array[{text}]")).all()
    for text in ("", "a", "1:2:3:4", "0:b"):
        with pytest.raises(statedict.AlterError, match="is no index"):
            parsed_index(text)
