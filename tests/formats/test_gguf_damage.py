"""Each way in which a GGUF file can be wrong, and its error."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path

import pytest

import statedict

from .ggufs import array, forge, pair, tensor, text

CORRUPT, TRUNCATED = statedict.errors.CorruptFileError, statedict.errors.TruncatedError
UNSUPPORTED, LIMIT = statedict.errors.UnsupportedError, statedict.errors.LimitError
ALIGNMENT = "general.alignment"
ONE = bytes(32)


def refused(path: Path, message: str, kind: type[Exception] = CORRUPT) -> None:
    for opened in (statedict.load, lambda path: statedict.load(path, format="gguf")):
        with pytest.raises(kind, match=message) as caught:
            opened(path)
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("size", [4, 7, 12, 23])
def test_a_file_that_ends_within_the_counts_is_truncated(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes((b"GGUF" + struct.pack("<IQQ", 3, 0, 0))[:size])
    refused(path, "truncated", TRUNCATED)


@pytest.mark.parametrize("version", [0, 1, 4, 70_000, 1 << 24, 4 << 24])
def test_another_version_is_refused_by_its_number(version: int, tmp_path: Path) -> None:
    number = {1 << 24: 1, 4 << 24: 4}.get(version, version)
    remedy = "; GGUF 1 was used in August 2023" if number == 1 else ""
    refused(forge(tmp_path / "a.gguf", version=version), f"is GGUF version {number:,}; .*{remedy}", UNSUPPORTED)


def test_another_magic_number_is_no_gguf_file(tmp_path: Path) -> None:
    path = forge(tmp_path / "a.gguf")
    path.write_bytes(b"GGML" + path.read_bytes()[4:])
    with pytest.raises(CORRUPT, match="does not begin with GGUF"):
        statedict.load(path, format="gguf")


@pytest.mark.parametrize("count", [2, 1 << 32, (1 << 64) - 1])
@pytest.mark.parametrize("which", ["tensors", "pairs"])
def test_a_count_that_the_file_has_no_room_for_is_truncated(which: str, count: int, tmp_path: Path) -> None:
    counts = (count, 0) if which == "tensors" else (0, count)
    refused(forge(tmp_path / "a.gguf", counts=counts), f"it claims {count:,} {which}", TRUNCATED)


@pytest.mark.parametrize("length", [1000, 1 << 40, (1 << 64) - 1])
def test_a_string_longer_than_the_file_is_truncated(length: int, tmp_path: Path) -> None:
    long = struct.pack("<Q", length) + b"abc"
    for number, parts in enumerate(
        [([long + bytes(12)], []), ([pair("a", 8, long)], []), ([], [long + bytes(20)]),
         ([pair("a", 9, array(8, 1, long))], []), ([pair("a", 9, array(8, 2, text("fine") + long))], [])]
    ):  # fmt: skip
        refused(forge(tmp_path / f"{number}.gguf", *parts), f"takes {length:,} bytes, the file has", TRUNCATED)


BAD = text(b"a\xffb")


@pytest.mark.parametrize(
    ("pairs", "tensors"),
    [
        ([BAD + struct.pack("<I", 0) + b"\1"], []),
        ([pair("a", 8, BAD)], []),
        ([pair("a", 9, array(8, 2, text("b") + BAD))], []),
        ([], [tensor(b"a\xffb", (1,))]),
    ],
    ids=["key", "value", "element", "name"],
)
def test_a_string_that_is_not_utf8_is_damage(pairs: list[bytes], tensors: list[bytes], tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", pairs, tensors, ONE), r"at byte \d+ is not UTF-8")


def test_a_type_that_no_value_has_is_damage(tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [pair("a", 13, bytes(8))]), "metadata 'a' has the type 13")
    refused(forge(tmp_path / "b.gguf", [pair("a", 9, array(99, 1, bytes(8)))]), "is an array of the type 99")


def test_a_bool_is_0_or_1(tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [pair("a", 7, b"\2")]), "metadata 'a' is a bool of another byte")
    refused(
        forge(tmp_path / "b.gguf", [pair("a", 9, array(7, 3, b"\0\1\2"))]), "metadata 'a' is a bool of another byte"
    )


def test_a_key_that_stands_twice_is_damage(tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [pair("a", 0, b"\1"), pair("a", 0, b"\1")]), "the key 'a' .* stands twice")


@pytest.mark.parametrize("count", [100, 1 << 33, (1 << 64) - 1])
@pytest.mark.parametrize("code", [0, 4, 7, 8, 9, 12])
def test_an_array_longer_than_the_file_is_truncated(code: int, count: int, tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [pair("a", 9, array(code, count, bytes(20)))]), f"claims {count:,}", TRUNCATED)


def test_arrays_of_more_elements_than_lists_should_hold_are_refused(tmp_path: Path) -> None:
    path = forge(tmp_path / "a.gguf", [pair("a", 9, array(0, 10_000_001, bytes(10_000_001)))])
    refused(path, "have more than 10,000,000 elements", LIMIT)


def test_arrays_within_arrays_without_end_are_damage(tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [pair("a", 9, array(9, 1, b"") * 5000)], data=ONE), "nested deeper than 16")


@pytest.mark.parametrize("alignment", [0, 3, 48, (1 << 32) - 1])
def test_an_alignment_that_is_no_power_of_two_is_damage(alignment: int, tmp_path: Path) -> None:
    path = forge(tmp_path / "a.gguf", [pair(ALIGNMENT, 4, struct.pack("<I", alignment))])
    refused(path, f"general.alignment is {alignment}, expected a power of two")


@pytest.mark.parametrize("value", [(8, text("32")), (5, struct.pack("<i", -32)), (6, struct.pack("<f", 32))])
def test_an_alignment_of_another_type_is_damage(value: tuple[int, bytes], tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [pair(ALIGNMENT, *value)]), "general.alignment is .*expected")


def test_two_tensors_of_one_name_are_damage(tmp_path: Path) -> None:
    path = forge(tmp_path / "a.gguf", [], [tensor("w", (1,)), tensor("w", (1,), offset=32)], bytes(64))
    refused(path, "two tensors are called 'w'")


def test_a_tensor_called_like_the_metadata_is_refused(tmp_path: Path) -> None:
    refused(
        forge(tmp_path / "a.gguf", [pair("a", 0, b"\1")], [tensor("metadata", (1,))], ONE),
        "a tensor is called 'metadata'",
    )


def test_an_unknown_type_and_a_removed_one_are_named(tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [], [tensor("w", (32,), 99)], ONE), "'w' has the type 99, which is", UNSUPPORTED)
    refused(forge(tmp_path / "b.gguf", [], [tensor("w", (32,), 31)], ONE), "Q4_0_4_4, which llama.cpp", UNSUPPORTED)


@pytest.mark.parametrize(("sizes", "code"), [((33,), 2), ((), 2), ((128, 2), 12), ((16, 2), 8)])
def test_rows_that_are_no_whole_blocks_are_damage(sizes: tuple[int, ...], code: int, tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [], [tensor("w", sizes, code)], bytes(288)), "'w': its rows have")


@pytest.mark.parametrize("sizes", [(1 << 63, 4), (1 << 32, 1 << 32), (1 << 60,), (0, 1 << 62, 8)])
def test_a_shape_that_overflows_is_damage(sizes: tuple[int, ...], tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [], [tensor("w", sizes)], ONE), "'w' has the shape .*exabytes")


@pytest.mark.parametrize("count", [65, 1 << 20, (1 << 32) - 1])
def test_more_dimensions_than_arrays_have_are_damage(count: int, tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [], [tensor("w", (1,) * 65, count=count)], ONE), "'w' has|claims")


def test_an_offset_that_is_not_aligned_is_damage(tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [], [tensor("w", (1,), offset=4)], ONE), "'w' begins at 4 .*not aligned to 32")


@pytest.mark.parametrize("offset", [32, 1 << 40, (1 << 64) - 32])
def test_a_tensor_past_the_end_is_truncated(offset: int, tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.gguf", [], [tensor("w", (1,), offset=offset)], ONE), "'w': bytes .* past", TRUNCATED)


def test_tensors_that_overlap_are_damage(tmp_path: Path) -> None:
    entries = [tensor("b", (16,), offset=32), tensor("a", (16,)), tensor("none", (0,), offset=32)]
    refused(forge(tmp_path / "a.gguf", [], entries, bytes(96)), "the tensors 'a' and 'b' overlap")
    fine = [entries[0], tensor("a", (8,)), entries[2]]
    assert list(statedict.load(forge(tmp_path / "b.gguf", [], fine, bytes(96)))) == ["b", "a", "none"]


def test_every_cut_of_a_file_is_an_error_of_ours(tmp_path: Path) -> None:
    pairs = [
        pair("a", 8, text("b")),
        pair("c", 9, array(8, 2, text("d") + text("e"))),
        pair("f", 9, array(4, 2, bytes(8))),
    ]
    path = forge(tmp_path / "a.gguf", pairs, [tensor("w", (32, 2), 2)], bytes(36))
    whole = path.read_bytes()
    assert statedict.load(path)["w"].numpy().shape == (2, 32)
    for size in range(4, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CORRUPT):
            statedict.load(path)


def test_a_file_that_is_both_gguf_and_a_tar_archive_is_refused(tmp_path: Path) -> None:
    name = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a")[:8] + b"a"
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    header[: len(name)] = name
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "a.gguf"
    path.write_bytes(header)
    with pytest.raises(CORRUPT, match="begins as torch-legacy and as gguf"):
        statedict.load(path)
