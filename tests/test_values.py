"""The values of a checkpoint and their JSON."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statedict.dtypes import BY_NAME
from statedict.errors import CorruptFileError, UnsupportedError
from statedict.pickles.objects import Global
from statedict.values import KINDS, Device, Opaque, Size, from_json, member, parse_bytes, to_json

sizes = st.lists(st.integers(0, 1 << 40), max_size=5).map(Size)
hashables = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | sizes
    | st.sampled_from([Device("cpu"), Device("cuda:0")])
    | st.builds(member, st.text(), st.text() | st.integers())
    | st.sampled_from(list(BY_NAME.values())),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
values = (
    hashables
    | st.binary().map(bytearray)
    | st.sets(hashables, max_size=5)
    | st.dictionaries(hashables, st.integers(), max_size=5).map(Counter)
)


@given(values)
def test_the_json_of_a_value_is_read_back_as_the_same_value_of_the_same_type(value: Any) -> None:
    again = from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))
    assert again == value
    assert type(again) is type(value)
    assert isinstance(value, set | frozenset | Counter | tuple) or repr(again) == repr(value)


def test_nan_comes_back_as_nan() -> None:
    assert math.isnan(from_json(json.loads(json.dumps(to_json(math.nan)))))
    found = from_json(to_json(complex(math.nan, -math.inf)))
    assert math.isnan(found.real)
    assert found.imag == -math.inf


@given(st.lists(hashables, max_size=6), st.randoms())
def test_a_set_has_one_json_however_it_was_made(items: list[Any], random: Any) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)
    assert to_json(set(items)) == to_json({item for item in shuffled if item in set(items)}) or len(set(items)) < len(
        {repr(item) for item in items}
    )


@given(values)
def test_json_that_other_languages_read_holds_no_integer_beyond_64_bits(value: Any) -> None:
    def check(node: Any) -> None:
        if isinstance(node, dict | list):
            for child in node.values() if isinstance(node, dict) else node:
                check(child)
        assert not isinstance(node, int) or -(1 << 63) <= node < 1 << 64

    check(to_json(value))


@pytest.mark.parametrize("value", [object(), [], {}, Opaque("a"), range(3), memoryview(b""), print])
def test_what_is_no_plain_value_has_no_json(value: Any) -> None:
    with pytest.raises(UnsupportedError, match="is not data that a checkpoint can hold"):
        to_json(value)


nodes = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=6,
)
tags = ["$int", "$float", "$complex", "$bytes", "$bytearray", "$size", "$dtype", "$tuple", "$set", "$frozenset"]


@given(st.dictionaries(st.sampled_from([*tags, "$counter", "$nonsense"]), nodes, max_size=2))
def test_any_json_is_a_value_or_corrupt(node: Any) -> None:
    try:
        assert isinstance(from_json(node), (*KINDS, tuple))
    except CorruptFileError as error:
        message = str(error)
    else:
        message = "not a value"
    assert message.startswith("not a value")


@pytest.mark.parametrize(
    "node",
    [{}, {"$int": 3}, {"$int": "x"}, {"$float": "1"}, {"$bytes": "%"}, {"$complex": [1, 2, 3]}, {"$set": [{"a": 1}]},
     {"$dtype": 7}, {"$size": 3}, {"$counter": {"a": 1}}, {"$int": "1", "$float": "inf"}, {"$what": 1}],
)  # fmt: skip
def test_an_object_that_is_no_value_is_damage(node: Any) -> None:
    with pytest.raises(CorruptFileError, match=r"^not a value: .*; the header is damaged"):
        from_json(node)


def test_a_value_nested_beyond_reason_is_damage() -> None:
    node: Any = 1
    for _ in range(10_000):
        node = {"$tuple": [node]}
    with pytest.raises(CorruptFileError):
        from_json(node)


@given(sizes)
def test_a_size_is_a_tuple_that_prints_as_torch_prints_it(size: Size) -> None:
    theirs = torch.Size(size)
    assert repr(size) == str(size) == repr(theirs)
    assert size == theirs == tuple(size)
    assert size.numel() == math.prod(size)


@pytest.mark.parametrize("name", ["cpu", "cuda:0", "meta"])
def test_a_device_prints_as_torch_prints_it(name: str) -> None:
    assert str(Device(name)) == str(torch.device(name)) == name
    assert repr(Device("cuda")) == "device('cuda')"


def test_opaque_objects_are_compared_by_what_they_hold_and_hashed_by_what_they_are() -> None:
    one = Opaque("a.B", (1,), {"x": 2}, [3], {"k": 4})
    assert one == Opaque("a.B", (1,), {"x": 2}, [3], {"k": 4})
    assert all(one != other for other in (Opaque("a.B"), Opaque("a.C", (1,), {"x": 2}, [3], {"k": 4}), "Opaque('a.B')"))
    assert len({one, Opaque("a.B", (1,), {"x": 2}, [3], {"k": 4})}) == 2
    assert repr(one) == "Opaque('a.B')"
    assert Global("a.B") == Opaque("a.B")


@given(values)
def test_values_survive_copying_and_pickling(value: Any) -> None:
    assert copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value
    assert type(pickle.loads(pickle.dumps(value))) is type(value)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5gb", 5 * 10**9), ("5Gb", 5 * 10**9), ("5GB", 5 * 10**9), ("5g", 5 * 10**9), ("1e9", 10**9), (1e9, 10**9),
        ("1.5E3 kb", 1_500_000), ("2kib", 2048), ("2KIB", 2048), ("1TiB", 1 << 40), ("7", 7), ("7b", 7),
    ],
)  # fmt: skip
def test_units_of_bytes_are_read_in_any_case(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "b", "gb", "0", "0GB", "-1", "-5GB", "1e-3", "1e999", "5iB", "5xb", "5 G B", "nan"]
)
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedError, match="is not a valid size"):
        parse_bytes(text)
