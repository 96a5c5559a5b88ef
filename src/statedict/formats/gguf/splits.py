"""Split models: NAME-00001-of-00003.gguf and so on, each a GGUF file with a part of the tensors.

Each has `split.no` (from 0), `split.count` and `split.tensors.count` (of all files together); the first one has the
rest of the metadata. Source: llama-gguf-split, and `GGUFWriter` of gguf 0.19.0.
"""

from __future__ import annotations

import re
from collections import namedtuple

from statedict.errors import CorruptFileError, FileError
from statedict.formats import places
from statedict.formats.gguf.header import Header, read_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.io.source import ByteSource

Part = namedtuple("Part", "name source header")  # name: of the file, without its folder
_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE | re.DOTALL)
_MOST = 10_000


def open_parts(source: ByteSource) -> list[Part]:
    """The files of a model, of which `source` is any.

    Raises:
        CorruptFileError: the files do not belong together, or one is not called as its place among them demands.
        FileError: one of them cannot be opened.
    """
    header = read_header(source)
    count = header.values.get("split.count")
    path = getattr(source, "url", source.name)
    own = path.rpartition("/")[2]
    if type(count) is not int or count < 2:
        return [Part(own, source, header)]
    named = _NAME.fullmatch(own)
    if named is None or int(named[3]) != count or count > _MOST:
        number = header.values.get("split.no", 0)
        wanted = f"NAME-{number + 1:05}-of-{count:05}.gguf" if type(number) is int else "as it was"
        raise CorruptFileError(
            f"{source.name}: is one of {count:,} files of a model and not called so; name it {wanted}, as the others"
        )
    names = [f"{named[1]}-{number:05}-of-{named[3]}.gguf" for number in range(1, count + 1)]
    opened = places.open_files(places.get_folder(source), [name for name in names if name != own])
    parts: list[Part] = []
    for number, name in enumerate(names):
        one = source if name == own else opened[name]
        if isinstance(one, FileError):
            raise one
        part = Part(name, one, header if name == own else read_header(one))
        if part.header.values.get("split.count") != count or part.header.values.get("split.no") != number:
            raise CorruptFileError(
                f"{one.name}: expected file {number + 1:,} of {count:,} of the model, and its split.no and split.count "
                f"say {_say(part.header)}; fetch it again"
            )
        parts.append(part)
    _check_together(source.name, parts)
    return parts


def _say(header: Header) -> str:
    return ", ".join(f"{header.values.get(f'split.{key}')!r:.20}" for key in ("no", "count"))


def _check_together(name: str, parts: list[Part]) -> None:
    seen: set[str] = set()
    for part in parts:
        for entry in part.header.tensors:
            if entry.name in seen:
                raise CorruptFileError(f"{part.source.name}: tensor {entry.name!r:.80} is in another file too")
            seen.add(entry.name)
        total = part.header.values.get("split.tensors.count")
        if type(total) is int and total != sum(len(one.header.tensors) for one in parts):
            held = sum(len(one.header.tensors) for one in parts)
            raise CorruptFileError(
                f"{name}: its {len(parts):,} files have {held:,} tensors, split.tensors.count says {total:,}; "
                "they are of different models, or damaged; fetch them again"
            )
