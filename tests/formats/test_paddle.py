"""Files of Paddle, whose bfloat16 is written as uint16; tests/peers/paddle.py made them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import statedict
from statedict.errors import UnknownFormatError
from statedict.testing.same import raw

FILES = Path(__file__).parent / "data" / "paddle"
VALUES = torch.arange(6.0).reshape(2, 3)
STATE = {"w": VALUES, "half": VALUES.bfloat16(), "small": VALUES.half(), "n": torch.arange(3)}


def same(found: object, expected: torch.Tensor) -> bool:
    assert isinstance(found, statedict.LazyTensor)
    return (found.dtype, found.shape, raw(found)) == (expected.dtype, tuple(expected.shape), raw(expected))


@pytest.mark.parametrize("name", ["flat.pdparams", "protocol2.pdparams"])
def test_a_state_dict_of_paddle_has_the_dtypes_that_it_had(name: str, tmp_path: Path) -> None:
    state = statedict.load(FILES / name)
    assert [*state] == [*STATE, "StructuredToParameterName@@"]
    assert all(same(state[key], tensor) for key, tensor in STATE.items())
    assert statedict.verify(FILES / name).ok
    statedict.convert(FILES / name, tmp_path / "x.safetensors")
    assert statedict.load(tmp_path / "x.safetensors")["half"].dtype == torch.bfloat16


def test_a_tensor_that_paddle_keeps_with_its_name_is_a_tensor() -> None:
    assert same(statedict.load(FILES / "one.pdparams")[""], STATE["half"])
    state = statedict.load(FILES / "nested.pdparams")
    assert all(same(state["model"][key], tensor) for key, tensor in STATE.items())
    assert same(state["list"][0], STATE["half"])
    assert state["epoch"] == 3
    assert statedict.scan(FILES / "nested.pdparams").verdict == "data"


def test_the_binary_format_of_paddle_is_called_by_its_name() -> None:
    for opened in (statedict.load, statedict.verify):
        with pytest.raises(UnknownFormatError, match=r"Paddle's binary format .* load it with paddle"):
            opened(FILES / "binary.pdtensor")
