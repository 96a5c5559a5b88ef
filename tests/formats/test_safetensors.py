"""safetensors against the safetensors package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from xxhash import xxh3_128_hexdigest

import statedict
from statedict.dtypes import BY_NAME
from statedict.tensor.lazy import LazyTensor, as_lazy
from statedict.testing.same import assert_same, in_torch, overlaps, patterned, raw

NAMED = [kind for kind in BY_NAME.values() if kind.safetensors and kind.itemsize and in_torch(kind)]
NAMELESS = [
    kind
    for kind in BY_NAME.values()
    if not kind.safetensors and kind.itemsize and kind.kind != "quantized" and in_torch(kind)
]


def pairs(*shape: int) -> LazyTensor:
    """Pairs of 4-bit floats."""
    words = as_lazy(patterned(BY_NAME["uint8"], *shape))
    return LazyTensor(BY_NAME["float4_e2m1fn_x2"], words.shape, words.storage, words.offset, words.strides)


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


# what we write, the package reads


@pytest.mark.parametrize("kind", [kind for kind in NAMED if kind.safetensors != "F4"], ids=str)
def test_the_package_opens_every_dtype_that_the_format_has(kind: Any, tmp_path: Path) -> None:
    tree = {
        "w": patterned(kind, 2, 3),
        "scalar": patterned(kind),
        "t": patterned(kind, 3, 2).t(),
        "none": patterned(kind, 0, 2),
    }
    path = tmp_path / "ours.safetensors"
    statedict.save(tree, path)
    theirs = safetensors.torch.load_file(path)
    for name, tensor in tree.items():
        assert theirs[name].dtype is tensor.dtype
        assert theirs[name].shape == tensor.shape
        assert raw(theirs[name]) == raw(tensor)
    assert header(path)["w"]["dtype"] == kind.safetensors


def test_pairs_of_4_bit_floats_have_the_shape_of_their_halves_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    statedict.save({"w": pairs(2, 3)}, path)
    assert header(path)["w"] == {"dtype": "F4", "shape": [2, 6], "data_offsets": [0, 6]}
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.get_slice("w").get_shape() == [2, 6]
        if in_torch(BY_NAME["float4_e2m1fn_x2"]):  # since PyTorch 2.8
            assert raw(file.get_tensor("w")) == raw(pairs(2, 3))
    assert statedict.load(path)["w"].shape == (2, 3)
    with pytest.raises(statedict.errors.UnsupportedError, match=r"alone: .* single pair of 4 bit elements"):
        statedict.save({"alone": pairs()}, path)


@pytest.mark.parametrize("kind", NAMELESS, ids=str)
@pytest.mark.filterwarnings("ignore:B?Complex(Half|32):UserWarning")
def test_a_dtype_without_a_code_is_stored_as_bytes_that_the_package_opens(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    statedict.save({"w": patterned(kind, 2, 3)}, path)
    theirs = safetensors.torch.load_file(path)["w"]
    assert theirs.dtype is torch.uint8
    assert theirs.shape == (2, 3, kind.itemsize)
    assert raw(theirs) == raw(patterned(kind, 2, 3)) == raw(statedict.load(path)["w"])
    assert statedict.load(path)["w"].dtype is kind


def test_a_flat_dict_of_tensors_makes_the_file_that_everybody_expects(tmp_path: Path) -> None:
    tree = {"fc.weight": torch.randn(3, 4), "fc.bias": torch.randn(3).bfloat16(), "steps": torch.tensor(5)}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    statedict.save(tree, ours)
    safetensors.torch.save_file(tree, theirs, metadata={"format": "pt"})
    mine, other = header(ours), header(theirs)
    metadata = mine.pop("__metadata__")
    assert metadata.pop("statedict.digests")
    assert metadata == other.pop("__metadata__")
    assert list(mine) == list(tree)
    assert {n: (e["dtype"], e["shape"]) for n, e in mine.items()} == {
        n: (e["dtype"], e["shape"]) for n, e in other.items()
    }


def test_a_whole_checkpoint_shows_the_package_its_tensors_under_their_paths(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    statedict.save({"model": {"w": torch.ones(2)}, "state": {0: {"step": torch.tensor(1.0)}}, "epoch": 3}, path)
    assert sorted(safetensors.numpy.load_file(path)) == ["model.w", "state.0.step"]
    with safetensors.safe_open(path, framework="np") as file:
        assert file.get_tensor("model.w").tolist() == [1, 1]
        assert file.get_slice("model.w")[1:].tolist() == [1]


def test_the_package_loads_a_model_with_tied_weights_that_we_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, fresh = Tied(), Tied()
    path = tmp_path / "ours.safetensors"
    statedict.save(model.state_dict(), path)
    assert safetensors.torch.load_model(fresh, path) == (set(), [])
    assert_same(fresh.state_dict(), model.state_dict())
    assert header(path)["__metadata__"]["head.weight"] == "embed.weight"
    assert "head.weight" not in header(path)


# what the package writes, we read


@pytest.mark.parametrize("kind", [kind for kind in NAMED if kind.safetensors != "F4"], ids=str)
def test_we_read_every_dtype_that_the_package_writes(kind: Any, tmp_path: Path) -> None:
    tree = {"w": patterned(kind, 2, 3), "scalar": patterned(kind), "none": patterned(kind, 0, 2)}
    safetensors.torch.save_file(tree, tmp_path / "theirs.safetensors")
    state = statedict.load(tmp_path / "theirs.safetensors")
    assert state.keys() == tree.keys()
    for name, tensor in tree.items():
        assert_same(state[name], tensor)


def test_the_tied_weights_of_save_model_are_tied_when_we_read_them(tmp_path: Path) -> None:
    model = Tied()
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_model(model, path, metadata={"author": "Ada"})
    state = statedict.load(path)
    assert set(state) == set(model.state_dict())
    assert len(overlaps(state)) == 1
    assert state.metadata == {"author": "Ada", "format": "pt"} or state.metadata == {"author": "Ada"}
    fresh = Tied()
    fresh.load_state_dict(state)
    assert_same(dict(sorted(fresh.state_dict().items())), dict(sorted(model.state_dict().items())))


def test_metadata_that_happens_to_name_a_tensor_ties_nothing(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    safetensors.torch.save_file({"pt": torch.ones(2)}, theirs, metadata={"format": "pt"})
    assert list(statedict.load(theirs)) == ["pt"]
    tree = statedict.StateDict({"w": torch.ones(2)})
    tree.metadata = {"best": "w"}
    statedict.save(tree, ours)
    assert list(statedict.load(ours)) == ["w"]
    assert statedict.load(ours).metadata["best"] == "w"


@pytest.mark.parametrize("key", ["statedict", "statedict.digests"])
def test_metadata_under_our_own_names_is_refused(key: str, tmp_path: Path) -> None:
    tree = statedict.StateDict({"w": torch.ones(2)})
    tree.metadata = {key: "{}"}
    with pytest.raises(statedict.errors.UnsupportedError, match="reserved"):
        statedict.save(tree, tmp_path / "x.safetensors")
    tree.metadata = {"statedictionary": "is a word of its own"}
    statedict.save(tree, tmp_path / "x.safetensors")
    assert statedict.load(tmp_path / "x.safetensors").metadata["statedictionary"]


def test_metadata_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for metadata in ({"epoch": 3}, {"\ud800": "x"}):
        tree = statedict.StateDict({"w": torch.ones(2)})
        tree.metadata = metadata  # type: ignore[assignment]
        with pytest.raises(statedict.errors.UnsupportedError, match="metadata"):
            statedict.save(tree, tmp_path / "x.safetensors")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(
            st.sampled_from([k for k in NAMED if k.safetensors != "F4"]), st.lists(st.integers(0, 4), max_size=3)
        ),
        max_size=6,
    )
)
def test_any_flat_dict_of_tensors_goes_both_ways_between_the_package_and_us(shapes: Any, tmp_path: Path) -> None:
    tree = {name: patterned(kind, *shape) for name, (kind, shape) in shapes.items()}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    statedict.save(tree, ours, fsync=False)
    assert {name: raw(t) for name, t in safetensors.torch.load_file(ours).items()} == {
        n: raw(t) for n, t in tree.items()
    }
    safetensors.torch.save_file(tree, theirs)
    assert {name: raw(t) for name, t in statedict.load(theirs).items()} == {n: raw(t) for n, t in tree.items()}


# digests and alignment


def test_the_digests_in_the_header_are_those_of_the_header_and_of_each_tensor(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    tree = {"a": torch.randn(300_000), "b": {"c": torch.arange(7), "tied": None, "e": torch.empty(0)}}
    tree["b"]["tied"] = tree["b"]["c"]
    statedict.save(tree, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    written = header(path)
    algorithm, own, *digests = written.pop("__metadata__")["statedict.digests"].split(" ")
    assert algorithm == "xxh3_128"
    start = 8 + length
    assert digests == [
        xxh3_128_hexdigest(data[start + e["data_offsets"][0] : start + e["data_offsets"][1]]) for e in written.values()
    ]
    assert own == xxh3_128_hexdigest(data[8:start].replace(own.encode(), b"0" * 32))


def test_every_tensor_lies_on_a_multiple_of_its_element_and_the_data_on_a_multiple_of_64(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    statedict.save({kind.name: patterned(kind, 3) for kind in NAMED if kind.safetensors != "F4"}, path)
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0
    for name, entry in header(path).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % BY_NAME[name].itemsize == 0


def test_a_key_that_the_format_reserves_is_stored_under_another_name(tmp_path: Path) -> None:
    tree = {"__metadata__": torch.ones(2), "a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, "\ud800": torch.ones(3)}
    path = tmp_path / "ours.safetensors"
    statedict.save(tree, path)
    assert_same(statedict.load(path), tree)
    assert len(safetensors.numpy.load_file(path)) == 4


def test_a_header_of_over_100_mb_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.UnsupportedError, match=r"header takes .* safetensors allows 100,000,000"):
        statedict.save({"note": "x" * 100_000_001}, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_dtype_younger_than_this_version_keeps_its_name_and_bytes(tmp_path: Path) -> None:
    raw_header = json.dumps({"w": {"dtype": "F3_X", "shape": [4], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "future.safetensors"
    path.write_bytes(len(raw_header).to_bytes(8, "little") + raw_header + bytes(range(8)))
    tensor = statedict.load(path)["w"]
    assert (str(tensor.dtype), tensor.shape, tensor.raw()) == ("F3_X", (4,), bytes(range(8)))
    statedict.save({"w": tensor}, tmp_path / "again.safetensors")
    again = statedict.load(tmp_path / "again.safetensors")["w"]
    assert (str(again.dtype), again.shape, again.raw()) == ("F3_X", (4,), bytes(range(8)))
    with pytest.raises(statedict.errors.UnsupportedError, match="PyTorch has no dtype F3_X"):
        statedict.save({"w": tensor}, tmp_path / "again.pth")


def test_elements_of_6_bits_go_through_as_they_are(tmp_path: Path) -> None:
    raw_header = json.dumps({"w": {"dtype": "F6_E2M3", "shape": [2, 4], "data_offsets": [0, 6]}}).encode()
    path = tmp_path / "six.safetensors"
    path.write_bytes(len(raw_header).to_bytes(8, "little") + raw_header + bytes(range(6)))
    statedict.save(statedict.load(path), tmp_path / "again.safetensors")
    again = statedict.load(tmp_path / "again.safetensors")["w"]
    assert (again.dtype.name, again.shape, again.raw()) == ("float6_e2m3fn", (2, 4), bytes(range(6)))
    assert type(again) is LazyTensor
