"""JSON that takes more memory than its size justifies is refused before it is read."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import pytest

import statedict
from statedict.errors import CorruptFileError, LimitError, StateDictError
from statedict.io.json import check, parse

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


TWICE = [
    '{"a":1,"a":2}',
    r'{"a":1,"\u0061":2}',
    r'{"a":{"b":[{"c":1,"c":2}]}}',
    '{"a" :1,"a" :2}',
    r'{":":1,"\u003a":2}',
    r'{"\\":1,"\u005c":2}',
    r'{"x\":":1,"x\u0022:":2}',
]


@pytest.mark.parametrize("text", TWICE)
def test_a_key_that_stands_twice_is_refused_at_any_depth(text: str) -> None:
    with pytest.raises(CorruptFileError, match=r"^x\.json is not JSON \(key '.*' stands twice\); the file is damaged"):
        parse(text, "x.json")


@pytest.mark.parametrize("seed", range(200))
def test_json_is_read_as_python_reads_it_unless_a_key_stands_twice(seed: int) -> None:
    random = Random(seed)
    keys = ["a", "a:", ":", '"', '":', "\\", '\\"', '\\":', " ", "", "é", "\U0001f600"]

    def text(value: str) -> str:
        escaped = json.dumps(value, ensure_ascii=random.random() < 0.5)
        wanted = value[:1] if value[:1] not in ('"', "\\") and value[:1].isascii() else ""
        return f'"\\u{ord(wanted):04x}{escaped[2:]}' if wanted and random.random() < 0.3 else escaped

    def node(depth: int) -> tuple[str, bool]:
        if depth > 3 or random.random() < 0.3:
            return random.choice(["1", "null", text(random.choice(keys))]), False
        inner = [node(depth + 1) for _ in range(random.randrange(4))]
        if random.random() < 0.3:
            return "[" + ", ".join(part for part, _ in inner) + "]", any(twice for _, twice in inner)
        names = [random.choice(keys) for _ in inner]
        pairs = [
            f"{text(name)}{random.choice(['', ' ', chr(10)])}:{part}"
            for name, (part, _) in zip(names, inner, strict=True)
        ]
        return "{" + ",".join(pairs) + "}", len({*names}) < len(names) or any(twice for _, twice in inner)

    made, twice = node(0)
    if twice:
        with pytest.raises(CorruptFileError, match="stands twice"):
            parse(made, "x")
    else:
        assert parse(made, "x") == parse(made.encode(), "x") == json.loads(made)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{", "Expecting property name"),
        (b"", "Expecting value"),
        (b'{"a":NaN}', "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b'["\\ud800"]', "half of a surrogate pair"),
        (b'{"\\uDC00":1}', "half of a surrogate pair"),
        (b'["\xed\xa0\x80"]', "can't decode byte 0xed"),
        ("{}".encode("utf-16"), "can't decode byte"),
        (b'\xef\xbb\xbf{"a":1}', "Expecting value"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"1" * 5000, "Exceeds the limit"),
        (b'["\0"]', "Invalid control character"),
    ],
)
def test_what_is_no_json_is_named(data: bytes, why: str) -> None:
    with pytest.raises(CorruptFileError, match=f"x is not JSON .*{why}"):
        parse(data, "x")


def test_what_python_alone_writes_is_let_through_on_demand() -> None:
    assert parse("[Infinity]", "x", constants=True) == [float("inf")]
    assert parse(b'["\\ud800","\xed\xb0\x80"]', "x", surrogates=True) == ["\ud800", "\udc00"]
