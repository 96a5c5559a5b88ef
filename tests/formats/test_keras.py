"""Files of Keras, made by keras 3.15.1; `kerases.py` makes the models."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy
import pytest
import torch

import statedict
from statedict.errors import CorruptFileError, MissingFileError, UnsupportedError
from statedict.render import report_text

from ..work import bytes_read
from . import kerases

MODELS = {"functional": kerases.functional, "sequential": kerases.sequential}
MODEL = [
    "encoder.kernel", "encoder.bias", "rnn.lstm_cell.kernel", "rnn.lstm_cell.recurrent_kernel", "rnn.lstm_cell.bias",
    "block.0", "block.block_0.kernel", "block.block_0.bias", "block.block_1.kernel", "block.block_1.bias",
    "block.inner.0", "block.inner.1",  # the group is called by the attribute, which tells no class
    "block.norm.gamma", "block.norm.beta", "block.norm.moving_mean", "block.norm.moving_variance",
    "head.kernel", "head.bias",
]  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, keras.Model]:
    return {name: make() for name, make in MODELS.items()}


@pytest.fixture(scope="module")
def folder(models: dict[str, keras.Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keras")
    for name, model in models.items():
        for suffix in (".keras", ".weights.h5", ".weights.json", ".h5"):
            kerases.save(model, path / f"{name}{suffix}")
    return path


def paths(state: Any) -> list[str]:
    return [path for path in state.tensors() if not path.startswith("optimizer.")]


@pytest.mark.parametrize("suffix", [".weights.h5", ".weights.json"])
def test_layers_have_the_names_that_the_user_gave(suffix: str, folder: Path) -> None:
    state = statedict.load(folder / f"functional{suffix}")
    assert sorted(paths(state)) == sorted(MODEL)
    assert (state.at("head.kernel").dtype.name, state.at("head.kernel").shape) == ("bfloat16", (4, 3))
    assert list(state["optimizer"])[:4] == ["iteration", "learning_rate", "2", "3"]


def test_a_configuration_orders_the_layers_and_names_their_variables(folder: Path) -> None:
    state = statedict.load(folder / "sequential.keras")
    assert paths(state)[:7] == [
        "stem.kernel", "stem.bias", "bn.beta", "bn.moving_mean", "bn.moving_variance", "hidden.kernel", "ln.gamma",
    ]  # fmt: skip
    assert [*state][4:15] == [f"dense_{index}" for index in range(11)]
    assert json.loads(state.metadata["config.json"])["class_name"] == "Sequential"


def test_a_configuration_names_the_state_of_the_optimizer_by_parameters(
    folder: Path, models: dict[str, keras.Model]
) -> None:
    state = statedict.load(folder / "sequential.keras")["optimizer"]
    variables = models["sequential"].optimizer.variables

    def theirs(name: str) -> Any:
        return next(kerases.array(variable) for variable in variables if variable.path.endswith(name))

    assert state["iteration"].item() == 1
    assert numpy.array_equal(state.at("momentum.stem.kernel").numpy(), theirs("stem_kernel_momentum"))
    assert numpy.array_equal(state.at("velocity.dense_10.bias").numpy(), theirs("dense_10_bias_velocity"))
    assert len(state.tensors()) == len(variables)


def test_a_state_whose_order_is_not_known_keeps_its_numbers(folder: Path) -> None:
    assert "2" in statedict.load(folder / "functional.keras")["optimizer"]


@pytest.mark.parametrize("name", MODELS)
def test_every_variable_has_the_bits_that_keras_holds(name: str, folder: Path, models: dict[str, keras.Model]) -> None:
    for suffix in (".keras", ".weights.h5", ".weights.json", ".h5"):
        state = statedict.load(folder / f"{name}{suffix}")
        saved = sorted(bytes(tensor.raw()) for tensor in state.tensors().values())
        seeds = [variable for variable in models[name].variables if "seed_generator" in variable.path]
        held = sorted(kerases.values(models[name]))
        for seed in seeds:  # which Keras does not save
            held.remove(kerases.array(seed).tobytes())
        assert saved == held
        assert statedict.verify(folder / f"{name}{suffix}").ok


def test_a_legacy_file_has_every_name_and_is_recognised_as_bfloat16(
    folder: Path, models: dict[str, keras.Model]
) -> None:
    state = statedict.load(folder / "functional.h5")
    model = models["functional"]
    expected = [variable.path.replace("/", ".") for variable in model.variables if "seed" not in variable.path]
    assert sorted(paths(state)) == sorted(expected)
    assert state.at("head.kernel").dtype.name == "bfloat16"
    kernel = next(v for v in model.optimizer.variables if v.path.endswith("/rnn_lstm_cell_bias_velocity"))
    assert numpy.array_equal(state.at("optimizer.velocity.rnn.lstm_cell.bias").numpy(), kerases.array(kernel))
    assert json.loads(state.metadata["model_config"])["class_name"] == "Functional"


def test_names_of_keras_2_lose_their_numbers_of_outputs(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = numpy.array([b"dense", b"lstm", b"flat"])
        for layer, names in (("dense", ["kernel", "bias"]), ("lstm", ["lstm_cell/kernel"]), ("flat", [])):
            group = weights.create_group(layer)
            group.attrs["weight_names"] = numpy.array([f"{layer}/{name}:0".encode() for name in names], "S40")
            for name in names:
                group[f"{layer}/{name}:0"] = numpy.ones(3, "f4")
        state = file.create_group("optimizer_weights")
        state.attrs["weight_names"] = numpy.array([b"Adam/iter:0", b"Adam/dense/kernel/m:0"])
        state["Adam/iter:0"], state["Adam/dense/kernel/m:0"] = 7, numpy.ones(3, "f4")
    found = statedict.load(tmp_path / "x.h5")
    assert list(found.tensors()) == [
        "dense.kernel", "dense.bias", "lstm.lstm_cell.kernel", "optimizer.iter", "optimizer.dense.kernel.m",
    ]  # fmt: skip


def test_a_long_list_of_names_is_in_several_attributes(tmp_path: Path) -> None:
    names = [f"layer_{index}_{'x' * 90}" for index in range(1000)]
    statedict.save({name: {"kernel": torch.ones(1)} for name in names}, tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        assert "layer_names0" in file.attrs
        assert "layer_names" not in file.attrs
    assert list(statedict.load(tmp_path / "x.h5")) == names


def test_a_file_without_names_has_those_of_its_groups(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:  # as Keras wrote it before it kept names
        for layer in ("layers/dense", "layers/dense_10", "layers/dense_2", "layers/lstm/cell", "layers/block/dense"):
            file[f"{layer}/vars/0"] = numpy.ones((2, 2), "f4")
            file[f"{layer}/vars/1"] = numpy.ones(2, "f4")
    assert list(statedict.load(tmp_path / "x.weights.h5").tensors()) == [
        "block/dense.kernel", "block/dense.bias", "dense.kernel", "dense.bias", "dense_2.kernel", "dense_2.bias",
        "dense_10.kernel", "dense_10.bias", "lstm.cell.kernel", "lstm.cell.recurrent_kernel",
    ]  # fmt: skip


def test_layers_that_share_a_name_are_told_apart_by_their_groups(tmp_path: Path) -> None:
    source = keras.Input((2,))
    model = keras.Model(source, kerases.Block(name="b")(source))
    for index, block in enumerate(model.layers[1].blocks):
        block.name = "same"
        block.kernel.assign(numpy.full((4, 4), index))
    state = statedict.load(kerases.save(model, tmp_path / "x.weights.h5"))["b"]
    assert [*state] == ["0", "blocks/dense", "blocks/dense_1", "inner", "norm"]
    assert state["blocks/dense_1"]["kernel"].numpy().max() == 1


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".weights.json"])
@pytest.mark.parametrize("name", MODELS)
def test_what_was_read_is_written_so_that_keras_finds_the_same_bits(
    name: str, suffix: str, folder: Path, models: dict[str, keras.Model], tmp_path: Path
) -> None:
    statedict.save(statedict.load(folder / f"{name}{suffix}"), tmp_path / "x.weights.h5")
    twin = MODELS[name]()
    kerases.clear(twin)
    twin.load_weights(tmp_path / "x.weights.h5")
    seeds = [index for index, variable in enumerate(models[name].variables) if "seed" in variable.path]
    held = [values for index, values in enumerate(kerases.values(models[name])) if index not in seeds]
    assert [values for index, values in enumerate(kerases.values(twin)) if index not in seeds] == held


def test_the_same_tree_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        statedict.save(statedict.load(folder / "functional.weights.h5"), tmp_path / f"{name}.weights.h5")
    first = (tmp_path / "a.weights.h5").read_bytes()
    assert first == (tmp_path / "b.weights.h5").read_bytes()
    statedict.save(statedict.load(tmp_path / "a.weights.h5"), tmp_path / "b.weights.h5")
    assert first == (tmp_path / "b.weights.h5").read_bytes()


def test_names_that_keras_gives_tell_where_layers_belong(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4, 2)), keras.layers.LSTM(3), keras.layers.Dense(2), keras.layers.Dense(2)])
    attention = keras.layers.MultiHeadAttention(2, 2)
    attention.build((1, 3, 4), (1, 3, 4))
    cell = model.layers[0].cell
    tree = {
        "dense_7": {"bias": torch.full((2,), 4.0), "kernel": torch.full((2, 2), 3.0)},
        "dense_6": {"kernel": torch.full((3, 2), 1.0), "bias": torch.full((2,), 2.0)},
        "lstm_3": {"lstm_cell": {v.name: torch.full(tuple(v.shape), 5.0) for v in cell.trainable_variables}},
    }
    statedict.save(tree, tmp_path / "x.weights.h5")
    model.load_weights(tmp_path / "x.weights.h5")
    assert [kerases.array(variable).max() for variable in model.variables if "seed" not in variable.path] == [
        5,
        5,
        5,
        1,
        2,
        3,
        4,
    ]


def test_keras_loads_a_file_by_the_names_of_layers(tmp_path: Path) -> None:
    model = kerases.sequential()
    held = {variable.path: kerases.array(variable) for variable in model.variables}
    tree: dict[str, Any] = {}
    for path, value in reversed(held.items()):
        *_, layer, name = path.split("/")  # the model's name may stand before
        tree[layer] = {name: value} | tree.get(layer, {})
    statedict.save(tree, tmp_path / "x.h5")
    kerases.clear(model)
    model.load_weights(tmp_path / "x.h5", by_name=True)
    assert all(numpy.array_equal(kerases.array(variable), held[variable.path]) for variable in model.variables)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"encoder": {"kernel": torch.ones(2, 2)}}, "encoder: Keras looks for weights by class and order"),
        ({"dense": {"weight": torch.ones(2, 2)}}, "dense: Keras looks for weights by class and order"),
        ({"dense": {"kernel": torch.ones(2, 2).to(torch.float8_e5m2)}}, r"dense\.kernel: Keras loads no float8_e5m2"),
        ({"dense": {"kernel": torch.ones(2, 2)}, "epoch": 3}, r"epoch: Keras's weights are tensors, not 3 \(int\)"),
        ({"optimizer": {"momentum": {"w": torch.ones(1)}}}, r"optimizer\.momentum\.w: no layer of the file"),
        ({"a/b": torch.ones(1)}, "'a/b' is no name in HDF5"),
        ({1: torch.ones(1)}, "1 is no name in HDF5"),
        ([torch.ones(1)], r"a \.weights\.h5 holds a dict of layers, not a list|'' is no name|: Keras's weights"),
    ],
)
def test_what_keras_cannot_load_is_refused_before_a_byte_is_written(tree: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        statedict.save(tree, tmp_path / "x.weights.h5")
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_was_renamed_has_no_place(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"coder\.kernel: no layer of the file that the tree was read from"):
        statedict.edit(folder / "functional.weights.h5", tmp_path / "x.weights.h5", [{"rename": {"encoder": "coder"}}])


def test_an_altered_file_is_one_of_keras(folder: Path, tmp_path: Path) -> None:
    statedict.edit(folder / "functional.keras", tmp_path / "x.weights.h5", [{"cast": "float16"}, {"drop": "optimizer"}])
    twin = kerases.functional()
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        twin.load_weights(tmp_path / "x.weights.h5")
    expected = statedict.load(folder / "functional.keras").at("encoder.kernel").numpy()
    assert numpy.array_equal(kerases.array(twin.get_layer("encoder").kernel), expected.astype("f2").astype("f4"))


def test_vocabularies_are_texts(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        kerases.save(kerases.sequential(), tmp_path / "x.weights.h5")
        archive.write(tmp_path / "x.weights.h5", "model.weights.h5")
        archive.writestr("config.json", "{}")
        archive.writestr("assets/layers/lookup/vocabulary.txt", "a\nb\n")
    assert statedict.load(tmp_path / "x.keras")["assets"] == {"layers/lookup/vocabulary.txt": "a\nb\n"}


def test_a_folder_of_keras_opens_by_its_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "functional.weights.h5", tmp_path / "model.weights.h5")
    assert sorted(paths(statedict.load(tmp_path))) == sorted(MODEL)


def test_opening_reads_no_variable(tmp_path: Path) -> None:
    tree = {f"dense_{index}": {"kernel": torch.zeros(1000, 1000)} for index in range(5)}
    statedict.save(tree, tmp_path / "x.weights.h5", fsync=False)
    assert bytes_read(lambda: statedict.load(tmp_path / "x.weights.h5")) < 1 << 20


def test_shards_that_are_missing_or_do_not_fit_are_errors(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "c")
    index = tmp_path / "c" / "sequential.weights.json"
    content = json.loads(index.read_text())
    content["metadata"]["total_size"] += 4
    index.write_text(json.dumps(content))
    assert "total_size" in str(statedict.verify(index))
    content["weight_map"]["/layers/other/vars"] = ["sequential_00000.weights.h5"]
    index.write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match="says that /layers/other/vars is in sequential_00000"):
        statedict.load(index)
    (tmp_path / "c" / "sequential_00001.weights.h5").unlink()
    with pytest.raises(MissingFileError, match=r"sequential_00001\.weights\.h5"):
        statedict.load(index)
    index.write_text('{"weight_map": {"/layers/other/vars": 3}}')
    with pytest.raises(CorruptFileError, match="does not map groups to files"):
        statedict.load(index)
    index.write_text('{"weight_map": {"/layers/other/vars": ["../x.weights.h5"]}}')
    with pytest.raises(statedict.errors.FormatError, match="lies outside of the folder"):
        statedict.load(index)


def test_a_variable_in_two_shards_is_an_error(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(folder / "sequential.weights.h5", tmp_path / f"{name}.weights.h5")
    (tmp_path / "x.weights.json").write_text('{"weight_map": {"/layers/dense/vars": ["a.weights.h5", "b.weights.h5"]}}')
    with pytest.raises(CorruptFileError, match="is in another shard too"):
        statedict.load(tmp_path / "x.weights.json")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"layer_names": ["gone"]}, "lists a layer 'gone' and has no such group"),
        ({"layer_names": ["dense"], "weight_names": ["dense/gone"]}, "lists a weight 'dense/gone'"),
        ({"layer_names": ["dense"], "weight_names": ["w", "w"]}, "two weights are called 'w'"),
    ],
)
def test_a_legacy_file_whose_lists_are_wrong_is_damaged(names: dict[str, Any], message: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["layer_names"] = names["layer_names"]
        file["dense/w"] = numpy.ones(1)
        file["dense"].attrs["weight_names"] = names.get("weight_names", [])
    with pytest.raises(CorruptFileError, match=message):
        statedict.load(tmp_path / "x.h5")


def test_an_archive_without_weights_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(CorruptFileError, match=r"has no model\.weights\.h5"):
        statedict.load(tmp_path / "x.keras", format="keras")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_scan_finds_the_code_of_a_lambda(suffix: str, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2)])
    report = statedict.scan(kerases.save(model, tmp_path / f"x{suffix}"))
    assert {(found.module, found.name) for found in report.globals} == {
        ("marshal", "loads"),
        ("keras.src.layers.core.lambda_layer", "Lambda"),
    }
    assert report.verdict == "dangerous"
    assert "no pickle, but loading it with its own library" in "\n".join(report_text.scan_table(report))


def test_scan_names_what_a_configuration_would_import(tmp_path: Path) -> None:
    config = {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"}
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"module": "keras", "class_name": "Functional", "config": config}))
    (found,) = statedict.scan(tmp_path / "x.keras").globals
    assert (found.module, found.name, found.verdict, found.member) == ("os", "system", "dangerous", "config.json")


def test_scan_names_the_classes_of_a_user(folder: Path) -> None:
    (found,) = statedict.scan(folder / "functional.keras").globals
    assert (found.name, found.verdict) == ("Block", "opaque")
    for path in folder.glob("sequential*"):
        assert statedict.scan(path).verdict == "data"
