"""The checkpoints of a training run: `CheckpointManager`, and the policies of saving and keeping.

| module | holds |
|---|---|
| `manager.py` | `CheckpointManager` |
| `manifest.py` | what a checkpoint's directory says of itself |
| `directory.py` | a run's directory: what is committed in it, what is left over; commit, remove |
| `lock.py` | one process writes at a time |
| `keep.py`, `prune.py` | policies; what they leave of a run |
| `writer.py`, `background.py` | a checkpoint on its way to the disk; what goes on while training does |
| `coverage.py`, `rng.py` | what a tree does not capture; the generators that a process shares |
| `loader.py` | a data loader that goes on in the middle of an epoch |
| `preemption.py` | signals |
"""

from statedict.runs.keep import AnyPolicy as AnyPolicy
from statedict.runs.keep import BestN as BestN
from statedict.runs.keep import CustomSteps as CustomSteps
from statedict.runs.keep import EveryNSeconds as EveryNSeconds
from statedict.runs.keep import EveryNSteps as EveryNSteps
from statedict.runs.keep import LatestN as LatestN
from statedict.runs.loader import ResumableLoader as ResumableLoader
from statedict.runs.manager import CheckpointManager as CheckpointManager
