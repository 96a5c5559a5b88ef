"""The checkpoints of a training run: `CheckpointManager`, policies, and what looks at a run.

| module | holds |
|---|---|
| `manager.py` | `CheckpointManager` |
| `manifest.py` | what a checkpoint's directory says about itself |
| `directory.py`, `places.py` | a run's directory; how it changes on a disk and in a store |
| `replaced.py` | what a run begun anew replaces |
| `lock.py` | one process writes at a time |
| `keep.py`, `prune.py` | policies; what they leave of a run |
| `writer.py`, `background.py`, `ending.py` | saves; beside training; signals, and the end of the program |
| `rng.py` | the random generators of a process |
| `loader.py` | a data loader that resumes in the middle of an epoch; what a tree does not capture |
| `look/reader.py` | the read-only base of `CheckpointManager` |
| `look/listing.py`, `look/foreign.py` | the checkpoints in any directory, damaged and foreign ones too |
| `look/history.py`, `look/bisection.py` | when tensors changed; which step broke a run |
"""

from statedict.reports.runs import About as About
from statedict.reports.runs import Bisection as Bisection
from statedict.reports.runs import Blame as Blame
from statedict.reports.runs import Checkpoint as Checkpoint
from statedict.reports.runs import Pruned as Pruned
from statedict.reports.runs import RunVerified as RunVerified
from statedict.runs.keep import AnyPolicy as AnyPolicy
from statedict.runs.keep import BestN as BestN
from statedict.runs.keep import CustomSteps as CustomSteps
from statedict.runs.keep import EveryNSeconds as EveryNSeconds
from statedict.runs.keep import EveryNSteps as EveryNSteps
from statedict.runs.keep import LatestN as LatestN
from statedict.runs.loader import ResumableLoader as ResumableLoader
from statedict.runs.look.bisection import bisect as bisect
from statedict.runs.look.history import blame as blame
from statedict.runs.look.listing import about as about
from statedict.runs.look.listing import listing as listing
from statedict.runs.look.listing import verify_run as verify_run
from statedict.runs.manager import CheckpointManager as CheckpointManager
from statedict.runs.prune import pin as pin
from statedict.runs.prune import prune as prune
