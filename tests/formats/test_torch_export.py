"""Archives of torch.export.save: weights and constants by name, and no graph."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
from statedict.testing.same import assert_same

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:No complete tensor found:UserWarning")


RECORDED = Path(__file__).parent / "data" / "export.pt2"
"""Written by this file as a program, with PyTorch 2.13.0; releases before 2.8 write another kind."""


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(12.0, 24.0).reshape(4, 3))
            self.linear.bias.copy_(torch.arange(4.0))
        self.tall = torch.nn.Parameter(torch.arange(6).bfloat16().reshape(2, 3).T, requires_grad=False)
        self.tied = self.linear.weight
        self.register_buffer("table", torch.arange(4))
        self.constant = torch.arange(7.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).sum() + self.tall.sum() * self.constant[0] + self.table.sum() + self.tied.sum()


def exported(path: Path) -> Path:
    torch.export.save(torch.export.export(Model(), (torch.ones(2, 3),)), path)
    return path


@pytest.fixture(scope="module", params=["recorded", "of the installed release"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    """Two archives, the second one only where the installed PyTorch writes this kind."""
    path = RECORDED if request.param == "recorded" else exported(tmp_path_factory.mktemp("export") / "m.pt2")
    with zipfile.ZipFile(path) as file:
        this_kind = any(name.endswith("weights_config.json") for name in file.namelist())
    return path if this_kind else RECORDED, Model()


def test_an_archive_of_an_older_release_opens_as_the_files_that_are_in_it(tmp_path: Path) -> None:
    state = statedict.load(exported(tmp_path / "m.pt2"))
    if "serialized_state_dict.pt" in state:
        weights, expected = state["serialized_state_dict.pt"], Model().state_dict()
        assert weights.keys() == expected.keys()
        assert_same({name: weights[name] for name in expected}, dict(expected), flags=False)
        assert_same(state["serialized_constants.pt"], {"constant": Model().constant})
    else:  # since PyTorch 2.8
        assert_same(state, statedict.load(RECORDED))
    assert statedict.verify(tmp_path / "m.pt2").ok
    assert statedict.scan(tmp_path / "m.pt2").verdict == "data"


def repacked(path: Path, into: Path, change: Callable[[Any], None], **options: Any) -> Path:
    """The archive with other descriptions of its weights."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(into, "w", **options) as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("weights_config.json"):
                described = json.loads(data)
                change(described["config"])
                data = json.dumps(described).encode()
            new.writestr(info.filename, data)
    return into


def test_parameters_buffers_and_constants_are_told_apart() -> None:
    roles = {tensor.path: tensor.role for tensor in statedict.inspect(RECORDED).tensors}
    assert {path for path, role in roles.items() if role == "parameter"} == {
        "linear.weight", "linear.bias", "tall", "tied"
    }  # fmt: skip
    assert roles["table"] == "buffer"
    assert (roles["constants.constant"], roles["sample_inputs.0.0"]) == ("tensor", "tensor")


def test_weights_and_constants_have_their_names_and_values(archive: tuple[Path, Model]) -> None:
    path, model = archive
    state = statedict.load(path)
    expected = dict(model.state_dict())
    assert_same({name: state[name] for name in expected}, expected, flags=False)
    assert state["linear.weight"].parameter
    assert state["linear.weight"].requires_grad
    assert not state["tall"].requires_grad
    assert not state["table"].parameter
    assert state["tied"].storage is state["linear.weight"].storage
    assert_same(state["constants"], {"constant": model.constant})
    assert state.at("sample_inputs.0.0").shape == (2, 3)
    Model().load_state_dict({name: state[name] for name in expected})


def test_it_opens_without_pytorch(archive: tuple[Path, Model]) -> None:
    code = "import sys; sys.modules['torch'] = None; import statedict; print(*statedict.load(sys.argv[1]).tensors())"
    done = subprocess.run([sys.executable, "-c", code, str(archive[0])], capture_output=True, text=True, check=True)
    assert "linear.weight" in done.stdout.split()


def test_a_flipped_byte_is_found_and_its_tensors_are_named(archive: tuple[Path, Model], tmp_path: Path) -> None:
    path, model = archive
    assert statedict.verify(path).ok
    data = bytearray(path.read_bytes())
    data[data.index(model.constant.numpy().tobytes()) + 5] ^= 1
    (tmp_path / "m.pt2").write_bytes(data)
    assert "constants.constant" in str(statedict.verify(tmp_path / "m.pt2"))


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["tall"].update(path_name="weight_9"),
        lambda config: config["tall"].update(path_name="../weights/weight_0"),
        lambda config: config["tall"].update(path_name=3),
        lambda config: config["tall"].update(use_pickle=True),
        lambda config: config["tall"].update(tensor_meta=None),
        lambda config: config["tall"]["tensor_meta"].update(dtype=0),
        lambda config: config["tall"]["tensor_meta"].update(sizes=[{"as_int": 1 << 40}] * 2),
        lambda config: config["tall"]["tensor_meta"].update(storage_offset={"as_int": -1}),
        lambda config: config.update(tall=3),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    change: Callable[[Any], None], archive: tuple[Path, Model], tmp_path: Path
) -> None:
    with pytest.raises(statedict.errors.FormatError):
        statedict.load(repacked(archive[0], tmp_path / "m.pt2", change))


def test_descriptions_that_are_compressed_are_not_unpacked(archive: tuple[Path, Model], tmp_path: Path) -> None:
    path = repacked(archive[0], tmp_path / "m.pt2", lambda config: None, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(statedict.errors.CorruptFileError, match="compressed"):
        statedict.load(path)


def test_another_archive_is_none(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(statedict.errors.UnknownFormatError, match=r"torch\.export did not write"):
        statedict.load(tmp_path / "w.pth", format="torch-export")


def test_a_code_of_a_dtype_that_is_in_no_table_is_bytes_under_that_code(
    archive: tuple[Path, Model], tmp_path: Path
) -> None:
    def change(config: Any) -> None:
        config["tall"]["tensor_meta"].update(dtype=99)

    path, model = archive
    found = statedict.load(repacked(path, tmp_path / "m.pt2", change))["tall"]
    assert (str(found.dtype), found.shape) == ("ScalarType 99", tuple(model.state_dict()["tall"].shape))
    assert len(found.raw()) == found.nbytes == found.storage.nbytes


if __name__ == "__main__":
    exported(RECORDED)
