"""Pickles against Python's own unpicklers: no name that they look up is missing, and we show what they build.

    scan    every name that any reader looks up stands in the verdict, or the verdict says that the file is damaged
    load    what we read equals what each reader that reaches STOP builds: types, order, aliases, bits of numbers

The readers (fuzz/readers.py) resolve nothing. Programs run in processes of their own, thousands in each; one that dies
or hangs leaves its program behind. See docs/security.md.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz import readers
from fuzz.programs import EXTENSIONS, program
from fuzz.readers import Label, Made
from statedict.errors import StateDictError
from statedict.io.source import BytesSource
from statedict.pickles.machine import load
from statedict.pickles.objects import Global
from statedict.scanner.names import COMPUTED, MORE
from statedict.scanner.scan import Scan
from statedict.scanner.verdicts import is_lines
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

ROUND = 20_000  # programs a process
_STUCK = 30  # seconds without progress
_MEMORY = 256 << 20  # more than there is at the start
_KEPT = 20  # failures of a round
_IDENTIFIERS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_MODULE = {"_parameters", "_buffers", "_modules"}


@dataclass
class Score:
    """What became of the programs.

    Attributes:
        programs: how many there were.
        read: how many of them at least one of Python's readers reads to its STOP.
        shown: how many of these `load` reads, with the same value.
        apart: how many of these the readers read differently, or not all of them read.
        named: how many look something up.
        names: how many names were looked up.
        refused: how many of the programs that name something the scan calls damaged.
        opcodes: which opcodes were in them.
        failures: what did not hold, and the program in hexadecimal.
        seconds: of all processes.
    """

    programs: int = 0
    read: int = 0
    shown: int = 0
    apart: int = 0
    named: int = 0
    names: int = 0
    refused: int = 0
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Score) -> None:
        """Count others."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class DiffersError(Exception):
    """What we show is not what a reader builds."""


def same(ours: Any, theirs: Any) -> None:
    """Compare what we read with what a reader built.

    Raises:
        DiffersError: they are not the same.
    """
    pairs: dict[int, int] = {}
    pending = [(ours, theirs, "value")]
    while pending:
        mine, other, path = pending.pop()
        known = pairs.get(id(mine))
        if known is not None and known == id(other):
            continue
        if type(mine) in (StateDict, list, set, bytearray, Opaque):
            if known is not None:
                raise DiffersError(f"{path}: one object there, two here")
            pairs[id(mine)] = id(other)
        elif type(mine) is tuple:
            pairs[id(mine)] = id(other)
        pending += _inner(mine, other, path)


def _inner(mine: Any, other: Any, path: str) -> list[tuple[Any, Any, str]]:
    """The parts to compare further, of two values that are the same as far as they go."""
    if type(mine) is Global:
        if type(other) is not Label or mine.name not in _spellings(other):
            raise DiffersError(f"{path}: {mine.name} for {_name(other)}")
        return []
    if type(mine) is Opaque:
        return _opaque(mine, other, path)
    kind = dict if type(mine) is StateDict else type(mine)
    if kind is not type(other):
        raise DiffersError(f"{path}: a {kind.__name__} for a {type(other).__name__}")
    if kind is float:
        if struct.pack("<d", mine) != struct.pack("<d", other):
            raise DiffersError(f"{path}: {mine!r} for {other!r}")
        return []
    if kind in (tuple, list, dict, set, frozenset) and len(mine) != len(other):
        raise DiffersError(f"{path}: {len(mine)} items for {len(other)}")
    if kind is dict:
        both = list(zip(mine.items(), other.items(), strict=True))
        return [pair for (k, v), (K, V) in both for pair in ((k, K, f"{path} key"), (v, V, f"{path}.{k!r:.20}"))]
    if kind in (tuple, list):
        return [(a, b, f"{path}.{at}") for at, (a, b) in enumerate(zip(mine, other, strict=True))]
    if kind in (set, frozenset):
        plain = [
            sorted(repr(item) for item in held if not isinstance(item, (Opaque, Made, Label))) for held in (mine, other)
        ]
        if plain[0] != plain[1] and not any(isinstance(item, (tuple, frozenset)) for item in mine):
            raise DiffersError(f"{path}: {plain[0]} for {plain[1]}")
        return []
    if mine != other:
        raise DiffersError(f"{path}: {mine!r:.40} for {other!r:.40}")
    return []


def _opaque(mine: Opaque, other: Any, path: str) -> list[tuple[Any, Any, str]]:
    if type(other) is not Made:
        raise DiffersError(f"{path}: an object for {other!r:.40}")
    pairs: list[tuple[Any, Any, str]] = []
    args = mine.args
    if type(other.of) is Made:
        if not mine.name.endswith("()") or type(args) is not tuple or len(args) != 2:
            raise DiffersError(f"{path}: {mine.name} for the call of a result")
        pairs.append((args[0], other.of, f"{path} function"))
        args = args[1]
    elif mine.name not in _spellings(other.of):
        raise DiffersError(f"{path}: {mine.name} for {_name(other.of)}")
    theirs: Any = (other.args, other.named) if other.named else other.args
    pairs.append((args, theirs, f"{path} arguments"))
    if not other.set_by_call and not (isinstance(other.state, dict) and other.state.keys() >= _MODULE):
        pairs.append((mine.state, other.state, f"{path} state"))
    return [
        *pairs,
        (mine.items or None, other.items or None, f"{path} items"),
        (mine.entries or None, other.entries or None, f"{path} entries"),
    ]


def _spellings(of: Any) -> set[str]:
    if type(of) is not Label:
        return {str(of)}
    codes = {f"copyreg.extension {code}" for code, key in EXTENSIONS.items() if key == (of.module, of.name)}
    return {f"{of.module}.{of.name}", *codes}


def _name(of: Any) -> str:
    return f"{of.module}.{of.name}" if type(of) is Label else repr(of)[:40]


def scanned(data: bytes) -> Scan:
    """What a scan of a file with these bytes finds."""
    found = Scan("")
    found.look(BytesSource(data, "a program"), "")
    return found


def _as_utf8(module: str, name: str) -> list[tuple[str, str]]:
    """What a name may be called where strings are read as UTF-8, and not as Latin-1: its parts may be texts too."""

    def both(text: str) -> tuple[str, ...]:
        try:
            return text, text.encode("latin-1").decode()
        except UnicodeError:
            return (text,)

    return [(one, other) for one in both(module) for other in both(name)]


def missing(found: Scan, data: bytes, names: set[tuple[str, str]], stopped: bool) -> set[tuple[str, str]]:
    """The names that are neither in a verdict nor in a file that is called damaged.

    Of what no reader reads to STOP, names that no import statement could hold and numbers of the registry do not count,
    and in lines of text none does: lists of words would be called pickles.
    """
    if found.damage:
        return set()
    known = {(one.module, one.name) for one in found.found.values()}
    known |= {("", name) for module, name in known if module == "?"}
    if any(kind in (COMPUTED, MORE) for *_, kind in found.found):
        return set()
    codes = {key for code, key in EXTENSIONS.items() if ("copyreg", f"extension {code}") in known}
    left = names - known - codes
    if not stopped:
        left = {name for name in left - set(EXTENSIONS.values()) if all(map(_IDENTIFIERS.fullmatch, name))}
        left = set() if is_lines(data[:512]) else left
    return left


def check(data: bytes, encoding: str, phase: Any = None) -> tuple[Score, str]:
    """Run one program through everything; what is counted, and what did not hold."""
    score = Score(1)
    note = phase or (lambda what: None)
    note(0)
    results = {reader: readers.read(reader, data, encoding) for reader in readers.READERS}
    names = set().union(*(found for found, _, _ in results.values()))
    stopped = [name for name, (_, done, _) in results.items() if done]
    note(1)
    found = scanned(data)
    score.named, score.names = int(bool(names)), len(names)
    score.refused = int(bool(names and found.damage))
    left = missing(found, data, names, bool(stopped))
    if encoding == "latin-1":  # we read strings of Python 2 as UTF-8
        left = {name for name in left if all(missing(found, data, {one}, bool(stopped)) for one in _as_utf8(*name))}
    if left:
        return score, f"scan misses {min(left)}"
    note(2)
    try:
        ours, _ = load(data, {})
    except StateDictError:
        ours = found = None  # type: ignore[assignment]
    score.read, score.apart = int(bool(stopped)), int(0 < len(stopped) < len(results))
    if found is not None and encoding == "utf-8":
        for reader in stopped:
            try:
                same(ours, results[reader][2])
            except DiffersError as differs:
                return score, f"load shows, beside {reader}, {differs}"
        score.shown = int(bool(stopped))
    return score, ""


def bound() -> None:
    """Bound this process's memory: some pickles ask for as much as there is."""
    limit = _MEMORY + resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def rounds(seed: str, count: int, shared: mmap.mmap, said: Path) -> None:
    """Run programs, in the process that this is; the tally goes to a file at the end."""
    warnings.simplefilter("ignore")
    sys.excepthook = lambda *error: None  # CPython prints of a bytearray that it frees too early
    bound()
    random, score = Random(seed), Score()
    start = time.monotonic()
    for at in range(count):
        data = program(random)
        encoding = random.choice(("utf-8",) * 8 + ("latin-1", "bytes", "ascii"))
        shared.seek(0)
        shared.write(struct.pack("<BII", 0, at, len(data)) + data[: len(shared) - 9])
        try:
            one, failure = check(data, encoding, lambda what: shared.__setitem__(0, what))
        except RecursionError as error:
            one, failure = Score(1), f"raises {error!r}"
        except Exception as error:
            one, failure = Score(1), f"raises {type(error).__name__}: {str(error)[:100]}"
        score.add(one)
        if failure and len(score.failures) < _KEPT:
            score.failures.append((failure, data.hex()))
    score.seconds = time.monotonic() - start
    said.write_text(json.dumps(vars(score)))


def run(seed: str, count: int) -> Score:
    """Run programs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, mmap.mmap(-1, 1 << 16) as shared:
        said = Path(folder, "said")
        child = os.fork()
        if not child:
            status = 1
            try:
                with readers.registered():
                    rounds(seed, count, shared, said)
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        how = _wait(child, shared)
        if said.exists():
            score = Score(**json.loads(said.read_text()))
            score.failures = [(why, data) for why, data in score.failures]
            return score
        phase, at, length = struct.unpack_from("<BII", shared)
        data = bytes(shared[9 : 9 + length])
        if not phase:  # one of Python's readers; ours are not asked
            print(f"a reader of Python's {how} at program {at} of {seed!r}; the round ends there", flush=True)
            return Score(at)
        return Score(at + 1, failures=[(f"{('', 'scan', 'load')[phase]} {how}", data.hex())])


def _wait(child: int, shared: mmap.mmap) -> str:
    last, since = b"", time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return f"dies with status {status}"
        now = bytes(shared[:9])
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > _STUCK:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hangs"
        time.sleep(0.05)


def smaller(data: bytes) -> bytes:
    """The program with as much taken out as leaves the same kind of failure."""

    def kind(candidate: bytes) -> str:
        try:
            return re.sub(r"\W.*", "", check(candidate, "utf-8")[1])
        except Exception as error:
            return type(error).__name__

    wanted, length = kind(data), len(data)
    while wanted and (length := length // 2):
        at = 0
        while at < len(data):
            candidate = data[:at] + data[at + length :]
            if kind(candidate) == wanted:
                data = candidate
            else:
                at += length
    return data


def hunt(seed: str, programs: int, jobs: int) -> Score:
    """Run so many programs, in so many processes at a time."""
    total = Score()
    sizes = [min(ROUND, programs - at) for at in range(0, programs, ROUND)]
    with ThreadPoolExecutor(jobs) as pool:
        for score in pool.map(lambda one: run(f"{seed} {one[0]}", one[1]), enumerate(sizes)):
            total.add(score)
            if len(sizes) > 1:
                print(f"{total.programs:>10,} programs, {len(total.failures)} failures", flush=True)
    return total


def main(arguments: list[str]) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser("python -m fuzz differential", description=__doc__)
    parser.add_argument("--programs", type=int, default=100_000, help="how many (default 100,000)")
    parser.add_argument("--seed", default="0", help="the same seed gives the same programs (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    total = hunt(options.seed, options.programs, options.jobs)
    print(
        f"{total.programs:,} programs in {time.monotonic() - start:,.0f} s, {sys.version.split()[0]}: "
        f"{total.read:,} read by an unpickler of Python's, {total.apart:,} of them not by all; {total.shown:,} shown "
        f"the same; {total.named:,} look up {total.names:,} names, {total.refused:,} of them damaged; "
        f"{len(total.failures)} failures"
    )
    warnings.simplefilter("ignore")
    for why, count in Counter(why.partition(":")[0] for why, _ in total.failures).most_common():
        print(f"  {count} × {why}")
    bound()
    for why, data in total.failures[:_KEPT]:
        with readers.registered():
            print(f"  {why}\n    {bytes.fromhex(data)!r}\n    {smaller(bytes.fromhex(data))!r}")
    return int(bool(total.failures))
