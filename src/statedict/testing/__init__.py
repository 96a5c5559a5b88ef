"""Conformance suites for packages that add formats and adapters; they take the extra `testing`."""

from statedict.testing.adapters import AdapterTests as AdapterTests
from statedict.testing.files import FileTests as FileTests
from statedict.testing.formats import Format as Format
from statedict.testing.formats import TensorTests as TensorTests
from statedict.testing.same import assert_same as assert_same
from statedict.testing.trees import TreeTests as TreeTests
