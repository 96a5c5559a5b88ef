"""When two objects are the same for whoever uses them: types, tensors to the bit, and who shares memory with whom."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import nn

from statedict.dtypes import BY_NAME, BY_STORAGE
from statedict.testing.same import in_torch, patterned, raw


def assert_alike(one: Any, other: Any) -> None:
    """Fail, naming the path, unless the two are the same; both may share memory only where the other does."""
    _Comparison().compare(one, other, "root")


class _Comparison:
    def __init__(self) -> None:
        self.there: dict[int, int] = {}
        self.back: dict[int, int] = {}

    def compare(self, one: Any, other: Any, path: str) -> None:
        assert type(one) is type(other), f"{path}: {type(one)}, {type(other)}"
        if isinstance(one, torch.Tensor):
            self.tensors(one, other, path)
        elif isinstance(one, torch.UntypedStorage | torch.storage.TypedStorage):
            assert bytes(one.untyped()) == bytes(other.untyped()), path
            assert getattr(one, "dtype", None) == getattr(other, "dtype", None), path
            self.sharing(one.untyped(), other.untyped(), path)
        elif isinstance(one, dict):
            self.compare(list(one), list(other), f"{path} keys")
            self.compare(list(one.values()), list(other.values()), path)
            assert getattr(one, "__dict__", None) == getattr(other, "__dict__", None), path  # such as _metadata
        elif type(one) in (list, tuple):
            assert len(one) == len(other), path
            for index, (a, b) in enumerate(zip(one, other, strict=True)):
                self.compare(a, b, f"{path}.{index}")
        elif isinstance(one, numpy.ndarray | numpy.generic):
            assert (one.dtype.str, one.shape, one.tobytes()) == (other.dtype.str, other.shape, other.tobytes()), path
        else:
            assert repr(one) == repr(other), path  # tells -0.0 from 0.0 and takes nan for nan

    def tensors(self, one: torch.Tensor, other: torch.Tensor, path: str) -> None:
        names = ("dtype", "layout", "device", "requires_grad", "is_quantized", "is_nested")
        for name in names:
            assert getattr(one, name) == getattr(other, name), f"{path}: {name}"
        self.compare(one.__dict__, other.__dict__, f"{path} attributes")
        if one.is_nested:
            self.compare(list(one.unbind()), list(other.unbind()), path)
        elif one.layout is not torch.strided:
            assert one.shape == other.shape, path
            for part in _PARTS[one.layout]:
                self.compare(getattr(one, part)(), getattr(other, part)(), f"{path}.{part}")
        else:
            assert one.shape == other.shape, path
            assert (one.stride(), one.storage_offset()) == (other.stride(), other.storage_offset()), path
            assert (one.is_conj(), one.is_neg()) == (other.is_conj(), other.is_neg()), path
            if one.is_meta:
                return
            self.sharing(one.untyped_storage(), other.untyped_storage(), path)
            if one.is_quantized:
                assert one.qscheme() == other.qscheme(), path
                assert repr(one) == repr(other), path
                one, other = one.int_repr(), other.int_repr()
            assert raw(one) == raw(other), path

    def sharing(self, one: Any, other: Any, path: str) -> None:
        assert one.nbytes() == other.nbytes(), f"{path}: storage"
        if one.nbytes():
            a, b = one.data_ptr(), other.data_ptr()
            assert self.there.setdefault(a, b) == b, f"{path}: shares memory in one only"
            assert self.back.setdefault(b, a) == a, f"{path}: shares memory in the other only"


_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def _sparse() -> dict[str, Any]:
    x = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    return {
        "coo": x.to_sparse(),
        "uncoalesced": torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.ones(2), (2,)),
        "csr": x.to_sparse_csr(),
        "csc": x.to_sparse_csc(),
        "bsr": x.to_sparse_bsr((1, 1)),
        "bsc": x.to_sparse_bsc((1, 1)),
        "parameter": nn.Parameter(x.to_sparse()),
    }


def _attributes() -> dict[str, Any]:
    tensor, parameter = torch.arange(4.0), nn.Parameter(torch.ones(2))
    tensor.label, tensor.parts = "w", [torch.zeros(1), {"a": 1}]  # type: ignore[attr-defined]
    parameter.frozen, parameter.view_of = True, tensor[1:]  # type: ignore[attr-defined]
    return {"tensor": tensor, "parameter": parameter}


def _training() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    return {**states, "epoch": 3, "rng": torch.get_rng_state()}


def _views() -> list[Any]:
    base = torch.arange(24.0).reshape(4, 6)
    return [base, base, base.t(), base[1:, ::2], base[2, 3], base[:0], base.expand(2, 4, 6), base.clone()]


def _storages() -> list[Any]:
    base = torch.arange(6, dtype=torch.int16)
    return [base, base.storage(), base[2:], torch.arange(3).storage(), torch.tensor([1 + 2j]).storage()]


def _quantized() -> list[Any]:
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    scales, zeros = torch.linspace(0.1, 0.4, 4), torch.arange(4)
    return [
        torch.quantize_per_tensor(x, 0.1, 2, torch.qint8),
        torch.quantize_per_tensor(x, 0.2, 3, torch.quint8)[1:],
        torch.quantize_per_channel(x, scales, zeros, 0, torch.qint8),
    ]


def _dtypes(old: bool) -> dict[str, Any]:
    """Tensors of the dtypes that have a storage class, or of those since."""
    kinds = [kind for kind in BY_NAME.values() if kind.itemsize and kind.kind != "quantized" and in_torch(kind)]
    kinds = [kind for kind in kinds if (kind in BY_STORAGE.values()) is old]
    return {str(kind): [patterned(kind, 2, 3), patterned(kind), patterned(kind, 0)] for kind in kinds}


PLAIN: dict[Any, Any] = {
    7: ["an integer key", (1, 2.5, None), {}, []],
    "numbers": [2**70, -(2**63), 2**31, -1, float("inf"), -0.0, 1 + 2j, True],
    "text": "λ→✓",
    "binary": [b"\0\xff", bytearray(b"ba")],
    "sets": [{1, 2}, set()],
    "counter": Counter("hello"),
    "ordered": OrderedDict(b=1, a=OrderedDict()),
    "torch": [torch.Size([2, 3]), torch.bfloat16, torch.device("cuda:1")],
}

# what `torch.load` takes without being asked to allow anything
OBJECTS: dict[str, Callable[[], Any]] = {
    "one tensor": lambda: torch.arange(3.0),
    "nothing": lambda: None,
    "plain values": lambda: PLAIN,
    "a training": _training,
    "ties and views": _views,
    "parameters": lambda: [
        nn.Parameter(torch.ones(2)),
        nn.Parameter(torch.ones(2), False),
        nn.ParameterList().state_dict(),
    ],
    "requires_grad": lambda: [torch.ones(2, requires_grad=True), torch.ones(2)],
    "attributes": _attributes,
    "dtypes": lambda: _dtypes(True),
    "storages": _storages,
    "empty tensors": lambda: [torch.empty(0), torch.empty(0, dtype=torch.int8), torch.empty(0, 3).storage()],
    "conjugated and negated": lambda: [
        (z := torch.tensor([1 + 2j, 3j])).conj(),
        z.clone().conj().imag,
        torch._neg_view(z),
    ],
    "sparse": _sparse,
    "quantized": _quantized,
    "meta": lambda: torch.empty(10**6, 10**6, device="meta"),
    "a list in two places": lambda: [(inner := [torch.ones(1)]), inner],
}
# what it takes from an archive only
NEW_OBJECTS: dict[str, Callable[[], Any]] = {
    "new dtypes": lambda: _dtypes(False),
    "nested": lambda: torch.nested.nested_tensor([torch.arange(2.0), torch.arange(3.0)]),
    "untyped storages": lambda: [torch.arange(5).byte().untyped_storage()],
}  # fmt: skip


class Pieces:
    """The least that a file object has to be: no fileno, no name, reads come in pieces."""

    def __init__(self, data: bytes = b"", *, readinto: bool = False, most: int = 1 << 30) -> None:
        self._file, self._most = io.BytesIO(data), most
        self.called: set[str] = set()
        if readinto:
            self.readinto = self._readinto

    def read(self, size: int = -1) -> bytes:
        self.called.add("read")
        return self._file.read(min(size, self._most) if size >= 0 else size)

    def readline(self) -> bytes:
        self.called.add("readline")
        return self._file.readline()

    def seek(self, offset: int, whence: int = 0) -> int:
        self.called.add("seek")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        self.called.add("tell")
        return self._file.tell()

    def write(self, data: Any) -> int:
        self.called.add("write")
        return self._file.write(data)

    def flush(self) -> None:
        self.called.add("flush")

    def _readinto(self, buffer: memoryview) -> int:
        self.called.add("readinto")
        return self._file.readinto(buffer[: self._most])
