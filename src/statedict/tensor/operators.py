"""What a lazy tensor leaves to others: PyTorch's functions read it, operators and missing methods are refused."""

from __future__ import annotations

from statedict.errors import UnsupportedError
from statedict.shown import Viewed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_BINARY = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "matmul": "@",
    "truediv": "/",
    "floordiv": "//",
    "mod": "%",
    "pow": "**",
    "and": "&",
    "or": "|",
    "xor": "^",
    "lshift": "<<",
    "rshift": ">>",
}
_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNARY = {"neg": "-", "pos": "+", "invert": "~", "abs": "abs"}


class Unread(Viewed):
    """A base that refuses arithmetic, order, and attributes that it lacks, and names `.torch()` and `.numpy()`."""

    __slots__ = ()

    def torch(self, copy: bool = False) -> Any:
        """As a `torch.Tensor`."""
        raise NotImplementedError

    def copy_into(self, target: Any) -> bool:
        """Fill a torch tensor; False where that takes a conversion."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "copy_" and len(args) > 1 and isinstance(args[1], cls) and args[1].copy_into(args[0]):
            return args[0]
        if (name.endswith("_") and not name.endswith("__") and _has_lazy(args[:1])) or _has_lazy(kwargs.get("out")):
            raise UnsupportedError(f"{name}: a LazyTensor is read-only; change the tensor that .torch() returns")
        return func(*_as_torch(args), **_as_torch(kwargs))

    if not TYPE_CHECKING:  # a type checker finds by itself what is missing

        def __getattr__(self, name: str) -> Any:
            what = f"a {type(self).__name__} has no attribute {name!r}"
            if name.startswith("_"):  # what protocols look for, and people do not
                raise AttributeError(what)
            raise AttributeError(f"{what}, its bytes are not read; use .torch().{name} or .numpy().{name}")


def _refuse(symbol: str) -> Callable[..., Any]:
    def operator(self: Unread, *others: object) -> Any:
        raise UnsupportedError(f"{self!r}: does not compute {symbol}; use .torch() or .numpy(), which read it")

    return operator


for _names, _prefixes in ((_BINARY, ("", "r")), (_COMPARISONS, ("",)), (_UNARY, ("",))):
    for _name, _symbol in _names.items():
        for _prefix in _prefixes:
            setattr(Unread, f"__{_prefix}{_name}__", _refuse(_symbol))


def _has_lazy(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_has_lazy, value))
    return isinstance(value, Unread)


def _as_torch(value: Any) -> Any:
    if isinstance(value, Unread):
        return value.torch()
    if isinstance(value, dict):
        return {key: _as_torch(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_as_torch, value))
    return value
