"""An ordinary zip archive that contains checkpoints, such as stable-baselines3's `model.zip`.

Each member that is a checkpoint opens as the tree under its name, texts become strings, everything else is named and
kept inert, archives within the archive too. Members are read in place; a deflated one is unpacked when something in it
is read.
"""

from __future__ import annotations

from statedict.errors import FormatError, UnknownFormatError
from statedict.formats.kinds import part_checks, read_part
from statedict.io.zip import Inflated, read_directory
from statedict.pickles.budget import Together
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_MAX_TEXT = 1 << 20
_RESERVE, _FACTOR = 8 << 20, 2  # the bytes to which deflated members may unpack, of which a part is per byte


def read(source: ByteSource) -> StateDict:
    """The tree of the archive's members, lazily.

    Raises:
        UnknownFormatError: none of them is a checkpoint.
    """
    tree = StateDict()
    found = False
    together = Together()
    budget = _RESERVE + _FACTOR * source.size
    for name, record in read_directory(source).items():
        if name.endswith("/"):
            continue
        if isinstance(record, Inflated):
            budget -= record.size
            if budget < 0:
                tree[name] = Opaque(f"a file of {record.size:,} bytes")
                continue
        try:
            with together:
                tree[name] = read_part(record)
            found = True
        except FormatError:
            tree[name] = _other(record)
    if not found:
        raise UnknownFormatError(
            f"{source.name}: is a zip archive without data.pkl and none of its members is a checkpoint; "
            f"it holds {', '.join(list(tree)[:3]) or 'nothing'}"
        )
    return tree


def checks(source: ByteSource) -> Iterator[Found]:
    """The checks of each member that is a checkpoint, the CRC-32 of all others, and the archive's own structure."""
    from statedict.formats.torch.faults import check, faults
    from statedict.tensor.checks import within

    records = read_directory(source)
    yield from faults(source, records)
    tree = read(source)
    for name, record in records.items():
        if name.endswith("/"):
            continue
        yield check(name, record)
        if not isinstance(tree[name], str | Opaque):
            yield from within(part_checks(record), name, name)


def _other(record: Any) -> Any:
    if record.size <= _MAX_TEXT:
        try:
            return bytes(record.read(0, record.size)).decode()
        except (UnicodeDecodeError, FormatError):
            pass
    return Opaque(f"a file of {record.size:,} bytes")
