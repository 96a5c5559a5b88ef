"""A file's content decides what it is; whatever else lies under a checkpoint's name is named, with a remedy."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import statedict

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".model", "", ".zip", ".json", ".PTH")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("written", ["torch", "safetensors"])
def test_the_content_decides_and_never_the_suffix(written: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"checkpoint{suffix}"
    statedict.save({"w": torch.arange(3.0), "epoch": 3}, path, format=written)
    assert statedict.load(path)["w"].tolist() == [0, 1, 2]
    assert statedict.load(path, format=written)["epoch"] == 3
    with pytest.raises(statedict.errors.FormatError):
        statedict.load(path, format={"torch": "safetensors", "safetensors": "torch"}[written])


@pytest.mark.parametrize(
    ("suffix", "magic"),
    [
        (".safetensors", b'{"'),
        (".SafeTensors", b'{"'),
        (".pth", b"PK\3\4"),
        (".bin", b"PK\3\4"),
        ("", b"PK\3\4"),
    ],
)
def test_the_suffix_chooses_what_is_written(suffix: str, magic: bytes, tmp_path: Path) -> None:
    statedict.save({"w": torch.ones(1)}, tmp_path / f"x{suffix}")
    head = (tmp_path / f"x{suffix}").read_bytes()[:12]
    assert head.startswith(magic) or head[8:].startswith(magic)


def test_the_suffix_of_a_folder_chooses_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.safetensors").mkdir()
    statedict.save({"w": torch.ones(1)}, tmp_path / "run.safetensors" / "checkpoint")
    assert (tmp_path / "run.safetensors" / "checkpoint").read_bytes().startswith(b"PK")


def test_an_unknown_format_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(statedict.errors.FormatError, match=r"no format 'tflite'; there are torch, safetensors"):
        statedict.save({}, tmp_path / "x.tflite", format="tflite")
    statedict.save({}, tmp_path / "x.pth")
    with pytest.raises(statedict.errors.FormatError, match=r"no format 'tflite'"):
        statedict.load(tmp_path / "x.pth", format="tflite")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def _tar() -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.bin"))
    return buffer.getvalue()


STRANGERS = {
    "git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        r"git-LFS pointer.*git lfs pull",
    ),
    "html": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", r"HTML page.*login"),
    "html after blanks": (b"\n\n  <HTML lang='en'>", r"HTML page.*login"),
    "server error": (b'{"error": "Repository not found"}', r"server's error message"),
    "server error with blanks": (b'{ "error" : "Invalid credentials" }', r"server's error message"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', r"XML, as servers send errors"),
    "empty": (b"", r"is empty; fetch or save it again"),
    "zeros": (bytes(100_000), r"zero bytes only; its write was cut short"),
    "gzip": (gzip.compress(b"x" * 100), r"compressed by gzip; unpack it"),
    "bzip2": (bz2.compress(b"x" * 100), r"compressed by bzip2; unpack it"),
    "xz": (b"\xfd7zXZ\x00" + bytes(20), r"compressed by xz; unpack it"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + bytes(20), r"compressed by Zstandard; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), r"7z archive; unpack it"),
    "rar": (b"Rar!\x1a\x07\x01\x00", r"RAR archive; unpack it"),
    "json": (json.dumps({"hidden_size": 768}).encode(), r"is JSON text.*lie beside it"),
    "noise": (b"\x01\x02\x03\x04nothing", r"no known checkpoint begins with .*formats are torch, .*safetensors"),
}


@pytest.mark.parametrize("name", list(STRANGERS))
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_stranger_is_called_by_its_name_with_a_remedy(name: str, suffix: str, tmp_path: Path) -> None:
    data, message = STRANGERS[name]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)
    with pytest.raises(statedict.errors.UnknownFormatError, match=message) as caught:
        statedict.load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("length", [1 << 40, (1 << 47) + 5, 100_000_001, 1 << 62])
@pytest.mark.parametrize("header", [b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b'{"__metadata__":{}}'])
def test_a_header_of_safetensors_that_is_too_long_is_named_with_its_limits(
    length: int, header: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    message = rf"the header claims {length:,} bytes, .* allows 100,000,000"
    with pytest.raises(statedict.errors.TruncatedError, match=message):
        statedict.load(path)
    assert re.search(message, str(statedict.verify(path)))


def test_a_tar_archive_of_other_things_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(_tar())
    with pytest.raises(
        statedict.errors.FormatError, match=r"tar archive without a checkpoint among its members; it holds weights\.bin"
    ):
        statedict.load(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["torch-legacy", "zip", "pickle", "sharded"])
def test_a_format_that_is_only_read_says_so_when_it_is_to_be_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        statedict.errors.FormatError,
        match=rf"{name} files are read, not written; .* npz, distributed, gguf, hdf5, keras-weights, flax$",
    ):
        statedict.save({}, tmp_path / "x", format=name)
    assert list(tmp_path.iterdir()) == []


def test_a_zip_of_other_things_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "readme.txt").write_text("hello")
    path = shutil.make_archive(str(tmp_path / "weights"), "zip", tmp_path / "folder")
    with pytest.raises(statedict.errors.UnknownFormatError, match=r"zip archive without data\.pkl"):
        statedict.load(path)


def test_a_file_that_is_not_there_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: cannot open: No such file"):
        statedict.load(tmp_path / "nothing.pth")
