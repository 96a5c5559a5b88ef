"""Tensors into live ones, directly and by way of the buffers that an accelerator needs."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict.adapters.torch_transfer import stage, transfer
from statedict.tensor.lazy import as_lazy

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [16, 100, 1 << 20])
def test_buffers_of_any_size_carry_every_byte(dtype: torch.dtype, block: int, device: str) -> None:
    values = [torch.randint(0, 2, (n, 7)).to(dtype) for n in (0, 1, 5, 40)] + [torch.tensor(1).to(dtype)]
    targets = [torch.empty(v.shape, dtype=dtype, device=device) for v in values]
    stage([(as_lazy(v), t) for v, t in zip(values, targets, strict=True)], pinned=device != "cpu", block=block)
    for value, target in zip(values, targets, strict=True):
        assert torch.equal(target.cpu().view(-1).view(torch.uint8), value.view(-1).view(torch.uint8))


@given(st.integers(0, 300), st.integers(8, 64), st.sampled_from([torch.float64, torch.bfloat16, torch.int32]))
def test_a_cast_on_the_way_is_pytorch_s_own(count: int, block: int, kind: torch.dtype) -> None:
    value, target = torch.randn(count), torch.zeros(count, dtype=kind)
    stage([(as_lazy(value), target)], pinned=False, block=block)
    assert torch.equal(target, value.to(kind))


def test_targets_and_sources_of_any_layout_are_filled() -> None:
    value = torch.arange(24.0).reshape(4, 6)
    for source in (value, value.t().contiguous().t(), value.repeat(1, 2)[:, ::2]):
        for target in (torch.zeros(4, 6), torch.zeros(6, 4).t(), torch.zeros(4, 12)[:, ::2]):
            transfer([(as_lazy(source), target)])
            assert torch.equal(target, source)


_RESTORE = """
import resource, sys, torch, statedict
with torch.device("meta"):
    model = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048, bias=False, dtype=torch.{kind}) for _ in range(40)])
model.to_empty(device="cpu")
for parameter in model.parameters():
    torch.nn.init.zeros_(parameter)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
statedict.restore(model, sys.argv[1], cast=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_a_restore_takes_no_second_copy_of_the_model(kind: str, tmp_path: Path) -> None:
    state: dict[str, Any] = {f"{n}.weight": torch.full((2048, 2048), n, dtype=torch.bfloat16) for n in range(40)}
    statedict.save(state, tmp_path / "x.pth", fsync=False)  # 335 MB
    script = _RESTORE.format(kind=kind)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.pth")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 120_000  # kilobytes


def test_ru_maxrss_is_in_kilobytes_here() -> None:
    assert 10_000 < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 24 << 20
