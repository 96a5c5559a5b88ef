"""The checkpoints of a training run: `CheckpointManager`, and the policies of saving and keeping.

| module | holds |
|---|---|
| `manager.py`, `exclusive.py`, `arguments.py` | `CheckpointManager`; its right to write; what callers pass |
| `manifest.py` | what a checkpoint's directory says of itself |
| `directory.py` | a run's directory: what is committed in it, what is left over; commit, remove |
| `lock.py` | one process writes at a time |
| `keep.py`, `prune.py` | policies; what they leave of a run |
| `writer.py`, `background.py` | a checkpoint on its way to the disk; what goes on while training does |
| `coverage.py`, `rng.py` | what a tree does not capture; the generators that a process shares |
| `loader.py` | a data loader that goes on in the middle of an epoch |
| `preemption.py` | signals |
| `look/reader.py` | the read-only base of `CheckpointManager` |
| `look/listing.py`, `look/foreign.py` | the checkpoints in any directory, damaged ones too; those of others |
| `look/description.py` | what one checkpoint says of itself |
| `look/history.py`, `look/bisection.py` | when tensors changed and got NaN; which step broke a run |
"""

from statedict.runs.keep import AnyPolicy as AnyPolicy
from statedict.runs.keep import BestN as BestN
from statedict.runs.keep import CustomSteps as CustomSteps
from statedict.runs.keep import EveryNSeconds as EveryNSeconds
from statedict.runs.keep import EveryNSteps as EveryNSteps
from statedict.runs.keep import LatestN as LatestN
from statedict.runs.loader import ResumableLoader as ResumableLoader
from statedict.runs.look.bisection import Bisection as Bisection
from statedict.runs.look.bisection import bisect as bisect
from statedict.runs.look.description import About as About
from statedict.runs.look.description import about as about
from statedict.runs.look.history import Blame as Blame
from statedict.runs.look.history import blame as blame
from statedict.runs.look.listing import Checkpoint as Checkpoint
from statedict.runs.look.listing import RunVerified as RunVerified
from statedict.runs.look.listing import listing as listing
from statedict.runs.look.listing import verify_run as verify_run
from statedict.runs.manager import CheckpointManager as CheckpointManager
from statedict.runs.prune import Pruned as Pruned
from statedict.runs.prune import pin as pin
from statedict.runs.prune import prune as prune
