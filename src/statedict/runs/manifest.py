"""What a checkpoint's directory says of itself.

    100/                        named by its step
        checkpoint.safetensors  the tree: a file as `statedict.save` writes it; or checkpoint.pth
        manifest.json           what is in it, with digests
        COMMITTED               the digest of manifest.json, written last

Without the last file it is no checkpoint. The manifest is JSON: `format`, `version`, `step`, `time` (UTC), `metrics`,
`libraries`, `files` (name and bytes), `entries` (path, dtype, shape, digest of each tensor), `not_captured`. See
docs/format.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from statedict.errors import CorruptFileError

NAME = "manifest.json"
MARKER = "COMMITTED"
DATA = {"safetensors": "checkpoint.safetensors", "torch": "checkpoint.pth"}
WHOLE = 1 << 63
"""Numbers of steps, bytes and elements are below this."""

_FORMAT = "statedict checkpoint"
_VERSION = 1
_INFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a checkpoint.

    Attributes:
        path: its path.
        dtype: PyTorch's name.
        shape: sizes.
        digest: XXH3-128 of its bytes, in hexadecimal; in a .pth that of the storage that it lies in.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
        step: the step of training.
        time: when it was saved, in seconds since 1970.
        metrics: by name.
        libraries: name → version.
        files: name → bytes.
        entries: its tensors, in order.
        not_captured: what the tree had and this has not, in words.
    """

    step: int
    time: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    not_captured: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        return sum(self.files.values())

    def encoded(self) -> bytes:
        """As the file holds it."""
        fields = {
            "format": _FORMAT,
            "version": _VERSION,
            "step": self.step,
            "time": datetime.fromtimestamp(self.time, UTC).isoformat(),
            "metrics": {name: _number(value) for name, value in self.metrics.items()},
            "libraries": dict(self.libraries),
            "files": dict(self.files),
            "not_captured": list(self.not_captured),
        }
        head = json.dumps(fields, indent=1, allow_nan=False)
        rows = ",\n".join(f"  {json.dumps([e.path, e.dtype, list(e.shape), e.digest])}" for e in self.entries)
        return f'{head[:-2]},\n "entries": [\n{rows}\n ]\n}}\n'.encode()


def decode(data: bytes, where: str) -> Manifest:
    """The manifest in a file.

    Raises:
        CorruptFileError: it is none.
        LimitError: it would take more memory than its size justifies.
    """
    # names in a tree may hold what is no text, such as half of a surrogate pair, so those of tensors may too
    from statedict.io.json import parse

    found = parse(data, where, surrogates=True)
    try:
        if found["format"] != _FORMAT:
            raise ValueError(f"format {found['format']!r:.40}")
        if found["version"] != _VERSION:
            raise CorruptFileError(
                f"{where}: is of version {found['version']!r:.20}, this statedict reads {_VERSION}; update statedict"
            )
        return Manifest(
            parse_whole(found["step"]),
            _time(found["time"]),
            {_text(name): _metric(value) for name, value in found["metrics"].items()},
            {_text(name): _text(version) for name, version in found["libraries"].items()},
            {_is_ours(name): parse_whole(size) for name, size in found["files"].items()},
            tuple(
                Entry(str(path), str(kind), tuple(map(parse_whole, shape)), str(digest))
                for path, kind, shape, digest in found["entries"]
            ),
            tuple(map(str, found["not_captured"])),
        )
    except CorruptFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CorruptFileError(f"{where}: is no manifest of a checkpoint ({type(error).__name__}: {error})") from None


def _text(value: Any) -> str:
    """A name that any program can print and write.

    Raises:
        ValueError: it has half of a surrogate pair.
    """
    text = str(value)
    text.encode()
    return text


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(float(value))


def _metric(value: Any) -> float:
    return _INFINITE[value] if isinstance(value, str) else float(value)


def _is_ours(name: str) -> str:
    if name not in DATA.values():
        raise ValueError(f"{name!r:.80} is none of a checkpoint's files, {' and '.join(DATA.values())}")
    return name


def _time(text: str) -> float:
    """Seconds since 1970 of a time that calendars have in UTC, too."""
    seconds = datetime.fromisoformat(text).astimezone(UTC).timestamp()
    return datetime.fromtimestamp(seconds, UTC).timestamp()  # the last microsecond of 9999 rounds up


def parse_whole(value: Any) -> int:
    """A number of steps, bytes or elements in a document.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not int or not 0 <= value < WHOLE:
        raise ValueError(f"{value!r:.40} is no whole number")
    return value
