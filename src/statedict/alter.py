"""The verbs of `statedict edit` as functions from a state to a new one; docs/altering.md describes each.

None of them reads a tensor: the result is computed block by block when it is read or saved. Patterns are globs over
paths; a match includes everything below it. The optimizer's state follows its parameters.

>>> import statedict, tempfile
>>> from statedict import alter
>>> state = statedict.load("examples/checkpoint.pth")
>>> model = alter.rename(alter.strip(state), {"fc{n}": "linear{n}"})
>>> model = alter.split(alter.cast(model, "bfloat16", "conv*"), "linear3", ["head_a", "head_b"])
>>> model["conv1.weight"]
LazyTensor(bfloat16, (6, 3, 5, 5), 900 B, 'examples/checkpoint.pth')
>>> list(model)[-4:]
['head_a.weight', 'head_a.bias', 'head_b.weight', 'head_b.bias']
>>> statedict.save(model, tempfile.mkdtemp() + "/model.safetensors")
"""

from __future__ import annotations

from statedict.ops.alter.maps import map_names
from statedict.ops.alter.quantize import dequantize, quantize
from statedict.ops.alter.tensors import cast, fuse, pad, reshape, slice, split, transpose
from statedict.ops.alter.verbs import drop, prefix, rename, select, set, strip, tie, untie

__all__ = [
    "cast",
    "dequantize",
    "drop",
    "fuse",
    "map_names",
    "pad",
    "prefix",
    "quantize",
    "rename",
    "reshape",
    "select",
    "set",
    "slice",
    "split",
    "strip",
    "tie",
    "transpose",
    "untie",
]
