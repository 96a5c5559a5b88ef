"""A .pth whose names and values change gets a new index after its end, and is what it would be if written anew."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import statedict
from statedict.formats.torch.archive import read_records
from statedict.formats.torch.structure import find_faults
from statedict.io.source import FileSource
from statedict.io.zip import ArchiveLayout
from statedict.pickles.writer import dumps
from statedict.reports.outcomes import VerifyReport
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.testing.same import assert_same

from ..work import assert_linear, steps
from .test_torch_zip import rezip


def tree() -> dict[str, Any]:
    """Tied tensors, views, an empty one, several dtypes."""
    w = torch.arange(12.0).reshape(3, 4)
    state = {"a.weight": w, "b.weight": w, "c.weight": w[1:, :2], "c.bias": torch.arange(3)}
    state |= {"d.weight": torch.zeros(0, 3), "e.weight": torch.ones(5, dtype=torch.bfloat16)}
    return {"model": state, "epoch": 3, "lr": [0.1, None]}


@pytest.fixture(params=["ours", "theirs"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return written(tmp_path / "x.pth", request.param)


def written(path: Path, whose: str) -> Path:
    if whose == "theirs":
        torch.save(tree(), path)
    else:
        state = statedict.StateDict(tree())
        state.metadata = {"author": "somebody"}
        statedict.save(state, path)
    return path


def in_place(path: Path, *steps: Any) -> bool:
    """Edit, and say whether the file only grew."""
    before, inode = path.read_bytes(), path.stat().st_ino
    statedict.edit(path, None, list(steps))
    return path.stat().st_ino == inode and path.read_bytes().startswith(before)


def assert_fine(path: Path) -> VerifyReport:
    report = statedict.verify(path)
    assert report.ok, str(report)
    assert statedict.scan(path).verdict == "data"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert len(set(archive.namelist())) == len(archive.namelist())
    return report


def test_a_new_index_is_appended_and_everybody_reads_it(path: Path) -> None:
    before = torch.load(path, weights_only=True)
    metadata = statedict.load(path).metadata
    assert in_place(path, {"rename": {"model.{x}.weight": "model.{x}.kernel"}}, {"set": "epoch", "value": 4})
    assert_fine(path)
    state = statedict.load(path)
    assert list(state["model"])[:3] == ["a.kernel", "b.kernel", "c.kernel"]
    assert state["model"]["a.kernel"].storage.key == state["model"]["b.kernel"].storage.key
    assert (state["epoch"], state["lr"], state.metadata) == (4, [0.1, None], metadata)
    for options in ({}, {"mmap": True}, {"map_location": "meta"}):
        after = torch.load(path, weights_only=True, **options)
        assert (after["epoch"], list(after["model"])) == (4, list(state["model"]))
    for name, tensor in torch.load(path, weights_only=True, mmap=True)["model"].items():
        assert torch.equal(tensor, before["model"][name.replace("kernel", "weight")])


def test_what_torch_calculates_of_an_order_that_is_no_more_is_not_believed(tmp_path: Path) -> None:
    """With `.format_version` it takes the first storage of the pickle for the first one of the file."""
    path = tmp_path / "x.pth"
    torch.save({"a": {"x": torch.ones(3), "y": torch.ones(400)}, "b": {"z": torch.ones(5)}}, path)
    assert in_place(path, {"rename": {"b.z": "a.w", "a.{x}": "b.{x}"}})
    state = statedict.load(path)
    order = [t.storage.source.entry.name[-1] for t in state.tensors().values()]  # type: ignore[attr-defined]
    assert_same(state, torch.load(path, weights_only=True))
    meta = torch.load(path, map_location="meta", weights_only=True)
    if getattr(meta["a"]["w"].untyped_storage(), "_checkpoint_offset", None) is None:
        return  # PyTorch before 2.10 calculates nothing here
    for name, tensor in state.tensors().items():
        found = meta[name[0]][name[2:]].untyped_storage()._checkpoint_offset
        assert found == tensor.storage.source.locate()[1], order  # type: ignore[attr-defined]


@pytest.mark.parametrize("whose", ["ours", "theirs"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_changes_in_place_are_what_is_written_anew(whose: str, data: st.DataObject, tmp_path: Path) -> None:
    path, other = written(tmp_path / "x.pth", whose), written(tmp_path / "y.pth", whose)
    values = st.one_of(st.integers(), st.text(max_size=5), st.lists(st.floats(allow_nan=False), max_size=3))
    for _ in range(data.draw(st.integers(1, 4))):
        names = list(statedict.load(path)["model"])
        old, new = data.draw(st.sampled_from(names)), data.draw(st.text("xyz", min_size=4))
        steps = [
            {"rename": {f"model.{old}": f"model.{new}"}},
            {"prefix": data.draw(st.sampled_from(["net.", "-net."]))},
            {"set": data.draw(st.sampled_from(["epoch", "note"])), "value": data.draw(values)},
        ]
        step = data.draw(st.sampled_from(steps))
        try:
            assert in_place(path, step)
        except (statedict.errors.AlterError, statedict.errors.RenameError):
            continue
        statedict.edit(other, other.with_name("z.pth"), [step])
        os.replace(other.with_name("z.pth"), other)
        assert_fine(path)
        assert_same(statedict.load(path), statedict.load(other))
        one, two = (torch.load(p, weights_only=True) for p in (path, other))
        assert list(one["model"]) == list(two["model"])
        assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
        assert {k: v for k, v in one.items() if k != "model"} == {k: v for k, v in two.items() if k != "model"}


def test_no_byte_of_an_index_or_of_what_it_replaced_changes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    statedict.save({"w": torch.arange(3.0), "epoch": 1}, path)
    assert in_place(path, {"rename": {"w": "v"}})
    assert in_place(path, {"set": "epoch", "value": 2})
    good = path.read_bytes()
    unseen = []
    for at in range(len(good)):
        for mask in (0x01, 0xFF):
            path.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
            try:
                if statedict.verify(path).ok:
                    unseen.append((at, mask))
            except statedict.errors.UnknownFormatError:
                pass
    assert unseen == []


def test_damage_in_a_file_of_others_is_found_in_what_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pth", "theirs")
    assert in_place(path, {"set": "epoch", "value": 2})
    good = path.read_bytes()
    for pattern in (b"c.weight", torch.arange(12.0).numpy().tobytes(), b"PK\1\2", b"PK\5\6", b"_rebuild"):
        for at in {good.index(pattern), good.rindex(pattern)}:
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            assert not statedict.verify(path).ok, (pattern, at)


def test_the_digests_of_the_tensors_are_kept_and_the_index_has_one(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pth", "ours")
    digests = statedict.verify(path).digests
    assert in_place(path, {"set": "epoch", "value": 2})
    report = assert_fine(path)
    assert report.digests == digests
    assert "replaced in place, 1×" in str(report)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"c.weight")] ^= 1
    path.write_bytes(data)
    (problem,) = statedict.verify(path).problems
    assert problem.part == "data.pkl"
    assert len(problem.expected) == 32


@pytest.mark.parametrize(
    "step",
    [
        {"cast": "bf16"},
        {"drop": "model.e"},
        {"untie": "model.b.weight"},
        {"slice": "model.c.bias", "index": "0:2"},
        {"tie": {"model.e.weight": "model.c.bias"}},
        {"set": "model.new", "value": torch.ones(2)},
    ],
    ids=str,
)
def test_other_tensors_are_written_anew(path: Path, step: dict[str, Any]) -> None:
    assert not in_place(path, step)
    assert "in place" not in str(assert_fine(path))


def test_a_name_less_for_tied_tensors_is_no_other_tensor(path: Path) -> None:
    assert in_place(path, {"drop": "model.b"})
    assert_fine(path)


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)


def deflated(path: Path) -> None:
    torch.save(tree()["model"], path)
    os.replace(rezip(path, zipfile.ZIP_DEFLATED), path)


def commented(path: Path) -> None:
    torch.save(tree()["model"], path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"a word"


def big_endian(path: Path) -> None:
    torch.save(tree()["model"], path)
    os.replace(rezip(path, byteorder=b"big"), path)


def legacy(path: Path) -> None:
    torch.save(tree()["model"], path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("make", [torchscript, deflated, commented, big_endian, legacy])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_of_other_kinds_are_written_anew(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    make(path)
    before = {name: tensor.tolist() for name, tensor in statedict.load(path).tensors().items()}
    assert not in_place(path, {"prefix": "net."})
    after = statedict.load(path).tensors()
    assert {name.removeprefix("net."): tensor.tolist() for name, tensor in after.items()} == before


def test_a_file_that_another_program_packed_anew_loses_digests_that_mean_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pth", "ours")
    os.replace(rezip(path, **{"data/x": b"more"}), path)
    assert in_place(path, {"set": "epoch", "value": 5})
    report = assert_fine(path)
    assert (report.digests, statedict.load(path).metadata) == (0, {"author": "somebody"})


def test_records_beside_the_folder_are_nobodys_index(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pth", "ours")
    with zipfile.ZipFile(path, "a") as archive:
        for name in (".statedict.json", "data/0", "elsewhere/data.pkl"):
            archive.writestr(name, b"x")
    before = statedict.verify(path).problems  # records of another program among ours
    assert in_place(path, {"set": "epoch", "value": 5})
    assert statedict.verify(path).problems == before
    assert statedict.load(path)["model"]["a.weight"].tolist() == tree()["model"]["a.weight"].tolist()
    with zipfile.ZipFile(path) as archive:
        assert archive.read(".statedict.json") == b"x"


def test_hundreds_of_indexes_are_looked_at_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    statedict.save({"w": torch.ones(3)}, path)
    done = 0

    def cost(edits: int) -> int:
        nonlocal done
        for number in range(done, edits):
            statedict.edit(path, None, [{"set": "n", "value": number}])
        done = edits
        assert assert_fine(path).parts == 5 + 2 * edits
        return steps(lambda: statedict.verify(path))

    assert_linear(cost, 250, 500)  # from 200 on the others fill what is searched for the end of one


def test_what_torch_load_would_refuse_is_refused_and_nothing_is_written(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(statedict.errors.UnsupportedError, match="note: a frozenset is not data"):
        statedict.edit(path, None, [{"set": "note", "value": frozenset([1])}])
    assert path.read_bytes() == before


# what is cut short


def test_a_file_cut_in_its_new_index_says_how_it_becomes_what_it_was(path: Path) -> None:
    before = path.read_bytes()
    assert in_place(path, {"set": "epoch", "value": 2})
    good = path.read_bytes()
    remedy = f"truncate -s {len(before)} {path}"
    for length in {*range(len(before) + 60, len(good), 97), len(good) - 1}:
        path.write_bytes(good[:length])
        with pytest.raises(statedict.errors.CorruptFileError, match=remedy):
            statedict.load(path)
    path.write_bytes(before + bytes(len(good) - len(before) - 22) + good[-22:])
    with pytest.raises(statedict.errors.CorruptFileError, match=remedy):
        statedict.load(path)
    path.write_bytes(before + bytes(100_000))
    assert remedy in str(statedict.verify(path))
    subprocess.run(remedy.split(), check=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("again", [True, False], ids=["sizes alike", "other sizes"])
@pytest.mark.parametrize("whose", ["ours", "torch"])
def test_archives_one_behind_the_other_are_never_to_be_truncated(again: bool, whose: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    save = torch.save if whose == "torch" else statedict.save
    save({"a": torch.randn(64)}, first)
    save({"b": torch.ones(64 if again else 3)}, second)
    path = tmp_path / "both.pth"
    one, two = first.read_bytes(), second.read_bytes()
    path.write_bytes(one + two)
    with pytest.raises(statedict.errors.CorruptFileError, match=f"several archives.* begins at byte {len(one):,};"):
        statedict.load(path)
    assert "several archives" in str(statedict.verify(path))
    with pytest.raises(statedict.errors.CorruptFileError, match="several archives"):
        statedict.edit(path, None, [{"delete": "b"}])
    assert path.read_bytes() == one + two
    for cut in (one + two[:-30], one + two[:200], one + two + one[:200], one + two + bytes(900)):
        path.write_bytes(cut)
        with pytest.raises(statedict.errors.CorruptFileError) as caught:
            statedict.load(path)
        assert "truncate -s" not in str(caught.value)


_EDIT = """
import resource, sys, statedict
state = statedict.load(sys.argv[1])
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    statedict.edit(sys.argv[1], None, [{"set": "epoch", "value": 2}])
except statedict.errors.FileError as error:
    print(error)
"""


@pytest.mark.parametrize("room", [0, 1, 1000, -1])
def test_an_index_that_the_system_does_not_take_leaves_the_file_as_it_was(path: Path, room: int) -> None:
    before = path.read_bytes()
    twin = path.with_name("twin.pth")
    twin.write_bytes(before)
    statedict.edit(twin, None, [{"set": "epoch", "value": 2}])
    limit = len(before) + room if room >= 0 else twin.stat().st_size - 1
    done = subprocess.run([sys.executable, "-c", _EDIT, str(path), str(limit)], capture_output=True, text=True)
    assert done.stdout == f"{path}: cannot write (what was there is unchanged): {os.strerror(errno.EFBIG)}\n", done
    assert path.read_bytes() == before
    assert statedict.verify(path).ok


# large ones


def hollow(path: Path, sizes: list[int]) -> None:
    """A file of ours whose storages are holes; its CRC-32 are wrong, and nobody reads them."""
    tensors = {f"layers.{n}.weight": LazyTensor(statedict.dtype("uint8"), (size,), Storage(FakeSource(size), 0, size))
               for n, size in enumerate(sizes)}  # fmt: skip
    keys = {id(tensor): str(n) for n, tensor in enumerate(tensors.values())}
    pickle = dumps(tensors, lambda tensor: (keys[id(tensor)], tensor.nbytes, 0, (1,)))
    layout = ArchiveLayout()
    with path.open("wb") as file:
        crcs = []
        for name, data in (("data.pkl", pickle), ("byteorder", b"little")):
            at, header, data_at = layout.add(f"archive/{name}", len(data))
            crcs.append(zlib.crc32(data))
            os.pwrite(file.fileno(), header + data + layout.descriptor(crcs[-1], len(data)), at)
        for n, size in enumerate(sizes):
            at, header, data_at = layout.add(f"archive/data/{n}", size)
            os.pwrite(file.fileno(), header, at)
            os.pwrite(file.fileno(), layout.descriptor(0, size), data_at + size)
            crcs.append(0)
        at, header, data_at = layout.add("archive/version", 2)
        crcs.append(zlib.crc32(b"3\n"))
        os.pwrite(file.fileno(), header + b"3\n" + layout.descriptor(crcs[-1], 2), at)
        os.pwrite(file.fileno(), layout.directory(crcs), layout.position)


class FakeSource:
    """Nothing."""

    name, in_memory, remote = "nothing", False, False

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.mark.parametrize("sizes", [[5 << 30, 10], [1 << 30] * 6, [1] * 66_000], ids=["5 GB", "6 GB", "66,000 records"])
def test_archives_beyond_32_and_16_bits_get_a_new_index_too(sizes: list[int], tmp_path: Path) -> None:
    path = tmp_path / "huge.pth"
    hollow(path, sizes)
    before = path.stat()
    for step in ({"rename": {"layers.{n}.weight": "h.{n}.weight"}}, {"set": "epoch", "value": 2}):
        statedict.edit(path, None, [step])
    after = path.stat()
    assert (after.st_ino, after.st_blocks < before.st_blocks + 120_000) == (before.st_ino, True)
    state = statedict.load(path)
    assert (len(state), state["epoch"]) == (len(sizes) + 1, 2)
    assert state[f"h.{len(sizes) - 1}.weight"].raw() == bytes(sizes[-1])
    theirs = torch.load(path, weights_only=True, mmap=True)
    assert [theirs[f"h.{n}.weight"].numel() for n in range(len(sizes))] == sizes
    with zipfile.ZipFile(path) as archive:
        assert archive.read("archive/byteorder") == b"little"
    source = FileSource(str(path))
    assert list(find_faults(source, read_records(source))) == []
