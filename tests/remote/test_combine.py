"""Models in stores and on the Hub, merged and written there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy

import statedict
from statedict.api.combine import average_files

from .servers import Hub, serving


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


def test_models_of_the_hub_are_merged_and_named_on_the_card(tmp_path: Path) -> None:
    (tmp_path / "me").mkdir()
    publish(tmp_path / "me" / "one", 0.0)
    publish(tmp_path / "me" / "two", 2.0, max_shard_size="20kB")
    (tmp_path / "merge.yml").write_text(RECIPE)
    command = [sys.executable, "-m", "statedict", "merge", "merge.yml", "-o", "out/"]
    online = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    with serving(tmp_path, Hub) as server:
        env = online | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
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
        path = tmp_path / "me" / "two" / name
        assert about == {"bytes": path.stat().st_size, "tag": f"{path.stat().st_mtime_ns:040x}"}


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
