"""Odd headers: what the reference (the package safetensors) reads and refuses, and where we differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

import statedict
from statedict.errors import CorruptFileError, UnsupportedError
from statedict.tensor.lazy import LazyTensor

W = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def entry(dtype: str = '"F32"', shape: str = "[1]", offsets: str = "[0,4]", more: str = "") -> str:
    return f'{{"w":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}}}'


# a header, and how many bytes of data follow it
HEADERS: dict[str, tuple[str | bytes, int]] = {
    "an entry as an array": ('{"w":["F32",[1],[0,4]]}', 4),
    "an entry as an array of four": ('{"w":["F32",[1],[0,4],1]}', 4),
    "an entry as an array in another order": ('{"w":[[1],"F32",[0,4]]}', 4),
    "an array": ("[]", 0),
    "NaN as a size": (entry(shape="[NaN]"), 4),
    "-0 as an offset": (entry(offsets="[-0,4]"), 4),
    "-0 as a size": (entry(shape="[ -0 ]", offsets="[0,0]"), 0),
    "-1 as a size": (entry(shape="[-1]"), 4),
    "1.0 as a size": (entry(shape="[1.0]"), 4),
    "1e0 as a size": (entry(shape="[1e0]"), 4),
    "01 as a size": (entry(shape="[01]"), 4),
    "true as a size": (entry(shape="[true]"), 4),
    "2**64 as a size": (entry(shape=f"[{1 << 64}]"), 4),
    "sizes that overflow": (entry(shape="[4294967296,4294967296,4294967296]"), 4),
    "sizes that overflow, and 0": (entry(shape="[4294967296,4294967296,0]", offsets="[0,0]"), 0),
    "no shape": ('{"w":{"dtype":"F32","data_offsets":[0,4]}}', 4),
    "null as a shape": (entry(shape="null"), 4),
    "three offsets": (entry(offsets="[0,4,8]"), 4),
    "one offset": (entry(offsets="[4]"), 4),
    "offsets that go back": (entry(offsets="[4,0]"), 4),
    "a number as a dtype": (entry(dtype="10"), 4),
    "another key": (entry(more=',"x":1'), 4),
    "another key with -0": (entry(more=',"x":-0'), 4),
    "another key with 2**70": (entry(more=f',"x":{1 << 70}'), 4),
    "another key with NaN": (entry(more=',"x":NaN'), 4),
    "another key with half a surrogate pair": (entry(more=',"x":"\\ud800"'), 4),
    "a key twice in an entry": (entry(more=',"shape":[1]'), 4),
    "__metadata__ twice": (f'{{"__metadata__":{{}},"__metadata__":{{}},"w":{W}}}', 4),
    "__metadata__: null": (f'{{"__metadata__":null,"w":{W}}}', 4),
    "__metadata__ with a number": (f'{{"__metadata__":{{"a":1}},"w":{W}}}', 4),
    "__metadata__ with null": (f'{{"__metadata__":{{"a":null}},"w":{W}}}', 4),
    "__metadata__ as an array": (f'{{"__metadata__":[],"w":{W}}}', 4),
    "__metadata__ with text like -0": (f'{{"__metadata__":{{"a":"[-0]"}},"w":{W}}}', 4),
    "__metadata__ alone": ('{"__metadata__":{"a":"b"}}', 0),
    "nothing": ("{}", 0),
    "white space around it": (f'\n {{"w":{W}}} \n\t ', 4),
    "a NUL behind it": (f'{{"w":{W}}}\0', 4),
    "a byte order mark": (b"\xef\xbb\xbf" + f'{{"w":{W}}}'.encode(), 4),
    "a trailing comma": (f'{{"w":{W},}}', 4),
    "a comment": (f'{{/**/"w":{W}}}', 4),
    "an empty name": (f'{{"":{W}}}', 4),
    "a NUL in a name": (f'{{"a\\u0000b":{W}}}', 4),
    "a NUL in a name as it is": (f'{{"a\0b":{W}}}', 4),
    "half a surrogate pair": (f'{{"a\\ud800":{W}}}', 4),
    "a surrogate pair": (f'{{"a\\ud83d\\ude00":{W}}}', 4),
    "a name that is no UTF-8": (b'{"a\xff":' + W.encode() + b"}", 4),
    "F4": (entry('"F4"', "[2,4]"), 4),
    "F4 with an odd row": (entry('"F4"', "[2,3]", "[0,3]"), 3),
    "F4 with rows of one": (entry('"F4"', "[2,1]", "[0,1]"), 1),
    "F4 with half a byte": (entry('"F4"', "[3]", "[0,2]"), 2),
    "F4 with an odd row and too many bytes": (entry('"F4"', "[2,3]", "[0,6]"), 6),
    "F4 without dimensions": (entry('"F4"', "[]", "[0,1]"), 1),
    "F4 without rows": (entry('"F4"', "[0,3]", "[0,0]"), 0),
    "F6": (entry('"F6_E2M3"', "[4]", "[0,3]"), 3),
    "F6 with an odd row": (entry('"F6_E3M2"', "[2,2]", "[0,3]"), 3),
    "F6 with parts of a byte": (entry('"F6_E2M3"', "[3]", "[0,3]"), 3),
    "a BOOL of 2": (entry('"BOOL"', "[1]", "[0,1]"), 1),
    "a hole": (entry(offsets="[4,8]"), 8),
    "data behind the tensors": (entry(), 5),
    "an empty tensor within another": (f'{{"w":{W},"e":{{"dtype":"F32","shape":[0],"data_offsets":[2,2]}}}}', 4),
    "an empty tensor at the end": (f'{{"w":{W},"e":{{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}}}', 4),
}

# docs/format.md says why
DIFFERENT: dict[str, tuple[str | bytes, int]] = {
    "a tensor twice": (f'{{"w":{W},"w":{W}}}', 4),
    "a tensor twice, once escaped": (f'{{"w":{W},"\\u0077":{W}}}', 4),
    "a key twice in __metadata__": (f'{{"__metadata__":{{"a":"b","a":"c"}},"w":{W}}}', 4),
    "a key twice in another key": (entry(more=',"x":{"a":1,"a":2}'), 4),
    "a dtype as an object": (entry(dtype='{"F32":null}'), 4),
    "70 dimensions": (entry(shape=str([1] * 70)), 4),
    "an unknown dtype": (entry(dtype='"F5"'), 4),
    "another key that is nested too deep": (entry(more=f',"x":{"[" * 200}{"]" * 200}'), 4),
    "another key with 1e400": (entry(more=',"x":1e400'), 4),
}
WE_REFUSE = [*DIFFERENT][:6]


def made(folder: Path, header: str | bytes, size: int) -> Path:
    raw = header if isinstance(header, bytes) else header.encode()
    (folder / "x.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"\1" * size)
    return folder / "x.safetensors"


def theirs(path: Path) -> Any:
    """Names, shapes and metadata; None if the reference refuses the file."""
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return shapes, file.metadata() or {}
    except SafetensorError:
        return None


def ours(path: Path) -> Any:
    try:
        state = statedict.load(path, format="safetensors")
    except CorruptFileError:
        return None
    return {name: in_halves(tensor) for name, tensor in state.items()}, state.metadata


def in_halves(tensor: LazyTensor) -> tuple[int, ...]:
    """The shape in the header."""
    is_paired = tensor.dtype == "float4_e2m1fn_x2"
    return (*tensor.shape[:-1], 2 * tensor.shape[-1]) if is_paired else tuple(tensor.shape)


@pytest.mark.parametrize("name", list(HEADERS))
def test_a_header_is_read_or_refused_as_by_the_reference(name: str, tmp_path: Path) -> None:
    path = made(tmp_path, *HEADERS[name])
    assert ours(path) == theirs(path)


@pytest.mark.parametrize("name", list(DIFFERENT))
def test_where_we_differ_from_the_reference_is_known(name: str, tmp_path: Path) -> None:
    path = made(tmp_path, *DIFFERENT[name])
    assert (ours(path) is None, theirs(path) is None) == ((True, False) if name in WE_REFUSE else (False, True))


def test_an_odd_row_of_4_bits_is_bytes_that_are_copied_as_they_are(tmp_path: Path) -> None:
    path = made(tmp_path, *HEADERS["F4 with an odd row"])
    state = statedict.load(path)
    assert (str(state["w"].dtype), state["w"].shape, state["w"].raw()) == ("F4", (2, 3), b"\1\1\1")
    with pytest.raises(UnsupportedError):
        state["w"].torch()
    statedict.save(state, tmp_path / "y.safetensors")
    assert theirs(tmp_path / "y.safetensors")[0] == {"w": (2, 3)}
    assert statedict.load(tmp_path / "y.safetensors")["w"].raw() == b"\1\1\1"
