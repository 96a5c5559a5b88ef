"""What the commands of `statedict lora` report."""

from __future__ import annotations

from dataclasses import dataclass

from statedict.reports.combine import CombineReport
from statedict.shown import Shown

PROVED, HIDDEN, WRONG = "proved", "cannot tell", "wrong"


@dataclass(frozen=True, slots=True)
class LoraModule:
    """What an adapter has for one module."""

    name: str
    parts: tuple[str, ...]  # such as `down`, `up`, `magnitude`, `tokens`; `whole` for a parameter that is replaced
    shapes: tuple[tuple[int, ...], ...]  # of its tensors
    rank: int | None  # that of all experts together
    scale: float | None  # the factor of up · down
    norm: float | None  # the Frobenius norm of scale · up · down


@dataclass(frozen=True, slots=True)
class LoraReport(Shown):
    """What an adapter is."""

    source: str
    kind: str  # `LoRA`, `DoRA`, or another kind, which can only be shown
    dialect: str  # `PEFT`, `diffusers` or `kohya`
    base: str  # the model that it was made for, as far as it says
    tensors: int
    nbytes: int
    modules: tuple[LoraModule, ...]
    settings: tuple[tuple[str, str], ...]  # of adapter_config.json or the metadata, those that matter
    fault: str  # why it cannot be applied; empty if it can
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoraTarget:
    """A tensor that adapters change."""

    path: str
    how: str  # `LoRA`, `DoRA`, `bias`, `replaced`, `rows replaced` or `added`
    rank: int | None
    norm: float | None  # the Frobenius norm of the change before rounding; None if it was not measured
    inexact: int | None  # elements whose value before the adapter was added cannot be told; of a negative weight
    proof: str  # `proved`, `cannot tell` or `wrong`; empty if the written file was not checked


@dataclass(frozen=True, slots=True)
class LoraApplied(CombineReport):
    """How adapters were added to a model, or with `dry_run` would be."""

    targets: tuple[LoraTarget, ...] = ()
    wrong: tuple[str, ...] = ()  # what else the written file has wrong: tensors that should be those of the base

    @property
    def proved(self) -> bool:
        """Whether every change was found in the written file, and nothing else."""
        return not self.wrong and all(one.proof == PROVED for one in self.targets)


@dataclass(frozen=True, slots=True)
class LoraExtracted(Shown):
    """The adapter that was made of the difference between two models, or with `dry_run` would be."""

    base: str
    tuned: str
    modules: tuple[tuple[str, int, float], ...]  # name, rank, and the share of the change's energy that it has
    whole: tuple[str, ...]  # parameters that are in it whole
    left_out: tuple[str, ...]  # parameters that changed, and that no adapter of peft can hold
    equal: int  # tensors that do not differ
    energy: float  # the share of the whole change of the matrices that the adapter has
    nbytes: int
    notes: tuple[str, ...]
    written: bool
