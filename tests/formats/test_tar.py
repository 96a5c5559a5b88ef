"""Tar archives of checkpoints, as tarfile writes them; `.nemo` is one."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import torch

import statedict
from statedict.errors import CorruptFileError, TruncatedError, UnknownFormatError

from ..work import bytes_read

CONFIG = b"sample_rate: 16000\n"
LONG = "a/" * 80 + "model_weights.ckpt"


def checkpoint(size: int = 6) -> bytes:
    buffer = io.BytesIO()
    torch.save({"encoder.weight": torch.arange(float(size)).reshape(2, -1)}, buffer)
    return buffer.getvalue()


def pack(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_nemo_archive_is_a_dict_of_its_members(form: int, tmp_path: Path) -> None:
    members = {"./model_config.yaml": CONFIG, "./model_weights.ckpt": checkpoint(), "./x.bin": b"\xff\0\1"}
    path = pack(tmp_path / "model.nemo", members, form)
    state = statedict.load(path)
    assert [*state] == ["model_config.yaml", "model_weights.ckpt", "x.bin"]
    assert state["model_config.yaml"] == CONFIG.decode()
    assert state["x.bin"].name == "a file of 3 bytes"
    assert state["model_weights.ckpt"]["encoder.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    report = statedict.verify(path)
    assert report.ok
    assert report.tensors == 1
    assert statedict.scan(path).verdict == "data"
    statedict.convert(f"{path}::model_weights.ckpt", tmp_path / "x.safetensors")
    assert statedict.load(tmp_path / "x.safetensors")["encoder.weight"].shape == (2, 3)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_whole(form: int, tmp_path: Path) -> None:
    assert [*statedict.load(pack(tmp_path / "x.tar", {LONG: checkpoint()}, form))] == [LONG]


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"a.ckpt": checkpoint(4_000_000)})
    assert bytes_read(lambda: statedict.load(path)) < 1 << 19


def test_a_damaged_member_is_found(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"a.ckpt": checkpoint(600)})
    data = bytearray(path.read_bytes())
    at = data.index(torch.arange(600.0).numpy().tobytes()[400:440])
    data[at] ^= 1
    path.write_bytes(data)
    (problem,) = statedict.verify(path).problems
    assert "CRC-32 differs" in problem.what
    assert problem.tensors == ("a.ckpt.encoder.weight",)


def test_an_archive_that_is_cut_or_damaged_says_where(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"a.txt": CONFIG, "b.ckpt": checkpoint()})
    whole = path.read_bytes()
    path.write_bytes(whole)
    os.truncate(path, 3 * 512 + 700)
    with pytest.raises(TruncatedError, match=r"x\.tar: the member at byte 1,536 .* looks truncated"):
        statedict.load(path, format="tar")
    path.write_bytes(whole[:1536] + b"x" * 512 + whole[2048:])
    with pytest.raises(CorruptFileError, match="the tar header at byte 1,536 is damaged"):
        statedict.load(path, format="tar")
    path.write_bytes(whole[: 512 + 124] + b"zzzz" + whole[512 + 128 :])
    with pytest.raises(CorruptFileError, match="the member at byte 512 has no size"):
        statedict.load(path, format="tar")


def test_two_members_of_a_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("a")
            info.size = len(CONFIG)
            archive.addfile(info, io.BytesIO(CONFIG))
    with pytest.raises(CorruptFileError, match="two members are called 'a'"):
        statedict.load(path)


def test_an_archive_of_other_things_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match=r"without a checkpoint among its members; it holds a\.txt; unpack it"):
        statedict.load(pack(tmp_path / "x.tar", {"a.txt": CONFIG}))


def test_a_packed_archive_says_to_unpack_it(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz"):
        pass
    with pytest.raises(UnknownFormatError, match="compressed by gzip; unpack it first"):
        statedict.load(tmp_path / "x.tar.gz")
