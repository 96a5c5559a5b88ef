"""Lets torchvision be imported where its library does not fit PyTorch's build; import this before it.

PyPI's torchvision has its operators in a library for CUDA. Without CUDA that library is not loaded, and torchvision
still adds to two of its operators at import, which fails unless they exist by then.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
_TORCHVISION = importlib.util.find_spec("torchvision")
assert _TORCHVISION is not None
assert _TORCHVISION.origin is not None
_FOUND = sorted(Path(_TORCHVISION.origin).parent.glob("_C*.so"))  # _C.so, and _C_stable.so since 0.29
try:
    for _library in _FOUND:
        torch.ops.load_library(_library)
except OSError:
    _FOUND = []
if not _FOUND:
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
