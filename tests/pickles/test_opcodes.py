"""One table of opcodes, one spelling of an argument, and frames that no operation crosses: in `load` and in `scan`."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import pytest

import statedict
from statedict.errors import CorruptFileError, TruncatedError
from statedict.pickles.machine import load
from statedict.pickles.opcodes import COUNTED, OPCODES, TO_MARK
from statedict.scanner.globals import Walk, walk

_FIXED = {"uint1": 1, "uint2": 2, "uint4": 4, "uint8": 8, "int4": 4, "float8": 8}
_COUNTED = {
    "string1": 1, "string4": 4, "bytes1": 1, "bytes4": 4, "bytes8": 8, "bytearray8": 8, "unicodestring1": 1,
    "unicodestring4": 4, "unicodestring8": 8, "long1": 1, "long4": 4,
}  # fmt: skip


def over(data: bytes) -> Walk:
    return walk(lambda at, length: data[at : at + length])


def frame(inside: bytes, claimed: int | None = None) -> bytes:
    return b"\x95" + struct.pack("<Q", len(inside) if claimed is None else claimed) + inside


def test_the_table_is_that_of_pickletools() -> None:
    assert {row.code: row.name for row in OPCODES.values()} == {ord(op.code): op.name for op in pickletools.opcodes}
    for op in pickletools.opcodes:
        row, argument = OPCODES[ord(op.code)], op.arg.name if op.arg else ""
        if argument in _FIXED:
            assert (row.layout, row.width) == ("fixed", _FIXED[argument]), op.name
        elif argument in _COUNTED:
            assert (row.layout, row.width) == ("counted", _COUNTED[argument]), op.name
        else:
            assert row.layout == ("lines" if "pair" in argument else "line" if argument else "none"), op.name
        before, after = op.stack_before, op.stack_after
        if pickletools.markobject in before:
            assert row.takes == TO_MARK, op.name
        elif op.name not in ("MARK", "MEMOIZE", "STOP"):  # whose effect pickletools spells in its own way
            assert (row.takes, row.leaves) == (len(before), len(after)), op.name


# opcode → spellings of arguments that one of Python's unpicklers, or an older one, reads otherwise than another
ODD = {
    b"I": [b"0300", b"00300", b"+1", b" 1", b"1 ", b"0x10", b"0b1", b"1_0", b"1\0", b"1\0 2", b"-0", b"+0", b"1L", b"",
           b"000", b"0" * 30 + b"1", b"\xb2", b"1\r"],
    b"L": [b"00", b"00L", b"01", b"0300L", b"+1L", b" 1L", b"1_0L", b"1\0L", b"1LL", b"L", b"", b"-0L", b"0x10L"],
    b"F": [b"1e999", b"-1e999", b"1_0.0", b" 1.0", b"1.0 ", b"1.0\0", b"", b"infinity", b"nan(1)", b"0x1p3"],
    b"S": [b"a", b"'a", b"'a\"", b"'a' ", b"", b"'\\q'", b"'\\777'", b"'\\400'", b"'\\x6'"],
    b"P": [b"\xc3\xa9"],
}  # fmt: skip
INDEXES = [b"+1", b" 1", b"1 ", b"0" * 30 + b"1", b"01", b"1_0", b"1\0", b"1\0 5", b"-0", b"4294967296"]
PLAIN = {
    b"I": [b"0", b"-7", b"00", b"01", b"123456789012345678901234567890"],
    b"L": [b"0L", b"5", b"-12345678901234567890L"],
    b"F": [b"1.5", b"-1e-05", b"1e+16", b"nan", b"inf", b"-inf", b"1.", b".5"],
    b"S": [b"'a'", b'"a\\n"', b"''", b"'\\\\\\'\\x41\\101\\0\\07 \\t'"],
    b"P": [b"key 1"],
}


@pytest.mark.parametrize("code", ODD)
def test_an_argument_that_readers_read_differently_is_damage(code: bytes) -> None:
    for text in ODD[code]:
        with pytest.raises(CorruptFileError):
            load(b"\x80\x02" + code + text + b"\n.", {})
        found = over(code + text + b"\n.")
        assert (len(found.doubts), found.problem) == (1, ""), text


@pytest.mark.parametrize("code", PLAIN)
def test_an_argument_as_picklers_write_it_is_read(code: bytes) -> None:
    for text in PLAIN[code]:
        value, _ = load(code + text + b"\n.", {}, lambda identifier: identifier)
        assert repr(value) == repr(_theirs(code + text + b"\n."))
        assert not over(code + text + b"\n.").doubts


def _theirs(data: bytes) -> Any:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, identifier: Any) -> Any:
            return identifier

    return Unpickler(io.BytesIO(data)).load()


@pytest.mark.parametrize("index", INDEXES)
def test_an_odd_memo_index_is_damage_and_hides_no_name(index: bytes, tmp_path: Path) -> None:
    head = b"\x80\x02Vhome\np1\n0Vcollections\np0\n0Vcollections\np10\n0g"
    with pytest.raises(CorruptFileError):
        load(head + index + b"\nVOrderedDict\n\x93.", {})
    (tmp_path / "a.pkl").write_bytes(head + index + b"\nVOrderedDict\n\x93.")
    report = statedict.scan(tmp_path / "a.pkl")
    assert report.verdict != "data"
    assert report.damage
    modules = {found.module for found in report.globals}
    assert modules == ({"?"} if index in (b"4294967296", b"-0") else {"collections"} if index == b"1_0" else {"home"})


def test_a_long_line_of_zeros_does_not_lead_the_scan_to_another_name() -> None:
    for zeros in (19, 20, 21, 100, 5000, 1 << 16):
        data = b"Vhome\np5\n0Vcollections\np0\n0g" + b"0" * zeros + b"5\nVThing\n\x93."
        found = over(data)
        assert found.doubts
        assert [one.module for one in found.globals] in (["home"], ["?"])


# a frame → whether both readers, from any file, read the same
FRAMES = {
    "whole": (frame(b"K\x01."), True),
    "two": (frame(b"K\x01") + frame(b"\x85."), True),
    "between an operation and the next": (frame(b"K\x01") + b"\x85.", True),
    "of nothing": (frame(b"") + frame(b"") + b"K\x01.", True),
    "ends in a number": (frame(b"J\x01\0", 3) + b"\0\0.", False),
    "ends in a length": (frame(b"X\x01\0") + b"\0\0a.", False),
    "ends in a text": (frame(b"X\x04\0\0\0ab") + b"cd.", False),
    "ends in bytes": (frame(b"C\x04ab") + b"cd.", False),
    "ends in a bytearray": (frame(b"\x96\x04\0\0\0\0\0\0\0ab") + b"cd.", False),
    "ends in a line": (frame(b"Vab") + b"cd\n.", False),
    "ends in a name": (frame(b"chome\nTh") + b"ing\n.", False),
    "ends between two lines": (frame(b"chome\n") + b"Thing\n.", False),
    "ends after an opcode": (frame(b"K") + b"\x01.", False),
    "ends in a frame": (frame(b"N0\x95\0\0") + b"\0\0\0\0\0\0K\x01.", False),
    "in a frame": (frame(b"N0" + frame(b"K\x01.")), False),
    "in a frame, and over its end": (frame(b"N0" + frame(b"K\x01."), 11), False),
    "goes past the end": (frame(b"K\x01.", 4), False),
    "goes far past the end": (frame(b"K\x01.", (1 << 64) - 1), False),
    "goes on after STOP": (frame(b"K\x01.N"), False),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_an_operation_that_goes_past_the_end_of_its_frame_is_damage(name: str, tmp_path: Path) -> None:
    body, fine = FRAMES[name]
    data = b"\x80\x04" + body
    (tmp_path / "a.pkl").write_bytes(data)
    report = statedict.scan(tmp_path / "a.pkl")
    if fine:
        assert load(data, {})[0] == _theirs(data)
        assert report.verdict == "data"
        return
    with pytest.raises((CorruptFileError, TruncatedError)):
        load(data, {})
    assert report.verdict != "data"
    assert report.damage


def test_a_pickle_without_a_protocol_that_breaks_off_in_a_frame_is_damage(tmp_path: Path) -> None:
    # the C unpickler goes on behind the frame, and may find names there that nothing before leads to
    for data in (
        frame(b"chome\nth", 8) + b"Thing\nN.",
        frame(b"Nb\xff") + b"chome\nThing\n.",
        frame(b"X\4\0") + b"\1\0\0\0a.",
    ):
        (tmp_path / "a.pkl").write_bytes(data)
        assert statedict.scan(tmp_path / "a.pkl").damage


def test_frames_are_followed_through_large_pickles() -> None:
    tree = [list(range(1 << 16)), b"a" * (1 << 17), "b" * (1 << 17), {str(n): float(n) for n in range(1 << 14)}]
    for protocol in (4, 5):
        data = pickle.dumps(tree, protocol)
        assert data.count(b"\x95") > 2
        assert load(data, {})[0] == tree
        assert not over(data).doubts
        at = data.index(b"\x95", 1 << 16)  # a later frame that is longer by one
        (length,) = struct.unpack_from("<Q", data, at + 1)
        longer = data[: at + 1] + struct.pack("<Q", length + 1) + data[at + 9 :]
        assert over(longer).doubts
        with pytest.raises((CorruptFileError, TruncatedError)):
            load(longer, {})


@pytest.mark.parametrize(
    "data", [b"ihome\nThing\n.", b"chome\nThing\no.", b"Nihome\nThing\n.", b"\x80\x02ihome\nThing\n."]
)
def test_an_instance_without_a_mark_is_named_and_damage(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(data)
    report = statedict.scan(tmp_path / "a.pkl")
    assert [(one.qualified, one.verdict, one.called) for one in report.globals] == [("home.Thing", "opaque", 0)]
    assert "without a mark" in report.damage[0]
    with pytest.raises(CorruptFileError):
        load(data, {})


def test_a_global_whose_module_or_name_is_empty_is_damage() -> None:
    for data in (b"c\nThing\n.", b"chome\n\n.", b"(i\nThing\n."):
        assert over(data).doubts == ["a global without a name"]
        with pytest.raises(CorruptFileError):
            load(data, {})


def test_every_counted_argument_that_ends_early_is_truncation() -> None:
    for row in COUNTED.values():
        data = bytes([row.code]) + (9).to_bytes(row.width, "little") + b"abc"
        with pytest.raises(TruncatedError):
            load(data, {})
        assert over(data).truncated
