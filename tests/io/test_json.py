"""JSON that takes more memory than its size justifies is refused before it is read."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import statedict
from statedict.errors import LimitError, StateDictError
from statedict.io.json import check

DENSE = {
    "lists": lambda n: '{"a":[' + "[]," * (n // 3) + "[]]}",
    "dicts": lambda n: '{"a":[' + "{}," * (n // 3) + "{}]}",
    "short strings": lambda n: '{"a":[' + '"āb",' * (n // 6) + '""]}',
    "numbers": lambda n: '{"a":[' + "999," * (n // 4) + "0]}",
    "keys": lambda n: '{"a":{' + ",".join(f'"{i:x}":0' for i in range(n // 10)) + "}}",
    "keys that stand twice": lambda n: "{" + ",".join(f'"{i // 2:x}":0' for i in range(n // 10)) + "}",
    "wide text": lambda n: '{"a":["' + "a" * n + '😀"]}',
    "strings of metadata": lambda n: '{"__metadata__":{' + ",".join(f'"{i:x}":""' for i in range(n // 11)) + "}}",
    "a skeleton": lambda n: json.dumps(
        {"__metadata__": {"statedict": '{"version":1,"tree":{"a":[' + "[]," * (n // 3) + "[]]}}"}}
    ),
}


def written(text: str, folder: Path) -> Path:
    raw = text.encode()
    path = folder / "x.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    return path


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("size", [400_000, 6_000_000])
def test_a_header_takes_no_more_memory_than_its_size_justifies(name: str, size: int, tmp_path: Path) -> None:
    path = written(DENSE[name](size), tmp_path)
    statedict.load("examples/checkpoint.pth")  # what is imported at first use is not the header's
    tracemalloc.start()
    try:
        statedict.load(path)
    except StateDictError:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= (64 << 20) + 20 * path.stat().st_size


def test_json_of_many_small_values_is_refused_by_name() -> None:
    with pytest.raises(LimitError, match=r"x: the header: JSON of 6,000,0\d\d bytes that may take \d+ MiB of memory"):
        check(DENSE["lists"](6_000_000), "x: the header")


@pytest.mark.parametrize("kind", [str, bytes])
def test_a_header_of_many_tensors_is_let_through(kind: Any) -> None:
    entry = '"model.layers.{}.weight":{{"dtype":"BF16","shape":[4096,4096],"data_offsets":[123456789,223456789]}}'
    text = "{" + ",".join(entry.format(i) for i in range(300_000)) + "}"
    check(text if kind is str else text.encode(), "x")
