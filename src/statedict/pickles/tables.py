"""The whole allow-list: everything that a pickle may name and that builds data."""

from __future__ import annotations

from statedict.pickles import composites, constructors, numpy_arrays
from statedict.pickles.objects import Global

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _as_list(items: Any = ()) -> Any:
    return items


# TorchScript writes typed lists and tagged values through these
_JIT = {
    f"torch.jit._pickle {name}": Global(f"torch.jit._pickle.{name}", _as_list)
    for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")
} | {"torch.jit._pickle restore_type_tag": Global("torch.jit._pickle.restore_type_tag", lambda value, _="": value)}

DATA: dict[str, Any] = {**constructors.DATA, **numpy_arrays.NUMPY, **composites.COMPOSITES, **_JIT}
