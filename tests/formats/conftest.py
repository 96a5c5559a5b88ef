"""Each format's entry for the conformance suite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

import statedict
from statedict.formats import FORMATS


@dataclass(frozen=True)
class Subject:
    """A format under test.

    `views` says whether it keeps tensors that overlap in part; every format keeps tied ones.
    `opaque` says whether it can write what is no data, as a label.
    """

    name: str
    suffix: str
    views: bool
    opaque: bool

    def round_trip(self, tree: Any, folder: Path, **options: Any) -> Any:
        """What `load` finds after `save`."""
        path = folder / f"round-trip{self.suffix}"
        statedict.save(tree, path, **options)
        return statedict.load(path)

    def peer(self, path: Path) -> dict[str, torch.Tensor]:
        """A flat dict of tensors, as the format's own library reads it."""
        if self.name == "torch":
            return torch.load(path, weights_only=True)
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


SUBJECTS = {
    "torch": Subject("torch", ".pth", views=True, opaque=False),
    "safetensors": Subject("safetensors", ".safetensors", views=False, opaque=True),
}


@pytest.fixture(scope="session", params=list(FORMATS))
def subject(request: pytest.FixtureRequest) -> Subject:
    """Every format of the table; one without an entry above fails."""
    return SUBJECTS[request.param]
