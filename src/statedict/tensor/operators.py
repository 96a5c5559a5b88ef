"""What a LazyTensor leaves to PyTorch and numpy: PyTorch's functions read it, its own operators are errors."""

from __future__ import annotations

from statedict.errors import UnsupportedError
from statedict.shown import Viewed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# name symbol name symbol …
_BINARY = "add + sub - mul * matmul @ truediv / floordiv // mod % pow ** and & or | xor ^ lshift << rshift >>"
_OTHERS = "lt < le <= gt > ge >= neg - pos + invert ~ abs abs"


class OperatorErrors(Viewed):
    """A base whose operators and missing attributes are errors that name `.torch()` and `.numpy()`."""

    __slots__ = ()

    if not TYPE_CHECKING:  # a type checker reports missing attributes itself

        def __getattr__(self, name: str) -> Any:
            what = f"a {type(self).__name__} has no attribute {name!r}"
            if name.startswith("_"):  # protocols look for these, people do not
                raise AttributeError(what)
            raise AttributeError(f"{what}, its bytes are not read; use .torch().{name} or .numpy().{name}")


def _operator_error(symbol: str) -> Callable[..., Any]:
    def operator(self: OperatorErrors, *others: object) -> Any:
        raise UnsupportedError(f"{self!r}: does not compute {symbol}; use .torch() or .numpy(), which read it")

    return operator


for _table, _prefixes in ((_BINARY.split(), ("", "r")), (_OTHERS.split(), ("",))):
    for _name, _symbol in zip(_table[::2], _table[1::2], strict=True):
        for _prefix in _prefixes:
            setattr(OperatorErrors, f"__{_prefix}{_name}__", _operator_error(_symbol))


def call_torch(kind: type[Any], function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of PyTorch with torch tensors in the place of those of class `kind`, which it may not change."""

    def has_lazy(value: Any) -> bool:
        return any(map(has_lazy, value)) if isinstance(value, tuple | list) else isinstance(value, kind)

    def as_torch(value: Any) -> Any:
        if isinstance(value, kind):
            return value.torch()
        if isinstance(value, dict):
            return {key: as_torch(item) for key, item in value.items()}
        return type(value)(map(as_torch, value)) if type(value) in (tuple, list) else value

    name = getattr(function, "__name__", "")
    if name == "copy_" and len(args) > 1 and isinstance(args[1], kind) and args[1].copy_into(args[0]):
        return args[0]
    if (name.endswith("_") and not name.endswith("__") and has_lazy(args[:1])) or has_lazy(kwargs.get("out")):
        raise UnsupportedError(f"{name}: a LazyTensor is read-only; change the tensor that .torch() returns")
    return function(*as_torch(args), **as_torch(kwargs))
