"""StatsReport: the figures of every tensor, and what deserves a look."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from statedict.errors import PathError
from statedict.reports.figures import Figures
from statedict.reports.summary import Optimizer
from statedict.shown import Shown, Viewed


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStats(Figures, Viewed):
    """The figures of one tensor.

    Attributes:
        name: its path.
        dtype: PyTorch's name.
        shape: sizes.
        tied: the path of an earlier tensor with the same bytes, which alone counts for modules and in total.
        dead_rows: how many entries along the first dimension are all 0; None where there are no rows.
        computed: whether there are figures; packed dtypes and those of less than a byte have none.
        parameter: for optimizer state the name of its parameter, where the file has names or they can be inferred.
        inferred: whether that name is inferred from the model's order and shapes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    tied: str | None = None
    dead_rows: int | None = None
    computed: bool = True
    parameter: str | None = None
    inferred: bool = False

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON; what was not computed is null."""
        record = self.record()
        if not self.computed:
            record = {key: value if key == "elements" else None for key, value in record.items()}
        head = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        tail = {"dead_rows": self.dead_rows, "tied": self.tied, "parameter": self.parameter, "inferred": self.inferred}
        return head | record | tail


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStats(Figures, Viewed):
    """The figures of several tensors together.

    Attributes:
        name: the path of the module, the dtype, or nothing for all.
        tensors: how many there are; tied ones count once, and those that were not computed do not.
    """

    name: str
    tensors: int

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {"name": self.name, "tensors": self.tensors} | self.record()


@dataclass(frozen=True, slots=True)
class StatsReport(Shown):
    """What `stats` found.

    Attributes:
        tensors: every tensor in order.
        modules: every module in order: what has a path above a tensor.
        dtypes: every dtype in order.
        total: all together.
        flags: what deserves a look.
        optimizers: those that have some of the tensors, with their groups and the names of their parameters.
    """

    tensors: tuple[TensorStats, ...]
    modules: tuple[GroupStats, ...]
    dtypes: tuple[GroupStats, ...]
    total: GroupStats
    flags: tuple[Flag, ...]
    optimizers: tuple[Optimizer, ...] = ()

    def __getitem__(self, name: str) -> TensorStats | GroupStats:
        """The figures of a tensor, or of a module.

        Raises:
            PathError: there is none of that name.
        """
        everything: tuple[TensorStats | GroupStats, ...] = (*self.tensors, *self.modules)
        for one in everything:
            if one.name == name:
                return one
        raise PathError(f"no tensor and no module {name!r}")

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "modules": [module.to_json() for module in self.modules],
            "dtypes": [kind.to_json() for kind in self.dtypes],
            "total": self.total.to_json(),
            "flags": [asdict(flag) for flag in self.flags],
            "optimizers": [one.to_json() for one in self.optimizers],
        }


@dataclass(frozen=True, slots=True)
class Flag:
    """Something that deserves a look.

    Attributes:
        name: the tensor's path, or the optimizer's.
        kind: `nan`, `inf`, `zeros`, `constant`, `dead rows`, `exploded`, `denormal` or `edge`; of an optimizer
            `missing state`, `stale state` or `steps`.
        what: what was found, in words.
    """

    name: str
    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"
