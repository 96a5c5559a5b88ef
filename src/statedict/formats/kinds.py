"""The kinds of files: how each begins, and the readers of those that may be a part of another checkpoint.

Formats whose files hold other checkpoints open them by `read_part`. Their own modules stand in the table of
`formats/__init__.py`, above them.
"""

from __future__ import annotations

from statedict.errors import CorruptFileError, FormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, Protocol

    from statedict.io.pipeline import Sink
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

    `parts` says that it holds other checkpoints; these are not looked for in one that is such a part itself, and the
    module is named in the table above. `folder` is the format that writes it as a folder: itself if it is nothing but a
    folder, another one for its shards. `in_place` is the module whose `rewrite` edits such a file in place.
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

    def at(self, module: str) -> Row:
        """This row with its module."""
        return Row(module, self.suffixes, self.magic, self.parts, self.folder, self.in_place)

    def load(self) -> Format:
        """The module."""
        import importlib

        module: Any = importlib.import_module(self.module)
        return module  # type: ignore[no-any-return]


_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, as protocols 2 to 5 write it
_LEGACY_1 = b"L119547037146038801333356L\n."  # as protocol 1 does

KINDS: dict[str, Row] = {
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
    "zip": Row("", (), lambda head: head[:4] == b"PK\5\6", parts=True),
    "torch-export": Row("", (), lambda head: False, parts=True),  # a kind of zip
    "torch-legacy": Row(
        "statedict.formats.torch.legacy",
        (),
        lambda head: (
            (_is_pickle(head) and _LEGACY in head[:32]) or head.startswith(_LEGACY_1) or head[257:262] == b"ustar"
        ),
    ),
    "distributed": Row(
        "",
        (),
        lambda head: _is_pickle(head) and b"torch.distributed.checkpoint.metadata" in head[:80],
        parts=True,
        folder="distributed",
    ),
    "pickle": Row("statedict.formats.pickle", (), lambda head: _is_pickle(head)),
    "sharded": Row(
        "",
        (),
        lambda head: head.lstrip()[:1] == b"{" and (b'"weight_map"' in head or b'"total_size"' in head),
        parts=True,
    ),
}


def detect(source: ByteSource) -> str:
    """The name of the format that a file's content shows.

    Raises:
        UnknownFormatError: none; the message says what the file seems to be instead.
        CorruptFileError: it begins as a tar archive or as a pickle, and as something else.
    """
    head = bytes(source.read(0, min(source.size, _HEAD)))
    for name, row in KINDS.items():
        if row.magic(head):
            _refuse_two(source, head, name)
            return _kind_of_zip(source, head) if name == "torch" else name
    from statedict.formats.causes import stranger

    raise stranger(source.name, head, source.size, ", ".join(KINDS))


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
    return hinted(source, part)


def _part(source: ByteSource) -> Format:
    name = detect(source)
    if KINDS[name].parts:
        raise FormatError(f"{source.name}: checkpoints within checkpoints are read one deep; open this one by itself")
    return KINDS[name].load()


def hinted(source: ByteSource, module: Format) -> Iterator[Found]:
    """The checks of a file, and whether its download looks unfinished."""
    from statedict.formats.causes import find_unfinished

    with Hinted(source.name):
        yield from module.checks(source)
    hint = find_unfinished(source.name)
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
            from statedict.formats.causes import find_unfinished

            hint = find_unfinished(self._name)
            if hint and hint not in str(error):
                error.args = (f"{error}; {hint}",)
