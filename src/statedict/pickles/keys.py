"""The keys that a dict or a set from a file may have.

Hashing a nested tuple can take for ever, and so can a dict whose keys share one hash. Python protects strings and bytes
against the latter by a secret, but not numbers and tuples.
"""

from __future__ import annotations

from statedict.dtypes import DType
from statedict.errors import FormatError, LimitError
from statedict.tensor.lazy import LazyTensor
from statedict.values import Device, Opaque, Size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_ITEMS = 64
_MAX_ALIKE = 64
_SIMPLE = (str, bytes, float, bool, type(None), Device, DType, LazyTensor)
_MAX_BITS = 4096
_COMPOUND = (tuple, frozenset, Size, complex, int)


class Keys:
    """Checks that the keys of dicts and sets cost little to hash and to compare."""

    __slots__ = ("_alike",)

    def __init__(self) -> None:
        self._alike: dict[int, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._alike)

    def check(self, key: Any) -> Any:
        """Return the key, or raise LimitError if it exceeds the bounds above."""
        kind = type(key)
        if kind in _SIMPLE or (kind is int and -(1 << 63) <= key < 1 << 64) or isinstance(key, Opaque):
            return key
        if kind in _COMPOUND and self._is_small(key):
            # a file can choose these hashes, and a dict of one hash is as slow as a list
            alike = self._alike.setdefault(hash(key), [])
            if key not in alike:
                if len(alike) == _MAX_ALIKE:
                    raise LimitError(f"more than {_MAX_ALIKE} keys with one hash; the pickle is hostile")
                alike.append(key)
            return key
        raise LimitError(f"a key is a {kind.__name__}, which can take for ever to hash")

    def _is_small(self, key: Any) -> bool:
        pending, seen = [key], 0
        while pending:
            item = pending.pop()
            if type(item) in (tuple, frozenset, Size):
                seen += len(item)
                if seen > _MAX_ITEMS:
                    return False
                pending += item
            elif type(item) is int:
                if item.bit_length() > _MAX_BITS:
                    return False
            elif type(item) is not complex:
                self.check(item)
        return True


def check_twins(keys: list[Any]) -> None:
    """Raise FormatError if a dtype and its name are both keys: they are equal here, and one would be lost."""
    names = {key.name for key in keys if type(key) is DType}
    if twins := names.intersection(key for key in keys if type(key) is str):
        raise FormatError(f"a dict has the keys torch.{min(twins)} and {min(twins)!r}, which are equal here")
