"""Deltas: what a checkpoint changes of another one, without loss, and both together again. docs/deltas.md.

>>> import numpy, tempfile
>>> from statedict import delta
>>> base, tuned = ({"w": numpy.full(1000, value, "float32")} for value in (1.0, 1.001))
>>> path = tempfile.mkdtemp() + "/tuned.delta"
>>> delta.make(base, tuned, path).deltas
1
>>> delta.apply(base, path)["w"].numpy()[:2]
array([1.001, 1.001], dtype=float32)
"""

from __future__ import annotations

from statedict.api.delta import apply, make

__all__ = ["apply", "make"]
