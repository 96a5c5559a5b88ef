"""No pickle hides from `scan`, nothing in a file is executed by it, and what is data stays data."""

from __future__ import annotations

import base64
import bz2
import dataclasses
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict.io.source import BytesSource
from statedict.scanner.containers import Budget, Part
from statedict.scanner.globals import Walk
from statedict.scanner.scan import Scan

from .. import dcp

EXAMPLE = Path(__file__).parents[2] / "examples" / "checkpoint.pth"


class Evil:
    """Pickled, it is a call of os.system; no test ever unpickles it."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("echo pwned >&2; exit 3",)


def saved(tree: object, **options: bool) -> bytes:
    out = io.BytesIO()
    torch.save(tree, out, **options)
    return out.getvalue()


def zipped(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def array(value: object, kind: object = object) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(value, dtype=kind))
    return out.getvalue()


def directory(archive: bytes) -> int:
    """Where the central directory of an archive begins."""
    return archive.index(b"PK\1\2")


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def unlisted(archive: bytes) -> bytes:
    """The archive with a directory that lists nothing."""
    return archive[: directory(archive)] + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, directory(archive), 0)


def sb3(data: bytes) -> bytes:
    """The JSON in which Stable-Baselines3 keeps what is no JSON."""
    held = {":type:": "<class 'type'>", ":serialized:": base64.b64encode(data).decode()}
    return json.dumps({"gamma": 0.99, "policy_class": held}).encode()


TENSORS = {"weight": torch.randn(40, 30), "bias": torch.arange(30), "epoch": 3}
DATA = saved(TENSORS)
OLD = saved(TENSORS, _use_new_zipfile_serialization=False)
EVIL = pickle.dumps(Evil())
EVIL_ZIP = saved({"weights": Evil(), "t": torch.zeros(3)})
JUNK = np.random.default_rng(0).bytes(3000)

HOSTILE: dict[str, bytes] = {
    **{f"a pickle of protocol {protocol}": pickle.dumps(Evil(), protocol) for protocol in range(6)},
    "a zip checkpoint": EVIL_ZIP,
    "a legacy checkpoint": saved({"weights": Evil()}, _use_new_zipfile_serialization=False),
    "a pickle after a pickle": pickle.dumps([1, 2, 3]) + EVIL,
    "a pickle without PROTO after a pickle": pickle.dumps([1, 2, 3]) + pickle.dumps(Evil(), 0),
    "a pickle behind junk": JUNK + EVIL + JUNK,
    "an old pickle behind junk": JUNK + pickle.dumps(Evil(), 0) + JUNK,
    "a pickle without PROTO behind junk": JUNK + EVIL[2 + 9 :] + JUNK,
    "an INST behind junk": JUNK + b"(S'ls'\nios\nsystem\n." + JUNK,
    "a pickle after megabytes of junk": JUNK * 1000 + EVIL,
    "a pickle after the storages of a legacy checkpoint": OLD + EVIL,
    "a pickle without PROTO after the storages": OLD + pickle.dumps(Evil(), 0),
    "a pickle behind junk after the storages": OLD + JUNK + EVIL,
    "a pickle after the zip end": DATA + EVIL,
    "a pickle far after the zip end": DATA + bytes(100_000) + EVIL,
    "a pickle before the zip's first record": EVIL + DATA,
    "an old pickle before the zip's first record": pickle.dumps(Evil(), 0) + DATA,
    "a pickle in the zip's comment": DATA[:-2] + struct.pack("<H", len(EVIL)) + EVIL,
    "a pickle that breaks after its payload": EVIL[:-1] + b"\xff\xff",
    "a pickle that ends after its payload": EVIL[:-1],
    "a zip whose pickle breaks after its payload": zipped({"archive/data.pkl": EVIL[:-1] + b"\xff"}),
    "a truncated zip": EVIL_ZIP[:-200],
    "a zip of one record only": EVIL_ZIP[: EVIL_ZIP.index(b"PK\7\x08")],
    "a record that no directory lists": unlisted(zipped({"data.pkl": EVIL})),
    "a record after the listed ones": (lambda a, b: a[: directory(a)] + b[: directory(b)] + a[directory(a) :])(
        zipped({"ok.pkl": pickle.dumps(1)}), zipped({"data.pkl": EVIL})
    ),
    "a record that falsely claims to be encrypted": patched(
        zipped({"data.pkl": EVIL}), directory(zipped({"data.pkl": EVIL})) + 8, b"\1\0"
    ),
    "a local header that falsely claims to be encrypted": patched(zipped({"data.pkl": EVIL}), 6, b"\1\0"),
    "a wrong checksum in the directory": patched(
        zipped({"data.pkl": EVIL}), directory(zipped({"data.pkl": EVIL})) + 16, b"evil"
    ),
    "a wrong checksum in the local header": patched(zipped({"data.pkl": EVIL}), 14, b"evil"),
    "a wrong name in the local header": patched(zipped({"data.pkl": EVIL}), 30, b"d4t4.txt"),
    "a wrong method in the directory": patched(
        zipped({"data.pkl": EVIL}), directory(zipped({"data.pkl": EVIL})) + 10, b"\x08\0"
    ),
    "an unknown method in the directory": patched(
        zipped({"data.pkl": EVIL}), directory(zipped({"data.pkl": EVIL})) + 10, b"\x63\0"
    ),
    "a wrong method in the local header": patched(zipped({"data.pkl": EVIL}), 8, b"\x08\0"),
    "a size of nothing in the directory": patched(
        zipped({"data.pkl": EVIL}), directory(zipped({"data.pkl": EVIL})) + 20, bytes(8)
    ),
    "a size of nothing in the local header": patched(zipped({"data.pkl": EVIL}), 18, bytes(8)),
    "a deflated record": zipped({"archive/data.pkl": EVIL}, zipfile.ZIP_DEFLATED),
    "a wrong suffix in a zip": zipped({"readme.txt": EVIL}),
    "a pickle among the tensors": zipped({"archive/data.pkl": pickle.dumps({}), "archive/data/0": EVIL}),
    "an old pickle among the tensors": zipped({"archive/data.pkl": b"}.", "archive/data/0": pickle.dumps(Evil(), 0)}),
    "a second name twice": zipped({"a/data.pkl": pickle.dumps({})}) + zipped({"a/data.pkl": EVIL}),
    "a zip in a zip": zipped({"model.zip": zipped({"policy.pth": EVIL_ZIP}), "x": b"text"}),
    "a deflated zip in a zip": zipped({"model.zip": EVIL_ZIP}, zipfile.ZIP_DEFLATED),
    "a tar file": tarred({"config.json": b"{}", "weights.ckpt": EVIL_ZIP}),
    "a pax tar file": tarred({"x" * 200: EVIL}, tarfile.PAX_FORMAT),
    "a tar file's name": patched(tarred({"a": b"b"}), 0, b"cos\nsystem\n(S'ls'\ntR."),
    "a pickle after the tar's end": tarred({"config.json": b"{}"}) + EVIL,
    "a tar.gz": gzip.compress(tarred({"weights.ckpt": EVIL})),
    "an npy file": array([Evil()]),
    "a pickle after an npy file": array([1.5, 2.5], "f4") + EVIL,
    "an old pickle after an npy file": array(["a", "bc"], "U5") + pickle.dumps(Evil(), 0),
    "a record of bzip2": zipped({"archive/data.pkl": EVIL}, zipfile.ZIP_BZIP2),
    "an npz file": zipped({"a.npy": array([Evil()])}),
    "a compressed npz file": zipped({"a.npy": array([Evil()])}, zipfile.ZIP_DEFLATED),
    "gzip": gzip.compress(EVIL),
    "gzip in two parts": gzip.compress(EVIL[:20]) + gzip.compress(EVIL[20:]),
    "behind gzip": gzip.compress(b"nothing") + EVIL,
    "bzip2": bz2.compress(EVIL),
    "xz": lzma.compress(EVIL),
    "lzma": lzma.compress(EVIL, lzma.FORMAT_ALONE),
    "zlib": zlib.compress(EVIL),
    "gzip that breaks after its payload": gzip.compress(EVIL + JUNK)[:-1000],
    **{f"bytes within a pickle of protocol {p}": pickle.dumps({"x": pickle.dumps([Evil()], p)}, p) for p in range(6)},
    "bytearrays within a pickle": pickle.dumps({"x": bytearray(EVIL)}, 5),
    "a zip within a pickle": pickle.dumps({"x": EVIL_ZIP}),
    "three pickles deep": pickle.dumps({"x": pickle.dumps([pickle.dumps([EVIL])])}),
    "gzip within a pickle": pickle.dumps({"x": gzip.compress(EVIL)}),
    "a zip behind junk within a pickle": pickle.dumps({"x": JUNK + zipped({"data.pkl": EVIL})}),
    "a zip before a comment within a pickle": pickle.dumps(
        {"x": b"x" * 99 + zipped({"data.pkl": EVIL})[:-2] + b"\4\0abcd"}),
    **{f"a zip behind text in a string of protocol {p}": pickle.dumps(
        {"x": ("y" * 30000).encode() + zipped({"data.pkl": EVIL})}, p) for p in range(3)},
    "a zip behind junk in an escaped string": b"\x80\x02S"
    + repr(JUNK + zipped({"data.pkl": EVIL}))[1:].encode() + b"\n.",
    "a zip in a string of escapes": b"\x80\x02S'" + b"".join(b"\\x%02x" % n for n in zipped({"a": EVIL})) + b"'\n.",
    "a zip behind junk in a bytearray": pickle.dumps({"x": bytearray(JUNK + zipped({"data.pkl": EVIL}))}, 5),
    "a tar within a pickle": pickle.dumps({"x": tarred({"data.pkl": EVIL})}),
    "base64 in an archive of Stable-Baselines3": zipped({"data": sb3(EVIL), "policy.pth": DATA}),
    "base64 in a deflated archive": zipped({"data": sb3(EVIL)}, zipfile.ZIP_DEFLATED),
    "base64 under a key with escapes": zipped({"data": sb3(EVIL).replace(b":serialized:", b":\\u0073erialized:")}),
    "base64 with junk in it": zipped({"data": sb3(EVIL).replace(b"gA", b"g*-!A")}),
    "base64 under a key that stands twice": zipped({"data": sb3(EVIL)[:-1] + b"," + sb3(pickle.dumps(1))[1:]}),
    "base64 in JSON": b" \n" + sb3(EVIL),
    "a zip in base64": sb3(EVIL_ZIP),
    "a file of several archives": DATA + EVIL_ZIP + DATA,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_payload_is_found(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"  # a suffix says nothing
    path.write_bytes(HOSTILE[name])
    report = statedict.scan(path)
    found = [one for one in report.globals if one.name == "system"]
    assert found, report
    assert {one.verdict for one in found} == {"dangerous"}
    assert all(one.called for one in found)
    assert report.verdict == "dangerous"


def members(name: str, tmp_path: Path) -> list[tuple[str, int]]:
    path = tmp_path / "file"
    path.write_bytes(HOSTILE[name])
    return [(one.member, one.offset) for one in statedict.scan(path).globals if one.name == "system"]


def test_a_finding_says_where_it_is(tmp_path: Path) -> None:
    at = EVIL.index(b"\x93")
    assert members("a pickle of protocol 0", tmp_path) == [("", 0)]
    assert members("a zip in a zip", tmp_path)[0][0] == "model.zip: policy.pth: archive/data.pkl"
    assert members("a tar file", tmp_path)[0][0] == "weights.ckpt: archive/data.pkl"
    assert members("a pickle behind junk", tmp_path) == [("", 3000 + at)]
    assert members("a pickle after the zip end", tmp_path) == [("", len(DATA) + at)]
    assert members("a deflated record", tmp_path) == [("archive/data.pkl", at)]
    assert members("bytes within a pickle of protocol 4", tmp_path)[0][0] == "bytes at 19"


HARMLESS: dict[str, bytes] = {
    "a zip checkpoint": DATA,
    "a legacy checkpoint": OLD,
    "a file of several archives": DATA * 3,
    "a pickle": pickle.dumps({"a": 1}),
    "a pickle of protocol 0": pickle.dumps({"a": [1.5, "x"]}, 0),
    "arrays": pickle.dumps({"a": np.zeros(9), "b": np.float32(3)}),
    "an archive of Stable-Baselines3": zipped({"data": sb3(pickle.dumps({"a": 1})), "policy.pth": DATA}),
    "a string that ends as an archive does": pickle.dumps("see PK\x05\x06 in the specification of zip"),
    "an npz": (lambda out: (np.savez_compressed(out, a=np.zeros(9)), out.getvalue())[1])(io.BytesIO()),
    "an array with fields named as types": array([(1.5, 2)], [("O", "f4"), ("object", "i8")]),
    "two arrays": array([[1, 2], [3, 4]], "c16") + array(["2020-01-01"], "M8[D]"),
    "a record of bzip2": zipped({"archive/data.pkl": pickle.dumps({})}, zipfile.ZIP_BZIP2),
    "text": b"import os\nos\nsystem\n" * 500,
    "a list of words": b"\n".join(b"cat dog igloo class item os system a b c i".split()) * 500,
    "JSON": json.dumps({"a": list(range(1000))}).encode(),
    "an empty file": b"",
    "zeros": bytes(10_000),
    "random bytes": JUNK * 10,
    "a file of gzip": gzip.compress(DATA),
    "a GGUF file": b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + JUNK,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_data_is_called_data(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(HARMLESS[name])
    report = statedict.scan(path)
    assert report.verdict == "data", report
    assert not report.damage
    assert bool(report.notes) == (report.pickles == 0)
    assert {one.verdict for one in report.globals} <= {"data"}


def test_files_that_hold_no_pickle_say_so(tmp_path: Path) -> None:
    statedict.save({"a": np.zeros(3)}, tmp_path / "a.safetensors")
    for name in ("text", "JSON", "zeros", "a GGUF file", "random bytes"):
        (tmp_path / name).write_bytes(HARMLESS[name])
        assert statedict.scan(tmp_path / name).notes == ("no pickle in it",)
    assert statedict.scan(tmp_path / "a.safetensors").notes == ("no pickle in it",)


@given(
    st.sampled_from(["float32", "bfloat16", "float16", "uint8", "int64"]), st.integers(0, 1 << 32), st.integers(1, 2000)
)
def test_tensors_that_look_like_pickles_are_no_findings(dtype: str, seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(count, generator=generator).mul(100).to(getattr(torch, dtype))
    data = bytes(tensor.view(torch.uint8).numpy())
    for first in b"\x80c(i}]NK\x82\x8c":  # how pickles begin
        scanner = Scan("file")
        scanner.budget = Budget(len(data))
        scanner.look_into(Part(BytesSource(bytes([first]) + data), label="data/0", depth=1))
        assert scanner.report().verdict == "data"


@pytest.mark.parametrize("length", range(20, 200, 20))
def test_damage_is_never_called_data(length: int, tmp_path: Path) -> None:
    for data in (pickle.dumps(TENSORS["weight"].numpy())[:length], DATA[:-length], OLD[:-length]):
        (tmp_path / "file").write_bytes(data)
        report = statedict.scan(tmp_path / "file")
        assert report.verdict == "unreadable", report
        assert report.damage


def test_a_pickle_that_its_place_promises_and_that_is_none_is_damage(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(zipped({"archive/data.pkl": bytes(100), "archive/data/0": b""}))
    report = statedict.scan(tmp_path / "file")
    assert report.verdict == "unreadable"
    assert "archive/data.pkl" in report.damage[0]


def test_json_with_pickles_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    for text in (sb3(b"x")[:-3], b'{"a": {":serialized:": "abcde"}}', b'{":serialized:": ' + b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(text)
        assert statedict.scan(tmp_path / "a.json").verdict == "unreadable"


def test_what_cannot_be_unpacked_is_a_finding(tmp_path: Path) -> None:
    for head, name in ((b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07\0", "rar"), (b"\x28\xb5\x2f\xfd", "zstd")):
        (tmp_path / "file").write_bytes(head + JUNK)
        (found,) = statedict.scan(tmp_path / "file").globals
        assert (found.name, found.verdict) == (f"{name} archive", "opaque")
        assert "not looked into" in found.why
    (tmp_path / "file").write_bytes(zipped({"data.pkl": EVIL}, zipfile.ZIP_LZMA))
    assert statedict.scan(tmp_path / "file").verdict == "opaque"


def test_foreign_classes_are_opaque_and_object_arrays_and_nested_pickles_dangerous(tmp_path: Path) -> None:
    def verdicts(data: bytes) -> dict[str, str]:
        (tmp_path / "file").write_bytes(data)
        return {one.qualified: one.verdict for one in statedict.scan(tmp_path / "file").globals}

    linear = verdicts(saved({"net": torch.nn.Linear(2, 2)}))
    assert linear["torch.nn.modules.linear.Linear"] == "opaque"
    assert linear["torch._utils._rebuild_parameter"] == "data"
    assert verdicts(array(["a", None]))["numpy.dtype('O8')"] == "dangerous"
    assert verdicts(pickle.dumps([pickle.dumps([1, 2])])) == {"a pickle inside of a pickle": "dangerous"}


def test_a_torchscript_archive_is_opaque_by_its_own_classes(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "net.pt"))
    report = statedict.scan(tmp_path / "net.pt")
    assert report.verdict == "opaque"
    assert {one.module.split(".")[0] for one in report.globals if one.verdict == "opaque"} == {"__torch__"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_distributed_checkpoint_is_scanned_whole(tmp_path: Path) -> None:
    dcp.save({"w": torch.randn(50, 20), "b": torch.zeros(7), "step": 4}, tmp_path / "dcp")
    report = statedict.scan(tmp_path / "dcp")
    assert report.pickles >= 4
    assert not report.damage
    assert report.verdict == "data", report
    assert {one.member.partition(":")[0] for one in report.globals} == {".metadata", "__0_0.distcp"}
    with open(tmp_path / "dcp" / "__0_0.distcp", "ab") as file:
        file.write(EVIL_ZIP)
    assert statedict.scan(tmp_path / "dcp").verdict == "dangerous"


def test_a_folder_is_scanned_and_links_out_of_it_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "weights.bin").write_bytes(EVIL_ZIP)
    (tmp_path / "outside.bin").write_bytes(EVIL)
    report = statedict.scan(folder)
    assert [one.member for one in report.globals if one.name == "system"] == ["deep/weights.bin: archive/data.pkl"]
    (folder / "deep" / "weights.bin").write_bytes(DATA)
    assert statedict.scan(folder).verdict == "data"
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "inside.bin").symlink_to(folder / "config.json")
    (folder / "up").symlink_to(tmp_path)
    report = statedict.scan(folder)
    assert report.verdict == "unreadable"
    assert report.damage == (
        "link.bin: a symbolic link out of the folder; not followed",
        "up: a symbolic link out of the folder; not followed",
    )


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.MissingFileError, match=r"nothing\.pth"):
        statedict.scan(tmp_path / "nothing.pth")


def test_nothing_that_a_file_names_is_imported_or_run(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text("open('sprung', 'w').close()\ndef call(*args): open('sprung', 'w').close()\n")
    inner = b"ctrap\ncall\n)R."
    for name, data in {
        "bare": inner, "zip": zipped({"data.pkl": inner}), "npy": array([1])[:128] + inner, "gz": gzip.compress(inner),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    program = (
        "import sys, statedict\n"
        "for name in ('bare', 'zip', 'npy', 'gz'):\n"
        "    report = statedict.scan(name)\n"
        "    assert 'trap.call' in [found.qualified for found in report.globals], report\n"
        "assert 'trap' not in sys.modules and 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=environment)
    assert not (tmp_path / "sprung").exists()


def test_the_report_is_frozen_and_plain_in_json(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(EVIL_ZIP)
    report = statedict.scan(tmp_path / "file")
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.pickles = 0  # type: ignore[misc]
    told = json.loads(json.dumps(report.to_json()))
    assert list(told) == ["file", "verdict", "pickles", "globals", "notes", "damage"]
    assert list(told["globals"][0]) == ["member", "offset", "module", "name", "verdict", "why", "called", "count"]
    assert told["globals"][0]["verdict"] == told["verdict"] == "dangerous"
    assert "dangerous posix.system: runs programs or code" in str(report)


def bombs() -> Iterator[tuple[str, bytes]]:
    yield "gzip bomb", gzip.compress(b"\x80\2" + b"N0" * (40 << 20))
    yield "deflate bomb", zipped({"archive/data.pkl": b"N0" * (40 << 20) + b"N."}, zipfile.ZIP_DEFLATED)
    yield "bytes in bytes", nested(40)
    yield "beginnings", b"x" + b"\x80\x02c" * 100_000
    yield "global beginnings", b"\n".join([b"c" * 100] * 3000)
    for what, record, count in (("record", b"(" * 100_000, 1000), ("record of small pickles", b"N." * 15_000, 20_000)):
        one = zipped({"00000": record})
        entry = one[directory(one) : one.index(b"PK\5\6")]
        entries = b"".join(entry[:-5] + b"%05d" % number for number in range(count))
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(entries), directory(one), 0)
        yield f"one {what} listed {count:,} times", one[: directory(one)] + entries + end


@contextmanager
def work() -> Iterator[Counter[str]]:
    """Count the opcodes that scans follow and the bytes that they look at."""
    done: Counter[str] = Counter()
    run, read = Walk._run, Part.read

    def counted_run(self: Walk, fuel: int, patience: int) -> None:
        run(self, fuel, patience)
        done["opcodes"] += self.opcodes

    def counted_read(self: Part, offset: int, length: int) -> bytes:
        data = read(self, offset, length)
        done["bytes"] += len(data)
        return data

    with mock.patch.object(Walk, "_run", counted_run), mock.patch.object(Part, "read", counted_read):
        yield done


def nested(depth: int) -> bytes:
    data = EVIL
    for _ in range(depth):
        data = pickle.dumps([data])
    return data


@pytest.mark.parametrize(("name", "data"), list(bombs()), ids=lambda value: value if type(value) is str else "")
def test_a_bomb_is_little_work_and_never_called_data(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with work() as done:
        report = statedict.scan(tmp_path / "file")
    allowed = (64 << 20) + 20 * len(data)
    assert done["opcodes"] < allowed / 4 + 100_000
    assert done["bytes"] < 40 * allowed
    assert report.verdict != "data" or "beginnings" in name


def test_two_gigabytes_of_tensors_cost_no_more_than_their_index(tmp_path: Path) -> None:
    """The storages are a hole in the file: reading them would take seconds, and so would searching them."""
    tensors = {f"layer{i}": torch.zeros(30) for i in range(300)}
    legacy = saved(tensors, _use_new_zipfile_serialization=False)
    keys = 8 + 30 * 4
    begin = len(legacy) - 300 * keys
    with open(tmp_path / "old.pth", "wb") as file:
        file.write(legacy[:begin])
        for _ in range(300):
            numel = 1_800_000
            file.write(struct.pack("<q", numel))
            file.seek(numel * 4, os.SEEK_CUR)
        file.write(EVIL)
    with work() as done:
        report = statedict.scan(tmp_path / "old.pth")
    assert done["bytes"] < 16 << 20
    assert os.path.getsize(tmp_path / "old.pth") > 2 << 30
    assert [one.name for one in report.globals if one.verdict == "dangerous"] == ["system"]
    assert report.damage == ()


def test_the_example_is_data() -> None:
    report = statedict.scan(EXAMPLE)
    assert (report.verdict, report.pickles, report.damage) == ("data", 1, ())
    assert sorted(one.qualified for one in report.globals) == [
        "collections.OrderedDict",
        "torch.FloatStorage",
        "torch._utils._rebuild_tensor_v2",
    ]


@pytest.mark.parametrize("zip_format", [True, False])
def test_tensors_of_one_value_are_no_pickles_whatever_the_value(zip_format: bool, tmp_path: Path) -> None:
    values = [0x28, 0x29, 0x2E, 0x30, 0x4E, 0x80, 0x8F]  # opcodes
    tree = {str(value): torch.full((3_000_000,), value, dtype=torch.uint8) for value in values}
    tree["ones"] = torch.ones(1_000_000, dtype=torch.bfloat16)  # 80 3F 80 3F …
    path = tmp_path / "constant.pth"
    path.write_bytes(saved(tree, _use_new_zipfile_serialization=zip_format))
    with work() as done:
        report = statedict.scan(path)
    assert report.verdict == "data"
    assert not report.damage
    assert done["opcodes"] < 100_000
    assert done["bytes"] < 3 * path.stat().st_size


def test_an_archive_without_its_directory_is_one_damage(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(EXAMPLE.read_bytes()[:300_000])
    report = statedict.scan(path)
    assert report.damage == ("begins as a zip archive whose directory is missing; it looks truncated",)
    assert (report.verdict, report.pickles) == ("unreadable", 1)
