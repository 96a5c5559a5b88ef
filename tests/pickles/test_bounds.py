"""The bounds that the machine states hold for pickles made to exceed them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from statedict.errors import CorruptFileError, LimitError, StateDictError
from statedict.pickles.budget import FACTOR, RESERVE
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA
from statedict.values import Opaque

from ..work import assert_linear, steps
from . import bombs, constructions

SMALL, LARGE = 300_000, 1_500_000
SLACK = 2 << 20  # of the allocator, and of what Python makes at its first error


def bound(length: int) -> int:
    return (64 << 20) + 20 * length


def measure(name: str, *sizes: int) -> list[tuple[str, int, int]]:
    command = [sys.executable, bombs.__file__, name, *map(str, sizes)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.splitlines()
    return [(outcome, int(memory), int(length)) for outcome, memory, length in map(str.split, lines)]


@pytest.mark.parametrize("name", bombs.BOMBS)
def test_memory_stays_within_the_bounds(name: str) -> None:
    for outcome, memory, length in measure(name, SMALL, LARGE):
        assert memory <= bound(length)
        assert outcome in ("read", "CorruptFileError", "TruncatedError", "LimitError")


@pytest.mark.parametrize("name", bombs.BOMBS)
def test_work_is_linear(name: str) -> None:
    def cost(size: int) -> int:
        data = bombs.BOMBS[name](size)
        return steps(lambda: load(data, DATA), StateDictError)

    assert_linear(cost, 40_000, 160_000)


@pytest.mark.parametrize("name", ["nothings", "short strings", "a tuple of nothings", "short long integers"])
def test_memory_stays_within_the_bounds_for_a_pickle_of_many_megabytes(name: str) -> None:
    ((outcome, memory, length),) = measure(name, 12_000_000)
    assert outcome in ("read", "CorruptFileError", "TruncatedError", "LimitError")
    assert memory <= bound(length)


def test_no_constructor_takes_more_than_it_is_charged_with() -> None:
    done = subprocess.run([sys.executable, constructions.__file__], check=True, capture_output=True, text=True)
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    over = [f"{label}: {memory} of {charged}" for memory, charged, label in lines if int(memory) > int(charged) + SLACK]
    assert len(lines) > 150
    assert not over


def test_every_constructor_is_among_those_that_are_measured() -> None:
    assert not [name for name in DATA if not constructions.covered(name)]


def test_the_bounds_are_those_of_the_documentation() -> None:
    from statedict.pickles import budget

    assert (RESERVE, FACTOR) == (48 << 20, 17)
    assert "48 MB + 17 bytes" in str(budget.__doc__)


def test_a_limit_names_what_was_asked_for() -> None:
    with pytest.raises(LimitError, match=r"asks for more than \d+ MiB so far, the most that a pickle of its size may"):
        load(b"}" * 420_000, DATA)


@pytest.mark.parametrize("name", ["a key of nested pairs", "keys of one hash", "a key of nested frozensets"])
def test_keys_that_take_for_ever_are_refused(name: str) -> None:
    with pytest.raises(LimitError, match="hash"):
        load(bombs.BOMBS[name](10_000), DATA)


def test_the_keys_of_one_hash_have_one_hash() -> None:
    keys = {}
    for number in range(1, 40):
        keys |= load(b"}(" + bombs._colliding_tuples(number) + b"u.", DATA)[0]
    assert len(keys) == 39
    assert len(set(map(hash, keys))) == 1


def test_deep_nesting_is_read_and_let_go() -> None:
    found = load(b"]" * 300_000 + b"a" * 299_999 + b".", DATA)[0]
    depth = 0
    while found:
        (found,) = found
        depth += 1
    assert depth == 299_999


def test_nine_bytes_that_claim_an_exabyte_are_refused() -> None:
    with pytest.raises(CorruptFileError, match="1,152,921,504,606,846,976 bytes goes past the end"):
        load(b"\x8e" + (1 << 60).to_bytes(8, "little"), DATA)


def test_nine_bytes_with_a_huge_memo_index_cost_one_entry() -> None:
    data = b"\x80\x02Nr\xff\xff\xff\x7f."
    assert load(data, DATA) == (None, 9)


@pytest.mark.parametrize("data", [b"\x80\x02Nr\0\0\0\x80.", b"\x80\x02Nr\xff\xff\xff\xff.", b"Np2147483648\n."])
def test_a_memo_index_that_no_pickler_reaches_is_damage(data: bytes) -> None:
    with pytest.raises(CorruptFileError, match="a memo index of"):
        load(data, DATA)


def test_laughs_are_read_as_the_few_lists_that_they_are() -> None:
    found = load(bombs.BOMBS["laughs"](0), DATA)[0]
    for _ in range(200):
        assert len(found) == 10
        assert all(item is found[0] for item in found)
        found = found[0]
    assert found == 1


@pytest.mark.parametrize("depth", [3, 200])
def test_a_chain_of_calls_keeps_what_is_called(depth: int) -> None:
    found = load(b"cmaker\nmake\n(K\x01tR" + b")R" * depth + b".", DATA)[0]
    for _ in range(depth):
        assert found.name.startswith("maker.make()")
        found, arguments = found.args
        assert arguments == ()
    assert found == Opaque("maker.make", (1,))
