"""What a checkpoint's directory says about itself.

    100/                        named by its step
        checkpoint.safetensors  the tree: a file as `statedict.save` writes it; or checkpoint.pth
        manifest.json           what is in it, with digests
        COMMITTED               the digest of manifest.json, written last

Without COMMITTED it is not a checkpoint. The manifest is JSON: `format`, `version`, `step`, `time` (UTC), `metrics`,
`libraries`, `files` (name → bytes), `entries` (path, dtype, shape, digest of each tensor), `not_captured`, and
`base`, the step that a delta needs. See docs/format.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from statedict import formats
from statedict.errors import CorruptFileError, UnsupportedError
from statedict.formats import coded
from statedict.formats.kinds import detect
from statedict.formats.places import open_file
from statedict.io.json import parse
from statedict.io.urls import redact
from statedict.tensor.checks import Check, Problem

NAME = "manifest.json"
MARKER = "COMMITTED"
DATA = {"safetensors": "checkpoint.safetensors", "torch": "checkpoint.pth"}
WHOLE = 1 << 63  # steps, bytes and elements are below this

_FORMAT = "statedict checkpoint"
_VERSION = 1
_INFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a checkpoint."""

    path: str
    dtype: str  # PyTorch's name
    shape: tuple[int, ...]
    digest: str  # XXH3-128 of its bytes, in hexadecimal, decoded; in a .pth that of its storage


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint says about itself."""

    step: int
    time: float  # seconds since 1970
    metrics: Mapping[str, float] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)  # name → version
    files: Mapping[str, int] = field(default_factory=dict)  # name → bytes
    entries: tuple[Entry, ...] = ()
    not_captured: tuple[str, ...] = ()  # what the saved tree had and the checkpoint lacks
    base: int | None = None  # of a delta: the step that it is a difference from

    @property
    def nbytes(self) -> int:
        """Total size of its files."""
        return sum(self.files.values())

    def to_bytes(self) -> bytes:
        """The bytes of the file."""
        fields = {
            "format": _FORMAT,
            "version": _VERSION,
            "step": self.step,
            "time": datetime.fromtimestamp(self.time, UTC).isoformat(),
            "metrics": {name: one if math.isfinite(one) else str(float(one)) for name, one in self.metrics.items()},
            "libraries": dict(self.libraries),
            "files": dict(self.files),
            "not_captured": list(self.not_captured),
        } | ({} if self.base is None else {"base": self.base})
        head = json.dumps(fields, indent=1, allow_nan=False)
        rows = ",\n".join(f"  {json.dumps([e.path, e.dtype, list(e.shape), e.digest])}" for e in self.entries)
        return f'{head[:-2]},\n "entries": [\n{rows}\n ]\n}}\n'.encode()


def encode(manifest: Manifest, file: str) -> bytes:
    """Encode a manifest that reads back the same, or raise: JSON joins two halves of a surrogate pair."""
    data = manifest.to_bytes()
    if b"\\ud" in data:
        for before, after in zip(manifest.entries, decode(data, redact(file)).entries, strict=True):
            if before != after:
                raise UnsupportedError(
                    f"{before.path!r:.80}: holds the two halves of a surrogate pair, which a manifest would join; "
                    "rename it"
                )
    return data


def decode(data: bytes, where: str) -> Manifest:
    """Decode a manifest."""
    # names of tensors may hold what is not text, such as half of a surrogate pair
    found = parse(data, where, surrogates=True)
    try:
        if found["format"] != _FORMAT:
            raise ValueError(f"format {found['format']!r:.40}")
        if found["version"] != _VERSION:
            raise CorruptFileError(
                f"{where}: is of version {found['version']!r:.20}, this statedict reads {_VERSION}; update statedict"
            )
        files = {name: parse_whole(size) for name, size in found["files"].items()}
        for name in files.keys() - {*DATA.values()}:
            raise ValueError(f"the file {name!r:.80} has another name than {' or '.join(DATA.values())}")
        return Manifest(
            parse_whole(found["step"]),
            _parse_time(found["time"]),
            {_parse_text(name): _parse_metric(value) for name, value in found["metrics"].items()},
            {_parse_text(name): _parse_text(version) for name, version in found["libraries"].items()},
            files,
            tuple(
                Entry(str(path), str(kind), tuple(map(parse_whole, shape)), str(digest))
                for path, kind, shape, digest in found["entries"]
            ),
            tuple(map(str, found["not_captured"])),
            None if found.get("base") is None else parse_whole(found["base"]),
        )
    except CorruptFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CorruptFileError(f"{where}: not the manifest of a checkpoint ({type(error).__name__}: {error})") from None


def _parse_text(value: Any) -> str:
    text = str(value)
    text.encode()  # half of a surrogate pair raises a ValueError: not every program can print and write it
    return text


def _parse_metric(value: Any) -> float:
    return _INFINITE[value] if isinstance(value, str) else float(value)


def _parse_time(text: str) -> float:
    seconds = datetime.fromisoformat(text).astimezone(UTC).timestamp()
    return datetime.fromtimestamp(seconds, UTC).timestamp()  # the last microsecond of 9999 rounds up, and raises


def parse_whole(value: Any) -> int:
    """Check that a value of a document is a number of steps, bytes or elements."""
    if type(value) is not int or not 0 <= value < WHOLE:
        raise ValueError(f"{value!r:.40} is not a whole number below 2**63")
    return value


def digest(manifest: bytes) -> bytes:
    """The marker for the bytes of a manifest."""
    from xxhash import xxh3_128_hexdigest

    return f"xxh3_128 {xxh3_128_hexdigest(manifest)}\n".encode()


def has_base(file: str) -> bool:
    """Whether a compressed file has differences from another one, of which no tensor may have been worth one."""
    return coded.find_base_of(open_file(file)) is not None


def read_entries(file: str) -> tuple[Entry, ...]:
    """Read the tensors of a file with their digests, from its index alone."""
    found: list[Entry] = []
    source = open_file(file)
    for item in coded.outline(source) if detect(source) == "coded" else formats.checks(source)[1]:
        if isinstance(item, Problem):
            raise CorruptFileError(f"{redact(file)}: {item}")
        if isinstance(item, Check):
            digest = item.digest or ""
            found += [Entry(path, one.dtype.name, tuple(one.shape), digest) for path, one in item.tensors]
    return tuple(found)
