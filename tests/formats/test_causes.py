"""One file for each thing that is no checkpoint, or half of one: `load` and `verify` name its cause and the remedy."""

from __future__ import annotations

import bz2
import contextlib
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
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import numpy
import pytest
import torch
from safetensors.torch import save_file

import statedict
from statedict.errors import StateDictError

TENSORS = {"w": torch.arange(1000.0), "b": torch.arange(500)}


def plain(data: bytes, name: str = "model.pth") -> Callable[[Path], Path]:
    """A file of these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def tar(folder: Path) -> Path:
    with tarfile.open(folder / "model.pth", "w") as archive:
        member = tarfile.TarInfo("weights/readme.txt")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
    return folder / "model.pth"


def zipped(**changes: bytes) -> Callable[[Path], Path]:
    """A zip archive with fields of its one record changed, in the record and in the directory."""

    def make(folder: Path) -> Path:
        path = folder / "model.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights.bin", bytes(100))
        data = bytearray(path.read_bytes())
        at = data.index(b"PK\1\2")
        for field, value in changes.items():
            local, central = {"flags": (6, 8), "method": (8, 10)}[field]
            data[local : local + 2] = data[at + central : at + central + 2] = value
        path.write_bytes(data)
        return path

    return make


def joblib_file(tree: object, **options: object) -> Callable[[Path], Path]:
    """What joblib writes."""

    def make(folder: Path) -> Path:
        joblib.dump(tree, folder / "model.joblib", **options)
        return folder / "model.joblib"

    return make


def members(*names: str) -> Callable[[Path], Path]:
    """A zip archive of empty members."""

    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "model.zip", "w") as archive:
            for name in names:
                archive.writestr(name, b"")
        return folder / "model.zip"

    return make


def sovits(folder: Path) -> Path:
    """What the `my_save2` of GPT-SoVITS does."""
    data = io.BytesIO()
    torch.save({"weight": TENSORS}, data)
    return plain(b"05" + data.getvalue()[2:])(folder)


def names(*files: str, name: str = "model") -> Callable[[Path], Path]:
    """A folder of empty files and folders."""

    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        for file in files:
            path = folder / name / file
            path.mkdir() if file.endswith("/") else path.touch()
        return folder / name

    return make


def link(folder: Path) -> Path:
    (folder / "model.pth").symlink_to("blobs/0123456789")
    return folder / "model.pth"


def unfinished_beside(folder: Path) -> Path:
    (folder / "model.pth.crdownload").write_bytes(b"PK\3\4")
    return folder / "model.pth"


# what is no checkpoint: how to make it, then words of the cause and of the remedy
STRANGERS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "a git-LFS pointer": (
        plain(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        "git-LFS pointer",
        "git lfs pull",
    ),
    "an HTML page": (
        plain(b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"),
        "HTML page",
        "login or another address",
    ),
    "an HTML page after a comment": (
        plain(b"\n <!-- x -->\n<HTML lang='en'>"),
        "HTML page",
        "login or another address",
    ),
    "an error as JSON, error": (
        plain(b'{"error": "Repository not found"}'),
        "error message .*Repository not found",
        "download",
    ),
    "an error as JSON, message": (plain(b'{\n "message": "Bad credentials"}'), "error message", "check the address"),
    "an error as JSON, detail": (plain(b'{"detail": "Not authenticated"}'), "error message", "check the .*access"),
    "other JSON": (plain(b'{"hidden_size": 768}'), "JSON text", "fetch the weights"),
    "a list as JSON": (plain(b'[{"path": "model.bin"}]'), "JSON text", "fetch the weights"),
    "an error of S3": (
        plain(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
        "XML",
        "download again",
    ),
    "text": (plain(b"Entry not found\n"), "is text .Entry not found", "fetch it again"),
    "an empty file": (plain(b""), "is empty", "fetch or save it again"),
    "zeros at the begin": (plain(bytes(100_000)), "zero bytes only", "cut short, fetch it again"),
    "zeros where a header was": (plain(bytes(64) + b"weights" * 99), "zero bytes where its header", "fetch it again"),
    "an HTML page with a mark of UTF-8": (
        plain(b"\xef\xbb\xbf<!doctype html>"),
        "HTML page",
        "login or another address",
    ),
    "a page of JavaScript": (plain(b"<script>location='/login'</script>"), "HTML page", "login or another address"),
    "gzip": (plain(gzip.compress(b"x" * 99)), "gzip", "unpack it"),
    "bzip2": (plain(bz2.compress(b"x" * 99)), "bzip2", "unpack it"),
    "xz": (plain(lzma.compress(b"x" * 99)), "xz", "unpack it"),
    "Zstandard": (plain(b"\x28\xb5\x2f\xfd" + bytes(20)), "Zstandard", "unpack it"),
    "LZ4": (plain(b"\x04\x22\x4d\x18" + bytes(20)), "LZ4", "unpack it"),
    "7z": (plain(b"7z\xbc\xaf\x27\x1c" + bytes(20)), "7z archive", "unpack it"),
    "RAR": (plain(b"Rar!\x1a\x07\x01\x00"), "RAR archive", "unpack it"),
    "an encrypted zip archive": (zipped(flags=b"\1\0"), "'weights.bin' is encrypted", "decrypt"),
    "a zip archive encrypted by AES": (zipped(flags=b"\1\0", method=b"\x63\0"), "is encrypted", "decrypt"),
    "a zip archive of another compression": (zipped(method=b"\x0e\0"), "compressed by method 14", "unpack"),
    "a zip archive of something else": (zipped(), "without a checkpoint among its members", "it holds weights.bin"),
    "what OpenSSL encrypted": (plain(b"Salted__" + bytes(range(40))), "encrypted", "decrypt"),
    "a tar archive of something else": (
        tar,
        "tar archive without a checkpoint",
        "it holds weights/readme.txt; unpack it",
    ),
    "a TensorFlow SavedModel without variables": (
        plain(b"\x08\x01\x12\x90\x05" + bytes(100), "saved_model.pb"),
        "SavedModel without variables",
        "fetched whole",
    ),
    "a checkpoint of TensorFlow before 2016": (
        plain(b"\0\0\x4d\x0a\x4b\x0a\x2e\x0a\x0ascope/part" + bytes(80)),
        "first format",
        "saves it in the second",
    ),
    "a TensorFlow graph": (
        plain(b"\n\x25\n\x05input\x12\x0bPlaceholder" + bytes(80), "frozen.pb"),
        "TensorFlow graph",
        "open it there",
    ),
    "TensorFlow Lite": (plain(b"\x1c\0\0\0TFL3" + bytes(80)), "TensorFlow Lite", "TensorFlow"),
    "what joblib compressed": (joblib_file({"w": numpy.ones(9)}, compress=3), "by zlib, as joblib", "save its arrays"),
    "LZMA": (joblib_file({"w": numpy.ones(9)}, compress=("lzma", 3)), "LZMA", "unpack it"),
    "a Core ML package in a zip archive": (
        members("m.mlpackage/Manifest.json", "m.mlpackage/Data/com.apple.CoreML/model.mlmodel"),
        "Core ML package",
        "unpack it first",
    ),
    "another msgpack": (plain(b"\x81\xa4step\3"), "looks like msgpack", "open it with the library that wrote it"),
    "GPT-SoVITS": (sovits, "is a checkpoint of GPT-SoVITS", "in a copy write PK over them"),
    "a PNG": (plain(b"\x89PNG\r\n\x1a\n" + bytes(20)), "image", "fetch it from another address"),
    "a JPEG": (plain(b"\xff\xd8\xff\xe0" + bytes(20)), "image", "fetch it from another address"),
    "a PDF": (plain(b"%PDF-1.7\n" + bytes(20)), "PDF", "fetch it from another address"),
    "an ELF program": (plain(b"\x7fELF\2\1\1" + bytes(80)), "program or a library", "name the checkpoint"),
    "a Mach-O program": (plain(b"\xcf\xfa\xed\xfe" + bytes(80)), "program or a library", "name the checkpoint"),
    "a pickle of protocol 0": (plain(pickle.dumps({"w": 1}, 0)), "pickle of protocol 0", 'format="pickle"'),
    "safetensors without its first 8 bytes": (
        plain(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + bytes(4)),
        "without its first 8 bytes",
        "fetch it again",
    ),
    "a few bytes": (plain(b"\x01\x02\x03"), "no known checkpoint.*only 3 bytes", "fetch it again"),
    "an unfinished download by its name": (
        plain(bytes(100), "model.safetensors.part"),
        "download is not finished",
        "let it finish",
    ),
    "an unfinished download by what lies beside it": (
        unfinished_beside,
        r"model\.pth\.crdownload lies beside it",
        "let it finish",
    ),
    "an empty folder": (names(), "is an empty folder", "fetch the checkpoint"),
    "a folder of source code": (names("train.py", "README.md"), "folder of source code", "name the checkpoint"),
    "a checkpoint of DeepSpeed": (
        names("global_step10/", "latest", "zero_to_fp32.py"),
        "is a checkpoint of DeepSpeed",
        r"run `python zero_to_fp32\.py \. OUTPUT`",
    ),
    "a step of DeepSpeed": (
        names("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt", name="global_step10"),
        "a file for each rank",
        r"name mp_rank_00_model_states\.pt",
    ),
    "a compiled model of Core ML": (
        names("coremldata.bin", "model.mil"),
        "compiled Core ML model",
        "name the .mlpackage",
    ),
    "a folder of Orbax": (names("d/", "manifest.ocdbt"), "Orbax checkpoint", "not fetched whole"),
    "a checkpoint of TensorFlow": (
        names("checkpoint", "model.ckpt-1.data-00000-of-00001"),
        "TensorFlow checkpoint without its .index",
        "fetch that too",
    ),
    "weights of another framework only": (
        names("config.json", "flax_model.msgpack"),
        "another framework than PyTorch",
        "with its own library",
    ),
    "a model's folder without weights": (
        names("config.json", "tokenizer.json"),
        "without its weights",
        "fetch them too",
    ),
    "shards without index": (names("model-00001-of-00002.safetensors"), "without their index", "fetch that too"),
    "ranks' files without index": (names("__0_0.distcp"), r"without its index \.metadata", "fetch it"),
    "an unfinished download in a folder": (
        names("config.json", "model.safetensors.incomplete"),
        "unfinished download",
        "fetch it again",
    ),
    "the root of a Hugging Face cache": (
        names("blobs/", "refs/", "snapshots/"),
        "root of a Hugging Face cache",
        "name snapshots",
    ),
    "a folder of something else": (names("notes.txt"), r"holds notes\.txt", "name the file to open"),
    "a broken symbolic link": (link, "symbolic link to blobs/0123456789, which is not there", "fetch that"),
    "a missing file": (lambda folder: folder / "model.pth", "No such file", "cannot open"),
}


@pytest.mark.parametrize("name", list(STRANGERS))
def test_what_is_no_checkpoint_is_called_by_its_name_with_a_remedy(name: str, tmp_path: Path) -> None:
    make, cause, remedy = STRANGERS[name]
    path = make(tmp_path)
    for opened in (statedict.load, statedict.verify):
        with pytest.raises(StateDictError, match=f"(?s){cause}") as caught:
            opened(path)
        assert isinstance(caught.value, statedict.errors.UnknownFormatError | statedict.errors.FileError)
        assert not isinstance(caught.value, statedict.errors.CorruptFileError)
        with pytest.raises(StateDictError, match=f"(?s){remedy}"):
            opened(path)
        assert str(caught.value).startswith(str(path))


def saved(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"model.{suffix}"
        statedict.save(TENSORS, path)
        return path

    return make


def by_torch(folder: Path) -> Path:
    torch.save(TENSORS, folder / "model.pth")
    return folder / "model.pth"


def legacy(folder: Path) -> Path:
    torch.save(TENSORS, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def cut(make: Callable[[Path], Path], keep: float, name: str = "") -> Callable[[Path], Path]:
    """A part of what is made, under another name."""

    def made(folder: Path) -> Path:
        path = make(folder)
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data))])
        return path.rename(folder / name) if name else path

    return made


def shards(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    """Three shards with their index, to which something happens."""

    def made(folder: Path) -> Path:
        files = {f"model-{i:05}-of-00003.safetensors": f"layers.{i}.w" for i in (1, 2, 3)}
        for file, tensor in files.items():
            save_file({tensor: torch.ones(100)}, folder / file)
        index = {"metadata": {"total_size": 1200}, "weight_map": {tensor: file for file, tensor in files.items()}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        change(folder)
        return folder

    return made


def without(*numbers: int) -> Callable[[Path], object]:
    return lambda folder: [(folder / f"model-{i:05}-of-00003.safetensors").unlink() for i in numbers]


def rewritten(change: Callable[[bytes], bytes], number: int = 2) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        path = folder / f"model-{number:05}-of-00003.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return rewrite


# what is a part of a checkpoint: how to make it, then words of what load says, of what verify says, of the remedy
HALVES: dict[str, tuple[Callable[[Path], Path], str, str, str]] = {
    "safetensors, cut in the data": (
        cut(saved("safetensors"), 0.7),
        r"tensor 'w': bytes .* past the end of the file \([\d,]+ of [\d,]+ bytes\)",
        r"tensor 'w': .* of 8,\d\d\d bytes",
        "fetch it again",
    ),
    "safetensors, cut in the header": (cut(saved("safetensors"), 0.02), "header claims", "header claims", "truncated"),
    ".pth, cut in the data": (
        cut(saved("pth"), 0.5),
        r"directory at the end is missing: [\d,]+ of over [\d,]+ bytes .* ends within data/1 \(b\)",
        r"1 of 2 storages whole",
        "fetch it again",
    ),
    ".pth of torch.save, cut in the data": (
        cut(by_torch, 0.6),
        r"of over [\d,]+ bytes are there, 1 of 2 storages whole, and it ends within data/1 \(b\)",
        "1 of 2 storages whole",
        "fetch it again",
    ),
    ".pth, cut in the pickle": (
        cut(saved("pth"), 0.01),
        "directory at the end is missing",
        "truncated",
        "fetch it again",
    ),
    ".pth, cut in its directory": (
        cut(saved("pth"), 0.99),
        "missing in part; all .* records are there",
        "truncated",
        "fetch it again",
    ),
    "legacy, cut": (cut(legacy, 0.6), "past the end of the file", "truncated", "fetch it again"),
    "cut, with the name of an unfinished download": (
        cut(saved("safetensors"), 0.7, "model.safetensors.crdownload"),
        r"ends with \.crdownload",
        "download is not finished",
        "let it finish",
    ),
    ".pth, of which the end is zeros": (
        lambda folder: plain(saved("pth")(folder).read_bytes()[:4000] + bytes(6000))(folder),
        "directory at the end is missing",
        "missing",
        "fetch it again",
    ),
    "a missing shard": (
        shards(without(2)),
        r"model-00002-of-00003\.safetensors: missing, with 0 more of 3 shards",
        r"model-00002-of-00003\.safetensors \(layers\.2\.w\): shard 2 of 3: cannot open: No such file",
        "fetch",
    ),
    "two missing shards": (
        shards(without(1, 3)),
        "missing, with 1 more of 3 shards",
        "shard 3 of 3: cannot open",
        "fetch",
    ),
    "a partly downloaded shard": (
        shards(rewritten(lambda data: data[:-50])),
        r"model-00002-of-00003\.safetensors: tensor 'layers\.2\.w': bytes",
        r"model-00002-of-00003\.safetensors .*shard 2 of 3: tensor",
        "fetch it again",
    ),
    "a shard that is a git-LFS pointer": (
        shards(rewritten(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")),
        r"model-00002-of-00003\.safetensors: is a git-LFS pointer",
        "shard 2 of 3: is a git-LFS pointer",
        "git lfs pull",
    ),
    "a shard of zeros": (
        shards(rewritten(lambda data: bytes(len(data)), 3)),
        "model-00003.*zero bytes only",
        "shard 3 of 3: begins with zero",
        "fetch it again",
    ),
}


@pytest.mark.parametrize("name", list(HALVES))
def test_half_a_checkpoint_is_an_error_for_load_and_a_finding_for_verify(name: str, tmp_path: Path) -> None:
    make, loading, verifying, remedy = HALVES[name]
    path = make(tmp_path)
    with pytest.raises(StateDictError, match=f"(?s){loading}") as caught:
        statedict.load(path)
    assert isinstance(caught.value, statedict.errors.FormatError | statedict.errors.MissingFileError)
    report = statedict.verify(path)
    assert not report.ok
    with pytest.raises(AssertionError, match=f"(?s){verifying}"):
        raise AssertionError(str(report))
    assert remedy in str(report)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_hole_of_zeros_in_the_middle_loads_and_is_found_by_verify(suffix: str, tmp_path: Path) -> None:
    path = saved(suffix)(tmp_path)
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<3f", 500, 501, 502))
    data[at : at + 512] = bytes(512)
    path.write_bytes(data)
    assert statedict.load(path)["w"][510].item() == 0
    (problem,) = statedict.verify(path).problems
    assert problem.tensors == ("w",)
    assert "its bytes are damaged" in problem.what


def test_a_pickle_of_something_else_loads_and_verify_notes_that_no_tensor_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "args.pkl"
    path.write_bytes(pickle.dumps({"lr": 0.1}))
    assert statedict.load(path) == {"lr": 0.1}
    report = statedict.verify(path)
    assert report.ok
    assert report.notes == ("no tensor is in it",)


@contextlib.contextmanager
def as_somebody_else() -> Iterator[None]:
    """Without the rights of root, who may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_without_permission_says_whom_to_ask(tmp_path: Path) -> None:
    path = saved("pth")(tmp_path)
    statedict.verify(path)
    path.chmod(0)
    for opened in (statedict.load, statedict.verify):
        with as_somebody_else(), pytest.raises(statedict.errors.FileError, match=r"Permission denied; .*chmod"):
            opened(path)


def test_the_remedy_for_gpt_sovits_works(tmp_path: Path) -> None:
    path = sovits(tmp_path)
    with pytest.raises(StateDictError) as caught:
        statedict.load(path)
    command = str(caught.value).split("`")[1]
    subprocess.run(command.replace("COPY", str(path)), shell=True, check=True, stderr=subprocess.DEVNULL)
    assert list(statedict.load(path)["weight"]) == [*TENSORS]


def test_a_cause_is_looked_for_only_where_something_is_wrong(tmp_path: Path) -> None:
    path = saved("pth")(tmp_path)
    sys.modules.pop("statedict.formats.causes", None)
    statedict.load(path)
    assert "statedict.formats.causes" not in sys.modules
