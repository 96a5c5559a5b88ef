"""The kinds of files: how each begins, and the readers of those that may be a part of another checkpoint.

Formats whose files hold other checkpoints open them by `read_part`; `formats/__init__.py`, above them, names their
modules.
"""

from __future__ import annotations

import importlib
import re
from collections import namedtuple
from contextlib import contextmanager
from functools import cache
from itertools import islice
from warnings import warn

from statedict.errors import CorruptFileError, FormatError, UnknownFormatError
from statedict.io.tar import is_tar, read_members

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_HEAD = 512


class Row(namedtuple("Row", "magic module suffixes folder in_place", defaults=("", (), "", ""))):
    """A format in the table.

    `magic` recognizes the first bytes of a file. `module` is empty here if files of the format hold other checkpoints,
    which may not nest further. `suffixes` select the format for a file. `folder` names the format that writes a folder,
    or its shards. `in_place` is the module whose `rewrite` edits files in place.
    """

    __slots__ = ()

    def load(self) -> ModuleType:
        """Import the module."""
        return importlib.import_module(self.module)


_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, as protocols 2 to 5 write it
_LEGACY_1 = b"L119547037146038801333356L\n."  # as protocol 1 does
# msgpack: an array, or a map whose first key is text, with an array or a scalar further on
_FLAX = (
    rb"(\xc7.|\xc8..|\xc9.{4})\x01\x93"
    rb"|([\x81-\x8f]|\xde..|\xdf.{4})[\xa1-\xbf\xd9].*(\xc7.|\xc8..|\xc9.{4}|\xd8)[\x01\x03]\x93"
)
# a manifest, or the version of a model and its description
_COREML = rb'\s*\{\s*"fileFormatVersion".*"itemInfoEntries"|\x08[\x01-\x1f]\x12[\x01-\xff]{1,4}\n.{1,4}\n'
# the version of a model, and who made it, or the graph
_ONNX = rb"\x08[\x03-\x7f](\x12.[ -~]|[\x1a:]|B.?\n|\x12\0)"
# a key "" and the header of a checkpoint, or the version of a SavedModel
_TENSORFLOW = rb"\0\0[\x04-\x0f]\x08[\x80-\xff]{0,2}[\x01-\x7f](\x10\x01)?\x1a.\x08|\x08\x01\x12"
# an index of diffusers, or the modules of sentence-transformers
_PIPELINE = rb'\s*(\{\s*"_class_name".*\[\s*"(diffusers|transformers)|\[\s*\{\s*"idx"\s*:\s*0\s*,\s*"name")'
# a value: its tag, and the dims and type of a tensor
_MINDSPORE = (
    rb"\n[\x80-\xff]{0,4}[\x01-\x7f]\n[\x80-\xff]?.[ -~]{1,250}\x12[\x80-\xff]{0,4}[\x01-\x7f]"
    rb"(\x08[\x80-\xff]{0,9}[\0-\x7f]){0,64}\x12.(Int|Uint|Float|BFloat|Bool|Complex|str|string)"
)


def _begins(pattern: bytes) -> Callable[[bytes], bool]:
    """Make a test of the first bytes. A pattern is compiled when it is first needed: all of them take 10 ms."""
    return lambda head: re.match(pattern, head, re.DOTALL) is not None


_CODED = b'{"__metadata__":{"statedict.coding":'

KINDS: dict[str, Row] = {
    "torch": Row(
        lambda head: head[:4] == b"PK\3\4" or (b"/data.pkl" in head[30:80] and _is_nearly(head[:4], b"PK\3\4")),
        "statedict.formats.torch.archive",
        (".pth", ".pt", ".bin", ".ckpt", ".pth.tar"),
        in_place="statedict.formats.torch.in_place",
    ),
    "coded": Row(lambda head: head[8:].startswith(_CODED)),
    "distributed-safetensors": Row(
        lambda head: b"{" in (head[:1], head[8:9]) and re.search(rb'"DCP_SHARDING_INFO"\s*:\s*["\[]', head) is not None,
        "statedict.formats.distributed_safetensors",
    ),
    "safetensors": Row(
        lambda head: (
            (head[8:9] == b"{" and (head[5:8] == b"\0\0\0" or (head[6:8] == b"\0\0" and head[9:10] in b' "}')))
            or _is_nearly(head[8:], b'{"__metadata__":{')
            or (head[8:9] == b"{" and b'"data_offsets"' in head)
        ),
        "statedict.formats.safetensors",
        (".safetensors",),
        folder="sharded",
        in_place="statedict.formats.safetensors",
    ),
    "numpy": Row(lambda head: head[:6] == b"\x93NUMPY", "statedict.formats.numpy.npy"),
    "npz": Row(  # else a kind of zip
        lambda head: head[:4] == b"PK\5\6" and head[22:].startswith(b'{"metadata":'),
        "statedict.formats.numpy.npz",
        (".npz",),
    ),
    "zip": Row(lambda head: head[:4] == b"PK\5\6"),
    "torch-export": Row(lambda head: False),  # a kind of zip
    "tar": Row(lambda head: False),  # any that torch.save did not write
    "torch-legacy": Row(
        lambda head: (
            (_is_pickle(head) and _LEGACY in head[:32]) or head.startswith(_LEGACY_1) or head[257:262] == b"ustar"
        ),
        "statedict.formats.torch.legacy",
    ),
    "distributed": Row(
        lambda head: _is_pickle(head) and b"torch.distributed.checkpoint.metadata" in head[:80], folder="distributed"
    ),
    "pickle": Row(lambda head: _is_pickle(head), "statedict.formats.pickle"),
    "keras-sharded": Row(
        lambda head: head.lstrip()[:1] == b"{" and re.search(rb'"/[^"]*\bvars"\s*:', head) is not None,
        "statedict.formats.hdf5.sharded",
    ),
    "pipeline": Row(_begins(_PIPELINE)),
    "sharded": Row(lambda head: head.lstrip()[:1] == b"{" and (b'"weight_map"' in head or b'"total_size"' in head)),
    "gguf": Row(lambda head: head[:4] == b"GGUF", "statedict.formats.gguf.model", (".gguf",)),
    "coreml": Row(
        _begins(_COREML),
        "statedict.formats.coreml",
    ),
    "onnx": Row(_begins(_ONNX), "statedict.formats.onnx.model"),
    "orbax": Row(
        lambda head: re.match(rb'\s*\{\s*"(tree_metadata|item_handlers)"', head) is not None,
        "statedict.formats.orbax.tree",
    ),
    "tensorflow": Row(_begins(_TENSORFLOW), "statedict.formats.tensorflow.bundle"),
    "openvino": Row(
        lambda head: re.match(rb"(\xef\xbb\xbf)?\s*<\?xml[^>]*>\s*<net\s", head) is not None,
        "statedict.formats.openvino",
    ),
    "hdf5": Row(lambda head: head[:8] == b"\x89HDF\r\n\x1a\n", "statedict.formats.hdf5.model", (".h5", ".hdf5")),
    "keras": Row(lambda head: False, "statedict.formats.hdf5.archive"),  # a kind of zip
    "keras-weights": Row(lambda head: False, "statedict.formats.hdf5.weights", (".weights.h5",)),  # read as hdf5
    "executorch": Row(lambda head: head[4:8] in (b"ET12", b"FT01"), "statedict.formats.executorch"),
    "mindspore": Row(_begins(_MINDSPORE), "statedict.formats.mindspore"),
    "flax": Row(_begins(_FLAX), "statedict.formats.flax", (".msgpack",)),
}


@cache
def added() -> dict[str, Row]:
    """The formats that other packages add, by the entry points `statedict.formats`; docs/plugins.md describes them.

    Reading entry points takes milliseconds, so only what no format of ours takes asks for them.
    """
    from importlib.metadata import entry_points

    rows: dict[str, Row] = {}
    for point in entry_points(group=__package__):
        if point.name in KINDS or point.name in rows:
            warn(f"the format {point.name!r} of {point.value} is left out: there is one of that name", stacklevel=2)
            continue
        try:
            module = point.load()
            rows[point.name] = Row(module.is_format, point.module, tuple(getattr(module, "SUFFIXES", ())))
        except Exception as error:  # whatever a package raises, others go on
            fault = f"{type(error).__name__}: {error}"
            warn(f"the format {point.name!r} of {point.value} cannot be used ({fault})", stacklevel=2)
    return rows


def find_row(name: str) -> Row | None:
    """The row of one of our formats or of another package's; None if no format has the name."""
    return KINDS.get(name) or added().get(name)


def detect(source: ByteSource) -> str:
    """Detect the format of a file by its content; the error says what the file is instead."""
    head = bytes(source.read(0, min(source.size, _HEAD)))
    for name, row in KINDS.items():
        if row.magic(head):
            if other := _find_second_kind(source, head, name):
                raise CorruptFileError(f"{source.name}: begins as {name} and as {other}; it is damaged or forged")
            return _detect_zip(source, head) if name == "torch" else _detect_tar(source, head, name)
    for name, row in added().items():
        if row.magic(head):
            return name
    from statedict.formats.causes import describe_file

    raise UnknownFormatError(f"{source.name}: {describe_file(head, source.size, ', '.join([*KINDS, *added()]))}")


def _find_second_kind(source: ByteSource, head: bytes, name: str) -> str:
    if head[:4] == b"GGUF" and name != "gguf":
        return "gguf"
    if is_tar(head):
        if head[257:262] != b"ustar" or name != "torch-legacy":
            return "a tar archive"
        return "a pickle" if _is_pickle(head) else ""
    if not _is_pickle(head) or name not in ("torch", "coded", "safetensors", "distributed-safetensors", "sharded"):
        return ""
    from statedict.scanner.globals import walk

    def read(offset: int, length: int) -> bytes:
        return bytes(source.read(offset, max(0, min(length, source.size - offset))))

    return "" if walk(read, patience=_HEAD).problem else "a pickle"


def _is_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")


def _detect_zip(source: ByteSource, head: bytes) -> str:
    """Tell archives of torch.save and torch.jit.save from others, mostly by the first record."""
    if head[30 : 30 + int.from_bytes(head[26:28], "little")].rpartition(b"/")[2] == b"data.pkl":
        return "torch"
    from statedict.io.zip import OURS, read_directory

    try:
        records = read_directory(source)
    except CorruptFileError:
        return "torch"  # who knows; reading it says what is wrong
    if any(name.rpartition("/")[2] == "data.pkl" for name in records):
        return "torch"
    if records and all(name.endswith(".npy") or name == OURS for name in records):
        return "npz"
    if "model.weights.h5" in records and "config.json" in records:
        return "keras"
    return "torch-export" if any(name.endswith("/archive_format") for name in records) else "zip"


def _detect_tar(source: ByteSource, head: bytes, name: str) -> str:
    """Tell the archives of torch.save from others, by their first members."""
    if name != "torch-legacy" or head[257:262] != b"ustar":
        return name
    try:
        names = {member.name for member in islice(read_members(source), 8)}
    except CorruptFileError:
        return name  # reading it says what is wrong
    return name if names & {"sys_info", "storages", "tensors", "pickle"} else "tar"


def _is_nearly(head: bytes, magic: bytes) -> bool:
    """Whether the bytes match, but for one that may be damaged."""
    return len(head) >= len(magic) and sum(a != b for a, b in zip(head, magic, strict=False)) <= 1


def read_part(source: ByteSource) -> Any:
    """Read a checkpoint inside another one; it must not hold further ones."""
    with hint_at_download(source.name):
        return _load_part(source).read(source)


def check_part(source: ByteSource, part: str, above: str = "") -> Iterator[Found]:
    """Yield the checks of a checkpoint inside another one, where its tensors are below the path `above`."""
    from statedict.tensor.checks import within

    with hint_at_download(source.name):
        module = _load_part(source)
    yield from within(run_checks(source, module), part, above)


def _load_part(source: ByteSource) -> ModuleType:
    row = find_row(detect(source))
    if row is None or not row.module:
        raise FormatError(f"{source.name}: checkpoints within checkpoints are read one deep; open this one by itself")
    return row.load()


def run_checks(source: ByteSource, module: ModuleType) -> Iterator[Found]:
    """Yield a format's checks, then a note if the download looks unfinished."""
    from statedict.formats.causes import find_unfinished
    from statedict.tensor.checks import by_storage

    with hint_at_download(source.name):
        yield from module.checks(source) if hasattr(module, "checks") else by_storage(module.read(source))
    if hint := find_unfinished(source.name):
        yield hint


@contextmanager
def hint_at_download(name: str) -> Iterator[None]:
    """Add to a FormatError that the download looks unfinished, if it does."""
    try:
        yield
    except FormatError as error:
        from statedict.formats.causes import find_unfinished

        hint = find_unfinished(name)
        if hint and hint not in str(error):
            error.args = (f"{error}; {hint}",)
        raise
