"""An ordinary zip archive that contains checkpoints, such as stable-baselines3's `model.zip`.

Each member that is a checkpoint opens as the tree under its name, texts become strings, everything else, archives too,
is named and kept inert. A deflated member is unpacked when something in it is read.
"""

from __future__ import annotations

from contextlib import suppress

from statedict.errors import FormatError, UnknownFormatError
from statedict.formats.kinds import check_part, read_part
from statedict.io.zip import Inflated, read_directory
from statedict.pickles.budget import Together
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_MAX_TEXT = 1 << 20
_RESERVE, _FACTOR = 8 << 20, 2  # the bytes to which deflated members may unpack, of which a part is per byte


def read(source: ByteSource) -> StateDict:
    """Read the tree of the archive's members, lazily."""
    tree = StateDict()
    found = False
    together = Together()
    budget = _RESERVE + _FACTOR * source.size
    for name, record in read_directory(source).items():
        if name.endswith("/"):
            continue
        tree[name] = Opaque(f"a file of {record.size:,} bytes")
        if isinstance(record, Inflated):
            budget -= record.size
            if budget < 0:
                continue
        try:
            with together:
                tree[name] = read_part(record)
            found = True
        except FormatError:
            with suppress(UnicodeDecodeError, FormatError):
                if record.size <= _MAX_TEXT:
                    tree[name] = bytes(record.read(0, record.size)).decode()
    if not found:
        from statedict.formats.causes import describe_archive

        what = describe_archive(list(tree)) or (
            "is a zip archive without data.pkl and without a checkpoint among its members; "
            f"it holds {', '.join(list(tree)[:3]) or 'nothing'}"
        )
        raise UnknownFormatError(f"{source.name}: {what}")
    return tree


def checks(source: ByteSource) -> Iterator[Found]:
    """List the checks of the checkpoints, the CRC-32 of the other members; check the archive's structure."""
    from statedict.formats.torch.structure import find_faults, make_check

    records = read_directory(source)
    yield from find_faults(source, records)
    for name, held in read(source).items():
        yield make_check(name, records[name])
        if not isinstance(held, str | Opaque):
            yield from check_part(records[name], name, name)
