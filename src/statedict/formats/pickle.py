"""A bare pickle, of arrays or of anything: what `pickle.dump` and `joblib` without compression write.

One pickle of protocol 2 to 5; what follows it is ignored, as Python does. Nothing in it is executed. It is read whole,
for the arrays lie within it. Protocols 0 and 1 begin in no way that tells them from text; `format="pickle"` reads them.
"""

from __future__ import annotations

from statedict.pickles.machine import load
from statedict.pickles.tables import DATA

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.checks import Found
    from statedict.io.source import ByteSource


def read(source: ByteSource) -> Any:
    """The object in the file: arrays as LazyTensors, foreign classes as Opaque.

    Raises:
        TruncatedError: it ends early.
        CorruptFileError: it is damaged.
    """
    return load(source.read(0, source.size), DATA, None, source.name)[0]


def checks(source: ByteSource) -> Iterator[Found]:
    """The arrays, which lie in the pickle and have no sums."""
    from statedict.checks import by_storage

    tree, end = load(source.read(0, source.size), DATA, None, source.name)
    yield from by_storage(tree)
    if end < source.size:
        yield f"{source.size - end:,} bytes follow the pickle, from byte {end:,}, and are not read"
