"""PyTorch's own tensors, made of an input: by the drop-in, read and mapped, and by `torch()` of what `load` gives.

No kernel is run on them. What PyTorch says of the invariants of a sparse tensor, where it is asked, must be what we
said by returning it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from fuzz.probe import SMALL, Guard, Violation, attempted, guarded


def of_real_tensors() -> Callable[[str, int, Guard], str]:
    """The probe; PyTorch is imported now, in the process that asks."""
    warnings.simplefilter("ignore")
    import torch
    import torch._dynamo  # what PyTorch imports late is no finding, and seconds of CPU time on a busy machine
    import torch._subclasses.schema_check_mode
    import torch.nested._internal.ops

    import statedict.torch

    torch.set_num_threads(1)

    def probe(path: str, size: int, guard: Guard) -> str:
        return guarded(path, size, guard, lambda check_memory: _probe(path, statedict))

    return probe


def _probe(path: str, statedict: Any) -> str:
    refusals: set[str] = set()
    attempt = attempted(path, statedict, refusals)
    found = [attempt(lambda mmap=mmap: [statedict.torch.load(path, mmap=mmap)], RuntimeError) for mmap in (False, True)]
    for tree in found:
        for tensor in _tensors(tree):
            _validate(tensor)
    state = attempt(lambda: statedict.load(path))
    flat = None if state is None else attempt(state.flatten)
    if flat is not None and sum(tensor.nbytes for tensor in state.tensors().values()) <= SMALL:
        attempt(state.torch)
        attempt(lambda: statedict.capture(state))
    if found[0] is not None:
        for suffix in (".safetensors", ".pth"):
            target = os.path.join(os.path.dirname(path), f"saved{suffix}")
            if attempt(lambda target=target: statedict.save(found[0][0], target, fsync=False) or True):
                statedict.load(target)
    return " ".join(["refused" if found[0] is None else "loaded", *sorted(refusals)])


def _tensors(tree: Any) -> Iterator[Any]:
    import torch

    pending, seen = [tree], set[int]()
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, torch.Tensor):
            yield node
        elif isinstance(node, dict):
            pending += [*node.keys(), *node.values()]
        elif isinstance(node, (list, tuple, set, frozenset)):
            pending += node


def _validate(tensor: Any) -> None:
    import torch

    try:
        if tensor.layout is torch.sparse_coo:
            parts = tensor._indices(), tensor._values(), tensor.size(), tensor.is_coalesced()
            torch._validate_sparse_coo_tensor_args(*parts)
        elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
            parts = tensor.crow_indices(), tensor.col_indices(), tensor.values(), tensor.size(), tensor.layout
            torch._validate_sparse_compressed_tensor_args(*parts)
        elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
            parts = tensor.ccol_indices(), tensor.row_indices(), tensor.values(), tensor.size(), tensor.layout
            torch._validate_sparse_compressed_tensor_args(*parts)
        elif tensor.is_nested and tensor.layout is torch.strided:
            for part in tensor.unbind():  # each is compared with the memory behind it
                part.untyped_storage()
    except RuntimeError as error:
        raise Violation(f"a tensor that PyTorch finds wrong: {error}") from error
