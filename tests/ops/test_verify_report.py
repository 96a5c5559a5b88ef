"""What `verify` counts, what it bounds and how it reports."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy
import pytest
import torch
from safetensors.torch import save_file

import statedict
from statedict.reports.outcomes import Nonfinite, VerifyReport
from statedict.tensor.checks import Problem

from .test_verify import FLAT, changed, written


def peak_memory(path: Path) -> int:
    """The most kilobytes that a process which verifies the file has at a time."""
    program = (
        "import statedict, sys; statedict.verify(sys.argv[1]); "
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    return int(subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True).stdout)


# values


def nonfinite(report: VerifyReport) -> dict[str, tuple[int, int]]:
    assert report.nonfinite is not None
    return {found.path: (found.nan, found.inf) for found in report.nonfinite}


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
          torch.float8_e5m2]  # fmt: skip


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_nan_and_infinities_are_counted_as_torch_counts_them(kind: torch.dtype, suffix: str, tmp_path: Path) -> None:
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 0.0, float("nan")])
    values = values.to(kind) if not kind.is_complex else torch.complex(values, values.flip(0)).to(kind)
    plain = values if kind.itemsize > 1 else values.float()
    expected = (int(plain.isnan().sum()), int(plain.isinf().sum()))
    statedict.save({"x": values, "whole": torch.arange(3), "fine": torch.ones(3)}, tmp_path / f"x.{suffix}")
    report = statedict.verify(tmp_path / f"x.{suffix}", values=True)
    assert report.ok  # they are values, not damage
    assert nonfinite(report) == {"x": expected}
    assert statedict.verify(tmp_path / f"x.{suffix}").nonfinite is None


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
)
def test_nan_and_infinities_of_every_small_float_are_counted(name: str, tmp_path: Path) -> None:
    every = numpy.arange(256, dtype="u1").view(getattr(ml_dtypes, name))
    statedict.save({"x": every}, tmp_path / "x.safetensors")
    counts = nonfinite(statedict.verify(tmp_path / "x.safetensors", values=True))
    wide = every.astype("f4")
    assert counts == {"x": (int(numpy.isnan(wide).sum()), int(numpy.isinf(wide).sum()))}


def test_tied_tensors_are_counted_once_and_views_by_their_own_elements(tmp_path: Path) -> None:
    base = torch.full((4, 4), float("nan"))
    torch.save({"w": base, "tied": base, "t": base.t(), "column": base[:, 0], "wide": base[:1, :1].expand(99, 99)},
               tmp_path / "x.pth")  # fmt: skip
    counts = nonfinite(statedict.verify(tmp_path / "x.pth", values=True))
    assert counts == {"w": (16, 0), "t": (16, 0), "column": (4, 0), "wide": (1, 0)}


# what is hostile


def test_records_that_share_their_bytes_are_not_read_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("x/data.pkl", b"\x80\2}.")
        new.writestr("x/data/0", bytes(1_000_000))
        for number in range(1, 2000):
            twin = zipfile.ZipInfo(f"x/data/{number}")
            twin.header_offset, twin.CRC = new.infolist()[1].header_offset, new.infolist()[1].CRC
            twin.compress_size = twin.file_size = 1_000_000
            new.filelist.append(twin)
        new._didModify = True  # type: ignore[attr-defined]
    report = statedict.verify(path)
    assert "records overlap at byte" in str(report)
    assert report.nbytes == 0


def test_a_bomb_of_zeros_is_unpacked_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("x/data.pkl", b"\x80\2}.")
        with new.open("x/data/0", "w") as record:
            for _ in range(300):
                record.write(bytes(1 << 20))
    assert peak_memory(path) < 100_000
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)
    assert "data/0: " in str(statedict.verify(path))


def test_nan_is_counted_in_a_deflated_record_whose_pieces_end_within_elements(tmp_path: Path) -> None:
    values = numpy.random.default_rng(0).standard_normal(700_001).astype("f4")
    values[[5, 600_000]] = numpy.nan
    statedict.save({"w": values}, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as old,
        zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert statedict.verify(tmp_path / "y.pth", values=True).nonfinite == (Nonfinite("w", 700_001, 2, 0),)


def test_views_without_end_are_not_counted_without_end(tmp_path: Path) -> None:
    base = torch.zeros(100_000)
    torch.save([base[i:] for i in range(200)], tmp_path / "x.pth")
    assert statedict.verify(tmp_path / "x.pth").ok
    assert "overlap too often" in str(statedict.verify(tmp_path / "x.pth", values=True))


# the report


def test_a_report_is_frozen_and_its_json_has_all_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, "nested", "pth")
    changed(path, struct.pack("<3f", 3, 4, 5))
    report = statedict.verify(path, values=True)
    found = json.loads(json.dumps(report.to_json()))
    assert found["ok"] is report.ok is False
    assert found.keys() == {"ok", *(field.name for field in dataclasses.fields(VerifyReport))}
    assert found["problems"][0]["tensors"] == ["model.w", "model.tied"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.file = ""  # type: ignore[misc]


def test_a_problem_reads_as_a_sentence() -> None:
    whole = Problem("data/3", "its CRC-32 differs", "00", "ff", "fetch it again", ("a", "b", "c", "d", "e"))
    assert str(whole) == "data/3 (a, b, c and 2 more): its CRC-32 differs: expected 00, got ff; fetch it again"
    assert str(Problem("w", "is wrong", tensors=("w",))) == "w: is wrong"
    assert str(Problem("", "is wrong")) == "is wrong"


def test_every_byte_is_counted_and_notes_say_what_cannot_be_seen(tmp_path: Path) -> None:
    save_file(FLAT, tmp_path / "x.safetensors")
    report = statedict.verify(tmp_path / "x.safetensors")
    assert report.nbytes == (tmp_path / "x.safetensors").stat().st_size - 8
    assert (report.ok, report.digests) == (True, 0)
    assert "carries no digests" in report.notes[0]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("large")
    tensors = {"a": numpy.zeros(75_000_000, "f4"), "b": numpy.zeros(5_000_000, "f4")}
    for suffix in ("pth", "safetensors"):
        statedict.save(tensors, folder / f"x.{suffix}", fsync=False)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_memory_is_bounded_however_large_the_file_is(large: Path, suffix: str) -> None:
    assert peak_memory(large / f"x.{suffix}") < 100_000
