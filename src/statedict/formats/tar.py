"""A tar archive that contains checkpoints, such as NeMo's `.nemo`.

Each member that is a checkpoint opens as the tree under its name, texts become strings, everything else, archives too,
is named and kept inert. A member is a range of the archive, so nothing is unpacked. An archive that gzip packed has to
be unpacked first.
"""

from __future__ import annotations

from contextlib import suppress

from statedict.errors import CorruptFileError, FormatError, LimitError, UnknownFormatError
from statedict.formats.kinds import check_part, read_part
from statedict.io.source import Slice
from statedict.io.tar import read_members
from statedict.pickles.budget import Together
from statedict.tensor.checks import Check
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_MAX_TEXT, _MAX_TEXTS = 1 << 20, 64 << 20
_MAX_MEMBERS = 100_000


def _list_members(source: ByteSource) -> dict[str, Slice]:
    members: dict[str, Slice] = {}
    for name, kind, begin, size in read_members(source):
        if kind != "0" or name.endswith("/"):
            continue
        if name in members:
            raise CorruptFileError(
                f"{source.name}: two members are called {name!r:.80}; unpack it, which keeps the last"
            )
        members[name] = Slice(source, begin, size, f"{source.name}: {name}")
        if len(members) > _MAX_MEMBERS:
            raise LimitError(f"{source.name}: has over {_MAX_MEMBERS:,} members; unpack it first")
    return members


def read(source: ByteSource) -> StateDict:
    """Read the tree of the archive's members, lazily."""
    tree, found = StateDict(), False
    together, left = Together(), _MAX_TEXTS
    for name, member in _list_members(source).items():
        tree[name] = Opaque(f"a file of {member.size:,} bytes")
        try:
            with together:
                tree[name] = read_part(member)
            found = True
        except FormatError:
            with suppress(UnicodeDecodeError, FormatError):
                if member.size <= min(_MAX_TEXT, left):
                    tree[name] = bytes(member.read(0, member.size)).decode()
                    left -= member.size
    if not found:
        raise UnknownFormatError(
            f"{source.name}: is a tar archive without a checkpoint among its members; it holds "
            f"{', '.join(list(tree)[:3]) or 'nothing'}; unpack it"
        )
    return tree


def checks(source: ByteSource) -> Iterator[Found]:
    """List the checks of the checkpoints, and the other members; a tar archive has no sums of them."""
    members = _list_members(source)
    for name, held in read(source).items():
        if isinstance(held, str | Opaque):
            yield Check(name, members[name], 0, members[name].size)
        else:
            yield from check_part(members[name], name, name)
