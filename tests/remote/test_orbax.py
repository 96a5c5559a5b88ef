"""Orbax directories behind URLs, and arrays of theirs in other processes."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import statedict
from statedict.testing.same import assert_same

from ..formats.orbaxes import unpack
from .servers import Server


@pytest.mark.parametrize("name", ["store", "folders3", "pieces", "run/3", "items/7"])
def test_a_directory_at_a_url_is_read_as_the_one_on_disk(tmp_path: Path, web: Server, name: str) -> None:
    unpack(tmp_path)
    assert_same(statedict.load(f"{web.url}/{name}/"), statedict.load(tmp_path / name))


def test_a_directory_in_a_store_is_read_as_the_one_on_disk(tmp_path: Path, s3: Any) -> None:
    for path in filter(Path.is_file, unpack(tmp_path, "items").rglob("*")):
        s3.put_object(Bucket="bucket", Key=os.fspath(path.relative_to(tmp_path)), Body=path.read_bytes())
    assert_same(statedict.load("s3://bucket/items/7/"), statedict.load(tmp_path / "items" / "7"))


def test_processes_unpack_arrays(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "pieces3")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        statedict.convert(folder, tmp_path / "there.safetensors", executor=pool)
    statedict.convert(folder, tmp_path / "here.safetensors")
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
