"""Flax's msgpack; the files in data/flax are of flax 0.12.8, made by tests/peers/flax.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy
import pytest
import torch

import statedict
from statedict.errors import CorruptFileError, LimitError, StateDictError, TruncatedError, UnsupportedError
from statedict.formats import flax

from ..peers.flax import KINDS
from ..work import bytes_read
from .conftest import flax_restore

DATA = Path(__file__).parent / "data" / "flax"
PLAIN: dict[str, Any] = {
    "none": None, "true": True, "int": 3, "large": 2**40, "negative": -70_000, "float": 0.5, "complex": 1 + 2j,
    "text": "λ" * 40, "bytes": b"\0\1", "empty": {},
}  # fmt: skip


def test_the_state_of_a_training_is_a_tree_of_tensors() -> None:
    state = statedict.load(DATA / "training.msgpack")
    assert list(state) == ["step", "params", "opt_state"]
    kernel = state["params"]["Conv_0"]["kernel"]
    assert (kernel.dtype.name, kernel.shape) == ("float32", (3, 3, 1, 4))
    assert state["params"]["Dense_0"]["kernel"].dtype.name == "bfloat16"
    assert state.at("opt_state.0.mu.Dense_0.bias").tolist() == pytest.approx([0.1] * 3, rel=0.01)
    assert statedict.verify(DATA / "training.msgpack").ok


def test_arrays_of_every_dtype_have_the_bits_that_flax_wrote() -> None:
    state = statedict.load(DATA / "arrays.msgpack")
    assert list(state) == list(KINDS)
    for kind, tensor in state.items():
        array = (numpy.arange(6) % 2).astype(getattr(ml_dtypes, kind, kind)).reshape(2, 3)
        assert (tensor.dtype.name, tensor.shape, bytes(tensor.raw())) == (kind, (2, 3), array.tobytes())


def test_plain_values_are_themselves_and_scalars_of_numpy_tensors() -> None:
    state = statedict.load(DATA / "plain.msgpack")
    assert {name: state[name] for name in PLAIN} == PLAIN
    assert [type(state[name]) for name in PLAIN if name != "empty"] == [type(PLAIN[name]) for name in PLAIN][:-1]
    assert (state["scalar"].shape, state["scalar"].item()) == ((), 7)
    assert state["none of it"].shape == (0, 3)
    assert state["many"] == {f"layer {index}": index for index in range(20)}
    assert (state["int4"].dtype.kind, bytes(state["int4"].raw())) == ("raw", b"\1\1\1")


def test_an_array_in_pieces_is_one_tensor() -> None:
    state = statedict.load(DATA / "pieces.msgpack")
    assert numpy.array_equal(state["w"].numpy(), numpy.arange(10, dtype="f4").reshape(2, 5))
    assert state["n"].item() == 1
    assert statedict.verify(DATA / "pieces.msgpack").ok


def test_an_array_alone_is_under_the_empty_key() -> None:
    assert statedict.load(DATA / "array.msgpack")[""].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["training", "arrays", "lists", "array"])
def test_a_file_is_written_as_flax_writes_it(name: str, tmp_path: Path) -> None:
    tree: Any = statedict.load(DATA / f"{name}.msgpack")
    if name == "lists":
        tree = {"a": [tree["a"]["0"], (2, 3)]}
    statedict.save(tree, tmp_path / "x.msgpack")
    assert (tmp_path / "x.msgpack").read_bytes() == (DATA / f"{name}.msgpack").read_bytes()


def test_plain_values_are_written_as_flax_writes_them(tmp_path: Path) -> None:
    statedict.save(PLAIN, tmp_path / "x.msgpack")
    theirs = msgpack.unpackb((DATA / "plain.msgpack").read_bytes(), ext_hook=msgpack.ExtType)
    ours = msgpack.unpackb((tmp_path / "x.msgpack").read_bytes(), ext_hook=msgpack.ExtType)
    assert ours == {name: theirs[name] for name in PLAIN}


def test_a_large_array_is_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax, "_CHUNK", 16)
    tree = {"w": torch.arange(10.0).reshape(2, 5), "n": torch.tensor(1)}
    statedict.save(tree, tmp_path / "x.msgpack")
    theirs = (DATA / "pieces.msgpack").read_bytes()
    assert (tmp_path / "x.msgpack").read_bytes()[: theirs.index(b"\xa1n")] == theirs[: theirs.index(b"\xa1n")]
    assert numpy.array_equal(statedict.load(tmp_path / "x.msgpack")["w"].numpy(), tree["w"].numpy())


def test_opening_reads_no_array(tmp_path: Path) -> None:
    tree = {f"layer {index}": torch.zeros(1_000_000) for index in range(5)}
    statedict.save(tree, tmp_path / "x.msgpack", fsync=False)
    assert bytes_read(lambda: statedict.load(tmp_path / "x.msgpack")) < 1 << 20


def test_a_model_goes_to_flax_s_format_and_back(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    statedict.save(model.state_dict(), tmp_path / "x.msgpack")
    theirs = flax_restore((tmp_path / "x.msgpack").read_bytes())
    assert {name: array.tolist() for name, array in theirs.items()} == {
        name: tensor.tolist() for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(statedict.load(tmp_path / "x.msgpack"))


ARRAY = msgpack.packb(((3,), "float32", bytes(12)))


def extension(data: bytes, code: int = 1) -> bytes:
    return bytes(msgpack.packb({"w": msgpack.ExtType(code, data)}))


DAMAGE: dict[str, tuple[bytes, type[Exception], str]] = {
    "cut": (extension(ARRAY)[:-1], TruncatedError, "ends within a value"),
    "more": (extension(ARRAY) + b"\0", CorruptFileError, "1 bytes follow the tree"),
    "twice": (b"\x82" + extension(ARRAY)[1:] * 2, CorruptFileError, "'w' stands twice"),
    "a list as a key": (b"\x82\xa1a" + extension(ARRAY)[3:] + b"\x90\1", CorruptFileError, r"\[\] is not a key"),
    "no UTF-8": (b"\x82\xa1a" + extension(ARRAY)[3:] + b"\xa1\xff\1", CorruptFileError, "is not UTF-8"),
    "no msgpack": (b"\x82\xa1a" + extension(ARRAY)[3:] + b"\xa1b\xc1", CorruptFileError, "is no msgpack"),
    "a type": (b"\x82\xa1a" + extension(ARRAY)[3:] + b"\xa1b\xd4\7\0", CorruptFileError, "a value of type 7"),
    "a complex number": (b"\x82\xa1a" + extension(ARRAY)[3:] + b"\xa1b\xd4\2\0", CorruptFileError, "complex number"),
    "shape": (extension(msgpack.packb(((-3,), "float32", bytes(12)))), CorruptFileError, r"the shape \[-3\]"),
    "size": (extension(msgpack.packb(((4,), "float32", bytes(12)))), CorruptFileError, "has 12 bytes"),
    "huge": (extension(msgpack.packb(((1 << 62, 4), "float32", bytes(12)))), CorruptFileError, "over 8 exabytes"),
    "dtype": (extension(msgpack.packb(((3,), "\n", bytes(12)))), CorruptFileError, r"the dtype '\\n'"),
    "no array": (extension(b"\x93" + msgpack.packb("x") * 3), CorruptFileError, "the shape 'x'"),
    "deep": (b"\x82\xa1a" + extension(ARRAY)[3:] + b"\xa1b" + b"\x91" * 500 + b"\1", LimitError, "nested over 200"),
    "long": (b"\x82\xa1a" + extension(ARRAY)[3:] + b"\xa1b\xdd\xff\xff\xff\xff\1", TruncatedError, "ends within"),
    "pieces": (
        msgpack.packb({"w": {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {}}}) + b"",
        StateDictError,
        "pieces of an array|looks like msgpack",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_an_error_that_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    data, kind, message = DAMAGE[name]
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(kind, match=message) as caught:
        statedict.load(tmp_path / "x", format="flax")
    assert str(tmp_path / "x") in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {1: 2}}, "a: the key 1 is a int"),
        ({"a": 2**70}, "a: Flax's msgpack holds no int"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn).view(torch.bits8)}, "a: Flax has no dtype bits8"),
        ({"a": {"b": torch.Size([2])}}, r"a\.b: Flax's msgpack holds no Size"),
    ],
)
def test_what_flax_cannot_hold_is_refused_before_a_byte_is_written(tree: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        statedict.save(tree, tmp_path / "x.msgpack")
    assert list(tmp_path.iterdir()) == []
