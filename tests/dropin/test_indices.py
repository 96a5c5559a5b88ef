"""Indices of sparse, nested and jagged tensors are compared with the tensor before PyTorch makes one of them.

No tensor with wrong indices is ever made here: what is saved describes one, and our guard refuses to read it.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
import statedict.torch
from statedict.errors import CorruptFileError, FormatError, LimitError

from .alike import assert_alike
from .files import ours, theirs, warns, written, zip_and_legacy

pytestmark = [*warns, pytest.mark.filterwarnings("ignore:The PyTorch API of nested:UserWarning")]

LAYOUTS = ["csr", "csc", "bsr", "bsc"]


class Described:
    """Pickles as a call of one of PyTorch's functions, which is not called."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def coo(indices: Any, values: Any, size: Any, *coalesced: Any) -> Described:
    data = (torch.tensor(indices), values, torch.Size(size), *coalesced)
    return Described(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, data)


def compressed(layout: str, outer: Any, inner: Any, values: Any, size: Any, kind: Any = torch.int64) -> Described:
    data = (torch.tensor(outer, dtype=kind), torch.tensor(inner, dtype=kind), values, torch.Size(size))
    return Described(torch._utils._rebuild_sparse_tensor, getattr(torch, f"sparse_{layout}"), data)


def dense(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape) * (torch.rand(*shape) < 0.4)


def batched(*shape: int) -> torch.Tensor:
    """Batches of as many elements each, as compressed layouts want them."""
    return dense(*shape[-2:]).expand(*shape).clone()


def sound() -> dict[str, torch.Tensor]:
    found = {
        "coo": dense(4, 6).to_sparse(),
        "coo, uncoalesced": torch.sparse_coo_tensor(torch.tensor([[2, 0, 2], [1, 1, 1]]), torch.ones(3), (3, 2)),
        "coo, hybrid": dense(4, 6, 3).to_sparse(2),
        "coo, of nothing": torch.sparse_coo_tensor(torch.empty(2, 0, dtype=torch.int64), torch.empty(0), (3, 0)),
        "coo, without axes": torch.tensor(1.5).to_sparse(),
        "coo, one axis": dense(50).to_sparse(),
        "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3), torch.ones(0, 3)]),
        "nested, turned": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)]).transpose(1, 2),
        "nested, of scalars": torch.nested.nested_tensor([torch.tensor(1.0), torch.tensor(2.0)]),
    }
    for layout in LAYOUTS:
        block = [(2, 3)] if layout[0] == "b" else []
        make = f"to_sparse_{layout}"
        found |= {
            layout: getattr(dense(4, 6), make)(*block),
            f"{layout}, batched": getattr(batched(2, 3, 4, 6), make)(*block),
            f"{layout}, hybrid": getattr(dense(4, 6, 5), make)(*block, dense_dim=1),
            f"{layout}, of zeros": getattr(torch.zeros(4, 6), make)(*block),
            f"{layout}, of no rows": getattr(torch.zeros(0, 6), make)(*block),
            f"{layout}, full": getattr(torch.ones(4, 6), make)(*block),
        }
    names = ("crow_indices", "col_indices")
    parts = [getattr(found["csr"], name)().int() for name in names]
    found["csr, of int32"] = torch.sparse_csr_tensor(*parts, found["csr"].values(), (4, 6))
    return found


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    SOUND = sound()


@zip_and_legacy
@pytest.mark.parametrize("name", SOUND)
def test_sound_tensors_come_back_as_torch_load_has_them(name: str, zipped: bool) -> None:
    tree = {"t": SOUND[name], "again": SOUND[name]}
    data = written(tree, zipped)
    # PyTorch 2.13 itself reads no nested ones from its older format: it has not read their sizes when it needs them
    assert_alike(ours(data), tree if name.startswith("nested") else theirs(data))


def test_jagged_tensors_come_back(tmp_path: Path) -> None:
    parts = [torch.arange(6.0).reshape(2, 3), torch.ones(1, 3)]
    value = torch.nested.nested_tensor(parts, layout=torch.jagged)
    narrow = torch.nested.narrow(torch.ones(2, 5, 3), 1, torch.tensor([0, 1]), torch.tensor([2, 4]), torch.jagged)
    torch.save({"t": value, "n": narrow, "p": torch.nn.Parameter(value)}, tmp_path / "x.pth")
    for mmap in (False, True):
        found = statedict.torch.load(tmp_path / "x.pth", mmap=mmap)
        assert [part.tolist() for part in found["t"].unbind()] == [part.tolist() for part in parts]
        assert [part.shape for part in found["n"].unbind()] == [(2, 3), (4, 3)]
        assert [part.shape for part in found["p"].unbind()] == [(2, 3), (1, 3)]


def nested(sizes: Any, strides: Any, offsets: Any, kind: Any = torch.int64) -> Described:
    numbers = [torch.tensor(numbers, dtype=kind) for numbers in (sizes, strides, offsets)]
    return Described(torch._utils._rebuild_nested_tensor, torch.ones(9), *numbers)


def jagged(offsets: Any, lengths: Any = None, ragged: Any = 1, state: Any = None) -> Described:
    from torch.nested._internal.nested_tensor import NestedTensor, _rebuild_njt

    lengths = None if lengths is None else torch.tensor(lengths)
    parts = {"values": torch.ones(5, 3), "offsets": torch.tensor(offsets), "lengths": lengths, "_ragged_idx": ragged}
    state = state or {f"_{name.lstrip('_')}": part for name, part in parts.items()}
    return Described(torch._tensor._rebuild_from_type_v2, _rebuild_njt, NestedTensor, (parts,), state)


ONE, TWO = torch.ones(1), torch.ones(2)
WRONG: dict[str, tuple[Described, str]] = {
    "coo, past the end": (coo([[0], [5]], ONE, (3, 5), False), "indices of axis 1: expected 0 to 4, got 5"),
    "coo, below 0": (coo([[-1], [4]], ONE, (3, 5), False), "indices of axis 0: expected 0 to 2, got -1"),
    "coo, before PyTorch had coalesced": (coo([[3], [4]], ONE, (3, 5)), "indices of axis 0: expected 0 to 2, got 3"),
    "coo, of no rows": (coo([[0]], ONE, (0,), False), "indices of axis 0: expected 0 to -1, got 0"),
    "coo, falling": (coo([[1, 0]], TWO, (3,), True), "indices: expected ascending order, as they are coalesced"),
    "coo, twice": (coo([[1, 1], [0, 0]], TWO, (3, 3), True), "indices: expected ascending order"),
    "coo, falling within a row": (coo([[0, 1, 1], [0, 2, 1]], torch.ones(3), (3, 3), True), "expected ascending order"),
    "coo, fewer values": (coo([[1, 2]], ONE, (3,), False), r"values: expected one for each of 2 indices, got .*\(1,\)"),
    "coo, other dense sizes": (coo([[1]], torch.ones(1, 4), (3, 5), False), r"size: expected 1 sizes and then \(4,\)"),
    "coo, of floats": (coo([[1.0]], ONE, (3,), False), "indices: expected int64 or int32, got float32"),
    "coo, one dimension": (coo([1], ONE, (3,), False), "indices: expected 2 dimensions"),
    "coo, coalesced by a word": (coo([[1]], ONE, (3,), "yes"), "is_coalesced: expected True or False, got a str"),
    "coo, without axes twice": (
        Described(
            torch._utils._rebuild_sparse_tensor,
            torch.sparse_coo,
            (torch.empty(0, 2, dtype=torch.int64), TWO, torch.Size([]), True),
        ),
        "indices: expected at most one",
    ),
    "nested, past the end": (nested([[2, 3], [2, 2]], [[3, 1], [2, 1]], [0, 6]), "elements up to 9, got 10"),
    "nested, by strides": (nested([[2, 3]], [[1 << 62, 1]], [0]), "elements up to 9, got 4,611"),
    "nested, below 0": (nested([[2, 3]], [[3, 1]], [-1]), "elements up to 9, got a negative number"),
    "nested, fewer offsets": (nested([[2, 3], [1, 1]], [[3, 1], [3, 1]], [0]), "expected a row for each tensor"),
    # which PyTorch writes of no tensors at all, and cannot rebuild
    "nested, of nothing": (
        Described(torch._utils._rebuild_nested_tensor, ONE, *[torch.tensor(1)] * 2, torch.empty(0, dtype=torch.int64)),
        r"sizes: expected 2 dimensions, got shape \(\)",
    ),
    "nested, of floats": (nested([[2.0, 3.0]], [[3.0, 1.0]], [0.0], torch.float32), "expected int64 or int32"),
    "jagged, past the end": (jagged([0, 2, 6]), "offsets: expected rising numbers up to 5, got 6"),
    "jagged, falling": (jagged([0, 4, 2]), "offsets: expected rising numbers up to 5, got a negative number or step"),
    "jagged, below 0": (jagged([-1, 4, 5]), "offsets: expected rising numbers"),
    "jagged, along another axis": (jagged([0, 2, 4], None, 2), "offsets: expected rising numbers up to 3, got 4"),
    "jagged, along no axis": (jagged([0, 2], None, 3), "_ragged_idx: expected 1 to 2, got 3"),
    "jagged, too long": (jagged([0, 2, 4], [2, 4]), "lengths: expected 0 or more, from the offsets up to 5, got 6"),
    "jagged, of other lengths": (jagged([0, 2, 4], [1]), "lengths: expected 2"),
    "jagged, by its state": (
        jagged([0, 2, 4], state={"_values": torch.ones(5, 3), "_offsets": torch.tensor([0, 2, 7]), "_ragged_idx": 1}),
        "offsets: expected rising numbers up to 5, got 7",
    ),
}
for layout in LAYOUTS:
    outer, inner = ("crow_indices", "col_indices") if layout[-1] == "r" else ("ccol_indices", "row_indices")
    tile = (1, 2, 2) if layout[0] == "b" else (1,)
    tall = (6, 4) if layout[0] == "b" else (3, 2)
    wide = tall if layout[-1] == "r" else tall[::-1]  # three rows of two, or columns

    def values(count: int, *dims: int, tile: tuple[int, ...] = tile) -> torch.Tensor:
        return torch.ones(*dims, count, *tile[1:])

    WRONG |= {
        f"{layout}, {what}": (compressed(layout, first, second, held, size), expected)
        for what, first, second, held, size, expected in (
            ("past the end", [0, 1, 1, 2], [0, 2], values(2), wide, f"{inner}: expected 0 to 1, got 2"),
            ("below 0", [0, 1, 1, 2], [0, -1], values(2), wide, f"{inner}: expected 0 to 1, got -1"),
            ("not from 0", [1, 1, 1, 2], [0, 1], values(2), wide, f"{outer}: expected 0 to begin and 2 to end with"),
            ("not to the end", [0, 1, 1, 1], [0, 1], values(2), wide, f"{outer}: expected 0 to begin and 2 to end"),
            ("falling", [0, 2, 1, 2], [0, 1], values(2), wide, f"{outer}: expected steps of 0 to 2, got -1"),
            ("far and back", [0, 1 << 40, 2, 2], [0, 1], values(2), wide, f"{outer}: expected steps of 0 to 2"),
            ("too many in a row", [0, 0, 3, 3], [0, 1, 1], values(3), wide, f"{outer}: expected steps of 0 to 2, got"),
            ("unsorted", [0, 2, 2, 2], [1, 0], values(2), wide, f"{inner}: expected ascending order"),
            ("twice", [0, 0, 2, 2], [1, 1], values(2), wide, f"{inner}: expected ascending order"),
            ("of fewer rows", [0, 1, 2], [0, 1], values(2), wide, f"{outer}: expected 4 numbers, got 3"),
            ("of fewer values", [0, 1, 1, 2], [0, 1], values(1), wide, f"values: expected one for each of 2 {inner}"),
            ("of other batches", [[0, 1, 1, 2]], [[0, 1]], values(2, 1), (2, *wide), "batch dimensions: expected"),
            ("of one size", [0, 1, 1, 2], [0, 1], values(2), wide[:1], "values: expected the dimensions of size"),
            ("wrong in the second batch", [[0, 1, 1, 2]] * 2, [[0, 1], [0, 2]], values(2, 2), (2, *wide),
             f"{inner}: expected 0 to 1, got 2"),
            ("unsorted in the second batch", [[0, 2, 2, 2]] * 2, [[0, 1], [1, 0]], values(2, 2), (2, *wide),
             f"{inner}: expected ascending order"),
        )
    }  # fmt: skip
    WRONG[f"{layout}, of floats"] = (
        compressed(layout, [0, 1, 1, 2], [0, 1], values(2), wide, torch.float64),
        f"{outer}: expected int64 or int32, got float64",
    )
    if layout[0] == "b":
        WRONG[f"{layout}, of blocks that do not fit"] = (
            compressed(layout, [0, 1, 1, 2], [0, 1], torch.ones(2, 5, 5), wide, torch.int64),
            "blocks: expected a divisor",
        )
        WRONG[f"{layout}, of empty blocks"] = (
            compressed(layout, [0, 1, 1, 2], [0, 1], torch.ones(2, 0, 2), wide, torch.int64),
            "blocks: expected a divisor",
        )


@zip_and_legacy
@pytest.mark.parametrize("name", WRONG)
def test_wrong_indices_are_refused_and_the_tensor_is_named(name: str, zipped: bool) -> None:
    described, expected = WRONG[name]
    data = written({"model": [{"adjacency": described}]}, zipped)
    with pytest.raises(CorruptFileError, match=rf"model\.0\.adjacency: [a-z_]+ tensor: .*{expected}.*not its own"):
        ours(data)


@pytest.mark.parametrize("name", ["coo, past the end", "csr, past the end", "nested, past the end", "jagged, falling"])
def test_wrong_indices_are_refused_when_the_file_is_mapped(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(written({"t": WRONG[name][0]}))
    with pytest.raises(CorruptFileError, match=r"x\.pth: t: .* expected"):
        statedict.torch.load(tmp_path / "x.pth", mmap=True)


@pytest.mark.parametrize("inside", ["a parameter", "a subclass", "hooks"])
def test_wrong_indices_are_found_wherever_a_program_puts_them(inside: str) -> None:
    bad = WRONG["csr, past the end"][0]
    if inside == "a parameter":
        wrapped = Described(torch._utils._rebuild_parameter_with_state, bad, False, OrderedDict(), {"a": 1})
    elif inside == "a subclass":
        wrapped = Described(torch._tensor._rebuild_from_type_v2, *bad.call, {"a": 1})
        wrapped.call = (wrapped.call[0], (bad.call[0], torch.Tensor, bad.call[1], {"a": 1}))
    else:
        plain = torch.ones(2)
        function, args = plain.__reduce_ex__(2)[:2]
        wrapped = Described(function, *args[:-1], OrderedDict(hook=bad))
    with pytest.raises(CorruptFileError, match="col_indices: expected 0 to 1, got 2"):
        ours(written({"t": wrapped}))


def test_a_few_indices_that_claim_to_be_many_are_not_looked_at() -> None:
    many = torch.zeros(1, dtype=torch.int64).expand(1 << 40)
    described = Described(
        torch._utils._rebuild_sparse_tensor, torch.sparse_csr, (many, many, ONE.expand(1 << 40), torch.Size([3, 3]))
    )
    with pytest.raises(FormatError, match="crow_indices: 8,796,093,022,208 bytes of indices would be copied"):
        ours(written({"t": described}))


def test_indices_that_many_tensors_share_are_read_once_and_many_views_of_them_are_refused() -> None:
    matrix = torch.eye(2000).to_sparse_csr()
    crow, col, held = matrix.crow_indices(), matrix.col_indices(), matrix.values()

    def other(size: int, crow: torch.Tensor) -> Described:
        data = (crow, col, held, torch.Size([size, 2000]))
        return Described(torch._utils._rebuild_sparse_tensor, torch.sparse_csr, data)

    assert len(ours(written([other(2000, crow) for _ in range(300)]))) == 300
    views = torch.cat([crow, crow.new_full((600,), 2000)])
    described = [other(2000 + n, views[: 2001 + n]) for n in range(600)]
    with pytest.raises(LimitError, match="many views of the same indices"):
        ours(written(described))


def test_indices_that_are_made_of_numbers_in_the_pickle_are_refused() -> None:
    described = Described(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, ([[0]], ONE, torch.Size([3]), False))
    with pytest.raises(CorruptFileError):
        ours(written({"t": described}))


def test_load_labels_them_and_restores_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(written({"weight": WRONG["coo, past the end"][0], "bias": torch.ones(3)}))
    state = statedict.load(tmp_path / "x.pth")
    assert state["weight"].name == "torch.sparse_coo"
    assert state.at("weight.indices").tolist() == [[0], [5]]
    with pytest.raises(statedict.StateDictError):
        statedict.restore(torch.nn.Linear(5, 3), state)
