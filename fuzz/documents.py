"""What is done to the JSON that a run or an index is made of, and to the files and links of a run.

A document is changed as text, so that it can be what `json.dumps` does not write: a key twice, escaped otherwise the
second time, half of a surrogate pair, NaN, a hundred thousand brackets. A manifest is committed anew most of the time,
or it would never be read.
"""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

Files = dict[str, bytes]

LINK = b"\0link to "
"""How the content of a file begins that is a symbolic link; the rest is where it leads."""

_NUMBERS = (
    "0", "-0", "-1", "1", "2", "7", "1.5", "-1.5", "1e999", "-1e999", "1e308", "5e-324", "NaN", "Infinity", "-Infinity",
    "9223372036854775807", "9223372036854775808", "18446744073709551616", "340282366920938463463374607431768211456",
    "1" + "0" * 400, "9" * 4299, "9" * 4400, "007", "1_000", "0x10", "+1", "١",
)  # fmt: skip
_TEXTS = (
    "", "\\u0000", "\\ud800", "\\udfff\\ud800", "\\ud83d\\ude00", "\\u001b[2J", "\\n", "\\u202e", "x", "w", "é",
    "a" * 300, "b" * 70_000, "..", "../x", "/etc/passwd", "../../../../../../etc/passwd", "http://127.0.0.1:9/x", "s3://b/x",
    "file:///etc/passwd", "hf://a/b", "input", "checkpoint.safetensors", "checkpoint.pth", "manifest.json", "COMMITTED",
    "nan", "inf", "-inf", "statedict checkpoint", "loss", "step", "model.w", "float32", "int", "1", "2", "-1",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59", "0001-01-01T00:00:00",
    "9999-12-31T23:59:59.999999",
    "2026-01-01T00:00:00", "2026-13-01", "2026-01-01T00:00:00+99:00", "xxh3_128 " + "0" * 32,
)  # fmt: skip
_WORDS = ("null", "true", "false", "[]", "{}", "[[]]", '{"":{}}', "[null]", '{"a":[1,{"b":2}]}')
_NAMES = (
    "1", "2", "3", "03", "pins.json", ".lock", ".1.0123abcd.tmp", ".2.0123abcd.old", ".9.0123abcd.old", "checkpoint-7",
    "step-5.safetensors", "step-5.index.json", "last.ckpt", "epoch=1-step=9.ckpt", "\u202ex-step=4.pth",
    "a\nb-step=6.pt",
    "9" * 200, "step-" + "9" * 30 + ".pt",
)  # fmt: skip
_TARGETS = (
    "/etc/passwd", "/etc", "..", ".", "/", "nowhere", "1", "2", "../2", "../../outside", "/dev/zero", "/proc/self/mem",
    "checkpoint.safetensors", "manifest.json", "../input",
)  # fmt: skip
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|[\[\]{},:]')


def changed(files: Files, random: Random) -> Files:
    """One change of a run: of a document, or of which files there are and where they lead."""
    files = dict(files)
    name = random.choice([name for name in sorted(files) if _is_document(name)] or sorted(files))
    what = random.random()
    if what < 0.75 and not files[name].startswith(LINK):
        files[name] = garbled(files[name], random)
        if random.random() < 0.95:
            files |= committed(files, name)
    elif what < 0.85:
        _rename(files, random)
    else:
        other = random.choice((name, *sorted(files)))
        part = other.split("/")
        other = "/".join(part[: random.choice((len(part), 2))])
        files = {one: data for one, data in files.items() if one != other and not one.startswith(other + "/")}
        if random.random() < 0.7:
            files[other] = LINK + random.choice((*_TARGETS, *sorted(files))).encode()
    return files


def committed(files: Files, name: str) -> Files:
    """The mark of a manifest as it is now."""
    from xxhash import xxh3_128_hexdigest

    folder, _, last = name.rpartition("/")
    if last != "manifest.json":
        return {}
    return {f"{folder}/COMMITTED": f"xxh3_128 {xxh3_128_hexdigest(files[name])}\n".encode()}


def garbled(data: bytes, random: Random) -> bytes:
    """JSON with one of its words, or a range of them, replaced, taken out, put in or repeated."""
    text = data.decode("utf-8", "replace")
    tokens = [(found.start(), found.end()) for found in _TOKEN.finditer(text)]
    if not tokens or random.random() < 0.05:
        return _document(random)
    start, end = random.choice(tokens)
    match random.randrange(9):
        case 0 | 1 | 2:
            text = text[:start] + _value(random) + text[end:]
        case 3:
            keys = list(re.finditer(r'"((?:[^"\\]|\\.)*)"\s*:', text))
            if keys:
                text = _twice(text, random.choice(keys), random)
        case 4:
            text = text[:start] + text[random.choice(tokens)[1] :]
        case 5:
            other = random.choice(tokens)
            text = text[:start] + text[other[0] : other[1]] + text[end:]
        case 6:
            depth = random.choice((1, 50, 250, 900, 2_000, 100_000))
            opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
            text = text[:start] + opening * depth + text[start:end] + closing * depth + text[end:]
        case 7:
            text = text[:start] + (text[start:end] + ",") * random.choice((1, 100, 5_000)) + text[start:]
        case _:
            at = random.randrange(len(text) + 1)
            text = (
                text[:at]
                + random.choice((*_NUMBERS, "\0", "\ud800", "\ufeff", ",", ":", "}", "]", '"', "\\"))
                + text[at:]
            )
    return text.encode("utf-8", "surrogatepass")


def _twice(text: str, key: re.Match[str], random: Random) -> str:
    """A key once more, before or after itself, perhaps with its first character escaped."""
    name = key[1]
    if name[:1].isalpha() and random.random() < 0.7:
        name = f"\\u{ord(name[0]):04x}{name[1:]}"
    return f'{text[: key.start()]}"{name}"{random.choice(("", " ", chr(10)))}:{_value(random)},{text[key.start() :]}'


def _value(random: Random) -> str:
    match random.randrange(4):
        case 0:
            return random.choice(_NUMBERS)
        case 1 | 2:
            return f'"{random.choice(_TEXTS)}"'
    return random.choice(_WORDS)


def _document(random: Random) -> bytes:
    """Another document altogether."""
    made: Any = random.choice((
        b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"pinned":' + b"[" * 100_000, b"\xff\xfe{\0}\0", b"\0" * 100,
        b'{"pinned":[1e999]}', b'{"pinned":{"1":1}}', b'{"weight_map":{"w":"http://127.0.0.1:9/x"}}',
        b'{"log_history":[{"step":7,"loss":NaN}],"global_step":7}', json.dumps([{}] * 50_000).encode(),
    ))  # fmt: skip
    return bytes(made)


def _rename(files: Files, random: Random) -> None:
    """Give a file, or a folder of the run, another name."""
    name = random.choice(sorted(files))
    part = name.split("/")
    old = "/".join(part[: random.choice((2, len(part)))])
    new = "/".join([*old.split("/")[:-1], random.choice(_NAMES)])
    for one in list(files):
        if (one == old or one.startswith(old + "/")) and not any(other.startswith(new) for other in files):
            files[new + one[len(old) :]] = files.pop(one)


def _is_document(name: str) -> bool:
    return name.rpartition("/")[2] in ("COMMITTED", ".lock") or name.endswith(".json")
