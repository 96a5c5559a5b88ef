"""The verbs that alter a state_dict: what `statedict edit` does, as functions.

Each takes a state, leaves it alone and returns a new one. None of them reads a tensor: what they return is computed
when it is read or saved, block by block. Patterns are globs over paths; one that matches a path takes all below it.
What is done to a parameter is done to its optimizer's state, too.

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

docs/altering.md describes each.
"""

from __future__ import annotations

from statedict.ops.alter.tensors import cast, fuse, pad, reshape, slice, split, transpose
from statedict.ops.alter.verbs import drop, prefix, rename, select, set, strip, tie, untie

__all__ = [
    "cast",
    "drop",
    "fuse",
    "pad",
    "prefix",
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
