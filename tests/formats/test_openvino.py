"""OpenVINO's models; the one in data/openvino is of openvino 2026.4.1, made by tests/peers/openvino.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy
import pytest

import statedict
from statedict.errors import CorruptFileError, LimitError, MissingFileError, UnsupportedError

from ..peers.openvino import SHAPE, VALUES

DATA = Path(__file__).parent / "data" / "openvino"
DTYPES = {
    "f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16", "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2", "f8e8m0": "float8_e8m0fnu", "boolean": "bool", "f4e2m1": "float32", "nf4": "float32",
    "u1": "uint8", "u2": "uint8", "u4": "uint8", "i4": "int8", "u3": "u3", "u6": "u6",
} | {f"{sign}{bits}": f"{'u' * (sign == 'u')}int{bits}" for sign in "iu" for bits in (8, 16, 32, 64)}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_a_constant_of_every_type_has_its_numbers(kind: str) -> None:
    found = statedict.load(DATA / "model.xml")[f"layer.{kind}"]
    assert (found.dtype.name, found.shape) == (DTYPES[kind], SHAPE)
    if kind == "u3":
        assert bytes(found.raw()).hex() == "1f8721e1f808"
    elif kind == "u6":
        assert bytes(found.raw()).hex() == "1234ff5678ff9abcffdef0fc"
    else:
        assert found.numpy().astype("f8").tolist() == numpy.reshape(VALUES[kind], SHAPE).tolist()


def test_bodies_of_layers_have_their_place_and_shared_bytes_are_tied() -> None:
    state = statedict.load(DATA)
    assert next(iter(state)) == "tied"
    assert list(state["subgraphs"].flatten()) == ["branch/then_body.yes", "branch/else_body.no"]
    first = state["tied"]
    assert state["layer.f32"].region == first.region == state["subgraphs"]["branch/else_body"]["no"].region
    assert state["layer.u8"].region != first.region


def test_what_the_model_says_of_itself_is_the_metadata() -> None:
    metadata = statedict.load(DATA).metadata
    assert metadata["nncf.weight_compression.mode"] == "int4_asym"
    assert metadata["info"].startswith("2026.4.1")


def test_a_model_is_shown_with_the_types_and_bytes_of_the_file() -> None:
    sizes = {info.path: (info.dtype, info.nbytes) for info in statedict.inspect(DATA).tensors}
    assert sizes["layer.i4"] == ("int4", 8)
    assert sizes["layer.u1"] == ("u1", 2)
    assert sizes["layer.u3"] == ("u3", 6)
    report = statedict.verify(DATA)
    assert report.ok
    assert report.unread == ()


def test_a_model_goes_to_safetensors(tmp_path: Path) -> None:
    state = statedict.load(DATA)
    statedict.save(
        {key: state[key] for key in state if key not in ("layer.u3", "layer.u6")}, tmp_path / "x.safetensors"
    )
    assert statedict.load(tmp_path / "x.safetensors")["layer.nf4"].dtype == "float32"
    assert statedict.stats(DATA / "model.xml").tensors[0].max == 6
    assert statedict.scan(DATA / "model.xml").verdict == "data"


def xml(data: str = 'element_type="f32" shape="3" offset="0" size="12"', more: str = "") -> str:
    layer = f'<layer id="1" name="w" type="Const"><data {data}/></layer>'
    return f'<?xml version="1.0"?>\n<net name="m" version="11"><layers>{layer}{more}</layers></net>\n'


def put(folder: Path, text: str, size: int = 12) -> Path:
    (folder / "x.xml").write_text(text)
    (folder / "x.bin").write_bytes(bytes(size))
    return folder / "x.xml"


WRONG = {
    "cut": (xml()[:-8], CorruptFileError, "is not XML"),
    "a document type": (
        xml().replace("<net", '<!DOCTYPE net [<!ENTITY a "b">]><net'), CorruptFileError, "has a document type",
    ),
    "another document": ("<?xml version='1.0'?>\n<html></html>", CorruptFileError, "a document of 'html'"),
    "lies outside": (xml('element_type="f32" shape="3" offset="4" size="12"'), CorruptFileError, "lie outside .*x.bin"),
    "size": (xml('element_type="f32" shape="4" offset="0" size="12"'), CorruptFileError, r"are not \[4\] of f32"),
    "negative": (xml('element_type="f32" shape="-3" offset="0" size="12"'), CorruptFileError, "a negative size"),
    "huge": (
        xml(f'element_type="f32" shape="{1 << 40},{1 << 40}" offset="0" size="1"'), CorruptFileError, "over 8 exabytes",
    ),
    "no number": (xml('element_type="f32" shape="3" offset="a" size="12"'), CorruptFileError, "described wrongly"),
    "no offset": (xml('element_type="f32" shape="3"'), CorruptFileError, "described wrongly"),
    "type": (xml('element_type="f9" shape="3" offset="0" size="12"'), UnsupportedError, "the type 'f9'"),
    "deep": (xml(more="<layer>" + "<a>" * 100), LimitError, "nested over 64 deep"),
    "layers in a layer": (xml(more="<layer><layers></layers></layer>"), CorruptFileError, "layers outside of a body"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_model_is_an_error_that_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    text, kind, message = WRONG[name]
    with pytest.raises(kind, match=message) as caught:
        statedict.load(put(tmp_path, text), format="openvino")
    assert str(tmp_path / "x.xml") in str(caught.value)


def test_a_model_without_its_weights_names_them(tmp_path: Path) -> None:
    shutil.copy(DATA / "model.xml", tmp_path)
    with pytest.raises(MissingFileError, match=r"model\.bin"):
        statedict.load(tmp_path / "model.xml")


def test_layers_of_one_name_are_told_apart_by_their_number(tmp_path: Path) -> None:
    again = '<layer id="2" name="w" type="Const"><data element_type="u8" shape="" offset="0" size="1"/></layer>'
    state = statedict.load(put(tmp_path, xml(more=again)))
    assert {name: tensor.shape for name, tensor in state.items()} == {"w": (3,), "w.2": ()}
