"""What the machine reads is what Python's own pickle wrote."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import io
import math
import os
import pickle
import pickletools
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statedict.errors import CorruptFileError, FormatError, LimitError, StateDictError
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

PROTOCOLS = range(6)


def read(data: bytes) -> Any:
    return load(data, DATA)[0]


class Thing:
    """A class that nobody but this module knows."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Things(list[Any]):
    pass


class Table(dict[Any, Any]):
    pass


class Group(set[Any]):
    pass


class Slotted:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


class Keyword:
    def __new__(cls, *, size: int) -> Keyword:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"size": 3}


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(1 << 600), max_value=1 << 600)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.binary().map(bytearray)
)
keys = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=1 << 64)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
values = st.recursive(
    scalars | keys | st.sets(keys, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(keys, inner, max_size=5)
        | st.dictionaries(keys, inner, max_size=5).map(collections.OrderedDict)
    ),
    max_leaves=20,
)


@given(values, st.sampled_from(PROTOCOLS))
def test_data_comes_back_as_pickle_itself_would_bring_it(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    found = read(data)
    assert found == pickle.loads(data)
    assert repr(found) == repr(value) or isinstance(value, dict | list | tuple | set | frozenset)


@given(values, st.sampled_from(PROTOCOLS))
def test_a_pickle_without_its_unused_memo_entries_reads_the_same(value: Any, protocol: int) -> None:
    assert read(pickletools.optimize(pickle.dumps(value, protocol))) == value


@given(values)
def test_a_pickle_by_the_pure_python_pickler_reads_the_same(value: Any) -> None:
    for protocol in PROTOCOLS:
        file = io.BytesIO()
        pickle._Pickler(file, protocol).dump(value)  # type: ignore[attr-defined]  # it chooses other opcodes than C
        assert read(file.getvalue()) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_keep_their_type_sign_and_infinity(protocol: int) -> None:
    found = read(pickle.dumps([True, 1, 1.0, -0.0, math.inf, -math.inf, math.nan, 1 << 2000, -(1 << 31)], protocol))
    assert [type(n) for n in found] == [bool, int, float, float, float, float, float, int, int]
    assert repr(found[3:7]) == "[-0.0, inf, -inf, nan]"
    assert found[7:] == [1 << 2000, -(1 << 31)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_was_one_object_is_one_object_again(protocol: int) -> None:
    shared: list[Any] = [1]
    shared.append(shared)
    first, second, third = read(pickle.dumps([shared, shared, {"again": shared}], protocol))
    assert first is second
    assert first is third["again"]
    assert first[1] is first


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dicts_become_state_dicts_in_their_order(protocol: int) -> None:
    counts = collections.Counter({"b": 2, "a": 0.5})
    default = collections.defaultdict(list, {3: [4]})
    ordered = collections.OrderedDict(z=1, a=2)
    found = read(pickle.dumps([{}, ordered, default, counts], protocol))
    assert found == [{}, ordered, default, counts]
    assert [type(item) for item in found] == [StateDict, StateDict, StateDict, collections.Counter]
    assert list(found[1]) == ["z", "a"]


def test_strings_of_python_2_are_text_where_they_are_text() -> None:
    assert read(b"S'conv1\\n'\n.") == "conv1\n"
    assert read(b'S"\\x80abc"\n.') == b"\x80abc"
    assert read(b"U\x05conv1.") == "conv1"
    assert read(b"T\x01\x00\x00\x00\xff.") == b"\xff"
    assert read(b"(lp1\nI1\naI01\naL5L\na.") == [1, True, 5]


def test_the_memo_of_old_picklers_may_begin_anywhere_and_have_holes() -> None:
    assert read(b"\x80\x02]q\x01(K\x01r\x00\x01\x00\x00h\x01j\x00\x01\x00\x00e.")[2] == 1
    assert read(b"(lp7\ng7\na.")[0] != []


def test_reading_begins_where_it_is_told_and_says_where_it_ended() -> None:
    first, second = pickle.dumps("one"), pickle.dumps({"two": 2})
    assert load(first + second, {}) == ("one", len(first))
    assert load(first + second, {}, start=len(first)) == ({"two": 2}, len(first) + len(second))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_persistent_ids_are_handed_to_the_caller(protocol: int) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return "7" if isinstance(obj, Thing) else None

    file = io.BytesIO()
    Pickler(file, protocol).dump([Thing(), 1])
    assert load(file.getvalue(), {}, lambda identifier: ("found", identifier))[0] == [("found", "7"), 1]
    assert load(file.getvalue(), {})[0][0] == Opaque("persistent object", ("7",))


# objects that are no data


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_foreign_object_keeps_its_name_and_its_attributes(protocol: int) -> None:
    found = read(pickle.dumps({"config": Thing(lr=0.1, inner=Thing(deep=[1])), "weight": 3}, protocol))
    assert found["weight"] == 3
    config = found["config"]
    assert type(config) is Opaque
    assert config.state["lr"] == 0.1
    assert config.state["inner"].state == {"deep": [1]}
    if protocol >= 2:
        assert config.name == f"{__name__}.Thing"


@pytest.mark.parametrize("protocol", range(2, 6))
def test_what_would_be_appended_set_or_added_to_a_foreign_object_is_kept(protocol: int) -> None:
    things, table, group = Things([1, 2, 3]), Table(a=1, b=Thing()), Group({1})
    found = read(pickle.dumps([things, Things([9]), table, Table(a=1), group], protocol))
    assert found[0].items == [1, 2, 3]
    assert found[1].items == [9]
    assert found[2].entries["a"] == 1
    assert type(found[2].entries["b"]) is Opaque
    assert found[3].entries == {"a": 1}
    assert found[4].args == ([1],) or found[4].items == [1]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arguments_by_name_and_slots_are_kept(protocol: int) -> None:
    keyword, slotted = read(pickle.dumps([Keyword(size=3), Slotted()], protocol))
    if protocol >= 4:
        assert keyword == Opaque(f"{__name__}.Keyword", ((), {"size": 3}))
    else:  # a call of functools.partial(Keyword.__new__, Keyword, size=3)
        assert keyword.name == "functools.partial()"
        assert keyword.args[0].state[1:3] == ((Opaque(f"{__name__}.Keyword"),), {"size": 3})
    assert slotted.state == (None, {"a": 1})


class Distant(Thing):
    """Whose state a function sets, as cloudpickle has it."""

    def __reduce__(self) -> Any:
        return Thing, (), self.__dict__, None, None, setattr


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_state_that_a_function_would_set_is_kept(protocol: int) -> None:
    found = read(pickle.dumps([Distant(w=1), 2], protocol))
    assert found[0].name.endswith(".Thing")
    assert found[0].state == {"w": 1}
    assert found[1:] == [2]


def test_one_value_of_many_megabytes_is_within_the_bounds() -> None:
    value = {"bytes": bytes(13 << 20), "text": "é" * (7 << 20)}
    for protocol in (3, 4, 5):
        assert read(pickle.dumps(value, protocol)) == value
    assert read(pickle.dumps(bytearray(13 << 20), 5)) == bytearray(13 << 20)


def test_a_call_of_an_object_whose_result_is_dropped_gives_it_no_state() -> None:
    made = read(b"chome\nThing\n)\x81q\x00)R0h\x00.")
    assert (made.name, made.args, made.state) == ("home.Thing", (), None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_or_a_function_is_a_name_wherever_it_stands(protocol: int) -> None:
    values = [os.system, (os.system, 1), {"f": os.system}, {os.system: 1}, {os.system}, [collections.OrderedDict]]
    found = read(pickle.dumps(values, protocol))
    name = f"{os.system.__module__}.system"
    flat = [found[0], found[1][0], found[2]["f"], next(iter(found[3])), next(iter(found[4]))]
    assert all(isinstance(item, Opaque) and item == Opaque(name) and repr(item) == f"Opaque({name!r})" for item in flat)
    assert found[5] == [Opaque("collections.OrderedDict")]
    assert read(pickle.dumps(os.system, protocol)) == Opaque(name)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2024, 2, 29),
        decimal.Decimal("1.5"),
        Path("/tmp"),
        range(3),
        array.array("f", [1.0]),
        collections.deque([1, 2]),
        slice(1, 2),
        print,
        int,
    ],
    ids=lambda value: type(value).__name__,
)
def test_everything_else_that_pickle_writes_is_read_as_opaque(value: Any, protocol: int) -> None:
    found = read(pickle.dumps({"before": 1, "value": value, "after": 2}, protocol))
    assert (found["before"], found["after"]) == (1, 2)
    assert isinstance(found["value"], Opaque)


class Payload:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_payload_is_executed(protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    payloads = [
        Payload(os.system, f"touch {proof}"),
        Payload(eval, f"open({str(proof)!r}, 'w')"),
        Payload(open, str(proof), "w"),
    ]
    found = read(pickle.dumps(payloads, protocol))
    assert not proof.exists()
    assert found[0] == Opaque(f"{os.system.__module__}.system", (f"touch {proof}",))


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cstatedict_sentinel\nboom\n)R.",
        b"(istatedict_sentinel\nboom\n.",
        b"\x8c\x12statedict_sentinel\x8c\x04boom\x93)\x81.",
        b"(cstatedict_sentinel\nboom\no.",
        b"cstatedict_sentinel\nboom\n)}\x92.",
    ],
)
def test_no_module_is_imported(opcodes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "statedict_sentinel.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert read(opcodes) == Opaque("statedict_sentinel.boom", ())
    assert "statedict_sentinel" not in sys.modules


def test_names_that_python_would_resolve_stay_names() -> None:
    before = set(sys.modules)
    assert read(b"cos.path\n__builtins__.eval\n.").name == "os.path.__builtins__.eval"
    assert read(b"\x82\x07.").name == "copyreg.extension 7"
    assert read(b"ccopyreg\n_reconstructor\n(c__main__\nX\nc__builtin__\nobject\nNtR.").name == "copyreg._reconstructor"
    assert set(sys.modules) == before


# pickles that are damaged


@given(values, st.sampled_from(PROTOCOLS), st.data())
def test_a_pickle_that_ends_early_says_so(value: Any, protocol: int, data: st.DataObject) -> None:
    whole = pickle.dumps(value, protocol)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(CorruptFileError, match=r"^epoch\.pkl: at byte [\d,]+ of [\d,]+: "):
        load(cut, DATA, where="epoch.pkl")


opcodes = [bytes([op]) for op in b"().0123]}laetRbcosuN}\x81\x85\x86\x90\x91\x93\x94"] + [b"h\0", b"q\0", b"K\1"]


@given(st.binary(max_size=60) | st.lists(st.sampled_from(opcodes)).map(b"".join))
def test_any_bytes_are_read_or_refused_by_an_error_of_ours(data: bytes) -> None:
    try:
        message = repr(read(data + b"."))
    except StateDictError as error:
        message = str(error)
    assert len(message) < 1000


@given(values, st.sampled_from(PROTOCOLS), st.data())
def test_a_flipped_byte_never_raises_a_stranger(value: Any, protocol: int, data: st.DataObject) -> None:
    damaged = bytearray(pickle.dumps(value, protocol))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(damaged))
    except StateDictError:
        pass


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"X\xff\xff\xff\xffabc.", "a string of 4,294,967,295 bytes goes past the end"),
        (b"\x8c\x09abc.", "a string of 9 bytes goes past the end"),
        (b"\x8b\xff\xff\xff\x7fabc.", "a value of 2,147,483,647 bytes goes past the end"),
        (b"\x96" + struct.pack("<Q", 1 << 62) + b".", "a value of .* bytes goes past the end"),
        (b"p99999999999\nN.", "a memo index of 11 digits"),
        (b"Np99999999999\n.", "a memo index of 11 digits"),
        (b"Sabc\n.", "a string without its quotes"),
        (b"]K\x01}s.", "sets items in a list"),
        (b"}(K\x01u.", "a key has no value"),
        (b"}K\x01a.", "appends to a StateDict"),
        (b"](K\x01\x90.", "adds to a list"),
        (b"]}b.", "gives a state to a list"),
        (b"K\x01K\x02\x93.", "a global whose name is not a string"),
        (b"h\x05.", "malformed pickle"),
        (b"0.", "malformed pickle"),
        (b"ccollections\nOrderedDict\n(K\x01K\x02K\x03tR.", "malformed pickle"),
    ],
)
def test_what_makes_no_sense_is_named(data: bytes, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        read(data)


def test_a_newer_protocol_and_an_unknown_opcode_are_no_format_of_ours() -> None:
    with pytest.raises(FormatError, match="protocol 6 is newer than 5"):
        read(b"\x80\x06N.")
    with pytest.raises(FormatError, match="opcode"):
        read(b"\x97.")


@pytest.mark.parametrize("key", [1 << 4096, tuple(range(65)), ((1, (1 << 5000,)),)])
def test_keys_that_could_hash_for_ever_are_refused(key: Any) -> None:
    for value in ({key: 1}, {key}, collections.OrderedDict({key: 1}), frozenset([key])):
        for protocol in PROTOCOLS:
            with pytest.raises(LimitError, match="take for ever to hash"):
                read(pickle.dumps(value, protocol))


def test_keys_that_cannot_be_hashed_are_refused() -> None:
    for data in (b"}]Ns.", b"}}Ns.", b"\x8f(]\x90.", b"(]\x91."):
        with pytest.raises(LimitError, match="a key is a"):
            read(data)


def test_memo_indexes_that_leave_gaps_do_not_mix_with_those_that_count() -> None:
    assert load(b"\x80\x04NK\x01q\x050K\x02q\x000h\x05.", DATA)[0] == 1
    with pytest.raises(CorruptFileError, match="filled in two ways"):  # Python counts what is filled, not what is free
        load(b"\x80\x04K\x01q\x05K\x02\x94h\x01.", DATA)
