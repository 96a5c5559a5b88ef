"""The names of PyTorch that are private or not in every release, and what serves where one is missing.

Only this module asks for them, so that a release that drops or changes one costs a detour and no file.
Source: PyTorch 2.6 to 2.15. tests/test_torch_private.py hides each name, then loads, saves and restores.
"""

from __future__ import annotations

import importlib
import io
import sys
import warnings
from collections import deque
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
    """Look up a name of the table; None if it is missing.

    `owner` has the last part as its attribute; by default it is what the other parts name.
    """
    if name not in NAMES:
        raise LookupError(f"{name} is not in the table of private names")
    *above, last = name.split(".")
    if owner is None:
        owner = sys.modules["torch"]
        for part in above:
            owner = getattr(owner, part, None)
    return getattr(owner, last, None)


def writes_no_bytes() -> bool:
    """Whether PyTorch writes tensors without bytes: in FakeTensorMode, or in `torch.serialization.skip_data`."""
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


def get_user_setting(name: str, default: Any) -> Any:
    """Return a setting of `torch.utils.serialization.config`, such as `save.storage_alignment`."""
    try:
        importlib.import_module("torch.utils.serialization")
    except ImportError:
        return default
    setting = look_up("utils.serialization.config")
    for part in name.split("."):
        setting = getattr(setting, part, default)
    return setting


def get_storage(typed: Any) -> Any:
    """Return the `UntypedStorage` of a `TypedStorage`."""
    storage = look_up("storage.TypedStorage._untyped_storage", typed)
    return _call_quietly(typed.untyped) if storage is None else storage


def get_storage_class(typed: Any, name: str) -> Any:
    """Return the class that a pickle names for a `TypedStorage`; `name` is its name in our table of dtypes."""
    import torch

    ask = look_up("storage.TypedStorage._pickle_storage_type", typed)
    return getattr(torch, name if ask is None else ask())


def make_typed_storage(untyped: Any, dtype: Any) -> Any:
    """Make a `TypedStorage` over an `UntypedStorage`, as PyTorch's rebuilding functions take it."""
    import torch

    kind: Any = torch.storage.TypedStorage
    try:
        return kind(wrap_storage=untyped, dtype=dtype, _internal=True)
    except TypeError:  # without the argument that keeps it from warning
        return _call_quietly(lambda: kind(wrap_storage=untyped, dtype=dtype))


def _call_quietly(function: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


def get_renamed_modules() -> Mapping[str, str]:
    """Map Python 2's names of modules to Python 3's, as PyTorch's unpickler does."""
    mapping: Mapping[str, str] | None = look_up("_utils.IMPORT_MAPPING")
    return dict(importlib.import_module("_compat_pickle").IMPORT_MAPPING) if mapping is None else mapping


def make_unpickler(allowed: Mapping[str, Any]) -> Callable[..., Any]:
    """PyTorch's unpickler for `weights_only=True`, for pickles of protocol 2 that may name what is `allowed`.

    PyTorch's own table, and what `add_safe_globals` adds to it, are for all threads at once, so its code runs over
    other globals here.
    """
    theirs: Any = sys.modules["torch"]._weights_only_unpickler
    local = look_up("serialization._serialization_tls")
    forgotten: deque[Any] = deque(maxlen=0)  # sparse tensors to check afterwards; ours are checked before
    load: Any = FunctionType(
        look_up("_weights_only_unpickler.Unpickler").load.__code__,
        vars(theirs)
        | {
            "_get_allowed_globals": lambda: allowed,
            "_sparse_tensors_to_validate": forgotten,  # PyTorch 2.7 to 2.13
            "_get_sparse_tensors_to_validate": lambda: forgotten,
        },
    )

    def unpickle(
        data: bytes, persistent_load: Callable[[Any], Any], encoding: str = "utf-8", map_location: Any = "cpu"
    ) -> Any:
        unpickler = theirs.Unpickler(io.BytesIO(data), encoding=encoding)
        unpickler.persistent_load = persistent_load
        local.map_location = map_location  # for the functions that rebuild tensors of other devices
        try:
            return load(unpickler)
        finally:
            local.map_location = None

    return unpickle


# {"w": [a call of the function `made` with the storage of the persistent id ("storage",)]}
_TRIAL = b"\x80\x02}q\x00X\x01\x00\x00\x00w]cstatedict\nmade\n(X\x07\x00\x00\x00storage\x85QtRas."


def get_default_globals() -> dict[str, Any] | None:
    """Return PyTorch's table of what a pickle may name; None if it is missing."""
    get_globals = look_up("_weights_only_unpickler._get_allowed_globals")
    return None if get_globals is None else dict(get_globals())


def get_jagged_globals(jagged: bool, marked: bool) -> dict[str, Any]:
    """Return what a pickle of `jagged` tensors names.

    `marked` adds the notes for PyTorch's compiler in their attributes, whose module takes a second to import.
    """
    wanted = {"nested._internal.nested_tensor": ["NestedTensor", "_rebuild_njt"]} if jagged else {}
    wanted |= {"_dynamo.decorators": ["_DimRange"]} if marked else {}
    named: dict[str, Any] = {}
    for module, names in wanted.items():
        try:
            importlib.import_module(f"torch.{module}")
        except ImportError:
            continue
        holder = look_up(module)
        named |= {f"torch.{module}.{name}": getattr(holder, name) for name in names if hasattr(holder, name)}
    return named


@cache
def unpickler_works() -> bool:
    """Whether PyTorch's unpickler works as `unpickle` expects; tried once."""
    if get_default_globals() is None or not hasattr(look_up("serialization._serialization_tls"), "map_location"):
        return False
    try:
        allowed = {"statedict.made": lambda storage: ("made", storage)}
        return bool(make_unpickler(allowed)(_TRIAL, lambda key: [*key, 1]) == {"w": [("made", ["storage", 1])]})
    except Exception:  # of whatever kind: it is not the unpickler that we know
        return False


def find_load(module: Any = None) -> Any:
    """Return how the class of a module loads its own tensors, by default as most modules do; None if it is missing."""
    return look_up("nn.Module._load_from_state_dict", None if module is None else type(module))


def get_pre_hooks(module: Any) -> Any:
    """Return the hooks that run before a module loads, by number; None if they are missing."""
    return look_up("nn.Module._load_state_dict_pre_hooks", module)


def is_watched(module: Any) -> bool:
    """Whether hooks run after a module has loaded."""
    hooks = look_up("nn.Module._load_state_dict_post_hooks", module)
    return hooks is None or bool(hooks)


def get_parts(module: Any) -> list[Mapping[str, Any]]:
    """Return a module's own parameters, buffers and modules by name; TypeError if PyTorch hides them."""
    parts = [look_up(f"nn.Module.{name}", module) for name in ("_parameters", "_buffers", "_modules")]
    if None in parts:
        raise TypeError(f"{type(module).__name__}: its parts are not to be had")
    return parts
