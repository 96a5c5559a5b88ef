"""Numbers, names and shapes that PyTorch and numpy cannot have are refused by us, whatever reads the file."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
import statedict.torch
from statedict.errors import CorruptFileError, DeviceError, StateDictError, UnsupportedError

from .files import ours, warns, with_pickle, written, zip_and_legacy
from .test_indices import Described

pytestmark = warns

U = torch._utils
HUGE = 1 << 70


def tensor(size: Any, stride: Any, offset: int = 0, grad: bool = False, kind: Any = torch.float32, *more: Any) -> Any:
    storage = torch.ones(2, dtype=kind)._typed_storage()
    return Described(U._rebuild_tensor_v2, storage, offset, size, stride, grad, OrderedDict(), *more)


def meta(size: Any, stride: Any, kind: Any = torch.float32, grad: bool = False) -> Any:
    return Described(U._rebuild_meta_tensor_no_storage, kind, size, stride, grad)


def quantized(*quantizer: Any, grad: bool = False) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = torch.quantize_per_tensor(torch.ones(2, 2), 0.5, 1, torch.qint8)._typed_storage()
    return Described(U._rebuild_qtensor, storage, 0, (2, 2), (2, 1), quantizer, grad, OrderedDict())


def per_channel(axis: Any, scales: Any = None, zeros: Any = None) -> Any:
    scales = torch.ones(2, dtype=torch.float64) if scales is None else scales
    zeros = torch.zeros(2, dtype=torch.int64) if zeros is None else zeros
    return quantized(torch.per_channel_affine, scales, zeros, axis)


def wrapper(size: Any, stride: Any, kind: Any = torch.float32, device: Any = "cpu") -> Any:
    return Described(
        U._rebuild_wrapper_subclass, torch.nn.Parameter, kind, size, stride, 0, torch.strided, device, False
    )


def moved(device: Any) -> Any:
    return Described(U._rebuild_device_tensor_from_cpu_tensor, torch.ones(2), torch.float32, device, False)


# what is wrong → the object, and what the message says
WRONG: dict[str, tuple[Any, str]] = {
    "a device with a negative index": (Described(torch.device, "cuda", -5), "device without a valid name and index"),
    "a device with a huge index": (Described(torch.device, "cuda", HUGE), "device without a valid name and index"),
    "a device with an index of two bytes": (Described(torch.device, "cuda", 300), "'cuda:300' is not a device"),
    "a device with a huge index in its name": (Described(torch.device, f"cuda:{HUGE}"), "is not a device"),
    "a device with a zero byte": (Described(torch.device, "cu\0da"), "is not a device"),
    "a device with half a character": (Described(torch.device, "cu\ud800"), "is not a device"),
    "a device without a name": (Described(torch.device, ""), "is not a device"),
    "a device with half an index": (Described(torch.device, "cuda:"), "is not a device; expected .* as cuda:0"),
    "a size of over 64 bits": (Described(torch.Size, (HUGE,)), "other than 64 bit integers"),
    "a size below 64 bits": (Described(torch.Size, (-HUGE,)), "other than 64 bit integers"),
    "a meta tensor of negative size": (meta((-1,), (1,)), "size is not a tuple of numbers"),
    "a meta tensor of a negative stride": (meta((3, 2), (-1, 1)), "stride is not a tuple of numbers"),
    "a meta tensor of a huge size": (meta((HUGE,), (1,)), "size is not a tuple"),
    "a meta tensor of a fraction": (meta((1.5,), (1,)), "size is not a tuple"),
    "a meta tensor that overflows": (meta((1 << 40, 1 << 40), (1 << 40, 1)), "exabytes"),
    "a meta tensor whose strides overflow": (meta((1 << 40, 1 << 40), (1 << 59, 1)), "exabytes"),
    "a meta tensor of fewer strides": (meta((1, 2), (1,)), "2 sizes and 1 strides"),
    "a meta tensor of no dtype": (meta((1,), (1,), 3), "dtype is a int"),
    "a meta tensor of 65 dimensions": (meta((1,) * 65, (1,) * 65), "65 dimensions, over 64"),
    "a meta tensor of integers with a gradient": (meta((1,), (1,), torch.int8, True), "int8 that requires a gradient"),
    "a wrapper of a huge size": (wrapper((HUGE,), (1,)), "size is not a tuple"),
    "a wrapper on no device": (wrapper((2,), (1,), device="cu da"), "is not a device"),
    "a tensor moved to no device": (moved(5), "'5' is not a device"),
    "a quantizer with an axis past the end": (per_channel(2), "expected an axis from 0 to 1, got 2"),
    "a quantizer with a negative axis": (per_channel(-1), "expected an axis from 0 to 1, got -1"),
    "a quantizer with a huge axis": (per_channel(HUGE), "expected an axis from 0 to 1"),
    "a quantizer with an axis in words": (per_channel("a"), "expected an axis from 0 to 1, got a"),
    "a quantizer with more scales": (per_channel(0, torch.ones(5, dtype=torch.float64)), "expected 2 scales, got"),
    "a quantizer with a matrix": (per_channel(0, torch.ones(2, 1, dtype=torch.float64)), "expected 2 scales, got"),
    "a quantizer with fewer zero points": (per_channel(0, None, [0]), "expected 2 zero_points, got 1"),
    "a quantizer with words": (per_channel(0, [1.0, "a"], [0, 0]), "scales are not numbers"),
    "a quantizer with huge zero points": (per_channel(0, [1.0, 1.0], [0, HUGE]), "zero_points are not numbers"),
    "a scale in words": (quantized(torch.per_tensor_affine, "a", 0), "scale and zero point are not numbers"),
    "a huge zero point": (quantized(torch.per_tensor_affine, 0.5, HUGE), "scale and zero point are not numbers"),
    "a quantized tensor with a gradient": (
        quantized(torch.per_tensor_affine, 0.5, 1, grad=True),
        "requires a gradient",
    ),
    "integers with a gradient": (tensor((2,), (1,), 0, True, torch.int64), "int64 that requires a gradient"),
    "integers as a trained parameter": (
        Described(U._rebuild_parameter, torch.ones(2, dtype=torch.int8), True, OrderedDict()),
        "int8 that requires a gradient",
    ),
    "conjugated floats": (tensor((2,), (1,), 0, False, torch.float32, {"conj": True}), "conjugated or negated"),
    "negated truths": (tensor((2,), (1,), 0, False, torch.bool, {"neg": True}), "conjugated or negated"),
    "nothing from far away": (tensor((0,), (1,), HUGE), "from element 1,180,591"),
    "nothing of a huge width": (tensor((0, 1 << 59, 1 << 59), (1 << 59, 1, 1)), r"shape \(0, 576"),
    "65 dimensions": (tensor((1,) * 65, (1,) * 65), "65 sizes and 65 strides, over 64"),
}


@zip_and_legacy
@pytest.mark.parametrize("name", WRONG)
def test_what_nobody_can_have_is_refused_by_both_loads(name: str, zipped: bool, tmp_path: Path) -> None:
    described, expected = WRONG[name]
    (tmp_path / "x.pth").write_bytes(written({"t": described, "w": torch.ones(2)}, zipped))
    loads: list[Any] = [statedict.load, statedict.torch.load]
    loads += [lambda path: statedict.torch.load(path, mmap=True)] * zipped
    for load in loads:
        with pytest.raises(CorruptFileError, match=expected):
            load(tmp_path / "x.pth")


@zip_and_legacy
def test_a_device_that_this_pytorch_lacks_is_a_value_until_it_is_asked_for(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(written({"d": Described(torch.device, "odd:3"), "w": torch.ones(2)}, zipped))
    state = statedict.load(path)
    assert repr(state["d"]) == "device('odd:3')"
    with pytest.raises(UnsupportedError, match=r"torch .* has no device 'odd:3'"):
        state.torch()
    with pytest.raises(StateDictError, match="odd"):
        statedict.torch.load(path)


def odd_storage(data: bytes) -> bytes:
    return with_pickle(data, lambda pickled: pickled.replace(b"X\3\0\0\0cpu", b"X\3\0\0\0odd"))


def test_a_storage_from_a_device_that_this_pytorch_lacks_goes_where_map_location_says() -> None:
    data = odd_storage(written({"w": torch.ones(2)}))
    for location in (None, "cpu", {"odd": "cpu"}, lambda storage, location: storage):
        assert torch.equal(ours(data, map_location=location)["w"], torch.ones(2))
    with pytest.raises(DeviceError, match=r"no place for what was saved from 'odd'") as caught:
        ours(data, map_location={})
    assert isinstance(caught.value, RuntimeError)


def test_what_the_caller_s_own_function_raises_is_not_the_file_s_fault(tmp_path: Path) -> None:
    def refuse(storage: Any, location: str) -> Any:
        raise ValueError("mine")

    (tmp_path / "x.pth").write_bytes(written({"w": torch.ones(2)}))
    for mmap in (False, True):
        with pytest.raises(ValueError, match=r"^mine$"):
            statedict.torch.load(tmp_path / "x.pth", map_location=refuse, mmap=mmap)


def test_an_error_of_pytorch_s_own_unpickler_is_ours() -> None:
    for function, arguments in (("_rebuild_qtensor", None), ("_rebuild_sparse_tensor", (torch.strided, ()))):
        described = (
            quantized(torch.per_tensor_symmetric, 0.5)
            if arguments is None
            else Described(getattr(U, function), *arguments)
        )
        with pytest.raises(CorruptFileError):
            ours(written({"t": described}))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_tensor_of_over_64_dimensions_is_refused_before_it_is_written(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"x{suffix}"
    for tree in ({"a": torch.ones([1] * 65)}, {"a": [torch.ones([1] * 65)]}):
        with pytest.raises(UnsupportedError, match=r"a.*: a tensor of 65 dimensions, over 64"):
            statedict.save(tree, target)
    assert not target.exists()
    statedict.save({"a": torch.ones([1] * 64)}, target)
    assert statedict.load(target)["a"].torch().ndim == 64  # numpy 1 has 32 dimensions at most


def test_a_tensor_that_takes_65_dimensions_as_bytes_is_refused_by_safetensors_alone(tmp_path: Path) -> None:
    tree = {"a": torch.ones([1] * 64, dtype=torch.complex128)}
    with pytest.raises(UnsupportedError, match="65 dimensions"):
        statedict.save(tree, tmp_path / "x.safetensors")
    statedict.save(tree, tmp_path / "x.pth")
    assert statedict.load(tmp_path / "x.pth")["a"].ndim == 64


def test_safetensors_of_over_64_dimensions_or_of_a_huge_width_are_refused(tmp_path: Path) -> None:
    for shape in ("1," * 64 + "1", f"0,{1 << 40},{1 << 40}", f"{1 << 70},0"):
        header = f'{{"a":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,{int("0" not in shape)}]}}}}'.encode()
        (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x" * ("0" not in shape))
        for load in (statedict.load, statedict.torch.load):
            with pytest.raises(CorruptFileError, match=r"'a' is described wrongly.*(dimensions|exabytes)"):
                load(tmp_path / "x.safetensors")
