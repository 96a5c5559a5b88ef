"""Files for the tests of the drop-in: by torch, through both loads, and trees that are drawn at random."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.serialization import safe_globals

import statedict.torch

# torch itself warns of these
warns = [
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR|BSC):UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning"),  # since 2.14, with each
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:B?Complex(Half|32):UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quantiz:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quantiz:DeprecationWarning"),
]

zip_and_legacy = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def written(obj: Any, zipped: bool = True, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(obj, file, _use_new_zipfile_serialization=zipped, **options)
    return file.getvalue()


def ours(data: bytes, **options: Any) -> Any:
    return statedict.torch.load(io.BytesIO(data), **options)


def theirs(data: bytes | Path, **options: Any) -> Any:
    with safe_globals([torch._utils._rebuild_nested_tensor]):  # not allowed by default since 2.15
        return torch.load(
            io.BytesIO(data) if isinstance(data, bytes) else data, **{"weights_only": True, "mmap": False} | options
        )


def with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with another pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            kept = old.read(info)
            new.writestr(info.filename, change(kept) if info.filename.endswith("/data.pkl") else kept)
    return file.getvalue()


tensors = st.builds(
    lambda kind, start, stop, step: torch.arange(24).to(kind).reshape(4, 6)[start:stop, ::step],
    st.sampled_from([torch.float32, torch.int8, torch.bfloat16, torch.bool, torch.complex64]),
    st.integers(0, 3), st.integers(1, 5), st.integers(1, 4),
)  # fmt: skip
BASES = [torch.arange(20.0), torch.arange(30, dtype=torch.int16)]
shared = st.builds(lambda i, a, n, s: BASES[i][a : a + n : s], st.integers(0, 1), *[st.integers(1, 9)] * 3)
leaves = tensors | shared | tensors.filter(torch.is_floating_point).map(nn.Parameter) | st.none() | st.integers()
leaves |= st.floats() | st.text(max_size=5) | st.binary(min_size=1, max_size=5) | st.booleans()


def annotated(tensor: torch.Tensor, note: Any) -> torch.Tensor:
    copy = tensor.clone()
    copy.note = note  # type: ignore[attr-defined]
    return copy


trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict)
        | st.tuples(inner, inner)
        | st.builds(lambda value: [value, value], inner)
        | st.builds(annotated, tensors, inner)
    ),
    max_leaves=12,
)
