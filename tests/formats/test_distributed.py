"""Directories of torch.distributed.checkpoint, written by one process and by two."""

from __future__ import annotations

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

import statedict
from statedict import alter
from statedict.testing.same import assert_same

from .. import dcp

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def save(tree: Any, folder: Path) -> Path:
    dcp.save(tree, folder)
    return folder


def metadata(folder: Path) -> Any:
    return pickle.loads((folder / ".metadata").read_bytes())


def rewrite(folder: Path, changed: Any) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(changed))


def test_a_model_its_optimizer_lists_and_values_are_what_was_saved(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    tree = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "list": [torch.ones(2), {"a": torch.arange(3), "b": ["text", None]}],
        "half": torch.arange(4).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "turned": torch.arange(6.0).reshape(2, 3).t(),
    }
    found = statedict.load(save(tree, tmp_path / "d"))
    expected = statedict.StateDict(tree).flatten()
    names = {path for path in expected if "params" not in path and "betas" not in path}
    assert names <= set(found.flatten())
    for path in names:
        if isinstance(expected[path], torch.Tensor):
            assert_same(found.at(path), expected[path], path)
        else:
            assert found.at(path) == expected[path]
    model.load_state_dict(found["model"])


def test_a_folder_of_nemo_2_opens_by_its_weights(tmp_path: Path) -> None:
    tree = {"module.decoder.weight": torch.arange(6.0), "module.bias": torch.ones(3)}
    save(tree, tmp_path / "weights")
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "model.yaml").write_text("_target_: nemo.collections.llm.LlamaModel\n")
    assert_same(statedict.load(tmp_path), statedict.load(tmp_path / "weights"))
    assert statedict.verify(tmp_path).ok
    shutil.rmtree(tmp_path / "weights")
    with pytest.raises(statedict.errors.UnknownFormatError, match="it holds context"):
        statedict.load(tmp_path)


def test_the_metadata_file_opens_it_too_and_a_part_reads_alone(tmp_path: Path) -> None:
    folder = save({"w": torch.arange(20.0).reshape(5, 4)}, tmp_path / "d")
    state = statedict.load(folder / ".metadata")
    assert state["w"][3, 1:3].tolist() == [13, 14]
    statedict.convert(folder, tmp_path / "w.safetensors")
    assert_same(statedict.load(tmp_path / "w.safetensors")["w"], torch.arange(20.0).reshape(5, 4))


RANK = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}.rendezvous", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
def tensor(*shape, dtype=torch.float32):
    return torch.arange(torch.Size(shape).numel()).to(dtype).reshape(shape)
dcp.save({
    "rows": distribute_tensor(tensor(7, 5), mesh, [Shard(0)]),
    "columns": distribute_tensor(tensor(6, 9, dtype=torch.bfloat16), mesh, [Shard(1)]),
    "deep": {"middle": distribute_tensor(tensor(3, 5, 2, dtype=torch.int64), mesh, [Shard(1)])},
    "same": distribute_tensor(tensor(4), mesh, [Replicate()]),
    "epoch": 3,
}, checkpoint_id=folder)
dist.barrier()
dist.destroy_process_group()
import os
os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts
"""


def test_the_state_of_an_optimizer_has_the_integers_that_its_groups_have(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    tree = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "several": [optimizer.state_dict()]}
    tree["named"] = {"state": {"0": torch.ones(2)}, "param_groups": [{"params": ["0"]}]}  # whose names are text
    found = statedict.load(save(tree, tmp_path / "d"))
    assert statedict.diff(found, tree).same
    assert [[*one["state"]] for one in (found["optimizer"], found["several"][0], found["named"])] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        ["0"],
    ]
    torch.optim.Adam(model.parameters()).load_state_dict(found["optimizer"].torch(copy=True))
    shorter = alter.drop(found, ["model.1.bias", "named"])
    assert len(shorter["optimizer"]["state"]) == 3


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two processes."""
    folder = tmp_path_factory.mktemp("ranks") / "checkpoint"
    dcp.run_ranks(RANK, 2, folder)
    return folder


def test_shards_of_two_ranks_are_assembled_into_the_whole_tensors(ranks: Path, tmp_path: Path) -> None:
    assert len(list(ranks.glob("*.distcp"))) == 2
    state = statedict.load(ranks)
    expected = {
        "rows": torch.arange(35.0).reshape(7, 5),
        "columns": torch.arange(54).bfloat16().reshape(6, 9),
        "deep.middle": torch.arange(30).reshape(3, 5, 2),
        "same": torch.arange(4.0),
    }
    for path, tensor in expected.items():
        assert_same(state.at(path), tensor, path)
        assert torch.equal(state.at(path).torch(), tensor)
        assert_same(state.at(path)[1:3], tensor[1:3], path)
        size = tensor.element_size()
        source = state.at(path).storage.source
        raw = bytes(state.at(path).raw())
        for start in range(0, len(raw) - 3 * size, 3):
            assert source.read(start, size + 3) == raw[start : start + size + 3]
    sent = pickle.loads(pickle.dumps(statedict.load(ranks)))
    assert all(sent.at(path).raw() == state.at(path).raw() for path in expected)
    assert state["epoch"] == 3
    statedict.save(state, tmp_path / "whole.pth")
    assert_same(statedict.load(tmp_path / "whole.pth").at("deep.middle"), expected["deep.middle"])


def test_of_a_rank_whose_file_is_missing_the_rest_is_read(ranks: Path, tmp_path: Path) -> None:
    whole = statedict.load(ranks)
    shutil.copytree(ranks, tmp_path / "d")
    gone = min((tmp_path / "d").glob("*.distcp"))
    gone.unlink()
    found = statedict.load(tmp_path / "d")
    lacking = {path: t.present_boxes for path, t in found.tensors().items() if t.present_boxes is not None}
    assert lacking
    for path, regions in lacking.items():
        tensor = found.at(path)
        for begin, sizes in regions or ():
            index = tuple(slice(b, b + n) for b, n in zip(begin, sizes, strict=True))
            assert tensor[index].present_boxes is None
            assert tensor[index].raw() == whole.at(path)[index].raw()
        with pytest.raises(
            statedict.errors.CorruptFileError, match=f"is not all there.*missing: {gone.name}; fetch the files"
        ):
            tensor.numpy()
    report = statedict.verify(tmp_path / "d")
    assert gone.name in {problem.part for problem in report.problems}
    assert lacking.keys() <= {name for problem in report.problems for name in problem.tensors}


def test_a_value_whose_file_is_missing_is_named(tmp_path: Path) -> None:
    folder = save({"w": torch.ones(2), "epoch": 3}, tmp_path / "d")
    changed = metadata(folder)
    (file,) = folder.glob("*.distcp")
    for key, info in changed.storage_data.items():
        info.relative_path = "__1_0.distcp" if key.fqn == "epoch" else info.relative_path
    rewrite(folder, changed)
    with pytest.raises(statedict.errors.FileError, match=r"__1_0\.distcp"):
        statedict.load(folder)
    file.unlink()
    with pytest.raises(statedict.errors.FileError, match="distcp") as caught:
        statedict.load(folder)
    assert isinstance(caught.value, FileNotFoundError)


def shards(folder: Path, shape: tuple[int, ...], *places: tuple[tuple[int, ...], tuple[int, ...]]) -> torch.Tensor:
    """A checkpoint of these ranges of a tensor, which is returned, as a rank alone saves it."""
    whole = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    cut = [whole[tuple(slice(b, b + n) for b, n in zip(begin, sizes, strict=True))] for begin, sizes in places]
    save({f"s{number}": part.clone() for number, part in enumerate(cut)} | {"n": 1}, folder)
    changed = metadata(folder)
    entries = changed.state_dict_metadata
    entry = entries["s0"]
    entry.size, entry.chunks = torch.Size(shape), chunks(*places)  # type: ignore[arg-type]
    changed.state_dict_metadata = {"w": entry, "n": entries["n"]}
    changed.storage_data = {
        MetadataIndex("n") if key.fqn == "n" else MetadataIndex("w", torch.Size(places[int(key.fqn[1:])][0])): info
        for key, info in changed.storage_data.items()
    }
    changed.planner_data = {"w": ("w",), "n": ("n",)}
    rewrite(folder, changed)
    return whole


def test_a_tensor_of_which_not_every_rank_saved_knows_its_ranges(tmp_path: Path) -> None:
    whole = shards(tmp_path / "d", (6, 4), ((0, 0), (2, 4)), ((3, 1), (2, 2)))
    tensor = statedict.load(tmp_path / "d")["w"]
    assert (tensor.shape, tensor.present_boxes) == ((6, 4), (((0, 0), (2, 4)), ((3, 1), (2, 2))))
    for index in [slice(0, 2), (1, slice(1, 3)), (slice(3, 5), slice(1, 3)), (4, 2), (slice(0, 2), None)]:
        assert torch.equal(tensor[index].torch(), whole[index])
        assert tensor[index].present_boxes is None
    assert tensor[1:5].present_boxes == (((0, 0), (1, 4)), ((2, 1), (2, 2)))
    assert tensor[2].present_boxes == ()
    assert tensor[::2].present_boxes == ()
    what = r"'w': \[1:3, 0:4\] is not all there; of its shape \(6, 4\) there is \[0:2, 0:4\], \[3:5, 1:3\] only; fetch"
    with pytest.raises(statedict.errors.CorruptFileError, match=what):
        tensor[1:3].numpy()
    for path in ("x.safetensors", "x.pth"):
        with pytest.raises(statedict.errors.CorruptFileError, match="is not all there"):
            statedict.convert(tmp_path / "d", tmp_path / path)
        assert not (tmp_path / path).exists()


def test_what_is_there_in_part_is_told_by_verify_and_inspect_and_not_restored(tmp_path: Path) -> None:
    whole = shards(tmp_path / "d", (6, 4), ((0, 0), (2, 4)))
    (problem,) = statedict.verify(tmp_path / "d").problems
    assert (problem.part, problem.tensors) == ("w", ("w",))
    assert problem.what == "of its shape (6, 4) there is [0:2, 0:4] only"
    state = statedict.load(tmp_path / "d")
    ((_, node), *_) = statedict.inspect(state).root.children
    assert node.note == "only [0:2, 0:4]"
    live = {"w": torch.zeros(6, 4), "n": 0}
    with pytest.raises(statedict.errors.RestoreError, match=r"incomplete: w .*has \[0:2, 0:4\] only"):
        statedict.restore(live, state)
    assert not live["w"].any()  # type: ignore[attr-defined]
    rows = {"w": torch.zeros(2, 4), "n": 0}
    statedict.restore(rows, {"w": state["w"][:2], "n": 1})
    assert torch.equal(rows["w"], whole[:2])  # type: ignore[arg-type]


def test_many_ranges_of_a_tensor_are_compared(tmp_path: Path) -> None:
    places = [((2 * row, column), (2, 1)) for row in range(3) for column in (0, 2)]
    whole = shards(tmp_path / "d", (6, 4), *places)
    tensor = statedict.load(tmp_path / "d")["w"]
    assert torch.equal(tensor[:, 2].torch(), whole[:, 2])
    assert "and 2 more" in str(statedict.verify(tmp_path / "d"))


def test_a_file_that_ends_early_is_noticed_when_it_is_opened(tmp_path: Path) -> None:
    folder = save({"w": torch.arange(2000.0)}, tmp_path / "d")
    (file,) = folder.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(statedict.errors.CorruptFileError, match=r"distcp: bytes .* lie outside the file \(500 bytes\)"):
        statedict.load(folder)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_code_in_the_metadata_is_inert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save({"w": torch.ones(2)}, tmp_path / "d")
    changed = metadata(folder)
    changed.planner_data = Evil()
    changed.storage_meta = Evil()
    rewrite(folder, changed)
    assert statedict.load(folder)["w"].tolist() == [1, 1]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name", ["../outside.distcp", "/etc/passwd", "link.distcp", "a/../../outside.distcp", "", "null\0byte"]
)
def test_a_file_outside_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = save({"w": torch.ones(2)}, tmp_path / "d")
    (file,) = folder.glob("*.distcp")
    (tmp_path / "outside.distcp").write_bytes(file.read_bytes())
    (folder / "link.distcp").symlink_to(tmp_path / "outside.distcp")
    changed = metadata(folder)
    for info in changed.storage_data.values():
        info.relative_path = name
    rewrite(folder, changed)
    with pytest.raises(statedict.errors.FormatError, match="outside of the folder; refused"):
        statedict.load(folder)


def chunks(*places: tuple[tuple[int, int], tuple[int, int]]) -> list[ChunkStorageMetadata]:
    return [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in places]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([((0, 0), (2, 4)), ((1, 0), (2, 4))], "do not make up its 16"),
        ([((0, 0), (2, 2)), ((1, 1), (2, 2))], "have 8 elements, do not make up its 16 and overlap"),
        ([((0, 0), (4, 2)), ((0, 0), (4, 2))], "do not make up its 16"),
        ([((0, 0), (2, 4)), ((3, 0), (2, 4))], "lies outside of the tensor"),
        ([((0, 0), (-1, 4))], "lies outside of the tensor"),
        ([((0, 0), (1 << 62, 4))], "lies outside of the tensor"),
    ],
)
def test_chunks_that_do_not_make_up_their_tensor_are_refused(parts: Any, message: str, tmp_path: Path) -> None:
    folder = save({"w": torch.zeros(4, 4)}, tmp_path / "d")
    changed = metadata(folder)
    changed.state_dict_metadata["w"].chunks = chunks(*parts)
    info = next(iter(changed.storage_data.values()))
    changed.storage_data = {MetadataIndex("w", torch.Size(offsets)): info for offsets, _ in parts}
    rewrite(folder, changed)
    with pytest.raises(statedict.errors.CorruptFileError, match=message):
        statedict.load(folder)


def test_a_chunk_that_is_another_tensor_is_found_when_it_is_read(tmp_path: Path) -> None:
    folder = save({"w": torch.zeros(4, 4)}, tmp_path / "d")
    buffer = io.BytesIO()
    torch.save(torch.zeros(2, 8), buffer)
    (file,) = folder.glob("*.distcp")
    file.write_bytes(buffer.getvalue())
    changed = metadata(folder)
    for info in changed.storage_data.values():
        info.offset, info.length = 0, len(buffer.getvalue())
    rewrite(folder, changed)
    state = statedict.load(folder)
    with pytest.raises(statedict.errors.CorruptFileError, match="the chunk of 'w' is not the tensor"):
        state["w"].numpy()


def test_a_metadata_that_makes_no_sense_is_an_error_of_ours(tmp_path: Path) -> None:
    folder = save({"w": torch.zeros(4, 4), "n": 3, "l": [torch.ones(1)]}, tmp_path / "d")
    whole = (folder / ".metadata").read_bytes()
    for position in range(80, len(whole)):
        (folder / ".metadata").write_bytes(whole[:position] + bytes([whole[position] ^ 0x15]) + whole[position + 1 :])
        try:
            for tensor in statedict.load(folder).tensors().values():
                tensor.raw()
        except statedict.StateDictError:
            pass
    for length in range(80, len(whole) - 1, 7):
        (folder / ".metadata").write_bytes(whole[:length])
        with pytest.raises(statedict.errors.TruncatedError, match=r"\.metadata"):
            statedict.load(folder)


def test_a_file_of_a_checkpoint_by_itself_is_several_archives(tmp_path: Path) -> None:
    folder = save({"a": torch.randn(64), "b": torch.ones(3), "c": torch.zeros(5)}, tmp_path / "ck")
    path = folder / "__0_0.distcp"
    with pytest.raises(statedict.errors.CorruptFileError, match=r"several archives, .*; .* open its folder"):
        statedict.load(path)
    assert "several archives" in str(statedict.verify(path))
    assert statedict.scan(path).verdict == "data"
