"""Tensors that are more than strided memory: every tensor inside is reachable and equal."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict
from statedict.dtypes import dtype
from statedict.errors import CorruptFileError, LimitError
from statedict.io.source import BytesSource
from statedict.pickles.constructors import TypedStorage
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.testing.same import assert_same
from statedict.values import Opaque

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(params=["zip", "legacy"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """What load finds in a file of torch.save, under the key `t`."""

    def save(value: Any) -> Any:
        torch.save({"t": value}, tmp_path / "x.pth", _use_new_zipfile_serialization=request.param == "zip")
        return statedict.load(tmp_path / "x.pth")

    return save


DENSE = torch.tensor([[0, 1.5, 0, 0], [2, 0, 0, 3], [0, 0, 0, 0], [4, 0, 5, 0]])


@pytest.mark.parametrize("coalesced", [True, False])
def test_sparse_coo_keeps_indices_values_and_size(saved: Any, coalesced: bool) -> None:
    value = DENSE.to_sparse().coalesce()
    if not coalesced:
        value = torch.sparse_coo_tensor(torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0]), (4, 4))
    state = saved(value)
    assert state["t"].name == "torch.sparse_coo"
    assert_same(state.at("t.indices"), value._indices())
    assert_same(state.at("t.values"), value._values())
    assert state.at("t.size") == (4, 4)
    assert state.at("t.is_coalesced") is coalesced


@pytest.mark.parametrize("layout", ["csr", "csc", "bsr", "bsc"])
def test_compressed_sparse_keeps_both_indices_and_values(saved: Any, layout: str) -> None:
    value = getattr(DENSE, f"to_sparse_{layout}")(*([(2, 2)] if layout[0] == "b" else []))
    names = ("crow_indices", "col_indices") if layout[-1] == "r" else ("ccol_indices", "row_indices")
    state = saved(value)
    assert state["t"].name == f"torch.sparse_{layout}"
    for name in (*names, "values"):
        assert_same(state.at(f"t.{name}"), getattr(value, name)(), name)
    assert state.at("t.size") == (4, 4)


@pytest.mark.parametrize("kind", ["qint8", "quint8", "qint32"])
def test_quantized_per_tensor_shows_integers_scale_and_zero_point(saved: Any, kind: str) -> None:
    value = torch.quantize_per_tensor(DENSE, 0.25, 3, getattr(torch, kind))
    for tensor in (value, value.t(), value[1:, ::2]):
        state = saved(tensor)
        assert state["t"].name == "torch.per_tensor_affine"
        assert_same(state.at("t.int_repr"), tensor.int_repr())
        assert (state.at("t.scale"), state.at("t.zero_point"), state.at("t.dtype")) == (0.25, 3, dtype(kind))


def test_quantized_per_channel_shows_scales_zero_points_and_axis(saved: Any) -> None:
    scales, zeros = torch.tensor([0.1, 0.2, 0.5, 1.0], dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    value = torch.quantize_per_channel(DENSE, scales, zeros, 1, torch.qint8)
    state = saved(value)
    assert_same(state.at("t.int_repr"), value.int_repr())
    assert_same(state.at("t.scales"), scales)
    assert_same(state.at("t.zero_points"), zeros)
    assert state.at("t.axis") == 1


def test_quantized_with_four_bits_keeps_its_packed_bytes(saved: Any) -> None:
    scales, zeros = torch.tensor([0.1, 0.2, 0.5, 1.0]), torch.zeros(4)
    value = torch.quantize_per_channel(DENSE, scales, zeros, 0, torch.quint4x2)
    state = saved(value)
    assert bytes(state.at("t.packed").raw()) == bytes(value.untyped_storage().tolist())
    assert (state.at("t.size"), state.at("t.dtype")) == ((4, 4), dtype("quint4x2"))
    assert_same(state.at("t.scales"), scales)


def test_quantized_tensors_of_more_than_their_bytes_are_refused() -> None:
    storage = TypedStorage(Storage(BytesSource(bytes(8)), 0, 8), dtype("quint4x2"))
    rebuild = DATA["torch._utils _rebuild_qtensor"].build
    scheme = (Opaque("torch.per_tensor_affine"), 0.1, 0)
    assert rebuild(storage, 0, (4, 4), (4, 1), scheme).state["size"] == (4, 4)
    with pytest.raises(CorruptFileError, match=r"shape \(4, 5\) in 8 bytes"):
        rebuild(storage, 0, (4, 5), (5, 1), scheme)
    with pytest.raises(CorruptFileError, match="without a storage"):
        rebuild(None, 0, (1 << 40,), (1,), scheme)


def test_subclasses_are_rebuilt_by_what_rebuilds_tensors_only() -> None:
    with pytest.raises(CorruptFileError, match="a tensor subclass rebuilt by bytearray"):
        load(b"ctorch._tensor\n_rebuild_from_type_v2\n(c__builtin__\nbytearray\nca\nb\nJ\xff\xff\xff\x7f\x85}tR.", DATA)


def test_meta_keeps_dtype_and_shape(saved: Any) -> None:
    state = saved(torch.empty(2, 3, dtype=torch.float16, device="meta"))
    assert state["t"].name == "torch.meta"
    assert (state.at("t.dtype"), state.at("t.size"), state.at("t.stride")) == (dtype("float16"), (2, 3), (3, 1))


def test_nested_keeps_values_sizes_strides_and_offsets(saved: Any) -> None:
    parts = [torch.arange(6.0).reshape(2, 3), torch.ones(1, 3)]
    state = saved(torch.nested.nested_tensor(parts))
    assert state["t"].name == "torch.nested"
    assert state.at("t.values").tolist() == [0, 1, 2, 3, 4, 5, 1, 1, 1]
    assert state.at("t.sizes").tolist() == [[2, 3], [1, 3]]
    assert state.at("t.offsets").tolist() == [0, 6]


def test_jagged_keeps_values_and_offsets(saved: Any) -> None:
    value = torch.nested.nested_tensor([torch.arange(6.0).reshape(2, 3), torch.ones(1, 3)], layout=torch.jagged)
    state = saved(value)
    assert state["t"].name == "torch.jagged"
    assert_same(state.at("t.values"), value.values())
    assert_same(state.at("t.offsets"), value.offsets())


def test_parameters_and_tensors_with_attributes_keep_them(saved: Any) -> None:
    parameter = nn.Parameter(torch.arange(3.0), requires_grad=False)
    parameter.note, parameter.mask = "frozen", torch.tensor([True, False, True])
    state = saved(parameter)
    assert_same(state["t"], parameter)
    assert state["t"].attributes["note"] == "frozen"
    assert_same(state["t"].attributes["mask"], parameter.mask)
    tensor = torch.arange(4.0)
    tensor.tag = "x"
    state = saved(tensor)
    assert_same(state["t"], tensor)
    assert state["t"].attributes == {"tag": "x"}


class Subclass(torch.Tensor):
    pass


def test_a_subclass_keeps_its_data_under_its_name(saved: Any) -> None:
    state = saved(torch.arange(3.0).as_subclass(Subclass))
    assert state["t"].name.endswith(".Subclass")
    assert state.at("t.data").tolist() == [0, 1, 2]


class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, low: torch.Tensor, high: torch.Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, low.shape, dtype=low.dtype)
        made.low, made.high = low, high
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


def test_the_tensors_inside_a_wrapper_subclass_are_reachable(saved: Any) -> None:
    state = saved(Wrapper(torch.arange(3.0), torch.ones(3)))
    assert state["t"].name.endswith(".Wrapper")
    assert state.at("t.low").tolist() == [0, 1, 2]
    assert state.at("t.high").tolist() == [1, 1, 1]
    assert state.at("t.dtype") == dtype("float32")


SAVE_DTENSOR = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
folder = sys.argv[1]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
tensor = distribute_tensor(torch.arange(6.0).reshape(2, 3), init_device_mesh("cpu", (1,)), [Shard(0)])
for zipped in (True, False):
    torch.save({"t": tensor}, f"{folder}/{zipped}.pth", _use_new_zipfile_serialization=zipped)
os._exit(0)  # the end of a process group of gloo may hang
"""


def test_the_local_tensor_of_a_dtensor_is_reachable(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", SAVE_DTENSOR, str(tmp_path)], check=True, timeout=120)
    for zipped in (True, False):
        state = statedict.load(tmp_path / f"{zipped}.pth")
        assert state["t"].name == "torch.distributed.tensor.DTensor"
        assert state.at("t._local_tensor").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_generators_states_layouts_and_schemes_are_kept(saved: Any) -> None:
    assert_same(saved(torch.get_rng_state())["t"], torch.get_rng_state())
    assert saved(torch.sparse_csr)["t"] == Opaque("torch.sparse_csr")
    assert saved([torch.float64, torch.device("cuda:1")])["t"] == [dtype("float64"), "cuda:1"]


@pytest.mark.parametrize(
    ("function", "before"),
    [
        (
            "torch._tensor\n_rebuild_from_type_v2",
            b"ctorch._utils\n_rebuild_meta_tensor_no_storage\ncx\nY\n(ctorch\nfloat32\n))t",
        ),
        ("torch._utils\n_rebuild_parameter_with_state", b"NQ\x88N"),
        ("torch.nested._internal.nested_tensor\n_rebuild_njt", b""),
    ],
)
def test_attributes_that_are_used_again_and_again_draw_on_the_budget(function: str, before: bytes) -> None:
    entries = b"".join(b"J" + i.to_bytes(4, "little") + b"N" for i in range(20_000))
    attributes = b"}(" + entries + b"uq\x01" + (b"N\x86" if before else b"") + b"q\x020"
    calls = b"(" + before + b"h\x02tR0"
    data = attributes + b"c" + function.encode() + b"\nq\x000" + (b"h\x00" + calls) * 20_000 + b"N."
    found = LazyTensor(dtype("float32"), (0,), Storage(BytesSource(b""), 0, 0))
    with pytest.raises(LimitError, match="asks for more than"):
        load(data, DATA, lambda _: found)


def test_changed_bytes_in_composites_are_errors_of_ours_or_none(tmp_path: Path) -> None:
    tree = [
        DENSE.to_sparse(),
        DENSE.to_sparse_csr(),
        torch.quantize_per_tensor(DENSE, 0.25, 3, torch.qint8),
        torch.empty(2, device="meta"),
        Wrapper(torch.arange(3.0), torch.ones(3)),
    ]
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=False)
    whole = buffer.getvalue()
    path = tmp_path / "x.pth"
    for position in range(15, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x29]) + whole[position + 1 :])
        try:
            for tensor in statedict.load(path).tensors().values():
                tensor.raw()
        except statedict.StateDictError:
            pass
