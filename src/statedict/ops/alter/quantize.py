"""The operations between numbers and quantized blocks. Public as those of verbs.py."""

from __future__ import annotations

from statedict.dtypes import DType
from statedict.errors import AlterError, UnsupportedError
from statedict.ops.alter.outline import filter_tensors, map_tensors, on_trees
from statedict.ops.alter.tensors import converter
from statedict.ops.quantization.find import find_paths
from statedict.tensor.blocks import find_blocks
from statedict.tensor.lazy import LazyTensor, as_lazy
from statedict.tree.layout import Layout
from statedict.tree.walk import Patterns


@on_trees
def dequantize(state: Layout, kind: DType | str = "float32", patterns: Patterns = "*") -> Layout:
    """Convert tensors that are stored as quantized blocks to a dtype; other tensors stay as they are.

    Args:
        state: any state_dict or checkpoint.
        kind: `"bfloat16"`, `"bf16"`, a `DType` or `torch.bfloat16`.
        patterns: which tensors.

    Raises:
        AlterError: none of those that match is stored as blocks, or `kind` is not a dtype to convert to.

    >>> import statedict, numpy
    >>> state = quantize(statedict.StateDict(w=numpy.ones((2, 32), "float32")), "Q8_0")
    >>> dequantize(state, "bf16")["w"]
    LazyTensor(bfloat16, (2, 32), 128 B, 'memory')
    """
    convert = converter(kind)
    some = filter_tensors(state, patterns)
    if all(find_blocks(state.leaves.get(path)) is None for path in some):
        raise AlterError(f"none of {len(some):,} tensors is stored as quantized blocks; fix or remove this step")

    def make(tensor: LazyTensor) -> LazyTensor:
        blocks = find_blocks(tensor)
        return tensor if blocks is None else convert(blocks)

    return map_tensors(state, patterns, make, casts=True)


@on_trees
def quantize(state: Layout, kind: str, patterns: Patterns = "*") -> Layout:
    """Store tensors as quantized blocks, as GGUF files hold them; other formats get the rounded numbers.

    Without patterns matrices of floating point are, whose rows are whole blocks, unless they are quantized already by
    another scheme; with patterns all that match.

    Args:
        state: any state_dict or checkpoint.
        kind: `"Q8_0"` or `"Q4_0"`, made bit by bit as the package gguf does.
        patterns: which tensors.

    Raises:
        AlterError: nothing matches, or a tensor that matches cannot be stored so.

    >>> import statedict, numpy
    >>> quantize(statedict.StateDict(w=numpy.ones((2, 32), "float32")), "Q8_0")["w"]
    LazyTensor(float32, (2, 32), 68 B as Q8_0, 'memory')
    """
    from statedict.tensor.ggml.quantize import MADE
    from statedict.tensor.ggml.quantize import quantize as make_blocks

    name = {one.lower(): one for one in MADE}.get(str(kind).lower())
    if name is None:
        raise AlterError(f"{kind}: is not a type of blocks that is made; take {' or '.join(MADE)}")
    every = patterns == "*"
    made = 0

    def make(tensor: LazyTensor) -> LazyTensor:
        nonlocal made
        if every and (tensor.ndim < 2 or tensor.dtype.kind != "float" or tensor.shape[-1] % 32):
            return tensor
        made += 1
        try:
            return make_blocks(as_lazy(tensor), name, repr(tensor))
        except UnsupportedError as error:
            raise AlterError(str(error)) from error

    but = find_paths(state.tensors()) if every else ()  # numbers and scales of another scheme
    found = map_tensors(state, patterns, make, casts=True, but=but)
    if not made:
        raise AlterError(
            f"no tensor is a matrix of floats with rows of a multiple of 32, as {name} takes; give patterns"
        )
    return found
