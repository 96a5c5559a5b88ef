"""A name that comes out of a file never leads to a server, nor from one server to another."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import statedict
from statedict.cli import cli
from statedict.errors import FormatError, StateDictError
from statedict.formats.places import resolve_inside

from .servers import Server, WithRanges, serving


class Counting(WithRanges):
    """Counts connections, whatever is asked for."""

    def setup(self) -> None:
        super().setup()
        self.server.requests.append(("connection", ""))  # type: ignore[attr-defined]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    statedict.save({"w": torch.ones(1)}, tmp_path / "served" / "x.safetensors")
    with serving(tmp_path / "served", Counting) as server:
        yield server


def index_of(name: str, folder: Path) -> str:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    return "model.safetensors.index.json"


def metadata_of(name: str, folder: Path) -> str:
    statedict.save({"w": torch.ones(1)}, folder, format="distributed")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = name
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return ".metadata"


OPENED: dict[str, Callable[[str, Path], Any]] = {
    "bare": lambda file, folder: file,
    "relative": lambda file, folder: f"./{file}",
    "from above": lambda file, folder: os.path.join("..", folder.name, file),
    "absolute": lambda file, folder: str(folder / file),
    "path": lambda file, folder: Path(file),
    "URL": lambda file, folder: f"file://{folder / file}",
    "folder": lambda file, folder: ".",
    "absolute folder": lambda file, folder: str(folder) + "/",
}


@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize("make", [index_of, metadata_of])
@pytest.mark.parametrize(
    "form", ["{}/x.safetensors", "HTTP{}/x.safetensors", "{}", "file://{}", "s3://bucket/x", "http:/x"]
)
def test_a_local_checkpoint_that_names_a_url_is_refused_without_a_request(
    make: Any, form: str, opened: str, watched: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AWS_ENDPOINT_URL", watched.url)
    url = watched.url.removeprefix("http") if form.startswith("HTTP") else watched.url
    path = OPENED[opened](make(form.format(url), folder), folder)
    with pytest.raises(FormatError, match="outside of the folder; refused"):
        statedict.load(path)
    for verb in (statedict.scan, statedict.verify, statedict.inspect, statedict.stats):
        try:
            verb(path)
        except StateDictError:
            pass
    for command in ("show", "verify", "scan"):
        assert CliRunner().invoke(cli, [command, str(path)]).exit_code in (0, 1, 2)
    assert watched.requests == []


@pytest.mark.parametrize("form", ["{}/x.safetensors", "//{}/x.safetensors", "http:/{}/x", "../x", "/x", "s3://b/x"])
@pytest.mark.parametrize("folder", ["", "model/"])
def test_an_index_behind_a_url_names_no_other_host(form: str, folder: str, watched: Server, tmp_path: Path) -> None:
    (tmp_path / "other" / "model").mkdir(parents=True)
    host = watched.url.partition("://")[2]
    name = form.format(watched.url if form.startswith("{}") else host)
    file = index_of(name, tmp_path / "other" / folder)
    with serving(tmp_path / "other", WithRanges) as server:
        with pytest.raises(FormatError, match="outside of the folder; refused"):
            statedict.load(f"{server.url}/{folder}{file}")
        assert {path for path, _ in server.requests} == {f"/{folder}{file}"}
    assert watched.requests == []


@pytest.mark.parametrize("name", ["x#y", "x?y=z", "a@b", "x%2e%2e/y", "c:x", "ü/é", "@host", "~", "a;b"])
@pytest.mark.parametrize(
    "folder", ["https://host", "http://host:80/a", "s3://bucket", "gs://bucket/a/b", "hf://org/name", "", "a/b", "/a"]
)
def test_a_name_leads_below_its_folder_and_nowhere_else(folder: str, name: str) -> None:
    path = resolve_inside(folder, name)
    assert path.startswith(f"{folder}/" if folder else "")
    assert ("://" in path) is ("://" in folder)
    assert "?" not in path if folder.startswith("http") else name in path
