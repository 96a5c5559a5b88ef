"""How a format behaves as a file: what it overwrites, and what it makes of damage."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import statedict
from statedict.testing.formats import CHECKS, Format

FLAT = {"w": torch.arange(300.0).reshape(20, 15), "b": torch.ones(16, dtype=torch.bfloat16)}


class FileTests:
    """What a format whose checkpoints are one file keeps."""

    format: ClassVar[Format]
    flat: ClassVar[dict[str, Any]] = FLAT
    """What the files hold; of a format that lacks a dtype of `FLAT`, something else."""

    @pytest.fixture
    def flat_path(self, tmp_path: Path) -> Path:
        """A file."""
        path = tmp_path / f"checkpoint{self.format.suffix}"
        self.format.save(self.flat, path)
        return path

    def test_an_existing_file_is_kept_where_overwriting_is_off(self, flat_path: Path) -> None:
        before = self.format.content(flat_path)
        with pytest.raises(FileExistsError, match="exists and overwrite is off"):
            self.format.save({"w": torch.ones(2)}, flat_path, overwrite=False)
        assert self.format.content(flat_path) == before
        assert os.listdir(flat_path.parent) == [flat_path.name]
        fresh = flat_path.with_stem("fresh")
        self.format.save(self.flat, fresh, overwrite=False)
        assert self.format.content(fresh) == before

    def test_a_file_cut_short_anywhere_is_an_error_that_names_it(self, flat_path: Path) -> None:
        whole = flat_path.read_bytes()
        cut = flat_path.with_stem("cut")
        for length in [*range(0, len(whole), 37), len(whole) - 1]:
            cut.write_bytes(whole[:length])
            with pytest.raises(statedict.errors.FormatError, match=r"cut\."):
                statedict.load(cut)

    @settings(max_examples=400, deadline=None, suppress_health_check=CHECKS)
    @given(data=st.data())
    def test_a_damaged_file_loads_or_fails_with_a_format_error_and_nothing_else(
        self, flat_path: Path, data: st.DataObject
    ) -> None:
        damaged = bytearray(flat_path.read_bytes())
        at = data.draw(
            st.integers(0, len(damaged) - 1) | st.integers(0, 1200) | st.integers(len(damaged) - 800, len(damaged) - 1)
        )
        length = data.draw(st.integers(0, 4))
        damaged[at : at + length] = data.draw(st.binary(max_size=6))
        broken = flat_path.with_stem("broken")
        broken.write_bytes(damaged)
        with contextlib.suppress(
            statedict.errors.FormatError, statedict.errors.TreeError, statedict.errors.UnsupportedError
        ):
            for tensor in statedict.load(broken).tensors().values():
                tensor.raw()
