"""A file that two readers could read differently is damaged, whichever verb looks; what real programs write is fine."""

from __future__ import annotations

import bz2
import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz.zips import Member, Zip

import statedict

HARMLESS = pickle.dumps({"a": 1}, 2)
NAMED = b"charmless_module\nnothing\n."  # a pickle that names what does not exist
VERSION = Member(b"a/version", b"3\n")
GOOD = Zip([Member(b"a/data.pkl", HARMLESS), VERSION])
OTHER = Zip([Member(b"a/data.pkl", NAMED), VERSION]).build()


def tarred(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def directory(archive: bytes) -> bytes:
    return archive[archive.index(b"PK\1\2") : archive.rindex(b"PK\5\6")]


def path_extra(name: bytes, header: bytes) -> bytes:
    """The extra field that gives a name in Unicode."""
    return struct.pack("<2HBL", 0x7075, 5 + len(name), 1, zlib.crc32(header)) + name


def elsewhere(**options: Any) -> bytes:
    """An archive whose end records lead to one directory by an offset and to another by where they stand."""
    record = Zip([Member(b"a/data.pkl", NAMED)]).build()
    hidden = record[: record.index(b"PK\5\6")]
    return replace(GOOD, prefix=hidden, end={"offset": record.index(b"PK\1\2")}, **options).build()


def with_wide(at: str) -> bytes:
    """An archive of two zip64 end records: one where its locator stands, one where the locator says."""
    inner = Zip([Member(b"a/data.pkl", NAMED), VERSION], wide=True).build()
    far = inner[: inner.index(b"PK\6\7")]
    return replace(GOOD, prefix=far, wide=True, locator={at: inner.index(b"PK\6\6")}).build()


def member(**options: Any) -> bytes:
    return Zip([Member(b"a/data.pkl", HARMLESS, **options), VERSION]).build()


def named(*names: bytes) -> bytes:
    return Zip([Member(b"a/data.pkl", HARMLESS), VERSION, *(Member(name, NAMED) for name in names)]).build()


LONGER = {"packed": 60, "unpacked": 60}
BROKEN = [f"a deflated record that {how}" for how in ("breaks", "ends early", "breaks at once")]
PACKED = Member(b"", HARMLESS, 8).pack()
AMBIGUOUS: dict[str, bytes] = {
    "two directories, one by its offset": elsewhere(),
    "two zip64 end records": with_wide("offset"),
    "a zip64 end record that says another count": replace(GOOD, wide=True, end64={"here": 1, "count": 1}).build(),
    "a zip64 end record of another place": replace(GOOD, wide=True, end={"offset": 1}).build(),
    "a zip64 end record that is longer": replace(GOOD, wide=True, end64={"length": 50}).build(),
    "something before the zip64 locator": replace(GOOD, wide=True, behind64=b"12345678").build(),
    "an end record in the comment of another": replace(GOOD, comment=OTHER[OTHER.rindex(b"PK\5\6") :]).build(),
    "an archive in the comment of another": replace(GOOD, comment=OTHER).build(),
    "an end record in a comment that goes on": replace(GOOD, comment=OTHER + b"and so on").build(),
    "fewer records than the directory has": replace(GOOD, end={"count": 1, "here": 1}).build(),
    "another count on this disk": replace(GOOD, end={"here": 1}).build(),
    "several disks": replace(GOOD, end={"disk": 1, "first": 1}).build(),
    "several disks by the zip64 locator": replace(GOOD, wide=True, locator={"disks": 2}).build(),
    "bytes after the directory": replace(GOOD, after=b"something").build(),
    "another directory after the directory": replace(GOOD, after=directory(OTHER)).build(),
    "bytes before the archive": replace(GOOD, prefix=b"MZ" + bytes(100), shift=102).build(),
    "bytes behind the archive": replace(GOOD, tail=b"something").build(),
    "a name in another case": named(b"a/DATA.PKL"),
    "a folder in another case": named(b"A/data.pkl"),
    "a name in another case only": Zip([Member(b"a/DATA.pkl", HARMLESS), VERSION]).build(),
    "a storage in another case": named(b"a/Data/0"),
    "the byte order in another case": named(b"a/Byteorder"),
    "a name twice": named(b"a/data.pkl"),
    "a name with the other slash": named(b"a\\data.pkl"),
    "a name that ends at a NUL": named(b"a/data.pkl\0x"),
    "another name in an extra field": member(central_extra=path_extra(b"a/other.pkl", b"a/data.pkl")),
    "a name of another record in an extra field": Zip(
        [*GOOD.members, Member(b"\x81", NAMED, central_extra=path_extra(b"a/data.pkl", b"\x81"))]
    ).build(),
    "a name that is one of two by its code page": named(b"\xc3\xbc", "├╝".encode()),
    "a name that is no UTF-8 but says so": Zip([*GOOD.members, Member(b"a/\xff", b"", flags=0x800)]).build(),
    "an extra field that ends early": member(central_extra=b"\1\0\xff\0"),
    "64 bit sizes twice": member(central={"header": 0xFFFFFFFF}, central_extra=(b"\1\0\x08\0" + bytes(8)) * 2),
    "a folder that has bytes": Zip([*GOOD.members, Member(b"a/data/", HARMLESS)]).build(),
    "a folder by its attributes that has bytes": member(central={"external": 0x10}),
    "a record on another disk": member(central={"disk": 1}),
    "another name in its own header": member(local_name=b"a/text.pkl"),
    "another method in its own header": member(local={"method": 8}),
    "another size in its own header": member(local={"packed": 4, "unpacked": 4}),
    "another CRC-32 in its own header": member(local={"crc": 4}),
    "encrypted by its own header": member(local={"flags": 1}),
    "sums behind the data by its own header only": member(local={"flags": 8}),
    "sums behind the data by the directory only": member(central={"flags": 8}),
    "a name whose code its own header says otherwise": Zip(
        [Member("ü/data.pkl".encode(), HARMLESS, flags=0x800, local={"flags": 0})]
    ).build(),
    "a name whose code no flag tells, two ways": Zip(
        [Member("ü/data.pkl".encode(), HARMLESS, local_name=b"\x81/data.pkl")]
    ).build(),
    "two sizes, though stored": member(central={"unpacked": 4}, local={"unpacked": 4}),
    "two sizes, though stored, at some time": member(central={"unpacked": 4, "time": 1}, local={"unpacked": 4}),
    "a deflated record that breaks": member(method=8, packed=PACKED[:4] + b"\xff\xff\xff\xff"),
    "a deflated record that breaks at once": member(method=8, packed=b"\xff\xff\xff\xff"),
    "a deflated record that ends early": member(method=8, packed=PACKED[:-3]),
    "a deflated record of another size": member(method=8, local={"unpacked": 4}, central={"unpacked": 4}),
    "a record that overlaps the next": member(central=LONGER, local=LONGER),
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_archive_of_more_than_one_reading_is_damage_for_every_verb(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(AMBIGUOUS[name])
    report = statedict.scan(path)
    assert report.damage or report.verdict == "dangerous", report
    assert report.verdict != "data"
    try:
        verified = statedict.verify(path)
    except statedict.errors.FormatError:
        pass
    else:
        assert not verified.ok, verified
    with pytest.raises(statedict.StateDictError):
        statedict.load(path)


@pytest.mark.parametrize(
    "name", [name for name, data in AMBIGUOUS.items() if NAMED in data and name != "a name that ends at a NUL"]
)
def test_scan_follows_every_reading(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(AMBIGUOUS[name])
    assert "harmless_module.nothing" in {found.qualified for found in statedict.scan(tmp_path / "file.pth").globals}


@pytest.mark.parametrize(
    "name",
    ["a deflated record that breaks", "a deflated record that ends early", "a deflated record that breaks at once"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_what_cannot_be_unpacked_is_damage_whatever_it_is_called(name: str, inside: bool, tmp_path: Path) -> None:
    data = AMBIGUOUS[name].replace(b"data.pkl", b"text.txt")
    path = tmp_path / "file"
    path.write_bytes(Zip([Member(b"readme", b"hello"), Member(b"inner.zip", data, 8)]).build() if inside else data)
    report = statedict.scan(path)
    assert report.verdict == "unreadable"
    assert "a/text.txt: compressed by deflate, and damaged" in "\n".join(report.damage)


def tar_too(data: bytes, magic: bytes = b"ustar\0") -> bytes:
    """The bytes, changed so that they also begin with the header of a tar archive of one empty file."""
    block = bytearray(data[:512])
    block[124:136] = b"00000000000\0"
    block[156:157] = b"0"
    block[257 : 257 + len(magic)] = magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data[512:]


def constant(opening: bytes, length: int, closing: bytes = b"") -> bytes:
    """A pickle that drops a constant of so many bytes and then names what does not exist."""
    return opening + b"A" * length + closing + b"0" + NAMED


CONSTANTS = {
    "BINSTRING": constant(b"T\0\3\0\0", 768),
    "BINUNICODE": constant(b"X\0\3\0\0", 768),
    "BINBYTES": constant(b"B\0\3\0\0", 768),
    "UNICODE": constant(b"V", 768, b"\n"),
    "STRING": constant(b"S'", 768, b"'\n"),
    "PROTO and BINUNICODE": constant(b"\x80\2X\0\3\0\0", 768),
    "a pickle before": b"B\0\3\0\0" + b"A" * 768 + b"." + NAMED,
}


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("magic", [b"ustar\0", b"ustar  \0", b""])
def test_a_pickle_that_is_a_tar_archive_too_is_read_as_both(name: str, magic: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(tar_too(CONSTANTS[name], magic))
    report = statedict.scan(path)
    assert "harmless_module.nothing" in {found.qualified for found in report.globals}, report
    assert report.verdict != "data"
    with pytest.raises(statedict.errors.FormatError):
        statedict.load(path)


def test_the_magic_of_a_tar_archive_in_a_constant_alone_hides_nothing(tmp_path: Path) -> None:
    for data in CONSTANTS.values():
        path = tmp_path / "file"
        path.write_bytes(data[:257] + b"ustar\0" + data[263:])
        assert "harmless_module.nothing" in {found.qualified for found in statedict.scan(path).globals}


def array(data: bytes) -> bytes:
    out = io.BytesIO()
    np.save(out, np.frombuffer(data, "u1"))
    return out.getvalue()


def archive_in_a_pickle() -> bytes:
    """An archive whose first record lies within a constant of a pickle, which goes on in the record's data."""
    opening = b"B" + (30 + 1 + 4).to_bytes(4, "little")
    return Zip([Member(b"x", b"1234" + b"0" + NAMED), *GOOD.members], prefix=opening).build()


POLYGLOTS: dict[str, bytes] = {
    "an archive and, before it, gzip": replace(GOOD, prefix=gzip.compress(NAMED)).build(),
    "an archive and, before it, bzip2": replace(GOOD, prefix=bz2.compress(NAMED)).build(),
    "an archive and a pickle": archive_in_a_pickle(),
    "an array and a tar archive": tar_too(array(bytes(1024)))[:512] + tarred({"inner.pkl": NAMED}),
    "an archive in a tar archive's members": tarred({"a": OTHER[:-22], "b": OTHER[-22:]}),
    "an archive with bytes before it in an archive": Zip(
        [Member(b"inner", replace(GOOD, members=[Member(b"a/data.pkl", NAMED)], prefix=b"MZ").build())]
    ).build(),
}


@pytest.mark.parametrize("name", POLYGLOTS)
def test_what_can_be_read_as_several_things_is_read_as_all(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(POLYGLOTS[name])
    report = statedict.scan(path)
    assert "harmless_module.nothing" in {found.qualified for found in report.globals}, report
    assert report.verdict != "data"


def saved(tree: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(tree, out, **options)
    return out.getvalue()


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
        archive.comment = comment
    return out.getvalue()


class Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation


def streamed(*members: tuple[str, bytes]) -> bytes:
    out = Unseekable()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def arrays(save: Any, **values: Any) -> bytes:
    out = io.BytesIO()
    save(out, **values)
    return out.getvalue()


TREE = {"w": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16)}
CHECKPOINT = saved(TREE)
HONEST: dict[str, bytes] = {
    "torch.save": CHECKPOINT,
    "torch.save, of nothing": saved({}),
    "torch.save, old": saved(TREE, _use_new_zipfile_serialization=False),
    # with a class on the first line of the pickle, after which a word and a number may look like opcodes
    "torch.save, of a size": saved({"size": torch.Size([2]), "tensors": [torch.tensor(1.0)]}),
    "torch.save, of a scheduler": saved(
        torch.optim.lr_scheduler.OneCycleLR(
            torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]), 0.1, 10
        ).state_dict()
    ),
    "torch.save, of numpy's, by protocol 0": saved({"a": np.ones(3)}, pickle_protocol=0),
    "a comment": zipped(("a/data.pkl", HARMLESS), ("a/version", b"3"), comment=b"by hand" * 1000),
    "packed anew, streamed": streamed(("a/data.pkl", HARMLESS), ("a/version", b"3")),
    "names beyond ASCII": zipped(("模型/data.pkl", HARMLESS), ("模型/version", b"3")),
    "stable-baselines3": zipped(
        ("data", b'{"gamma": 0.99}'), ("policy.pth", CHECKPOINT), ("_stable_baselines3_version", b"2.3.0")
    ),
    "an archive in an archive, deflated": zipped(("policy.pth", CHECKPOINT), method=zipfile.ZIP_DEFLATED),
    "an archive that Info-ZIP writes of names beyond ASCII": Zip(
        [
            Member(b"w.pth", CHECKPOINT, 8),
            Member(b"\x81.txt", b"hello", central_extra=path_extra("ü.txt".encode(), b"\x81.txt")),
        ]
    ).build(),
    "an archive of a folder by an old program of Windows": zipped(("w.pth", CHECKPOINT)).replace(b"w.pth", b"a\\w.p"),
    "a name in ASCII that says UTF-8 once": member(local={"flags": 0x800}),
    "a name in a code page that zipfile's directory has in UTF-8": Zip(
        [Member("ü/data.pkl".encode(), HARMLESS, flags=0x800, local_name=b"\x81/data.pkl", local={"flags": 0})]
    ).build(),
    "an archive of Java": Zip([Member(b"w.pth", CHECKPOINT, 8, flags=0x800, described=True)]).build(),
}


@pytest.mark.parametrize("name", HONEST)
def test_what_real_programs_write_is_fine(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(HONEST[name])
    report = statedict.scan(path)
    assert (report.verdict, report.damage) == ("data", ()), report
    assert statedict.verify(path).ok, statedict.verify(path)
    statedict.load(path)


@pytest.mark.parametrize(
    "data",
    [
        arrays(np.savez, W=np.zeros(3), w=np.ones(3), ä=np.ones(2)),
        arrays(np.savez_compressed, W=np.zeros(3), w=np.ones(3)),
        zipped(("config.json", b"{}"), ("model.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(99))),
        CHECKPOINT * 3,
        CHECKPOINT + saved({"a": torch.zeros(100)}) + saved({}),
        tarred({"a.pth": CHECKPOINT}),
        replace(GOOD, prefix=b"#!/bin/sh\n").build(),
    ],
    ids=["npz", "compressed npz", "keras", "distcp", "distcp of several sizes", "tar", "after a program, with offsets"],
)
def test_scan_calls_other_archives_of_real_programs_data(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    report = statedict.scan(tmp_path / "file")
    assert (report.verdict, report.damage) == ("data", ()), report


def test_of_two_checkpoints_in_an_archive_the_one_that_pytorch_loads_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    members = {"longer/data.pkl": pickle.dumps(1, 2), "a/data.pkl": pickle.dumps(2, 2), "longer/version": b"3"}
    path.write_bytes(zipped(*members.items()))
    assert pickle.loads(torch.PyTorchFileReader(str(path)).get_record("data.pkl")) == 1
    assert list(statedict.load(path).values()) == [1]


@pytest.mark.parametrize("first", ["pickle", "pickle that is counted", "torch, old"])
@pytest.mark.parametrize("behind", ["", "and more"])
def test_what_begins_as_a_pickle_and_ends_as_an_archive_is_damage(first: str, behind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    before = HONEST["torch.save, old"] if first == "torch, old" else HARMLESS
    archive = replace(GOOD, prefix=before).build() if first == "pickle that is counted" else before + CHECKPOINT
    path.write_bytes(archive + behind.encode())
    assert statedict.scan(path).damage
    verified = statedict.verify(path)
    assert "and ends as a zip archive" in str(verified)
    assert not verified.ok
    with pytest.raises(statedict.errors.CorruptFileError, match=r"begins as a pickle, which .* ends as a zip archive"):
        statedict.load(path)
    for mmap in (False, True):
        with pytest.raises(
            statedict.errors.CorruptFileError, match=r"begins as a pickle, which .* ends as a zip archive"
        ):
            statedict.torch.load(path, mmap=mmap)


@pytest.mark.parametrize("protocol", [2, 4])
def test_an_archive_within_a_pickle_or_a_tensor_is_no_other_reading(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(
        pickle.dumps({"zip": bytearray(CHECKPOINT).decode("latin-1")}, protocol) + b"some bytes that follow"
    )
    assert isinstance(statedict.load(path)["zip"], str)
    inner = torch.frombuffer(bytearray(CHECKPOINT), dtype=torch.uint8)
    torch.save({"zip": inner}, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert statedict.verify(path).ok
    assert bytes(statedict.load(path)["zip"].numpy()) == CHECKPOINT


def test_an_end_record_that_another_one_hides_ends_the_search(tmp_path: Path) -> None:
    """The last one has a comment that goes past the end and no directory; the one before has both."""
    hidden = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 46, 5, 9)
    (tmp_path / "file").write_bytes(replace(GOOD, comment=hidden).build())
    report = statedict.scan(tmp_path / "file")
    assert report.verdict == "unreadable"
    assert report.pickles == 1
