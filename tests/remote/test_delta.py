"""Deltas in a store: made there from what lies there, and read block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import statedict
from statedict.testing.same import assert_same


def test_a_delta_of_objects_is_an_object(s3: Any, tmp_path: Path) -> None:
    base = {"w": np.random.default_rng(0).standard_normal(500_000).astype("f4"), "b": np.ones(3)}
    tuned = base | {"w": base["w"] * np.float32(1.0001), "epoch": 2}
    for name, tree in (("base", base), ("tuned", tuned)):
        statedict.save(tree, f"s3://bucket/{name}.safetensors")
    report = statedict.delta.make(
        "s3://bucket/base.safetensors", "s3://bucket/tuned.safetensors", "s3://bucket/tuned.delta"
    )
    assert (report.deltas, report.nbytes[1] < report.nbytes[0]) == (1, True)
    assert statedict.delta.make(base, tuned, tmp_path / "tuned.delta").nbytes[1] == report.nbytes[1]
    assert_same(statedict.delta.apply("s3://bucket/base.safetensors", "s3://bucket/tuned.delta"), tuned)
    assert statedict.verify("s3://bucket/tuned.delta").ok


def test_a_delta_in_shards_is_a_folder_of_objects(s3: Any) -> None:
    base, tuned = ({name: np.full(4000, value, "f4") for name in "abc"} for value in (1.0, 1.001))
    report = statedict.delta.make(base, tuned, "s3://bucket/shards", max_shard_size="20kB")
    assert report.deltas == 3
    assert_same(statedict.delta.apply(base, "s3://bucket/shards"), tuned)
    smaller = statedict.delta.make(base, tuned, "s3://bucket/shards/", max_shard_size="1MB")
    assert smaller.nbytes[1] < report.nbytes[1]
    assert_same(statedict.delta.apply(base, "s3://bucket/shards/"), tuned)
    assert statedict.verify("s3://bucket/shards").ok
