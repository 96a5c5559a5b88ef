"""Each way in which a torch zip file can be wrong, and its error."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch

import statedict
from statedict.io.source import BytesSource
from statedict.pickles.writer import dumps
from statedict.tensor.lazy import LazyTensor, Storage

from .test_torch_zip import rezip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with two storages."""
    path = tmp_path / "whole.pth"
    statedict.save({"w": torch.arange(10.0), "b": torch.arange(3)}, path)
    return path


def pickled(
    *shape: int, size: int = 40, offset: int = 0, strides: tuple[int, ...] | None = None, dtype: str = "float32"
) -> bytes:
    """A data.pkl with one tensor that says what it likes of storage 0."""
    storage = Storage(BytesSource(b""), 0, size)
    tensor = LazyTensor(statedict.dtype(dtype), shape, storage, 0, strides)
    return dumps({"w": tensor}, lambda t: ("0", size, offset, t.stride()))


def test_an_archive_without_its_directory_looks_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(
        statedict.errors.CorruptFileError,
        match=r"whole\.pth: .*directory at the end is missing.*truncated, fetch it again",
    ):
        statedict.load(path)


def test_an_archive_without_data_pkl_was_not_written_by_torch(path: Path) -> None:
    with pytest.raises(
        statedict.errors.UnknownFormatError,
        match=r"zip archive without data\.pkl and without a checkpoint among its members",
    ):
        statedict.load(rezip(path, **{"data.pkl": None}))


def test_a_missing_storage_is_named(path: Path) -> None:
    with pytest.raises(
        statedict.errors.CorruptFileError, match=r"rezipped\.pth: .*storage data/1 is missing from the archive"
    ):
        statedict.load(rezip(path, data__1=None))


def test_a_storage_that_is_too_small_is_named_with_both_sizes(path: Path) -> None:
    with pytest.raises(
        statedict.errors.CorruptFileError,
        match=r"storage data/0: 10 elements of float32 need 40 bytes, the archive has 39",
    ):
        statedict.load(rezip(path, data__0=bytes(39)))


@pytest.mark.parametrize(
    "pickle",
    [
        pickled(11),
        pickled(10, offset=4),
        pickled(2, 5, strides=(6, 1)),
        pickled(1 << 40),
        pickled(1 << 20, 1 << 20, 1 << 20, strides=(0, 0, 0)),
        pickled(6, dtype="float64"),
    ],
    ids=["too long", "too far", "strides too wide", "huge", "more elements than any machine holds", "wider dtype"],
)
def test_a_tensor_that_leaves_its_storage_is_refused(path: Path, pickle: bytes) -> None:
    with pytest.raises(statedict.errors.CorruptFileError, match="storage"):
        statedict.load(rezip(path, **{"data.pkl": pickle}))


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        (("storage", "no class", "0", "cpu", 10), "described wrongly"),
        (("module", None, "0", "cpu", 10), "does not name a storage"),
        (("storage",), "does not name a storage"),
        ("0", "does not name a storage"),
    ],
    ids=["kind", "tag", "short", "no tuple"],
)
def test_a_persistent_id_that_is_no_storage_is_refused(path: Path, identifier: object, message: str) -> None:
    pickle = dumps(identifier, lambda tensor: ("0", 40, 0, ()))
    with pytest.raises(statedict.errors.CorruptFileError, match=message):
        statedict.load(rezip(path, **{"data.pkl": pickle[:-1] + b"Q."}))


@pytest.mark.parametrize("kept", [0, 1, 2, 30, -1])
def test_a_pickle_that_ends_early_says_where(path: Path, kept: int) -> None:
    with zipfile.ZipFile(path) as archive:
        pickle = archive.read("archive/data.pkl")
    with pytest.raises(
        statedict.errors.CorruptFileError, match=r"data\.pkl: at byte \d+ of \d+: .*truncated or damaged"
    ):
        statedict.load(rezip(path, **{"data.pkl": pickle[:kept]}))


def test_a_record_that_stands_twice_is_refused(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("archive/data/0", bytes(40))
    with pytest.raises(statedict.errors.CorruptFileError, match="'archive/data/0' stands twice"):
        statedict.load(path)


def central(path: Path, name: str) -> int:
    """Where the central header of a record begins."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        at = archive.start_dir
    while data[at + 46 : at + 46 + struct.unpack_from("<H", data, at + 28)[0]].decode() != name:
        at += 46 + sum(struct.unpack_from("<3H", data, at + 28))
    return at


@pytest.mark.parametrize(
    ("field", "code", "value", "message"),
    [
        (8, "<H", 0x0809, "is encrypted; decrypt the archive first"),
        (10, "<H", 12, "compressed by method 12; unpack the archive first"),
        (20, "<L", 39, "is stored but has two sizes"),
        (42, "<L", 0x7FFFFFFF, "overlaps the zip directory"),
        (42, "<L", 0xFFFFFFFF, "lacks its 64 bit sizes"),
        (0, "<L", 0, "directory is damaged at its byte"),
    ],
    ids=["encrypted", "method", "sizes", "offset", "zip64", "magic"],
)
def test_a_directory_entry_that_lies_is_refused(path: Path, field: int, code: str, value: int, message: str) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(code, data, central(path, "archive/data/0") + field, value)
    path.write_bytes(data)
    with pytest.raises(statedict.errors.FormatError, match=rf"whole\.pth: .*{message}"):
        statedict.load(path)


def test_a_local_header_that_is_not_there_is_found_when_its_record_is_read(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = central(path, "archive/data/0") + 42
    struct.pack_into("<L", data, at, struct.unpack_from("<L", data, at)[0] + 1)
    path.write_bytes(data)
    state = statedict.load(path)
    assert state["b"].tolist() == [0, 1, 2]
    with pytest.raises(statedict.errors.CorruptFileError, match=r"archive/data/0: no record at byte \d+"):
        state["w"].numpy()


def test_a_directory_of_more_records_than_bytes_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into("<2H", data, len(data) - 14, 60_000, 60_000)
    path.write_bytes(data)
    with pytest.raises(
        statedict.errors.CorruptFileError, match=r"60,000 records cannot lie in a directory of \d+ bytes"
    ):
        statedict.load(path)


def test_a_deflated_record_that_claims_more_than_deflate_can_give_is_refused(path: Path) -> None:
    packed = rezip(path, zipfile.ZIP_DEFLATED)
    data = bytearray(packed.read_bytes())
    struct.pack_into("<L", data, central(packed, "archive/data/0") + 24, 1 << 30)
    packed.write_bytes(data)
    with pytest.raises(statedict.errors.LimitError, match="claim to unpack to 1,073,741,824; refused"):
        statedict.load(packed)


@pytest.mark.parametrize("size", [39, 41])
def test_a_deflated_record_of_another_size_than_declared_is_refused(path: Path, size: int) -> None:
    packed = rezip(path, zipfile.ZIP_DEFLATED)
    data = bytearray(packed.read_bytes())
    struct.pack_into("<L", data, central(packed, "archive/data/0") + 24, size)
    packed.write_bytes(data)
    with pytest.raises(
        statedict.errors.CorruptFileError, match=r"size in its own header is 40|need 40 bytes, .* has 39"
    ):
        statedict.load(packed)["w"].numpy()


@pytest.mark.parametrize(
    "ours",
    [
        b"",
        b"{",
        b"[1]",
        b"5",
        b"\xff",
        b'{"metadata": 3}',
        b'{"metadata": {"a": 1}}',
        b'{"metadata": ["ab"]}',
        b"[" * 100_000,
    ],
    ids=["empty", "cut", "list", "number", "no text", "metadata 3", "metadata of numbers", "metadata list", "deep"],
)
def test_our_own_record_is_distrusted_like_the_rest(path: Path, ours: bytes) -> None:
    with pytest.raises(
        statedict.errors.CorruptFileError, match=r"\.statedict\.json(: is damaged| is not JSON .*; the file is damaged)"
    ):
        statedict.load(rezip(path, **{".statedict.json": ours}))


def test_our_own_record_may_be_missing_or_newer(path: Path) -> None:
    assert statedict.load(rezip(path, **{".statedict.json": None}))["b"].tolist() == [0, 1, 2]
    newer = json.dumps({"version": 9, "something": [1], "metadata": {"note": "kept"}}).encode()
    assert statedict.load(rezip(path, **{".statedict.json": newer})).metadata == {"note": "kept"}


def test_a_path_that_cannot_be_opened_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.FileError):
        statedict.load(tmp_path / ("x" * 300))


def test_a_persistent_id_that_doubles_itself_is_refused_at_once(tmp_path: Path) -> None:
    doubled = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))
    for identifier in (doubled, b"(X\x07\x00\x00\x00storageN" + doubled + b"NNt"):
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + identifier + b"Q.")
        with pytest.raises(statedict.errors.CorruptFileError, match="storage"):
            statedict.load(tmp_path / "bomb.pth")


def test_a_file_that_pytorch_wrote_without_crc_32_is_fine_and_the_report_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(1000.0), "step": 1}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    report = statedict.verify(path)
    assert (report.problems, report.crcs) == ((), 0)
    assert report.notes[0] == "PyTorch wrote it without CRC-32 (compute_crc32 = False)"
    statedict.edit(path, None, {"set": "step", "value": 2})
    report = statedict.verify(path)
    assert report.problems == ()
    assert report.crcs
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(b"step")] ^= 1
    path.write_bytes(whole)
    assert not statedict.verify(path).ok
