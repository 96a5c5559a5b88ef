"""PyTorch's unpickler for `weights_only=True`, over pickles that our machine has read with `CHECKED`.

PyTorch makes the objects; our machine has checked that their numbers fit the file and that their cost fits the pickle's
size. Both take the same names for the same things. The only module here that imports PyTorch; only `statedict.torch`
imports it.

Source: torch/_weights_only_unpickler.py (PyTorch 2.6 to 2.15).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch

from statedict import torch_private
from statedict.errors import CorruptFileError, FormatError, LimitError, RefusedError
from statedict.pickles.indices import Indices
from statedict.pickles.objects import Global
from statedict.pickles.tables import DATA, NumpyType, attributes
from statedict.tensor.checks import tensors_of
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.values import Opaque


def unpickle(data: bytes, persistent_load: Callable[[Any], Any], encoding: str, map_location: Any = "cpu") -> Any:
    """The object in a pickle of protocol 2 that our machine has read with `CHECKED`.

    Raises:
        pickle.UnpicklingError: it names what is not allowed.
    """
    load = _make_unpickler(b"torch.nested._internal" in data, b"torch._dynamo.decorators" in data)
    return load(data, persistent_load, encoding, map_location)


@cache
def _make_unpickler(jagged: bool, marked: bool) -> Callable[..., Any]:
    """An unpickler with PyTorch's table and numpy's arrays and scalars, but nothing that a number makes large.

    `jagged` adds jagged tensors, which no table has since PyTorch 2.15, and imports their module; `marked` adds what
    PyTorch up to 2.14 noted in them for its compiler.
    """
    storage = torch.serialization.StorageType("ByteStorage")
    theirs = torch_private.get_default_globals() or {}
    nested = torch_private.look_up("_utils._rebuild_nested_tensor")
    allowed = {
        **{name: known for name, known in theirs.items() if ".sparse." not in name},  # classes that check no index
        "torch._utils._rebuild_sparse_tensor": _sparse_tensor,
        **({} if nested is None else {"torch._utils._rebuild_nested_tensor": nested}),
        **dict.fromkeys(("torch.storage.UntypedStorage", "torch.storage.TypedStorage"), storage),
        **{name: known for known, name in numpy_globals()},
        **torch_private.get_jagged_globals(jagged, marked),
    }
    return torch_private.make_unpickler(allowed)


def numpy_globals() -> list[tuple[Any, str]]:
    """The names in pickles of numpy's arrays and scalars of numbers, as `safe_globals` takes them."""
    import numpy

    functions: list[Any] = [numpy.zeros(1).__reduce__()[0], numpy.float32(1).__reduce__()[0]]
    return [
        *((f, f"numpy.{core}.multiarray.{f.__name__}") for f in functions for core in ("core", "_core")),
        *((kind, f"numpy.{kind.__name__}") for kind in (numpy.ndarray, numpy.dtype)),
        *((type(numpy.dtype(code)), code) for code in "?bBhHiIlLqQefdFD"),  # a name without a dot is in no file
    ]


def _sparse_tensor(layout: Any, data: Any) -> Any:
    """A sparse tensor, as `torch._utils._rebuild_sparse_tensor` makes it, but without its check after loading."""
    if layout is torch.sparse_coo and len(data) in (3, 4):
        return torch.sparse_coo_tensor(*data[:3], is_coalesced=data[3] if len(data) == 4 else None)
    if layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc) and len(data) == 4:
        return torch.sparse_compressed_tensor(*data, layout=layout)
    raise CorruptFileError(f"a sparse tensor of layout {layout} with a wrong description")


_REMEDY = "nothing was run, and statedict.load opens the file with it as an inert label"


class _NumberType(NumpyType):
    """A numpy dtype of numbers; numpy does not check the state of others."""

    __slots__ = ()

    def set_state(self, state: Any) -> NumpyType:
        kind = super().set_state(state)
        if self.kind is None or tuple(state[5:]) != (-1, -1, 0):
            raise RefusedError(f"a numpy dtype {self.code!r} with fields or a size of its own; {_REMEDY}")
        return kind


def _number_type(code: Any, align: Any = False, copy: Any = False) -> NumpyType:
    kind = _NumberType(code.decode("ascii", "replace") if type(code) is bytes else code)
    if kind.kind is None:
        raise RefusedError(f"a numpy dtype {str(code)[:100]!r} that is not a number; {_REMEDY}")
    return kind


def _never(*args: Any) -> Any:
    raise RefusedError(f"a numpy array made without its data; {_REMEDY}")


def _skip_copy(name: str, copied: Callable[..., Any]) -> Global:
    """A function of PyTorch's that copies tensors, without copies larger than the bytes in the file."""
    known = DATA[name]

    def build(*args: Any) -> Any:
        for tensor, dtype in copied(*args):
            if isinstance(tensor, LazyTensor) and (
                tensor.nbytes > tensor.storage.nbytes or (dtype and tensor.dtype is not dtype)
            ):
                raise LimitError(f"{known.name}: a tensor of {tensor.nbytes:,} bytes would be copied; refused")
        return known.build(*args)

    return Global(known.name, build, known.bulk, known.cost)


# function → the (tensor, dtype that it is copied to) among its arguments
_COPIED: dict[str, Callable[..., Any]] = {
    "_rebuild_device_tensor_from_cpu_tensor": lambda data, dtype, *_: [(data, dtype)],
    "_rebuild_qtensor": lambda *args: [(tensor, None) for tensor in args[4]],
}

CHECKED = DATA | {
    "numpy dtype": Global("numpy.dtype", _number_type),
    "numpy ndarray": Global("numpy.ndarray", _never),
    **{f"torch._utils {name}": _skip_copy(f"torch._utils {name}", copied) for name, copied in _COPIED.items()},
}
# PyTorch's unpickler takes Python 2's names for modules, so they are checked as what it takes them for
CHECKED |= {
    f"{old} {name}": CHECKED[f"{module} {name}"]
    for module, name in map(str.split, list(CHECKED))
    for old, new in torch_private.get_renamed_modules().items()
    if new == module
}

_NESTED = "torch.nested._internal.nested_tensor.NestedTensor"
_JAGGED = "torch.nested._internal.nested_tensor._rebuild_njt"
# the attributes of a jagged tensor → its parts
_ATTRIBUTES = {"_values": "values", "_offsets": "offsets", "_lengths": "lengths", "_ragged_idx": "_ragged_idx"}


class Allowed:
    """The allow-list of one load. It records tensors made of indices, to check them before PyTorch makes them.

    It includes tensors that a program drops, and parts that it replaces.
    """

    __slots__ = ("_noted", "constructors")

    def __init__(self) -> None:
        self._noted: list[tuple[str, dict[str, Any], Opaque]] = []
        rebuild = "torch._utils _rebuild_"
        jagged, typed = _JAGGED.replace("._rebuild", " _rebuild"), "torch._tensor _rebuild_from_type"
        self.constructors = CHECKED | {
            name: Global(known.name, partial(note, known.build), known.bulk, known.cost)
            for note, names in (
                (self._parts, (f"{rebuild}sparse_tensor", f"{rebuild}nested_tensor", jagged)),
                (self._subclass, (typed, f"{typed}_v2")),
                (self._parameter, (f"{rebuild}parameter_with_state",)),
            )
            for name in names
            for known in (CHECKED[name],)
        }

    def check(self, tree: Any, storages: Iterable[Storage], where: str) -> None:
        """Raise CorruptFileError if indices lie outside their tensor, named by its path in `tree`."""
        if not self._noted:
            return
        indices = Indices(storages)
        for kind, parts, node in self._noted:
            try:
                indices.check(kind, parts)
            except FormatError as error:
                raise type(error)(
                    f"{where}: {_find_path(tree, node)}: {kind.removeprefix('torch.')} tensor: {error}; "
                    "using it would reach memory that is not its own; the file is damaged or hostile"
                ) from error

    def _parts(self, build: Callable[..., Any], *args: Any) -> Any:
        node = build(*args)
        if not isinstance(node, Opaque) or not isinstance(node.state, dict):
            raise CorruptFileError(f"{getattr(node, 'name', 'a tensor')}: without its parts")
        # in a dict of its own, for the program may replace the state
        self._noted.append((node.name, dict(node.state), node))
        return node

    def _subclass(self, build: Callable[..., Any], *args: Any) -> Any:
        function, kind, _, state = (*args, None)[:4]
        if (getattr(function, "name", "") == _JAGGED) != (getattr(kind, "name", "") == _NESTED):
            raise CorruptFileError("a jagged tensor rebuilt as another class, or another class rebuilt as jagged")
        node = build(*args)
        if getattr(kind, "name", "") == _NESTED:
            self._note_attributes(node, state)
        return node

    def _parameter(self, build: Callable[..., Any], *args: Any) -> Any:
        data, _, _, state = (*args, None, None, None)[:4]
        if isinstance(data, Opaque):
            self._note_attributes(data, state)
        return build(*args)

    def _note_attributes(self, node: Opaque, state: Any) -> None:
        named = attributes(state)
        if parts := {part: named[name] for name, part in _ATTRIBUTES.items() if name in named}:
            self._noted.append(("torch.jagged", parts, node))


def _find_path(tree: Any, node: Opaque) -> str:
    tensors = {id(part) for part in dict(node.children()).values() if isinstance(part, LazyTensor)}
    paths = (path.rpartition(".")[0] for path, tensor in tensors_of(tree) if id(tensor) in tensors)
    return next(paths, "") or "the tensor"
