"""Plans as data: each step names one operation and its arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import statedict
from statedict import alter
from statedict.ops.alter import steps
from statedict.ops.alter.steps import VERBS, describe, read_plan
from statedict.ops.alter.tensors import parse_index
from statedict.tree.layout import Layout


def apply(tree: statedict.StateDict, step: Any) -> Any:
    return steps.apply(Layout(tree), step).tree


def state() -> statedict.StateDict:
    return statedict.StateDict(a=torch.ones(4, 2), b=torch.ones(4, 2))


EXAMPLES: dict[str, dict[str, Any]] = {
    "keep": {"keep": "a"},
    "drop": {"drop": ["a"]},
    "strip": {"strip": True},
    "rename": {"rename": {"a": "c"}},
    "prefix": {"prefix": "m.", "only": "a"},
    "cast": {"cast": "bf16", "only": "a"},
    "quantize": {"quantize": "Q4_0", "only": "q"},
    "dequantize": {"dequantize": "bf16", "only": "q"},
    "map": {"map": "keras"},
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
    tree = state()
    tree["fc.weight"] = torch.ones(2, 3)
    tree["q"] = alter.quantize({"q": torch.ones(2, 32)}, "Q8_0")["q"]
    assert isinstance(apply(tree, EXAMPLES[verb]), statedict.StateDict)


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
    ("text", "key", "expected", "got"),
    [
        ('split = "a"\ninto = []', "into", "a list of names", "[]"),
        ('split = "a"\ninto = "qk"', "into", "a list of names", "'qk'"),
        ('split = "a"\ninto = ["q", ""]', "into", "a list of names", "['q', '']"),
        (
            'split = "a"\ninto = ["q", "k"]\nsizes = [-1, 5]',
            "sizes",
            "a list of whole numbers, none below 0",
            "[-1, 5]",
        ),
        ('split = "a"\ninto = ["q", "k"]\ndim = true', "dim", "a whole number", "True"),
        ('fuse = "ab"\ninto = "c"', "fuse", "a list of names", "'ab'"),
        ('fuse = ["a", "b"]\ninto = ""', "into", "a name", "''"),
        ('reshape = "a"\nshape = [4.0, 2.0]', "shape", "a list of whole numbers", "[4.0, 2.0]"),
        ('pad = "a"\nshape = [4.0, 6.0]', "shape", "a list of whole numbers", "[4.0, 6.0]"),
        ('pad = "a"\nshape = [5, -1]\nvalue = "x"', "value", "a number", "'x'"),
        ('pad = "a"\nshape = [5, -1]\nvalue = [1, 2]', "value", "a number", "[1, 2]"),
        ('transpose = "a"\ndims = [true, false]', "dims", "a list of whole numbers", "[True, False]"),
        ('slice = "a"\nindex = 3', "index", "an index", "3"),
        ('strip = "no"', "strip", "true", "'no'"),
        ("strip = false", "strip", "true", "False"),
        ("keep = []", "keep", "a pattern or a list of one or more", "[]"),
        ("drop = []", "drop", "a pattern or a list of one or more", "[]"),
        ("untie = [1]", "untie", "a pattern or a list of one or more", "[1]"),
        ('cast = "bf16"\nonly = []', "only", "a pattern or a list of one or more", "[]"),
        ("cast = 16", "cast", "a dtype", "16"),
        ('rename = "x"', "rename", "a table of old = new", "'x'"),
        ("rename = {a = 1}", "rename", "a table of old = new", "{'a': 1}"),
        ("prefix = 1", "prefix", "a text", "1"),
        ('tie = {"" = "a"}', "tie", "a table of new = old", "{'': 'a'}"),
        ("set = 1\nvalue = 1", "set", "a text", "1"),
    ],
)
def test_an_argument_of_another_kind_is_named_with_what_was_expected_and_got(
    text: str, key: str, expected: str, got: str
) -> None:
    (step,) = read_plan("[[step]]\n" + text, "plan.toml")
    with pytest.raises(statedict.errors.AlterError) as caught:
        apply(state(), step)
    head, _, tail = str(caught.value).partition(f": {key!r}: expected ")
    assert head == describe(step)
    assert tail.startswith(expected)
    assert tail.endswith(f", got {got}")


@pytest.mark.parametrize("step", [{"rename": {"a": ""}}, {"rename": {"a": "b."}}, {"prefix": "-a"}])
def test_no_entry_gets_an_empty_name(step: dict[str, Any]) -> None:
    with pytest.raises(statedict.errors.AlterError, match="not a name for an entry"):
        apply(statedict.StateDict(a=torch.ones(2)), step)


def test_a_module_s_name_may_be_taken_away() -> None:
    assert list(apply(statedict.StateDict({"m.a": torch.ones(2)}), {"rename": {"m": ""}})) == ["a"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int8", 300), ("int8", 0.5), ("int64", float("nan")), ("int64", 2**70), ("uint8", -1), ("bool", 2),
        ("bool", 2**70), ("int8", True), ("float16", 1e10), ("float32", 1j),
    ],
)  # fmt: skip
def test_a_tensor_is_padded_with_no_value_that_its_dtype_lacks(kind: str, value: Any) -> None:
    tensors = statedict.StateDict(a=torch.ones(4, dtype=getattr(torch, kind)))
    with pytest.raises(statedict.errors.AlterError, match=f"cannot be padded with .*, which is no {kind}"):
        apply(tensors, {"pad": "a", "shape": [5], "value": value})


@pytest.mark.parametrize(
    ("kind", "value"),
    [("int8", -128), ("int8", 3.0), ("bool", True), ("float16", float("inf")), ("bfloat16", 0.1), ("complex64", 1j)],
)
def test_a_tensor_is_padded_with_what_its_dtype_has(kind: str, value: Any) -> None:
    tensors = statedict.StateDict(a=torch.ones(4, dtype=getattr(torch, kind)))
    padded = apply(tensors, {"pad": "a", "shape": [5], "value": value})["a"].torch()
    assert torch.equal(padded[4:], torch.tensor([value], dtype=getattr(torch, kind)))


def test_sizes_of_a_split_are_not_negative_and_may_be_zero() -> None:
    with pytest.raises(statedict.errors.AlterError, match=r"cannot be split along 0 into 2 parts of \[-1, 5\]"):
        alter.split(state(), "a", ["q", "k"], sizes=[-1, 5])
    with pytest.raises(statedict.errors.AlterError, match="expected a list of new names"):
        alter.split(state(), "a", [])
    parts = alter.split(state(), "a", ["q", "k"], sizes=[0, 4])
    assert [parts[name].shape for name in "qk"] == [(0, 2), (4, 2)]


def test_an_index_that_steps_by_zero_names_the_tensor() -> None:
    with pytest.raises(statedict.errors.AlterError, match=r"a: LazyTensor.*zero"):
        apply(state(), {"slice": "a", "index": "::0"})


@pytest.mark.parametrize(
    ("text", "message"),
    [("a = [", "plan.toml: is no TOML"), ("x = 1", r"expected \[\[step\]\] tables"), ("step = 3", "expected")],
)
def test_a_file_that_is_no_plan_says_so(text: str, message: str) -> None:
    with pytest.raises(statedict.errors.AlterError, match=message):
        read_plan(text, "plan.toml")


def test_an_index_is_numpy_s() -> None:
    import numpy

    array = numpy.arange(60).reshape(3, 4, 5)
    for text in ("1", "0:2", "...,1", ":, 1:3, ::2", "-1,:,0"):
        assert (array[parse_index(text)] == eval(f"array[{text}]")).all()
    for text in ("", "a", "1:2:3:4", "0:b"):
        with pytest.raises(statedict.errors.AlterError, match="not an index"):
            parse_index(text)
