"""Archives: what zipfile writes we read, what we write zipfile reads, and nothing that an archive says is trusted."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statedict.errors import CorruptFileError, FormatError, LimitError, StateDictError
from statedict.io.source import BytesSource, FileSource
from statedict.io.zip import ALIGNMENT, ArchiveLayout, Inflated, Record, read_directory

from .archives import deflated, stored

names = st.text("abc/.äß漢 ", min_size=1, max_size=12).filter(lambda name: name.strip("/ ") and not name.endswith("/"))
archives = st.dictionaries(names, st.binary(max_size=200), max_size=6)


def contents(data: bytes) -> dict[str, bytes]:
    return {name: bytes(r.read(0, r.size)) for name, r in read_directory(BytesSource(data, "a.pth")).items()}


def written(records: dict[str, bytes]) -> bytes:
    layout, out = ArchiveLayout(), bytearray()
    for name, data in records.items():
        header_at, header, data_at = layout.add(name, len(data))
        assert header_at == len(out)
        out += header
        assert data_at == len(out)
        out += data + layout.descriptor(zlib.crc32(data), len(data))
    assert layout.position == len(out)
    return bytes(out + layout.directory([zlib.crc32(data) for data in records.values()]))


@given(archives, st.binary(max_size=100), st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_what_zipfile_writes_we_read_in_its_order(records: dict[str, bytes], comment: bytes, method: int) -> None:
    data = stored(records, comment, method)
    found = contents(data)
    assert found == records
    assert list(found) == list(records)
    assert {n: r.crc for n, r in read_directory(BytesSource(data)).items()} == {
        n: zlib.crc32(d) for n, d in records.items()
    }


@given(archives)
def test_what_we_write_zipfile_reads_and_finds_sound(records: dict[str, bytes]) -> None:
    data = written(records)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == records
        assert all(info.flag_bits == 0x808 for info in archive.infolist())
    assert contents(data) == records


@given(archives)
def test_every_record_that_we_write_begins_at_a_multiple_of_64(records: dict[str, bytes]) -> None:
    for record in read_directory(BytesSource(written(records))).values():
        assert isinstance(record, Record)
        assert record.locate()[1] % ALIGNMENT == 0


@given(archives)
def test_zipfile_s_streamed_records_are_read(records: dict[str, bytes]) -> None:
    class Unseekable(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: Any) -> int:
            raise io.UnsupportedOperation

    file = Unseekable()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    assert contents(file.getvalue()) == records


def test_an_archive_of_more_than_65535_records_goes_both_ways() -> None:
    records = {f"data/{index}": b"%d" % index for index in range(65_540)}
    data = written(records)
    assert data.count(b"PK\6\6") == data.count(b"PK\6\7") == 1
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert len(archive.namelist()) == 65_540
        assert archive.read("data/65539") == b"65539"
    assert contents(data)["data/65539"] == b"65539"


def test_records_and_offsets_of_more_than_4_gigabytes_go_both_ways(tmp_path: Path) -> None:
    path, size = tmp_path / "sparse.zip", (4 << 30) + 5
    layout = ArchiveLayout()
    with path.open("wb") as file:
        for name, length in (("huge", size), ("after", 5)):
            header_at, header, data_at = layout.add(name, length)
            os.pwrite(file.fileno(), header, header_at)
            os.pwrite(file.fileno(), b"12345", data_at + length - 5)
            os.pwrite(file.fileno(), layout.descriptor(7, length), data_at + length)
        os.pwrite(file.fileno(), layout.directory([7, zlib.crc32(b"12345")]), layout.position)
    records = read_directory(FileSource(str(path)))
    assert [record.size for record in records.values()] == [size, 5]
    assert records["huge"].read(size - 5, 5) == records["after"].read(0, 5) == b"12345"
    with zipfile.ZipFile(path) as archive:
        assert [info.file_size for info in archive.infolist()] == [size, 5]
        assert archive.infolist()[1].header_offset > 4 << 30
        assert archive.read("after") == b"12345"


def test_reading_the_directory_touches_no_record() -> None:
    class Counted(BytesSource):
        __slots__ = ("reads",)

        def read(self, offset: int, length: int) -> bytes | bytearray:
            self.reads += length
            return super().read(offset, length)

    source = Counted(stored({f"r{index}": bytes(100_000) for index in range(20)}))
    source.reads = 0
    records = read_directory(source)
    assert source.reads < 70_000
    records["r7"].read(10, 10)
    assert source.reads < 70_050


def test_an_end_within_the_comment_of_another_is_refused_for_readers_take_one_or_the_other() -> None:
    for claim in (0, 2, 5):
        fake = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, claim)
        with pytest.raises(CorruptFileError, match="it has two end records, at bytes"):
            contents(stored({"a": b"x"}, comment=fake + b"no"))


def test_names_that_are_no_utf_8_are_those_of_old_archivers() -> None:
    data = stored({"aa": b"x"}).replace(b"aa", b"\x81a")
    assert contents(data) == {"üa": b"x"}


def test_an_empty_archive_has_no_records() -> None:
    assert contents(written({})) == contents(stored({})) == {}


# damage


@given(archives.filter(bool), st.data())
def test_an_archive_cut_anywhere_is_damage(records: dict[str, bytes], data: st.DataObject) -> None:
    whole = written(records)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(CorruptFileError, match=r"^a\.pth: "):
        contents(cut)


@given(archives, st.data(), st.booleans())
def test_a_flipped_byte_gives_an_error_of_ours_or_an_archive(
    records: dict[str, bytes], data: st.DataObject, ours: bool
) -> None:
    damaged = bytearray(written(records) if ours else deflated(records))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = contents(bytes(damaged))
    except StateDictError:
        return
    assert all(isinstance(value, bytes) for value in found.values())


CENTRAL = b"PK\1\2"


def patched(data: bytes, offset: int, value: bytes, magic: bytes = CENTRAL) -> bytes:
    """The archive with bytes put at an offset in its first central header, or what else begins with `magic`."""
    at = data.index(magic) + offset
    return data[:at] + value + data[at + len(value) :]


def claiming(data: bytes, size: int) -> bytes:
    """The archive whose first record says in both headers that it unpacks to so many bytes."""
    return patched(patched(data, 24, struct.pack("<L", size)), 22, struct.pack("<L", size), b"PK\3\4")


@pytest.mark.parametrize(
    ("offset", "value", "error", "message"),
    [
        (0, b"XX", CorruptFileError, "the zip directory is damaged at its byte 0"),
        (8, b"\1", FormatError, "record 'r' is encrypted; decrypt"),
        (10, b"\x0c", FormatError, "record 'r' is compressed by method 12; unpack"),
        (20, b"\4", CorruptFileError, "record 'r' is stored but has two sizes"),
        (20, b"\4\1\0\0\4\1\0\0", CorruptFileError, "record 'r' overlaps the zip directory"),
        (42, b"\xff\xff\xff\x7f", CorruptFileError, "record 'r' overlaps the zip directory"),
        (24, b"\xff\xff\xff\xff", CorruptFileError, "record 'r' lacks its 64 bit sizes"),
        (28, b"\xff\xff", CorruptFileError, "."),
    ],
)
def test_a_directory_that_lies_is_refused_by_what_it_says(offset: int, value: bytes, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        contents(patched(stored({"r": b"123", "s": b"45"}), offset, value))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (10, b"\xfe\xff", r"65,534 records cannot lie in a directory of \d+ bytes"),
        (12, b"\xfe\xff\xff\x7f", "the zip directory lies outside the file"),
        (16, b"\xfe\xff\xff\x7f", "the zip directory lies outside the file"),
        (10, b"\3", "3 records cannot lie|ends after 2 of 3"),
        (20, b"\1", "its directory at the end is missing"),
    ],
)
def test_an_end_record_that_lies_is_refused(offset: int, value: bytes, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        contents(patched(stored({"r": b"123", "s": b"45"}), offset, value, b"PK\5\6"))


def test_a_zip64_end_that_lies_is_refused() -> None:
    data = written({f"{index}": b"" for index in range(65_540)})
    for offset, value, magic, message in (
        (8, b"\xff" * 7, b"PK\6\7", "the zip64 end record lies outside the file"),
        (8, b"\0" * 8, b"PK\6\7", "the zip64 end record is damaged"),
        (32, b"\xff" * 8, b"PK\6\6", "cannot lie in a directory"),
        (40, b"\xff" * 8, b"PK\6\6", "lies outside the file"),
        (48, b"\xff" * 8, b"PK\6\6", "lies outside the file"),
    ):
        with pytest.raises(CorruptFileError, match=message):
            contents(patched(data, offset, value, magic))


def test_a_record_that_stands_twice_is_refused() -> None:
    data = stored({"r": b"1", "s": b"2"}).replace(b"s", b"r")
    with pytest.raises(CorruptFileError, match="record 'r' stands twice"):
        contents(data)


def test_a_local_header_that_is_not_there_is_found_at_the_first_read() -> None:
    records = read_directory(BytesSource(stored({"r": b"1"}).replace(b"PK\3\4", b"XXXX"), "a.pth"))
    with pytest.raises(CorruptFileError, match=r"a\.pth: r: no record at byte 0; the archive is damaged"):
        records["r"].read(0, 1)


def test_a_local_header_whose_name_is_too_long_pushes_no_record_past_the_end() -> None:
    records = read_directory(BytesSource(patched(stored({"r": b"1"}), 26, b"\xff\xff", b"PK\3\4"), "a.pth"))
    with pytest.raises(CorruptFileError, match="lie past the end of the file"):
        records["r"].view()


def test_a_deflated_record_unpacks_to_what_it_declares_or_not_at_all() -> None:
    data = deflated({"r": bytes(1000)})
    assert isinstance(read_directory(BytesSource(data))["r"], Inflated)
    for size in (999, 1001):
        with pytest.raises(CorruptFileError, match=f"unpacks to another size than the {size:,} bytes declared"):
            contents(claiming(data, size))
    with pytest.raises(LimitError, match="bytes claim to unpack to 2,000,000,000; refused"):
        contents(patched(data, 24, struct.pack("<L", 2_000_000_000)))
    start = 31
    with pytest.raises(CorruptFileError, match="the archive is damaged"):
        contents(data[:start] + b"\xff" * 4 + data[start + 4 :])


@pytest.mark.parametrize("number", range(1, 9))
def test_a_record_whose_last_packed_byte_unpacks_to_several_blocks_is_read_whole(number: int) -> None:
    data = bytes(128) + struct.pack("<f", number) * (1 << 20)
    for level in (1, 6, 9):
        record = read_directory(BytesSource(stored({"r": data}, method=zipfile.ZIP_DEFLATED, level=level)))["r"]
        assert isinstance(record, Inflated)
        for block in (1 << 18, 1 << 20):
            assert b"".join(piece for _, piece in record.stream(block)) == data


def test_a_bomb_unpacks_no_further_than_it_declares() -> None:
    data = deflated({"r": bytes(50_000_000)})
    record = read_directory(BytesSource(claiming(data, 10)))["r"]
    with pytest.raises(CorruptFileError, match="another size than the 10 bytes"):
        record.read(0, 10)
