"""Formats: one module a kind of file; here the protocol, the table and the sniffing.

To add one: a module with `read`, `checks` and, if it can, `write` and `rewrite`, or `files` if it is a folder; a row in
`FORMATS`; if it writes, an entry in `tests/formats/conftest.py`, whose conformance suite it then runs.
"""

from __future__ import annotations

import os

from statedict.errors import CorruptFileError, FormatError, UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, Protocol

    from statedict.io.sink import Sink
    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

    class Format(Protocol):
        """What a format's module offers."""

        def read(self, source: ByteSource) -> Any:
            """The tree in the file, lazily."""

        def checks(self, source: ByteSource) -> Iterator[Found]:
            """The parts of the file with what is known of their bytes, and what is wrong with its structure.

            Raises:
                CorruptFileError: so wrong that nothing more can be said.
            """

        def write(self, tree: Any, sink: Sink) -> None:
            """Write a tree of LazyTensors and plain values; absent where `suffixes` is empty."""

        def files(self, tree: Any, most: int | None = None) -> Mapping[str, Callable[[Sink], None]]:
            """What to write into a folder: name of each file → what writes it, the one that names the others last.

            `most` is how many bytes a file may have. Absent where no row has it as its `folder`.
            """

        # the module in `Row.in_place` has `rewrite`, see the function of that name here


_HEAD = 512


class Row:
    """A format in the table: its module, the suffixes that choose it for writing, and how its files begin.

    `parts` says that it holds other checkpoints; these are not looked for in one that is such a part itself. `folder`
    is the format that writes it as a folder: itself if it is nothing but a folder, another one for its shards.
    `in_place` is the module whose `rewrite` edits such a file in place.
    """

    __slots__ = ("folder", "in_place", "magic", "module", "parts", "suffixes")

    def __init__(
        self,
        module: str,
        suffixes: tuple[str, ...],
        magic: Callable[[bytes], bool],
        parts: bool = False,
        folder: str = "",
        in_place: str = "",
    ) -> None:
        self.module, self.suffixes, self.magic, self.parts, self.folder = module, suffixes, magic, parts, folder
        self.in_place = in_place

    def load(self) -> Format:
        """The module."""
        import importlib

        module: Any = importlib.import_module(self.module)
        return module  # type: ignore[no-any-return]


_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, as protocols 2 to 5 write it
_LEGACY_1 = b"L119547037146038801333356L\n."  # as protocol 1 does

FORMATS: dict[str, Row] = {
    "torch": Row(
        "statedict.formats.torch.archive",
        (".pth", ".pt", ".bin", ".ckpt", ".pth.tar"),
        lambda head: head[:4] == b"PK\3\4" or (b"/data.pkl" in head[30:80] and _nearly(head[:4], b"PK\3\4")),
        in_place="statedict.formats.torch.in_place",
    ),
    "safetensors": Row(
        "statedict.formats.safetensors",
        (".safetensors",),
        lambda head: (head[8:9] == b"{" and head[5:8] == b"\0\0\0") or _nearly(head[8:], b'{"__metadata__":{'),
        folder="sharded",
        in_place="statedict.formats.safetensors",
    ),
    "zip": Row("statedict.formats.zip_members", (), lambda head: head[:4] == b"PK\5\6", parts=True),
    "torch-export": Row("statedict.formats.torch.export", (), lambda head: False, parts=True),  # a kind of zip
    "torch-legacy": Row(
        "statedict.formats.torch.legacy",
        (),
        lambda head: (
            (_is_pickle(head) and _LEGACY in head[:32]) or head.startswith(_LEGACY_1) or head[257:262] == b"ustar"
        ),
    ),
    "distributed": Row(
        "statedict.formats.distributed",
        (),
        lambda head: _is_pickle(head) and b"torch.distributed.checkpoint.metadata" in head[:80],
        parts=True,
        folder="distributed",
    ),
    "pickle": Row("statedict.formats.pickle", (), lambda head: _is_pickle(head)),
    "sharded": Row(
        "statedict.formats.sharded",
        (),
        lambda head: head.lstrip()[:1] == b"{" and (b'"weight_map"' in head or b'"total_size"' in head),
        parts=True,
    ),
}
WRITABLE = [name for name, row in FORMATS.items() if row.suffixes or row.folder]
_FOREIGN = (".gguf", ".onnx", ".h5", ".hdf5", ".npz", ".npy", ".keras", ".tflite", ".pb", ".zip", ".pkl", ".json")
_FOLDERS = " or ".join(name for name in WRITABLE if FORMATS[name].folder)


def detect(source: ByteSource) -> str:
    """The name of the format that a file's content shows.

    Raises:
        UnknownFormatError: none; the message says what the file seems to be instead.
        CorruptFileError: it begins as a tar archive or as a pickle, and as something else.
    """
    head = bytes(source.read(0, min(source.size, _HEAD)))
    for name, row in FORMATS.items():
        if row.magic(head):
            _refuse_two(source, head, name)
            return _kind_of_zip(source, head) if name == "torch" else name
    from statedict.formats.causes import stranger

    raise stranger(source.name, head, source.size, ", ".join(FORMATS))


def _refuse_two(source: ByteSource, head: bytes, name: str) -> None:
    from statedict.io.tar import is_tar

    other = ""
    if is_tar(head):
        if head[257:262] != b"ustar" or head[:4] == b"PK\3\4":
            other = "a tar archive"
        elif _is_pickle(head):
            other = "a pickle"
    elif _is_pickle(head) and name in ("torch", "safetensors", "sharded"):
        from statedict.scanner.globals import walk

        def read(offset: int, length: int) -> bytes:
            return bytes(source.read(offset, max(0, min(length, source.size - offset))))

        other = "" if walk(read, patience=_HEAD).problem else "a pickle"
    if other:
        raise CorruptFileError(f"{source.name}: begins as {name} and as {other}; it is damaged or forged")


def _is_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")


def _kind_of_zip(source: ByteSource, head: bytes) -> str:
    """Whether a zip archive is one of torch.save or torch.jit.save; mostly its first record says so."""
    if head[30 : 30 + int.from_bytes(head[26:28], "little")].rpartition(b"/")[2] == b"data.pkl":
        return "torch"
    from statedict.io.zip import read_directory

    try:
        records = read_directory(source)
    except CorruptFileError:
        return "torch"  # who knows; reading it says what is wrong
    if any(name.rpartition("/")[2] == "data.pkl" for name in records):
        return "torch"
    return "torch-export" if any(name.endswith("/archive_format") for name in records) else "zip"


def _nearly(head: bytes, magic: bytes) -> bool:
    """Whether the bytes are these, or damaged in one place."""
    return len(head) >= len(magic) and sum(a != b for a, b in zip(head, magic, strict=False)) <= 1


def read_part(source: ByteSource) -> Any:
    """The tree in a file that is a part of another checkpoint.

    Raises:
        FormatError: it is no checkpoint, or has parts itself.
    """
    with Hinted(source.name):
        return _part(source).read(source)


def part_checks(source: ByteSource) -> Iterator[Found]:
    """The checks of a file that is a part of another checkpoint, as `read_part` reads it."""
    with Hinted(source.name):
        part = _part(source)
    return _hinted(source, part)


def _part(source: ByteSource) -> Format:
    name = detect(source)
    if FORMATS[name].parts:
        raise FormatError(f"{source.name}: checkpoints within checkpoints are read one deep; open this one by itself")
    return FORMATS[name].load()


def read(source: ByteSource, name: str | None = None) -> Any:
    """The tree in a file of this format, or of the one that its content shows."""
    with Hinted(source.name):
        return by_name(name or detect(source)).read(source)


def checks(source: ByteSource) -> tuple[str, Iterator[Found]]:
    """The format of a file, and what there is to check in it."""
    with Hinted(source.name):
        name = detect(source)
    return name, _hinted(source, FORMATS[name].load())


def _hinted(source: ByteSource, module: Format) -> Iterator[Found]:
    from statedict.formats.causes import unfinished

    with Hinted(source.name):
        yield from module.checks(source)
    hint = unfinished(source.name)
    if hint:
        yield hint


class Hinted:
    """A context in which the error for a file says, too, if its download looks unfinished."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FormatError):
            from statedict.formats.causes import unfinished

            hint = unfinished(self._name)
            if hint and hint not in str(error):
                error.args = (f"{error}; {hint}",)


def by_name(name: str) -> Format:
    """The format of a name.

    Raises:
        FormatError: there is none.
    """
    if name not in FORMATS:
        raise FormatError(f"no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name].load()


def writer(name: str) -> Format:
    """The format of a name, if it can be written.

    Raises:
        FormatError: there is none, or it can only be read.
    """
    module = by_name(name)
    if name not in WRITABLE:
        raise FormatError(f"{name} files are read, not written; formats for writing are {', '.join(WRITABLE)}")
    return module


def rewrite(tree: Any, source: ByteSource, before: Any, name: str | None = None) -> tuple[int, bytes] | None:
    """What to put where in a file so that it holds a tree of its own tensors under other names, with other values.

    Args:
        tree: of LazyTensors and plain values.
        source: the file as it is.
        before: the tree that was read from it.
        name: the format that it should have then; by default its own.

    Returns:
        An offset and bytes; None where the file has to be written anew.
    """
    import importlib

    kind = detect(source)
    if not FORMATS[kind].in_place or name not in (None, kind):
        return None
    found: tuple[int, bytes] | None
    found = importlib.import_module(FORMATS[kind].in_place).rewrite(tree, source, before)
    return found


def for_writing(path: str, name: str | None = None, sharded: bool = False) -> tuple[Format, bool]:
    """The format in which a path is written, and whether that is as a folder, by its `files`.

    A slash at the end, or shards, mean a folder; any other name is a file. Without a format a folder is one of
    safetensors, or a distributed checkpoint where one is replaced; the suffix of a file says its format, torch without
    any.

    Args:
        path: the target.
        name: the format that is asked for.
        sharded: several files are asked for.

    Raises:
        FormatError: nothing is written under such a name, or not in that format.
        UnsupportedError: a folder is asked for, and the format is a file.
    """
    suffix = suffix_of(path)
    by_suffix = next((name for name, row in FORMATS.items() if suffix in row.suffixes), "")
    folder = sharded or path.endswith("/")
    if name is None:
        if os.path.isfile(os.path.join(path, ".metadata")):
            name = "distributed"
        elif folder:
            name = "safetensors"
        else:
            name = by_suffix if suffix else "torch"
    if not name:
        raise FormatError(
            f"{path}: {suffix} is the suffix of no format that is written; name a file that ends in "
            f"{', '.join(suffix for row in FORMATS.values() for suffix in row.suffixes)}, or a folder that ends in /, "
            f"or give the format: {', '.join(WRITABLE)}"
        )
    module = writer(name)
    if not folder and FORMATS[name].folder != name:
        return module, False
    if not FORMATS[name].folder:
        what = "shards are" if sharded else "a folder is"
        raise UnsupportedError(f"{path}: {what} written as {_FOLDERS}, not as {name}")
    if (by_suffix or suffix in _FOREIGN) and not path.endswith("/") and not os.path.isdir(path):
        stem = path[: -len(suffix)]
        raise FormatError(f"{path}: is the name of a file, and a folder is written; name a folder such as {stem}/")
    return FORMATS[FORMATS[name].folder].load(), True


def suffix_of(path: str) -> str:
    """The suffix of a path in small letters; that of a tar archive with the one before."""
    stem, suffix = os.path.splitext(path.lower())
    return os.path.splitext(stem)[1] + suffix if suffix == ".tar" else suffix
