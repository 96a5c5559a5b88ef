"""`verify`: no byte of a file that we wrote changes unseen, and what it reports is true."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import statedict
from statedict.reports.outcomes import VerifyReport

from .. import dcp

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def tree() -> statedict.StateDict:
    """Tied, empty and unaligned tensors, nested values, metadata."""
    w = numpy.arange(6, dtype="f4").reshape(2, 3)
    state = statedict.StateDict(
        {
            "model": {"w": w, "none": numpy.zeros((0, 3), "f4"), "tied": w, "half": numpy.ones(3, "f2")},
            "optimizer": {"state": {0: {"m": numpy.ones(2, "f8")}}, "lr": (0.1, [1, None])},
            "epoch": 3,
        }
    )
    state.metadata = {"author": "somebody"}
    return state


FLAT = {"a": torch.arange(4.0), "b": torch.arange(5)}
WRITTEN = {"nested": tree, "flat": lambda: dict(FLAT), "empty": dict}


def written(folder: Path, which: str, suffix: str) -> Path:
    path = folder / f"{which}.{suffix}"
    statedict.save(WRITTEN[which](), path)
    return path


def looked_at(path: Path, data: bytes) -> VerifyReport | statedict.errors.UnknownFormatError:
    path.write_bytes(data)
    try:
        return statedict.verify(path)
    except statedict.errors.UnknownFormatError as error:
        return error


# no byte changes unseen


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("which", list(WRITTEN))
def test_every_single_byte_that_changes_is_a_finding(which: str, suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path, which, suffix)
    good = path.read_bytes()
    assert statedict.verify(path).ok
    unseen = []
    for at in range(len(good)):
        for mask in (0x01, 0x80, 0xFF):
            data = bytearray(good)
            data[at] ^= mask
            report = looked_at(path, bytes(data))
            if not isinstance(report, VerifyReport) or report.ok or not all(map(str, report.problems)):
                unseen.append((at, mask, str(report)))
    assert unseen == []


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@given(data=st.data())
def test_any_damage_in_one_place_is_a_finding(suffix: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    path = written(tmp_path_factory.mktemp("any"), "nested", suffix)
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good)))
    removed = data.draw(st.integers(0, 100))
    added = data.draw(st.binary(max_size=100))
    bad = good[:at] + added + good[at + removed :]
    report = looked_at(path, bad)
    assert bad == good or not (isinstance(report, VerifyReport) and report.ok)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("which", list(WRITTEN))
def test_a_file_cut_anywhere_is_never_fine(which: str, suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path, which, suffix)
    good = path.read_bytes()
    for length in range(len(good)):
        report = looked_at(path, good[:length])
        assert not isinstance(report, VerifyReport) or not report.ok, length
        if length > 100:
            assert isinstance(report, VerifyReport), (length, report)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("more", [b"\0", b"x", b"PK\5\6" + bytes(18), bytes(100), bytes(range(256)) * 300], ids=len)
def test_bytes_after_the_end_are_a_finding(more: bytes, suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path, "nested", suffix)
    report = looked_at(path, path.read_bytes() + more)
    assert isinstance(report, VerifyReport)
    assert not report.ok


def changed(path: Path, pattern: bytes, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(pattern)] ^= mask
    path.write_bytes(data)


@pytest.mark.parametrize(("suffix", "part"), [("pth", "data/0"), ("safetensors", "model.w")])
def test_damaged_bytes_of_a_tensor_name_the_part_and_every_tensor_in_it(suffix: str, part: str, tmp_path: Path) -> None:
    path = written(tmp_path, "nested", suffix)
    changed(path, struct.pack("<3f", 3, 4, 5))
    (problem,) = statedict.verify(path).problems
    assert (problem.part, problem.tensors) == (part, ("model.w", "model.tied"))
    assert len(problem.expected) == len(problem.got) == 32
    assert "fetch the file again" in problem.remedy


@pytest.mark.parametrize(
    ("pattern", "part"),
    [(b"optimizer", "data.pkl"), (b"xxh3_128", ".statedict.json"), (b"Z" * 8, "data.pkl"), (b"PK\5\6", "")],
)
def test_damage_beside_the_tensors_names_the_part_of_a_pth(pattern: bytes, part: str, tmp_path: Path) -> None:
    path = written(tmp_path, "nested", "pth")
    changed(path, pattern)
    assert part in {problem.part for problem in statedict.verify(path).problems}


def test_a_sum_that_is_damaged_is_told_from_damaged_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, "nested", "pth")
    data = bytearray(path.read_bytes())
    data[data.index(b"archive/data/0", data.index(b"PK\1\2")) - 46 + 16] ^= 1
    path.write_bytes(data)
    report = str(statedict.verify(path))
    assert "its CRC-32 differs, its digest does not: its bytes are right" in report
    assert "data/0 (model.w, model.tied)" in report


def test_the_key_of_the_digests_is_missed_when_it_is_damaged(tmp_path: Path) -> None:
    for pattern in (b"tatedict.digests", b"xxh3_128 "):
        path = written(tmp_path, "nested", "safetensors")
        changed(path, pattern)
        assert [problem.part for problem in statedict.verify(path).problems][:1] == ["header"]


# files of others


def archive(path: Path, **extra: Any) -> Path:
    torch.save({**FLAT, **extra}, path)
    return path


def test_a_file_of_torch_save_is_fine_and_its_crc_32_finds_damage(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pth")
    report = statedict.verify(path)
    assert (report.ok, report.tensors, report.digests, report.crcs) == (True, 2, 0, report.parts)
    changed(path, struct.pack("<2f", 1, 2))
    torch.load(path)  # which sees nothing
    (problem,) = statedict.verify(path).problems
    assert (problem.part, problem.tensors) == ("data/0", ("a",))
    assert problem.what.startswith("its CRC-32 differs")


class Pipe(io.RawIOBase):
    """What can be written to from begin to end only."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += data
        return len(data)


def packed(path: Path, method: int, streamed: bool = False) -> bytes:
    """The records of a file, in another order, in an archive that zipfile writes."""
    out: Any = Pipe() if streamed else io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in sorted(old.namelist()):
            new.writestr(name, old.read(name))
    return bytes(out.data if streamed else out.getvalue())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
def test_an_archive_that_another_program_packed_anew_is_fine(
    method: int, ours: bool, streamed: bool, tmp_path: Path
) -> None:
    path = written(tmp_path, "nested", "pth") if ours else archive(tmp_path / "x.pth")
    report = looked_at(path, packed(path, method, streamed))
    assert isinstance(report, VerifyReport)
    assert (report.ok, report.digests) == (True, 0), str(report)
    assert any("packed the archive anew" in note for note in report.notes) == ours


def lying(path: Path, at: int, value: bytes, central: bool = False, name: bytes = b"x/data/0") -> VerifyReport:
    """A field of the header of a record, its own or that in the directory, replaced."""
    data = bytearray(path.read_bytes())
    place = data.rindex(name) - 46 if central else data.index(name) - 30
    data[place + at : place + at + len(value)] = value
    path.write_bytes(data)
    return statedict.verify(path)


@pytest.mark.parametrize(
    ("at", "value", "central", "what"),
    [
        (0, b"PK\0\0", False, "there is no record"),
        (6, b"\0\0", False, "the CRC-32 in its own header is 0,"),
        (8, b"\x08\0", False, "method in its own header"),
        (14, b"\1\2\3\4", False, "CRC-32 in its own header"),
        (22, b"\1\2\3\4", False, "size in its own header"),
        (30, b"X", False, "name in its own header"),
        (46, b"X", True, "PyTorch takes record 'X/data/0' for 'x/data/0'"),
        (8, b"\1\x08", True, "encrypted"),
        (10, b"\x0c\0", True, "compressed by method 12"),
        (16, b"\1\2\3\4", True, "data descriptor is not that"),
    ],
)
def test_headers_that_contradict_the_directory_are_findings(
    at: int, value: bytes, central: bool, what: str, tmp_path: Path
) -> None:
    report = lying(archive(tmp_path / "x.pth"), at, value, central)
    assert not report.ok
    assert what in str(report)


def test_bytes_between_the_records_of_an_archive_are_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(archive(path)) as old:
        records = {name: old.read(name) for name in old.namelist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for number, (name, data) in enumerate(records.items()):
            new.writestr(name, data)
            if number == 2:
                new.fp.write(b"hidden")
                new.start_dir = new.fp.tell()
    report = looked_at(path, out.getvalue())
    assert isinstance(report, VerifyReport)
    assert [problem.what[:37] for problem in report.problems] == ["6 bytes that belong to nothing lie aft"[:37]]


def test_records_that_overlap_are_a_finding(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pth")
    data = path.read_bytes()
    first = struct.pack("<L", data.index(b"x/data/0") - 30)
    report = lying(path, 42, first, central=True, name=b"x/data/1")
    assert "overlap" in str(report)


@pytest.mark.parametrize("tail", [b"", b"hidden"])
def test_the_legacy_format_is_covered_to_its_end(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(FLAT, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + tail)
    report = statedict.verify(path)
    assert (report.tensors, report.parts) == (2, 2)
    assert [p.what.split(",")[0] for p in report.problems] == ["6 bytes follow the last storage"] * bool(tail)


def test_torchscript_archives_and_zips_of_members_are_checked_by_their_records(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "s.pt")
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as new:
        new.writestr("policy.pth", archive(tmp_path / "p.pth").read_bytes())
        new.writestr("data", "{}")
    assert statedict.verify(tmp_path / "s.pt").tensors == 2
    report = statedict.verify(tmp_path / "model.zip")
    assert (report.ok, report.format, report.tensors) == (True, "zip", 2)
    changed(tmp_path / "model.zip", struct.pack("<2f", 1, 2))
    outer, inner = statedict.verify(tmp_path / "model.zip").problems
    assert outer.part == "policy.pth"
    assert (inner.part, inner.tensors) == ("policy.pth: data/0", ("policy.pth.a",))


# several files


def shards(folder: Path, **changes: Any) -> Path:
    for number, name in enumerate(FLAT, 1):
        save_file({name: FLAT[name]}, folder / f"model-{number:05}-of-00002.safetensors")
    weight_map = {name: f"model-{number:05}-of-00002.safetensors" for number, name in enumerate(FLAT, 1)}
    index = {"metadata": {"total_size": 56}, "weight_map": weight_map}
    index["metadata"] |= changes.get("metadata", {})
    index["weight_map"] |= changes.get("weight_map", {})
    for name in changes.get("without", ()):
        del index["weight_map"][name]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, None),
        ({"metadata": {"total_size": 57}}, "total_size is not that of the tensors: expected 56, got 57"),
        (
            {"weight_map": {"c": "model-00001-of-00002.safetensors"}},
            "model-00001-of-00002.safetensors (c): 1 tensors, which the index says are in it, are not",
        ),
        (
            {"without": ["a"], "weight_map": {"z": "model-00001-of-00002.safetensors"}},
            "model-00001-of-00002.safetensors (a): 1 tensors, which are in it, are not in the index",
        ),
    ],
    ids=["fine", "size", "more in the index", "more in the shard"],
)
def test_shards_are_held_against_their_index_both_ways(changes: Any, what: str | None, tmp_path: Path) -> None:
    report = statedict.verify(shards(tmp_path, **changes))
    assert report.tensors == 2
    assert report.ok == (what is None)
    assert (what or "fine") in str(report)


def test_every_missing_shard_is_named_and_the_others_are_checked(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    report = statedict.verify(tmp_path)
    (problem,) = report.problems
    assert (problem.part, problem.tensors) == ("model-00001-of-00002.safetensors", ("a",))
    assert report.tensors == 1


def distributed(folder: Path) -> Path:
    state = {"model": {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2)}, "epoch": 3}
    dcp.save(state, folder)
    return folder


def test_chunks_of_a_distributed_checkpoint_are_checked_one_by_one(tmp_path: Path) -> None:
    folder = distributed(tmp_path / "d")
    report = statedict.verify(folder)
    assert (report.ok, report.format, report.tensors) == (True, "distributed", 2)
    (file,) = folder.glob("*.distcp")
    changed(file, struct.pack("<3f", 4, 5, 6))
    (problem,) = statedict.verify(folder).problems
    assert problem.tensors == ("model.w",)
    assert problem.part == f"{file.name}: model.w: data/0"


def test_files_of_ranks_that_are_missing_cut_or_too_long_are_named(tmp_path: Path) -> None:
    folder = distributed(tmp_path / "d")
    (file,) = folder.glob("*.distcp")
    whole = file.read_bytes()
    file.write_bytes(whole + b"more")
    assert f"{file.name}: its chunks leave a hole" in str(statedict.verify(folder))
    file.write_bytes(whole[:-10])
    assert f"{file.name}: " in str(statedict.verify(folder))
    file.unlink()
    (problem,) = statedict.verify(folder).problems
    assert problem.part == file.name
    assert set(problem.tensors) == {"model.w", "model.b", "epoch"}
