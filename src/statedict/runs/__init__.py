"""The checkpoints of a training run: `CheckpointManager`, policies, and in `look/` the readers' side."""

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
