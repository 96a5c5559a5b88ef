"""The conformance suites of formats: what everything that reads and writes checkpoints keeps.

A package that adds a format runs them by a class of its own, with pytest, hypothesis and PyTorch:

    from statedict.testing import FileTests, Format, TensorTests

    class TestMine(TensorTests, FileTests):
        format = Format("mine", ".mine", dtypes=("float32", "int64"))

docs/plugins.md has a whole example.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy
import pytest
import torch
from hypothesis import HealthCheck

import statedict
from statedict.dtypes import BY_NAME, dtype
from statedict.testing.same import assert_same, in_torch, patterned, raw

SAVED_BY_TORCH = [kind for kind in BY_NAME.values() if kind.itemsize and kind.kind != "quantized" and in_torch(kind)]

by_dtype = pytest.mark.parametrize("kind", SAVED_BY_TORCH, ids=str)
complex_half = pytest.mark.filterwarnings("ignore:B?Complex(Half|32):UserWarning")  # torch itself warns of complex32

# a temporary folder serves all examples, and one method the classes of several formats
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]


@dataclass(frozen=True)
class Format:
    """A format under test.

    Attributes:
        name: as for `format=` of `save`.
        suffix: of its files; empty for a folder.
        views: whether it keeps tensors that overlap in part; every format of whole trees keeps tied ones.
        opaque: whether it can write what is no data, as a label.
        folder: whether a checkpoint is a folder of files.
        dtypes: the names of the only ones that it has; all of PyTorch's by default.
    """

    name: str
    suffix: str
    views: bool = False
    opaque: bool = False
    folder: bool = False
    dtypes: tuple[str, ...] = ()

    def skip_others(self, *kinds: object) -> None:
        """Skip the test if the format lacks one of these dtypes."""
        if self.dtypes and not {dtype(kind).name for kind in kinds} <= {*self.dtypes}:
            pytest.skip("a dtype that the format lacks")

    def save(self, tree: Any, path: Path, **options: Any) -> None:
        """Save it in this format."""
        statedict.save(tree, path, **{"format": self.name, **options})

    def round_trip(self, tree: Any, folder: Path, **options: Any) -> Any:
        """What `load` finds after `save`."""
        path = folder / f"round-trip{self.suffix}"
        self.save(tree, path, **{"fsync": False, **options})
        return statedict.load(path)

    def content(self, path: Path) -> dict[str, bytes]:
        """The bytes of the file, or of each file in the folder by its name."""
        if not self.folder:
            return {"": path.read_bytes()}
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}

    def size(self, path: Path) -> int:
        """How many bytes it takes."""
        return sum(map(len, self.content(path).values()))


def layouts() -> dict[str, torch.Tensor]:
    """Tensors of every layout in memory."""
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "contiguous": base.clone(),
        "transposed": base.clone().t(),
        "sliced": base.clone()[1:3, 2:5],
        "stepped": base.clone()[::2, ::3],
        "expanded": torch.arange(4.0).reshape(4, 1).expand(4, 5),
        "expanded scalar": torch.tensor(3.0).expand(2, 2),
        "channels last": torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "zero-dim": torch.tensor(7.0),
        "a scalar in the middle": base.clone()[2, 3],
        "empty": torch.empty(0),
        "empty in a dimension": torch.empty(3, 0, 2),
        "empty of a large one": base.clone()[4:],
        "diagonal": base.clone().diagonal(),
        "unfolded": torch.arange(10.0).unfold(0, 4, 2),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "negative": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "large": torch.arange(600_000).reshape(600, 1000),
        "large transposed": torch.arange(600_000).reshape(600, 1000).t(),
    }


class TensorTests:
    """What a format of named tensors keeps."""

    format: ClassVar[Format]

    @complex_half
    @by_dtype
    def test_every_dtype_that_torch_saves_comes_back_bit_by_bit(self, kind: Any, tmp_path: Path) -> None:
        self.format.skip_others(kind)
        tree = {"w": patterned(kind, 2, 3), "empty": patterned(kind, 0, 4), "row": patterned(kind, 5)}
        if not (self.format.name == "safetensors" and kind.name == "float4_e2m1fn_x2"):
            tree["scalar"] = patterned(kind)
        loaded = self.format.round_trip(tree, tmp_path)
        assert_same(loaded, tree)
        for name, tensor in tree.items():
            again = loaded[name].torch()
            assert again.dtype is tensor.dtype
            assert again.shape == tensor.shape
            assert raw(again) == raw(tensor)

    @complex_half
    @by_dtype
    def test_strided_tensors_of_every_dtype_keep_their_elements(self, kind: Any, tmp_path: Path) -> None:
        self.format.skip_others(kind)
        whole = patterned(kind, 4, 6)
        tree = {"t": whole.t(), "every other": patterned(kind, 4, 6)[:, ::2], "row": patterned(kind, 3, 4)[1]}
        assert_same(self.format.round_trip(tree, tmp_path), tree)

    @pytest.mark.parametrize("name", list(layouts()))
    def test_every_layout_keeps_its_elements(self, name: str, tmp_path: Path) -> None:
        tensor = layouts()[name]
        self.format.skip_others(tensor.dtype)
        loaded = self.format.round_trip({"w": tensor}, tmp_path)["w"]
        assert loaded.shape == tuple(tensor.shape)
        assert torch.equal(loaded.torch(), tensor.resolve_conj())
        assert numpy.array_equal(loaded.numpy(), tensor.resolve_conj().resolve_neg().numpy())

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("code", ["<f4", ">f4", ">i8", "<c16", ">u2", "?", "<f2"])
    def test_numpy_arrays_of_any_byte_order_and_layout_keep_their_elements(
        self, code: str, order: Any, tmp_path: Path
    ) -> None:
        self.format.skip_others(numpy.dtype(code).name)
        array = numpy.asarray(numpy.arange(24).reshape(4, 6) % 5, code, order=order)
        tree = {
            "whole": array,
            "reversed": array[::-1, ::-1],
            "part": array[1:3, 2:],
            "scalar": numpy.asarray(array[2, 2]),
        }
        loaded = self.format.round_trip(tree, tmp_path)
        for name, expected in tree.items():
            assert numpy.array_equal(loaded[name].numpy(), expected), name

    def test_a_small_view_of_a_huge_storage_takes_only_its_own_bytes(self, tmp_path: Path) -> None:
        huge = torch.zeros(8, 1_000_000)
        tree = {
            "column": torch.zeros(8, 1_000_000)[:, 5],
            "few": huge[3, 10:20],
            "start": huge[0, :3],
            "end": huge[7, -3:],
        }
        loaded = self.format.round_trip(tree, tmp_path)
        assert self.format.size(tmp_path / f"round-trip{self.format.suffix}") < 8_000
        assert_same(loaded, tree)

    def test_an_expanded_tensor_keeps_its_shape(self, tmp_path: Path) -> None:
        tree = {"w": torch.arange(3.0).expand(1000, 3)}
        assert_same(self.format.round_trip(tree, tmp_path), tree)

    def test_tensors_side_by_side_in_one_storage_are_not_mixed_up(self, tmp_path: Path) -> None:
        flat = torch.arange(30.0)
        tree = {"b": flat[10:20], "a": flat[:10], "none": flat[5:5], "c": flat[20:]}
        assert_same(self.format.round_trip(tree, tmp_path), tree)
