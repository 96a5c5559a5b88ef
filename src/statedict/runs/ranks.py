"""Which of several processes that train together this one is; torch is asked only where it is imported already."""

from __future__ import annotations

import os
import sys

_VARIABLES = (  # of torchrun and accelerate, Open MPI, Slurm
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)


def rank() -> tuple[int, int]:
    """The rank of this process and how many there are; (0, 1) where nothing says so.

    >>> rank()
    (0, 1)
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    for variables in _VARIABLES:
        number, count = (os.environ.get(name, "") for name in variables)
        if number.isdecimal() and count.isdecimal() and int(count) > 1:
            return int(number), int(count)
    return 0, 1
