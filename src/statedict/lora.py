"""Low-rank adapters (LoRA and its kin): show, apply, extract. docs/lora.md describes them.

>>> import numpy
>>> from statedict import lora
>>> base = {"fc.weight": numpy.zeros((2, 2), "float32")}
>>> adapter = {"fc.lora_down.weight": numpy.ones((1, 2)), "fc.lora_up.weight": numpy.ones((2, 1))}
>>> lora.apply(base, adapter)["fc.weight"].tolist()
[[1.0, 1.0], [1.0, 1.0]]
"""

from __future__ import annotations

from statedict.api.lora import apply, extract, show

__all__ = ["apply", "extract", "show"]
