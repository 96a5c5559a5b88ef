"""What a package needs that adds a format or an adapter; docs/plugins.md has a whole example.

A format is a module that an entry point of the group `statedict.formats` names:

    is_format(head)     whether a file begins with these bytes, of which there are up to 512
    read(source)        the tree, in which no tensor is read: `lazy_tensor` says where each lies
    write(tree, sink)   optional: `put_parts` writes a tree of LazyTensors and plain values
    SUFFIXES            optional: the suffixes of files that are written, (".mine",)
    checks(source)      optional: a Check for each part of the file, and a Problem for each fault of its structure

An adapter is a module that an entry point of the group `statedict.adapters` names; the entry point is called as the
framework that must be loaded for it to matter, and `statedict.plugins.Adapter` lists its functions.
"""

from __future__ import annotations

from statedict.adapters import Adapter as Adapter
from statedict.adapters import Capture as Capture
from statedict.adapters import stateful as stateful
from statedict.adapters.plan import Plan as Plan
from statedict.dtypes import DType as DType
from statedict.dtypes import dtype as dtype
from statedict.errors import CorruptFileError as CorruptFileError
from statedict.errors import TruncatedError as TruncatedError
from statedict.errors import UnsupportedError as UnsupportedError
from statedict.io.pipeline import Part as Part
from statedict.io.pipeline import Sink as Sink
from statedict.io.source import ByteSource as ByteSource
from statedict.tensor.checks import Check as Check
from statedict.tensor.checks import Problem as Problem
from statedict.tensor.checks import by_storage as by_storage
from statedict.tensor.checks import tensors_of as tensors_of
from statedict.tensor.lazy import LazyTensor as LazyTensor
from statedict.tensor.lazy import Storage
from statedict.tree.state_dict import StateDict as StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def lazy_tensor(source: ByteSource, offset: int, kind: DType | str, shape: Iterable[int]) -> LazyTensor:
    """A tensor whose elements lie in a file, row by row and in little-endian order, from a byte on.

    Args:
        source: the file.
        offset: where the tensor begins, in bytes.
        kind: its dtype, or the name that PyTorch has for it.
        shape: its sizes.

    Raises:
        TruncatedError: the file ends before the tensor does.
        CorruptFileError: a size is negative, or the offset.

    >>> from statedict.io.source import BytesSource
    >>> lazy_tensor(BytesSource(bytes(8)), 4, "int16", (2,)).tolist()
    [0, 0]
    """
    kind, shape = dtype(kind), tuple(shape)
    if offset < 0 or any(size < 0 for size in shape):
        raise CorruptFileError(f"{source.name}: a tensor of shape {shape} at byte {offset:,}; the file is damaged")
    count = 1
    for size in shape:
        count *= size
    nbytes = kind.nbytes(count)
    if offset + nbytes > source.size:
        raise TruncatedError(
            f"{source.name}: a tensor of shape {shape} ends at byte {offset + nbytes:,}, and the file at "
            f"{source.size:,}; it looks truncated, fetch it again"
        )
    return LazyTensor(kind, shape, Storage(source, offset, nbytes))


def put_parts(sink: Sink, parts: Iterable[bytes | LazyTensor]) -> None:
    """Write bytes and tensors, one after the other; tensors stream through in blocks.

    >>> import tempfile
    >>> from statedict.io.location import location
    >>> place = location(tempfile.mkdtemp() + "/a.mine")
    >>> place.publish(lambda sink: put_parts(sink, [b"MINE", b"end"]))
    >>> bytes(place.open().read(0, 7))
    b'MINEend'
    """
    from statedict.io.source import BytesSource

    head, at, found = b"", 0, list[Part]()
    for part in parts:
        if isinstance(part, bytes):
            head += part
            continue
        tensor, at = part.contiguous(), at + len(head)
        storage = tensor.storage
        found.append(Part(at, storage.source, storage.offset + tensor.offset, tensor.nbytes, head))
        head, at = b"", at + tensor.nbytes
    if head:
        found.append(Part(at + len(head), BytesSource(b""), 0, 0, head))
    sink.reserve(at + len(head))
    sink.put(found)
