"""A bare pickle, of arrays, tensors or anything: what `pickle.dump` writes.

One pickle of protocol 2 to 5; what follows it is ignored, as Python does. Nothing in it is executed. It is read whole,
for the arrays lie within it, unless joblib wrote it (pickles/joblib.py), which puts them between the opcodes. A
tensor's storage does so as what the legacy format makes of it (torch/storage.py, `_load_from_bytes`). Files of Paddle
are pickles, too (paddle/framework/io.py, 3.3). Protocols 0 and 1 begin in no way that tells them from text;
`format="pickle"` reads them.
"""

from __future__ import annotations

from statedict.dtypes import BY_NAME
from statedict.errors import CorruptFileError, UnknownFormatError
from statedict.formats.torch import legacy as torch_legacy
from statedict.io.source import BytesSource
from statedict.io.zip import refuse_behind
from statedict.pickles.constructors import StorageType, TypedStorage
from statedict.pickles.joblib import find_memory, make_constructors
from statedict.pickles.machine import load
from statedict.pickles.objects import Global
from statedict.pickles.tables import DATA
from statedict.tensor.checks import by_storage
from statedict.tensor.lazy import LazyTensor
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found


_LONGEST = 1 << 10  # of the pickles around a storage
_STORAGES = {name: kind for name, kind in DATA.items() if isinstance(kind, StorageType)}


def _storage(stream: Any) -> TypedStorage:
    if type(stream) is not bytes:
        raise CorruptFileError(f"a storage made from a {type(stream).__name__}")
    found = torch_legacy.unpickle(BytesSource(stream, "a storage in the pickle"), _STORAGES, _LONGEST)[0]
    if type(found) is not TypedStorage:
        raise CorruptFileError("the bytes of a storage hold something else")
    return found


def _pair(value: Any) -> Any:
    """What Paddle writes for a tensor in a list or a nested dict: a tuple of its name and an array."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is str and isinstance(value[1], LazyTensor):
        return _of_paddle(value[1])
    return Opaque("builtins.tuple", (value,))


def _of_paddle(value: Any) -> Any:
    """A tensor of Paddle, which writes bfloat16 as uint16, a dtype that it does not have."""
    if not isinstance(value, LazyTensor):
        return value
    return value.replace(dtype=BY_NAME["bfloat16"] if value.dtype.name == "uint16" else value.dtype, ndarray=False)


_PADDLE = "StructuredToParameterName@@"  # names of tensors → those of Paddle's variables
_CONSTRUCTORS = (
    DATA
    | {"torch.storage _load_from_bytes": Global("torch.storage._load_from_bytes", _storage, cost=4096)}
    | {"builtins tuple": Global("builtins.tuple", _pair)}
)


def read(source: ByteSource) -> Any:
    """Read the object in the file: arrays as LazyTensors, foreign classes as Opaque."""
    return _load(source)[0]


def refuse_plain(tree: Any, name: str) -> None:
    """Raise UnknownFormatError if there is neither a tensor nor a dict nor an object in a tree.

    Dicts and objects may be checkpoints without a tensor: the state of a scheduler, or of an optimizer at step 0.
    """
    pending, seen = [tree], set[int]()
    while pending:
        node = pending.pop()
        if isinstance(node, LazyTensor | dict | Opaque):
            return
        if isinstance(node, list | tuple | set | frozenset) and id(node) not in seen:
            seen.add(id(node))
            pending += node
    raise UnknownFormatError(
        f"{name}: is a pickle without any tensor (its root is of the type {type(tree).__name__}), not a checkpoint; "
        'load it with format="pickle" if you want to see it'
    )


def _load(source: ByteSource) -> tuple[Any, int]:
    data = find_memory(source)
    data = source.read(0, source.size) if data is None else data
    tree, end = load(data, _CONSTRUCTORS | make_constructors(source), None, source.name)
    if data[end : end + 4] == b"PK\7\x08":
        raise CorruptFileError(
            f"{source.name}: is an archive of torch.save whose first bytes are missing: after the pickle comes what "
            "follows a record; fetch it again"
        )
    refuse_behind(source, end)
    if isinstance(tree, dict) and isinstance(tree.get(_PADDLE), dict):
        tree.update({name: _of_paddle(tree[name]) for name in tree[_PADDLE].keys() & tree.keys()})
    return tree, end


def checks(source: ByteSource) -> Iterator[Found]:
    """List the arrays, which lie in the pickle and have no checksums."""
    tree, end = _load(source)
    refuse_plain(tree, source.name)
    yield from by_storage(tree)
    if end < source.size:
        yield f"{source.size - end:,} bytes follow the pickle, from byte {end:,}, and are not read"
