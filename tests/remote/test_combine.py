"""Models in stores and on the Hub, merged and written there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict
from statedict.api.combine import average_files

from .servers import Hub, Server, WithRanges, serving


def publish(folder: Path, value: float, **how: Any) -> dict[str, Any]:
    state = {f"layers.{n}.w": numpy.full((40, 50), value + n, "f4") for n in range(4)}
    statedict.save(state, f"{folder}/", **how)
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 4, "dtype": "float32"}))
    (folder / "tokenizer.json").write_text("{}")
    return state


RECIPE = """
merge_method: passthrough
slices:
- sources: [{model: "hf://me/one", layer_range: [0, 3]}]
- sources: [{model: "hf://me/two/", layer_range: [1, 4]}]
dtype: bfloat16
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "hub" / "me").mkdir(parents=True)
    publish(tmp_path / "hub" / "me" / "one", 0.0)
    publish(tmp_path / "hub" / "me" / "two", 2.0, max_shard_size="20kB")
    with serving(tmp_path / "hub", Hub) as server:
        yield server


def run(server: Server, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    online = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    env = online | {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "home")}
    return subprocess.run([sys.executable, *command], env=env, cwd=folder, capture_output=True, text=True, check=False)


def download(server: Server, folder: Path, name: str, **how: Any) -> None:
    code = f"import huggingface_hub; huggingface_hub.snapshot_download({name!r}, **{how!r})"
    done = run(server, folder, "-c", code)
    assert not done.returncode, done.stderr


def test_models_of_the_hub_are_merged_and_named_on_the_card(hub: Server, tmp_path: Path) -> None:
    (tmp_path / "merge.yml").write_text(RECIPE)
    done = run(hub, tmp_path, "-m", "statedict", "merge", "merge.yml", "-o", "out/")
    assert not done.returncode, done.stderr
    assert "with config.json, tokenizer.json" in done.stdout
    assert [t.tolist()[0][0] for t in statedict.load(tmp_path / "out").values()] == [0, 1, 2, 3, 4, 5]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"num_hidden_layers": 6, "dtype": "bfloat16"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nbase_model:\n- "me/one"\n- "me/two"\nlibrary_name: transformers\n')
    record = json.loads(statedict.load(tmp_path / "out").metadata["provenance"])
    files = record["sources"][1]["files"]
    assert "model.safetensors.index.json" in files
    for name, about in files.items():
        path = tmp_path / "hub" / "me" / "two" / name
        assert about == {"bytes": path.stat().st_size, "tag": f"{path.stat().st_mtime_ns:040x}"}


def test_what_lies_beside_a_model_on_a_server_that_does_not_list_goes_along(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    for name, value in (("one", 0.0), ("two", 2.0)):
        publish(tmp_path / "web" / name, value)
    (tmp_path / "web" / "one" / "other.json").write_text("{}")
    with serving(tmp_path / "web", WithRanges) as server:
        report = average_files([f"{server.url}/one/", f"{server.url}/two/"], f"{tmp_path}/out/")
        recipe = RECIPE.replace("hf://me", server.url).replace("/one", "/one/")
        (tmp_path / "merge.yml").write_text(recipe)
        done = run(server, tmp_path, "-m", "statedict", "merge", "merge.yml", "-o", "stacked/")
        assert not done.returncode, done.stderr
        single = average_files([f"{server.url}/one/model.safetensors"] * 2, f"{tmp_path}/single/")
    assert report.files is not None
    assert {*report.files.copied} == {"config.json", "tokenizer.json"}
    assert any("does not list its files" in note for note in report.files.notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    assert json.loads((tmp_path / "stacked" / "config.json").read_text())["num_hidden_layers"] == 6
    assert single.files is not None
    assert not single.files.copied


NAMED = RECIPE.replace("hf://me/two/", "me/two").replace("hf://", "")


def test_models_that_are_named_only_come_from_the_cache_without_a_request(hub: Server, tmp_path: Path) -> None:
    (tmp_path / "merge.yml").write_text(NAMED)
    merge = ("-m", "statedict", "merge", "merge.yml", "-o", "out/")
    download(hub, tmp_path, "me/one")
    download(hub, tmp_path, "me/two", allow_patterns=["*.json"])
    hub.requests.clear()
    done = run(hub, tmp_path, *merge)
    assert (done.returncode, hub.requests) == (2, [])
    cache = tmp_path / "home" / "hub"
    assert done.stderr == (
        f"statedict: merge.yml: there is no model 'me/two', here or beside the configuration, and {cache} has "
        "only some of its files; pass --download to read it from the hub\n"
    )
    done = run(hub, tmp_path, *merge, "--download")
    assert not done.returncode, done.stderr
    asked = [path for path, _ in hub.requests]
    assert (any("me/two" in path for path in asked), any("me/one" in path for path in asked)) == (True, False)
    before = [tensor.tolist() for tensor in statedict.load(tmp_path / "out").values()]
    download(hub, tmp_path, "me/two")
    hub.requests.clear()
    done = run(hub, tmp_path, *merge, "--overwrite")
    assert (done.returncode, hub.requests) == (0, []), done.stderr
    assert [tensor.tolist() for tensor in statedict.load(tmp_path / "out").values()] == before
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nbase_model:\n- "me/one"\n- "me/two"\n')
    record = json.loads(statedict.load(tmp_path / "out").metadata["provenance"])
    assert [source["hub"] for source in record["sources"]] == [f"me/{name}@{Hub.revision}" for name in ("one", "two")]


@pytest.mark.parametrize(
    "name", ["me/base+me/adapter", "hf://me/base+me/adapter", "{model: hf://me/base, lora: me/adapter}"]
)
def test_a_model_and_its_adapter_come_from_the_hub(hub: Server, tmp_path: Path, name: str) -> None:
    for folder, tensors in (
        ("base", {"fc.weight": numpy.ones((3, 4), "f4")}),
        (
            "adapter",
            {f"base_model.model.fc.lora_{x}.weight": numpy.ones(n, "f4") for x, n in (("A", (1, 4)), ("B", (3, 1)))},
        ),
    ):
        (tmp_path / "hub" / "me" / folder).mkdir()
        file = "adapter_model.safetensors" if folder == "adapter" else "model.safetensors"
        statedict.save(tensors, tmp_path / "hub" / "me" / folder / file)
    config = '{"peft_type": "LORA", "r": 1, "lora_alpha": 2}'
    (tmp_path / "hub" / "me" / "adapter" / "adapter_config.json").write_text(config)
    download(hub, tmp_path, "me/adapter")
    (tmp_path / "merge.yml").write_text(f"{{merge_method: passthrough, models: [{{model: {name}}}]}}")
    done = run(hub, tmp_path, "-m", "statedict", "merge", "merge.yml", "-o", "out/", "--download")
    assert not done.returncode, done.stderr
    assert statedict.load(tmp_path / "out")["fc.weight"].tolist() == [[3] * 4] * 3
    sources = json.loads(statedict.load(tmp_path / "out").metadata["provenance"])["sources"]
    assert [source.get("hub", "").partition("@")[0] for source in sources] == ["me/base", "me/adapter"]


@pytest.mark.parametrize("revision", ["v1/two", Hub.revision])
def test_a_revision_is_found_in_the_cache(hub: Server, tmp_path: Path, revision: str) -> None:
    download(hub, tmp_path, "me/one", revision=revision)
    (tmp_path / "merge.yml").write_text(
        f'{{merge_method: passthrough, models: [{{model: {{model: {{path: me/one, revision: "{revision}"}}}}}}]}}'
    )
    done = run(hub, tmp_path, "-m", "statedict", "merge", "merge.yml", "--dry-run")
    assert done.stdout.startswith(f"me/one@{revision}\n"), done.stderr
    (tmp_path / "merge.yml").write_text("{merge_method: passthrough, models: [{model: me/one@v2}]}")
    done = run(hub, tmp_path, "-m", "statedict", "merge", "merge.yml", "--dry-run")
    online = run(hub, tmp_path, "-m", "statedict", "merge", "merge.yml", "--dry-run", "--download")
    assert online.stdout.startswith("me/one@v2\n"), online.stderr
    assert f"no model 'me/one@v2', here or beside the configuration, and {tmp_path}/home/hub has none; " in done.stderr


@pytest.mark.parametrize("name", ["me/one@../../x", "me/one@/etc", "../one", "a/b/c", "me/one+me/two"])
def test_a_name_leads_nowhere_but_into_the_cache(hub: Server, tmp_path: Path, name: str) -> None:
    (tmp_path / "merge.yml").write_text(f"{{merge_method: passthrough, models: [{{model: {name}}}]}}")
    done = run(hub, tmp_path, "-m", "statedict", "merge", "merge.yml", "--dry-run")
    assert (done.returncode, hub.requests) == (2, [])
    assert f"there is no model '{name.partition('+')[0]}'" in done.stderr


def test_an_average_goes_from_a_store_into_a_store(s3: Any, tmp_path: Path) -> None:
    for name, value, size in (("one", 0.0, None), ("two", 2.0, "20kB")):
        publish(tmp_path / name, value, max_shard_size=size)
        for path in (tmp_path / name).iterdir():
            s3.put_object(Bucket="bucket", Key=f"{name}/{path.name}", Body=path.read_bytes())
    statedict.save({"old": numpy.ones((100, 100), "f4"), "w": numpy.ones(9)}, "s3://bucket/out/", max_shard_size="1kB")
    report = average_files(["s3://bucket/one/", "s3://bucket/two"], "s3://bucket/out/")
    assert report.files.copied == ("config.json", "tokenizer.json")
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]]
    assert keys == [f"out/{name}" for name in ("README.md", "config.json", "model.safetensors", "tokenizer.json")]
    found = statedict.load("s3://bucket/out/")
    assert [tensor.tolist()[0][0] for tensor in found.values()] == [1, 2, 3, 4]
    record = json.loads(found.metadata["provenance"])
    assert [one["name"] for one in record["sources"]] == ["s3://bucket/one/", "s3://bucket/two"]
    assert len(record["sources"][1]["files"]) == 3
    for source, folder in zip(record["sources"], ("one", "two"), strict=True):
        for name, about in source["files"].items():
            head = s3.head_object(Bucket="bucket", Key=f"{folder}/{name}")
            assert about == {"bytes": head["ContentLength"], "tag": head["ETag"]}
