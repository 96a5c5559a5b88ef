"""Each way in which a safetensors file can be wrong, and its error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import statedict

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def made(folder: Path, header: Any, data: bytes = bytes(8), length: int | None = None) -> Path:
    """A file of a header, given as bytes or as what JSON makes of it, and data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "made.safetensors"
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def refused(path: Path, message: str, kind: type[Exception] = statedict.errors.CorruptFileError) -> None:
    with pytest.raises(kind, match=message) as caught:
        statedict.load(path, format="safetensors")
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_file_of_less_than_8_bytes_is_truncated(length: int, tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0"[:length])
    refused(path, f"{length} bytes are too few .* truncated")


@pytest.mark.parametrize("length", [200, 1 << 39, 1 << 63, (1 << 64) - 1])
def test_a_header_longer_than_the_file_is_truncated_and_nothing_is_allocated_for_it(
    length: int, tmp_path: Path
) -> None:
    refused(made(tmp_path, {"w": F32}, length=length), f"the header claims {length:,} bytes, the file has .* truncated")


@pytest.mark.parametrize("length", [0, 1, 2, 20])
def test_a_header_shorter_than_its_json_is_no_json(length: int, tmp_path: Path) -> None:
    refused(made(tmp_path, {"w": F32}, length=length), "the header is not JSON")


@pytest.mark.parametrize(
    "raw",
    [b'{"w\xff": {}}', b"{", b'{"w": }', b"nothing", b"[" * 100_000, b'{"a":' * 100_000, b"\xef\xbb\xbf{}"],
    ids=["not utf-8", "open", "no value", "word", "deep list", "deep object", "byte order mark"],
)
def test_a_header_that_is_no_json_is_refused(raw: bytes, tmp_path: Path) -> None:
    refused(made(tmp_path, raw), "the header is not JSON .* damaged")


def test_a_header_that_is_another_json_is_refused(tmp_path: Path) -> None:
    refused(made(tmp_path, [F32]), "the header is a JSON list, not an object")
    refused(made(tmp_path, 5), "the header is a JSON int, not an object")


@pytest.mark.parametrize(
    "metadata", [[], "text", {"epoch": 3}, {"nested": {}}], ids=["list", "string", "number", "nested"]
)
def test_metadata_that_are_no_strings_are_refused(metadata: Any, tmp_path: Path) -> None:
    refused(made(tmp_path, {"__metadata__": metadata, "w": F32}), "__metadata__ is not a dict of strings")


def test_metadata_of_null_is_none_as_for_safetensors(tmp_path: Path) -> None:
    path = made(tmp_path, {"__metadata__": None, "w": F32})
    with safe_open(path, "pt") as theirs:
        assert theirs.metadata() is None
    state = statedict.load(path)
    assert list(state) == ["w"]
    assert state.metadata == {}
    assert statedict.verify(path).ok


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "F32",
        {},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 8]},
        F32 | {"shape": 2},
        F32 | {"shape": None},
        F32 | {"shape": "2"},
        F32 | {"shape": [-2]},
        F32 | {"shape": [-1, -2]},
        F32 | {"shape": [2.0]},
        F32 | {"shape": [True, 2]},
        F32 | {"shape": [[2]]},
        F32 | {"data_offsets": [0]},
        F32 | {"data_offsets": [0, 8, 8]},
        F32 | {"data_offsets": [8, 0]},
        F32 | {"data_offsets": [-8, 0]},
        F32 | {"data_offsets": [0.0, 8.0]},
        F32 | {"data_offsets": [False, 8]},
        F32 | {"data_offsets": "08"},
    ],
    ids=json.dumps,
)
def test_a_tensor_that_is_described_wrongly_is_named(entry: Any, tmp_path: Path) -> None:
    refused(made(tmp_path, {"layers.0.w": entry}), r"tensor 'layers\.0\.w' is described wrongly .* damaged")


@pytest.mark.parametrize(
    "shape", [[3], [1], [], [2, 2], [1 << 32, 1 << 32], [1 << 62, 4], [1 << 64], [1 << 63, 1 << 63, 2]], ids=str
)
def test_a_shape_that_takes_other_bytes_than_its_range_is_refused_however_large(
    shape: list[int], tmp_path: Path
) -> None:
    refused(
        made(tmp_path, {"w": F32 | {"shape": shape}}),
        r"tensor 'w': float32 of shape .* takes [\d,]+ bytes, data_offsets give 8",
    )


def test_a_range_past_the_end_is_truncated(tmp_path: Path) -> None:
    refused(
        made(tmp_path, {"w": F32}, bytes(7)),
        r"tensor 'w': bytes .* lie past the end of the file .* truncated, fetch it again",
    )


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    other = {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}
    refused(made(tmp_path, {"w": F32, "x": other}, bytes(12)), r"the tensors overlap at data byte 4 \(to 8\)")
    refused(made(tmp_path, {"w": F32, "x": F32}), "the tensors overlap at data byte 0")


@pytest.mark.parametrize(
    ("begin", "size", "at"),
    [(8, 16, "0 (to 8)"), (0, 9, "8 (to 9)"), (0, 1000, "8 (to 1,000)")],
    ids=["front", "one", "appended"],
)
def test_bytes_that_belong_to_no_tensor_are_refused(begin: int, size: int, at: str, tmp_path: Path) -> None:
    path = made(tmp_path, {"w": F32 | {"data_offsets": [begin, begin + 8]}}, bytes(size))
    refused(path, f"the tensors leave a hole at data byte {at}".replace("(", r"\(").replace(")", r"\)"))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    entry = json.dumps(F32)
    refused(made(tmp_path, f'{{"w": {entry}, "w": {entry}}}'.encode()), "key 'w' stands twice")
    twice = f'{{"__metadata__": {{"a": "1"}}, "__metadata__": {{"b": "2"}}, "w": {entry}}}'.encode()
    refused(made(tmp_path, twice), "key '__metadata__' stands twice")
    field = b'{"w": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}'
    refused(made(tmp_path, field), "key 'dtype' stands twice")


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (r'{"w":E,"\u0077":{"\u0064type":"F32","\u0073hape":[2],"data_offset\u0073":[0,8]}}', "w"),
        (r'{"w":{"dtype":"I32","\u0064type":"F32","shape":[2],"data_offsets":[0,8]}}', "dtype"),
        (r'{"__metadata__":{"a":"1","a":"2"},"w":E}', "a"),
        (r'{"__metadata__":{"a\\":"1","\u0061\\":"2"},"w":E}', "a\\"),
        (r'{"__metadata__":{"a\"":"1","\u0061\"":"2"},"w":E}', 'a"'),
        (r'{"__metadata__":{"a:\":":"1", "a:\u0022:" : "2"},"w":E}', 'a:":'),
        ('{"__metadata__":{"a" \n: "1","a"\t\r:"2"},"w":E}', "a"),
        (r'{"__metadata__":{"a":"1"},"__metadat\u0061__":{"b":"2"},"w":E}', "__metadata__"),
        (r'{"__metadata__":null,"__metadat\u0061__":{"b":"2"},"w":E}', "__metadata__"),
        (r'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":{"a":1,"a":2}}}', "a"),
        (r'{"x":"abc","w":E,"\u0077":E}', "w"),
    ],
)
def test_a_key_that_stands_twice_is_refused_however_it_is_escaped(header: str, key: str, tmp_path: Path) -> None:
    refused(made(tmp_path, header.replace("E", json.dumps(F32)).encode()), re.escape(f"key {key!r} stands twice"))


@pytest.mark.parametrize(
    "tree", [r'{"w":{"$tensor":"w"},"\\u0077":1}', r'{"w":{"$tensor":"w","\\u0024tensor":"w"}}', '{"w":1,"w":2}']
)
def test_a_key_that_stands_twice_in_a_skeleton_is_refused(tree: str, tmp_path: Path) -> None:
    text = '{"version":1,"tree":' + tree.replace("\\\\", "\\") + "}"
    refused(made(tmp_path, {"__metadata__": {"statedict": text}, "w": F32}), "skeleton .* stands twice")


@pytest.mark.parametrize(
    "header",
    [r'{"\ud800":E}', r'{"w":E,"__metadata__":{"\uDfff":""}}', r'{"w":E,"__metadata__":{"a":"x\udc00\ud800"}}'],
)
def test_half_of_a_surrogate_pair_is_no_text(header: str, tmp_path: Path) -> None:
    refused(made(tmp_path, header.replace("E", json.dumps(F32)).encode()), "half of a surrogate pair")


def test_both_halves_of_a_surrogate_pair_are_a_name(tmp_path: Path) -> None:
    path = made(tmp_path, rb'{"\ud83d\ude00\\ud800:":' + json.dumps(F32).encode() + b"}")
    assert list(statedict.load(path)) == ["\U0001f600\\ud800:"]


@pytest.mark.parametrize("code", ["", None, 5, ["F32"], {"F32": 1}], ids=str)
def test_a_dtype_that_is_no_name_is_refused(code: Any, tmp_path: Path) -> None:
    refused(made(tmp_path, {"w": F32 | {"dtype": code}}), "tensor 'w'", statedict.errors.FormatError)


def test_half_a_pair_of_4_bit_floats_is_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}
    refused(made(tmp_path, {"w": entry}, bytes(2)), r"tensor 'w': .* takes 1\.5 bytes, data_offsets give 2")


# the skeleton


def skeleton(tree: Any, version: Any = 1) -> dict[str, Any]:
    return {"__metadata__": {"statedict": json.dumps({"version": version, "tree": tree})}, "w": F32}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", '{"version": 1}', "[" * 50_000], ids=[0, 1, 2, 3, 4, 5, "deep"]
)
def test_a_skeleton_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    refused(made(tmp_path, {"__metadata__": {"statedict": text}, "w": F32}), "skeleton", statedict.errors.FormatError)


def test_a_skeleton_of_a_later_version_says_so(tmp_path: Path) -> None:
    refused(
        made(tmp_path, skeleton({}, 3)),
        "its skeleton has version 3; a newer version may read it",
        statedict.errors.FormatError,
    )


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"$tensor": "nothing"}},
        {"a": {"$tensor": ["w"]}},
        {"a": {"$tensor": "w", "dtype": "bits16"}},
        {"a": {"$tensor": "w", "dtype": "nothing"}},
        {"a": {"$unknown": 1}},
        {"a": {"$tuple": 5}},
        {"a": {"$dict": [[1]]}},
        {"a": {"$dict": [[{"$set": []}, 1]]}},
        {"a": {"$dict": {"b": 1}}},
        {"a": {"$opaque": "x", "nonsense": 1}},
        {"a": {"$int": 5}},
        {"a": {"$float": "x"}},
        {"a": {"$bytes": "?"}},
        {"a": {"$size": ["x"]}},
        {"a": {"$set": [{"$dict": []}]}},
        {"a": {"$dtype": 33}},
    ],
    ids=json.dumps,
)
def test_a_skeleton_that_makes_no_sense_is_refused(tree: Any, tmp_path: Path) -> None:
    refused(made(tmp_path, skeleton(tree)), "skeleton under 'statedict' is damaged")


def test_a_tensor_that_the_skeleton_does_not_name_is_not_lost_in_silence(tmp_path: Path) -> None:
    refused(made(tmp_path, skeleton({"epoch": 3})), "tensor 'w' is not in the skeleton")


def test_a_file_cut_inside_its_data_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    statedict.save({"model": {"w": torch.ones(4)}, "epoch": 1}, path)
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, r"tensor 'model\.w': .*fetch it again")


def test_a_dtype_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    header = rb'{"w":{"dtype":"\ud800","shape":[1],"data_offsets":[0,1]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    with pytest.raises(statedict.errors.FormatError, match="surrogate pair"):
        statedict.load(path)
