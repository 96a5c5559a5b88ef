"""What `statedict.torch.load` refuses, and that nothing is run, imported or allocated before it does."""

from __future__ import annotations

import copy
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import types
import warnings
import zipfile
from collections import OrderedDict, namedtuple
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import safe_globals, skip_data

import statedict
import statedict.torch
from statedict.errors import CorruptFileError, FormatError, LimitError, RefusedError, StateDictError

from .alike import PLAIN, assert_alike
from .files import ours, theirs, warns, with_pickle, written, zip_and_legacy

pytestmark = warns


# numpy's data


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_arrays_of_numbers_are_arrays_again(protocol: int) -> None:
    tree = {
        code: numpy.arange(6).astype(code).reshape(2, 3) for code in ("<f4", ">f8", "<i2", "<u8", "<c8", "<f2", "?")
    }
    tree["fortran"] = numpy.asfortranarray(tree["<f4"])
    loaded = ours(written(tree, pickle_protocol=protocol))
    for name, array in tree.items():
        assert type(loaded[name]) is numpy.ndarray
        assert loaded[name].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
        assert numpy.array_equal(loaded[name], array)


@zip_and_legacy
def test_numpy_scalars_are_scalars_again(zipped: bool) -> None:
    numbers = [numpy.float32(1.5), numpy.int64(-3), numpy.bool_(True), numpy.complex64(1 + 2j), numpy.float16(2)]
    assert_alike(ours(written(numbers, zipped)), numbers)


@pytest.mark.parametrize(
    "array",
    [numpy.array([{}, 1], object), numpy.array(["a"]), numpy.zeros(2, [("a", "f4")]), numpy.zeros(2, "M8[s]")],
    ids=["objects", "text", "records", "dates"],
)
def test_other_numpy_arrays_are_refused(array: Any) -> None:
    for protocol in (2, 4):
        with pytest.raises(RefusedError, match=r"statedict\.load opens the file"):
            ours(written({"a": array}, pickle_protocol=protocol))


class Forged:
    """Pickles as a call of a function that was never called."""

    def __init__(self, function: Any, args: tuple[Any, ...], *state: Any) -> None:
        self.call = (function, args, *state)

    def __reduce__(self) -> Any:
        return self.call


RECORD = (3, "|", None, ("a",), {"a": (numpy.dtype("O"), 0)}, 8, 8, 63)


@pytest.mark.parametrize(
    "forged",
    [
        Forged(numpy.dtype, ("f8", False, True), RECORD),
        Forged(numpy.dtype, ("f8", False, True), (3, "<", None, None, None, 1 << 40, 8, 0)),
        Forged(numpy.dtype, ("V8", False, True), RECORD),
        Forged(numpy.dtypes.Float64DType, (), RECORD),
        Forged(numpy.ndarray, ((1 << 31,),)),
        Forged(numpy.ndarray, ((4,), "O")),
    ],
    ids=["fields", "size", "void", "class of a dtype", "array without data", "array of objects"],
)
def test_what_numpy_would_believe_of_a_file_is_refused_before_it_is_asked(forged: Any) -> None:
    hidden = [("d", forged), ("d", 0)]  # a dict forgets the first value
    for tree in (forged, [forged, 0], Forged(OrderedDict, (hidden,))):
        with pytest.raises(RefusedError):
            ours(written(tree))


# what is refused


Point = namedtuple("Point", ["x", "y"])


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@zip_and_legacy
@pytest.mark.parametrize("weights_only", [True, False, None])
def test_code_is_not_run_whatever_is_asked(zipped: bool, weights_only: bool | None, tmp_path: Path) -> None:
    data = written([torch.ones(1), Runs(tmp_path / "touched")], zipped)
    with pytest.raises(pickle.UnpicklingError, match=r"(?s)GLOBAL io.open .*Nothing was run.*statedict.load"):
        ours(data, weights_only=weights_only)
    assert not (tmp_path / "touched").exists()


@zip_and_legacy
def test_a_class_is_refused_until_it_is_allowed(zipped: bool) -> None:
    data = written({"p": Point(1, torch.ones(2))}, zipped)
    name = rf"{Point.__module__}\.Point"
    with pytest.raises(RefusedError, match=rf"{name} was not an allowed global.*add_safe_globals"):
        ours(data)
    with safe_globals([Point]):
        assert_alike(list(ours(data)["p"]), [1, torch.ones(2)])
        assert type(ours(data)["p"]) is Point
    with pytest.raises(RefusedError):
        ours(data)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("tree", [{Fraction(1, 2): torch.ones(2)}, {"s": {Fraction(1, 2)}}, {(1, Fraction(1, 2)): 3}])
def test_a_class_in_a_key_or_a_set_is_refused(tree: Any, protocol: int) -> None:
    with pytest.raises(RefusedError, match="Fraction"):
        ours(written(tree, pickle_protocol=protocol))


class Marked(torch.Tensor):
    pass


@zip_and_legacy
def test_a_subclass_of_tensor_comes_back_once_it_is_allowed(zipped: bool) -> None:
    marked = torch.arange(6.0).reshape(2, 3).t().as_subclass(Marked)
    marked.note = "kept"  # type: ignore[attr-defined]
    data = written([marked, marked[1]], zipped)
    with pytest.raises(RefusedError, match="Marked"):
        ours(data)
    with safe_globals([Marked]):
        assert_alike(ours(data), theirs(data))
        assert type(ours(data)[1]) is Marked


@zip_and_legacy
@pytest.mark.parametrize("asked", [True, False])
def test_sparse_tensors_are_validated_whether_torch_is_asked_to_or_not(zipped: bool, asked: bool) -> None:
    indices = torch.tensor([[5]])
    forged = Forged(
        torch._utils._rebuild_sparse_tensor, (torch.sparse_coo, (indices, torch.ones(1), torch.Size([3]), False))
    )
    data = written(forged, zipped)
    with (
        torch.sparse.check_sparse_tensor_invariants(enable=asked),
        pytest.raises(CorruptFileError, match="0 to 2, got 5"),
    ):
        ours(data)


def test_a_class_of_another_protocol_is_refused_by_its_name() -> None:
    with pytest.raises(RefusedError, match=r"fractions\.Fraction"):
        ours(written({"x": Fraction(1, 2), "w": torch.ones(1)}, pickle_protocol=4))


def test_the_modules_of_the_system_cannot_be_allowed() -> None:
    with safe_globals([os.system]), pytest.raises(RefusedError, match="posix is blocked"):
        ours(written(os.system))


def test_no_module_is_imported_because_a_file_names_it(tmp_path: Path) -> None:
    code = """if True:
        import sys, torch, statedict.torch
        before = set(sys.modules)
        try:
            statedict.torch.load(sys.argv[1])
        except Exception as error:
            print(type(error).__name__, "this_module" in str(error))
        print("antigravity" in sys.modules, "this" in sys.modules)
    """
    names = [b"cthis\nthis_module\n", b"cantigravity\nfly\n)R"]
    for name in names:
        path = tmp_path / "names.pth"
        path.write_bytes(with_pickle(written(1), lambda _, name=name: b"\x80\2" + name + b"."))
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["RefusedError", str(b"this" in name), "False", "False"]


def test_another_pickle_module_is_refused() -> None:
    assert ours(written(1), pickle_module=pickle) == 1
    with pytest.raises(RefusedError, match="'dill' would run code"):
        ours(written(1), pickle_module=types.ModuleType("dill"))


def test_an_argument_that_torch_load_does_not_know_is_an_error() -> None:
    with pytest.raises(TypeError, match="map_locaton"):
        ours(written({}), map_locaton="cpu")
    assert ours(written({}), encoding="latin1", fix_imports=True) == {}


def test_torchscript_is_refused_and_the_remedy_works(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 3)), path)
    with pytest.raises(RefusedError, match=r"(?s)TorchScript archives.*statedict.load opens"):
        statedict.torch.load(path)
    assert statedict.load(path)["weight"].shape == (3, 2)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>" * 9, "HTML"),
        (written(PLAIN)[:-700], "truncated|ends"),
        (written([torch.ones(9)], False)[:-8], "truncated"),
    ],
    ids=["empty", "a page", "half an archive", "half a stream"],
)
def test_what_is_no_checkpoint_is_named(data: bytes, expected: str) -> None:
    with pytest.raises(FormatError, match=f"(?i){expected}"):
        ours(data)


@pytest.mark.parametrize("pickled", [b"\x80\2K\1(\x85.", b"\x80\2(ctorch\nSize\n(K\1tR0t(t.", b"\x80\2]q\0K\1(h\0u."])
def test_a_program_that_only_one_of_the_two_machines_follows_is_damage(pickled: bytes) -> None:
    with pytest.raises((CorruptFileError, RefusedError)):
        ours(with_pickle(written(1), lambda _: pickled))


# what would exhaust memory


def test_a_module_s_name_of_python_2_gets_round_no_bound() -> None:
    def program(module: bytes) -> bytes:
        pairs = b"".join(b"M" + struct.pack("<H", n) + b"K\1\x86" for n in range(4000))
        return b"\x80\2(]q\1(" + pairs + b"e" + (b"c" + module + b"\nOrderedDict\nh\1\x85R") * 4000 + b"t."

    for module in (b"collections", b"UserDict", b"UserString"):
        with pytest.raises(LimitError):
            ours(with_pickle(written(1), lambda _, module=module: program(module)))


def test_records_that_overlap_are_refused() -> None:
    names = [f"archive/data/{index}" for index in range(50)]
    entry = b"(X\7\0\0\0storagectorch\nByteStorage\nX%c\0\0\0%bX\3\0\0\0cpuJ\0\0\1\0tQ"
    storages = b"".join(entry % (len(str(i)), str(i).encode()) for i in range(50))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\2(" + storages + b"t.")
        archive.writestr(names[0], bytes(1 << 16))
        for name in names[1:]:
            again = copy.copy(archive.getinfo(names[0]))
            again.filename = name
            archive.filelist.append(again)
    with pytest.raises(CorruptFileError, match="overlap"):
        ours(file.getvalue())


@pytest.mark.parametrize("state", [b"(K\5K\0K\1K\1tb", b"K\1\x85b"])
@pytest.mark.parametrize("name", ["torch Tensor", "torch FloatTensor", "torch.storage UntypedStorage"])
def test_nothing_is_made_of_a_size_that_only_the_pickle_gives(name: str, state: bytes) -> None:
    number = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
    called = b"c" + name.replace(" ", "\n").encode() + b"\n(" + number + b"t"
    for program in (called + b"R", called + b"\x81", called + b"R" + state):
        with pytest.raises((CorruptFileError, RefusedError)):
            ours(with_pickle(written(1), lambda _, program=program: b"\x80\2" + program + b"."))


STORAGE_CLASSES = ["torch.storage UntypedStorage", "torch.storage TypedStorage", "torch.sparse FloatTensor"]
WAYS: dict[str, dict[str, Any]] = {
    "read": {},
    "mapped": {"mmap": True},
    "on the meta device": {"map_location": "meta"},
    "mapped on the meta device": {"map_location": "meta", "mmap": True},
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", STORAGE_CLASSES)
@pytest.mark.parametrize("operation", [b"R", b"\x81"])
def test_every_way_of_loading_refuses_to_make_what_only_a_number_asks_for(
    operation: bytes, name: str, way: str, tmp_path: Path
) -> None:
    called = b"c" + name.replace(" ", "\n").encode() + b"\nJ" + struct.pack("<i", 1 << 20) + b"\x85" + operation
    path = tmp_path / "small.pth"
    path.write_bytes(with_pickle(written(1), lambda _: b"\x80\2" + called + b"."))
    with pytest.raises(StateDictError):
        statedict.torch.load(path, **WAYS[way])
    path.write_bytes(with_pickle(written(1), lambda _: b"\x80\2" + called + b"0K\1."))  # it is dropped again
    try:
        assert statedict.torch.load(path, **WAYS[way]) == 1  # read by our machine, which makes nothing of it
    except StateDictError:
        pass


@pytest.mark.parametrize("without", [FakeTensorMode, skip_data])
@pytest.mark.parametrize("name", STORAGE_CLASSES)
def test_tensors_without_bytes_are_checked_like_others(name: str, without: Any) -> None:
    called = b"c" + name.replace(" ", "\n").encode() + b"\nJ" + struct.pack("<i", 1 << 20) + b"\x85R"
    data = with_pickle(written(1), lambda _: b"\x80\2" + called + b".")
    with without(), pytest.raises(StateDictError):
        ours(data)


def test_what_a_function_for_map_location_raises_is_not_called_damage() -> None:
    def broken(storage: Any, device: str) -> Any:
        return {}[device]

    with pytest.raises(KeyError, match="cpu"):
        ours(written([torch.ones(1)]), map_location=broken)


def expanded(kind: torch.dtype, *shape: int) -> torch.Tensor:
    """A few bytes that claim to be 8 GB."""
    return torch.ones(1, dtype=kind).expand(*shape)


HUGE = 10**9
COPIES = {
    "to another dtype": (
        torch._utils._rebuild_device_tensor_from_cpu_tensor,
        (expanded(torch.uint8, HUGE), torch.float64, "cpu", False),
    ),
    "indices": (
        torch._utils._rebuild_sparse_tensor,
        (torch.sparse_coo, (expanded(torch.int32, 1, HUGE), expanded(torch.float32, HUGE), torch.Size([3]), False)),
    ),
    "sizes": (
        torch._utils._rebuild_nested_tensor,
        (torch.ones(4), expanded(torch.int64, HUGE, 1), expanded(torch.int64, HUGE, 1), expanded(torch.int64, HUGE)),
    ),
    "scales": (
        torch._utils._rebuild_qtensor,
        (
            torch.ones(4).untyped_storage(),
            *(0, (HUGE,), (0,)),
            (torch.per_channel_affine, expanded(torch.float32, HUGE), expanded(torch.int64, HUGE), 0),
            *(False, OrderedDict()),
        ),
    ),
}


@pytest.mark.parametrize("name", list(COPIES))
def test_a_few_bytes_that_claim_to_be_many_are_not_copied(name: str) -> None:
    with pytest.raises(LimitError, match="would be copied"):
        ours(written(Forged(*COPIES[name])))


def test_an_empty_storage_is_not_made_to_grow() -> None:
    assert not ours(written(torch.empty(0))).untyped_storage().resizable()
    assert not theirs(written(torch.empty(0))).untyped_storage().resizable()


# side by side


def test_threads_load_at_once_and_what_others_may_load_stays_as_it_was() -> None:
    data = written({"a": numpy.arange(5), "s": [numpy.float32(n) for n in range(200)], "w": torch.ones(10)})
    before = torch.serialization.get_safe_globals()
    seen: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                ours(data, map_location=lambda *_: seen.append(torch.serialization.get_safe_globals() == before))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert seen == [True] * 40


def test_it_serves_in_the_place_of_torch_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "load", statedict.torch.load)
    monkeypatch.setattr(torch, "save", statedict.torch.save)
    monkeypatch.setattr(torch.serialization, "load", statedict.torch.load)
    model = nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    for mmap in (False, True):
        nn.Linear(2, 2).load_state_dict(torch.load(tmp_path / "model.pth", mmap=mmap))
