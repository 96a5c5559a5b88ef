"""Of statedict.testing."""

from statedict.testing.same import assert_same as assert_same
from statedict.testing.same import in_numpy as in_numpy
from statedict.testing.same import in_torch as in_torch
from statedict.testing.same import overlaps as overlaps
from statedict.testing.same import patterned as patterned
from statedict.testing.same import raw as raw
