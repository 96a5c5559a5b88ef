"""The names of PyTorch that are private or not in every release, and what serves where one is missing.

Only this module asks for them, so that a release that drops or changes one costs a detour and no file. Where PyTorch
has a public name that does as well, that one is used and nothing is listed here.

Source: PyTorch 2.6 to 2.15. tests/test_torch_private.py hides each name, then loads, saves and restores.
"""

from __future__ import annotations

import importlib
import io
import sys
import warnings
from functools import cache
from types import FunctionType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

NAMES: dict[str, str] = {
    "_weights_only_unpickler.Unpickler": "torch.load(weights_only=True), of a file that our machine has checked",
    "_weights_only_unpickler._get_allowed_globals": "the same",
    "serialization._serialization_tls": "the same; and a tensor is written to see whether skip_data is on",
    "_guards.active_fake_mode": "a tensor is made to see whether it is one",
    "_utils.IMPORT_MAPPING": "Python's own table of modules that have another name since Python 3",
    "_utils._rebuild_nested_tensor": "nested tensors are refused with the reason",
    "nested._internal.nested_tensor": "jagged tensors are refused with the reason",
    "_dynamo.decorators": "the same for those that PyTorch 2.14 and before wrote",
    "utils.serialization.config": "the defaults; PyTorch 2.6 does not have it",
    "storage.TypedStorage._untyped_storage": "TypedStorage.untyped, which warns",
    "storage.TypedStorage._pickle_storage_type": "the name of the dtype's storage in our own table",
    "nn.Module._load_from_state_dict": "every module counts as one that loads in a way of its own",
    "nn.Module._load_state_dict_pre_hooks": "the same",
    "nn.Module._load_state_dict_post_hooks": "every module counts as one whose loading is watched",
    "nn.Module._parameters": "a module's own way of loading is not rehearsed",
    "nn.Module._buffers": "the same",
    "nn.Module._modules": "the same",
}
"""A name below `torch` → what serves without it. Some attributes only instances have."""


def look_up(name: str, owner: Any = None) -> Any:
    """What a name of the table stands for, or None where it is missing.

    Args:
        name: a key of `NAMES`.
        owner: the object whose attribute the last part is; by default what the other parts name.
    """
    if name not in NAMES:
        raise LookupError(f"{name} is not in the table of private names")
    *above, last = name.split(".")
    if owner is None:
        owner = sys.modules["torch"]
        for part in above:
            owner = getattr(owner, part, None)
    return getattr(owner, last, None)


# writing


def writes_no_bytes() -> bool:
    """Whether PyTorch was asked for tensors without bytes: by FakeTensorMode, or by `torch.serialization.skip_data`."""
    local, fake = look_up("serialization._serialization_tls"), look_up("_guards.active_fake_mode")
    skips = getattr(local, "skip_data", None)
    if fake is not None and skips is not None:
        return skips is True or fake() is not None
    import torch

    tensor, file = torch.full((8,), 0xA7, dtype=torch.uint8), io.BytesIO()
    if type(tensor) is not torch.Tensor:  # a fake one
        return True
    torch.serialization.save(tensor, file)
    return b"\xa7" * 8 not in file.getvalue()


def user_setting(name: str, default: Any) -> Any:
    """What a user set in `torch.utils.serialization.config`, as `save.storage_alignment`."""
    try:
        importlib.import_module("torch.utils.serialization")
    except ImportError:
        return default
    found = look_up("utils.serialization.config")
    for part in name.split("."):
        found = getattr(found, part, default)
    return found


def storage_of(typed: Any) -> Any:
    """The `UntypedStorage` of a `TypedStorage`."""
    found = look_up("storage.TypedStorage._untyped_storage", typed)
    return _quietly(typed.untyped) if found is None else found


def storage_class(typed: Any, name: str) -> Any:
    """The class that a pickle names for a `TypedStorage`.

    Args:
        typed: the storage.
        name: of the class as our table of dtypes has it.
    """
    import torch

    ask = look_up("storage.TypedStorage._pickle_storage_type", typed)
    return getattr(torch, name if ask is None else ask())


def typed_storage(untyped: Any, dtype: Any) -> Any:
    """A `TypedStorage` over an `UntypedStorage`, which PyTorch's rebuilding functions take."""
    import torch

    kind: Any = torch.storage.TypedStorage
    try:
        return kind(wrap_storage=untyped, dtype=dtype, _internal=True)
    except TypeError:  # without the argument that keeps it from warning
        return _quietly(lambda: kind(wrap_storage=untyped, dtype=dtype))


def _quietly(function: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


# reading


def renamed_modules() -> Mapping[str, str]:
    """Python 2's name of a module → Python 3's, as PyTorch's unpickler takes them."""
    found: Mapping[str, str] | None = look_up("_utils.IMPORT_MAPPING")
    return dict(importlib.import_module("_compat_pickle").IMPORT_MAPPING) if found is None else found


class Unpickler:
    """PyTorch's unpickler for `weights_only=True`, with another table of what a pickle may name.

    Its own table, and what `add_safe_globals` adds to it, are for all threads at once, so that its code runs over
    globals of our own here.
    """

    def __init__(self, allowed: Mapping[str, Any]) -> None:
        self._theirs = sys.modules["torch"]._weights_only_unpickler
        self._local = look_up("serialization._serialization_tls")
        unchecked = _Unchecked()
        self._load: Any = FunctionType(
            look_up("_weights_only_unpickler.Unpickler").load.__code__,
            vars(self._theirs)
            | {
                "_get_allowed_globals": lambda: allowed,
                "_sparse_tensors_to_validate": unchecked,  # PyTorch 2.7 to 2.13
                "_get_sparse_tensors_to_validate": lambda: unchecked,
            },
        )

    def __call__(
        self, data: bytes, persistent_load: Callable[[Any], Any], encoding: str = "utf-8", map_location: Any = "cpu"
    ) -> Any:
        """The object in a pickle of protocol 2."""
        unpickler: Any = self._theirs.Unpickler(io.BytesIO(data), encoding=encoding)
        unpickler.persistent_load = persistent_load
        self._local.map_location = map_location  # for the functions that rebuild tensors of other devices
        try:
            return self._load(unpickler)
        finally:
            self._local.map_location = None


class _Unchecked:
    """Takes the sparse tensors that PyTorch would check afterwards; ours are checked when they are made."""

    def append(self, tensor: Any) -> None:
        """Forget it."""


# {"w": [a call of the function `made` with the storage of the persistent id ("storage",)]}
_TRIAL = b"\x80\x02}q\x00X\x01\x00\x00\x00w]cstatedict\nmade\n(X\x07\x00\x00\x00storage\x85QtRas."


def default_globals() -> dict[str, Any] | None:
    """PyTorch's table of what a pickle may name; None where it is not to be had."""
    found = look_up("_weights_only_unpickler._get_allowed_globals")
    return None if found is None else dict(found())


def jagged_globals(jagged: bool, marked: bool) -> dict[str, Any]:
    """What a pickle of jagged tensors names.

    Args:
        jagged: the tensors.
        marked: notes for PyTorch's compiler in their attributes, whose module takes a second to import.
    """
    found: dict[str, Any] = {}
    for wanted, module, names in (
        (jagged, "nested._internal.nested_tensor", ("NestedTensor", "_rebuild_njt")),
        (marked, "_dynamo.decorators", ("_DimRange",)),
    ):
        if wanted:
            try:
                importlib.import_module(f"torch.{module}")
            except ImportError:
                continue
            holder = look_up(module)
            found |= {f"torch.{module}.{name}": getattr(holder, name) for name in names if hasattr(holder, name)}
    return found


@cache
def unpickler_works() -> bool:
    """Whether PyTorch's unpickler is there and does what `Unpickler` takes for granted; it is tried once."""
    if default_globals() is None or not hasattr(look_up("serialization._serialization_tls"), "map_location"):
        return False
    try:
        read = Unpickler({"statedict.made": _make_storage})
        return bool(read(_TRIAL, lambda key: [*key, 1]) == {"w": [("made", ["storage", 1])]})
    except Exception:  # of whatever kind: it is not the unpickler that we know
        return False


def _make_storage(storage: Any) -> Any:
    return "made", storage


# modules


def usual_load() -> Any:
    """`Module._load_from_state_dict`, which most modules have unchanged; None where there is none."""
    return look_up("nn.Module._load_from_state_dict")


def find_load(module: Any) -> Any:
    """How the class of a module loads its own tensors."""
    return look_up("nn.Module._load_from_state_dict", type(module))


def pre_hooks(module: Any) -> Any:
    """What a module calls before it loads, by number; None where that cannot be told."""
    return look_up("nn.Module._load_state_dict_pre_hooks", module)


def is_watched(module: Any) -> bool:
    """Whether something is called after a module has loaded."""
    hooks = look_up("nn.Module._load_state_dict_post_hooks", module)
    return hooks is None or bool(hooks)


def parts(module: Any) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]] | None:
    """Its own parameters, buffers and modules by name, with those that are None; None where they are not to be had."""
    found = tuple(look_up(f"nn.Module.{name}", module) for name in ("_parameters", "_buffers", "_modules"))
    return None if None in found else (found[0], found[1], found[2])
