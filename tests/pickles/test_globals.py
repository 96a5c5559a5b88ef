"""The walk lists what `pickletools` lists, whatever way a name takes, and within its bounds."""

from __future__ import annotations

import collections
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statedict.errors import CorruptFileError
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA as ALLOWED
from statedict.scanner.globals import Walk, walk
from statedict.scanner.names import ALTERED, COMPUTED, EXTENSION, MAX_DISTINCT, MORE, OBJECTS, GlobalRef
from statedict.scanner.verdicts import DANGEROUS, DATA, OPAQUE, grade

from ..work import assert_linear, steps


def over(data: bytes, **options: Any) -> Walk:
    return walk(lambda at, length: data[at : at + length], **options)


def names(data: bytes) -> list[tuple[str, str]]:
    return [(found.module, found.name) for found in over(data).globals]


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def from_pickletools(data: bytes) -> collections.Counter[tuple[str, str]]:
    """Every GLOBAL and STACK_GLOBAL of a pickle that Python's own pickler wrote, where names are the last two texts."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    memo: list[object] = []
    stack: list[object] = []  # only texts and what replaces them matter, and the pickler puts both right before
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            module, name = str(argument).split(" ")
            found[module, name] += 1
            stack.append(None)
        elif opcode.name == "STACK_GLOBAL":
            found[str(stack[-2]), str(stack[-1])] += 1
            stack.append(None)
        elif opcode.name == "MEMOIZE":
            memo.append(stack[-1])
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            assert isinstance(argument, int)
            stack.append(memo[argument] if argument < len(memo) else None)  # of old pickles, which need none
        elif opcode.name not in ("PROTO", "FRAME"):
            stack.append(argument if isinstance(argument, str) else None)
    return found


class Point:
    def __init__(self, x: object) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point)

    __hash__ = object.__hash__


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.sampled_from(
        [os.system, collections.OrderedDict, len, pickle.loads, Point, np.float32, complex(1, 2), range(3), Ellipsis]
    )
    | st.builds(Point, st.integers())
    | st.builds(lambda n: np.arange(n), st.integers(0, 4))
    | st.builds(bytearray, st.binary(max_size=9))
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=5), inner, max_size=5)
        | st.tuples(inner, inner)
        | st.builds(Point, inner)
    ),
    max_leaves=30,
)


@given(TREES, st.integers(0, 5))
def test_the_globals_of_any_pickle_are_those_that_pickletools_lists(tree: object, protocol: int) -> None:
    data = pickle.dumps(tree, protocol)
    found = over(data)
    assert not found.problem
    assert found.end == len(data)
    listed = {(one.module, one.name): one.count for one in found.globals if not one.kind}
    assert listed == dict(from_pickletools(data))


@given(TREES, st.integers(0, 5), st.data())
def test_a_walk_of_a_truncated_pickle_lists_what_came_before_and_says_that_it_ends_early(
    tree: object, protocol: int, pick: st.DataObject
) -> None:
    data = pickle.dumps(tree, protocol)
    length = pick.draw(st.integers(0, len(data) - 1))
    found = over(data[:length])
    assert found.problem
    assert found.truncated
    whole = [(one.module, one.name, one.kind) for one in over(data).globals]
    cut = [(one.module, one.name, one.kind) for one in found.globals if one is not found.cut or one.count > 1]
    assert cut == whole[: len(cut)]


@given(st.binary(max_size=400))
def test_a_walk_over_anything_ends_within_it(data: bytes) -> None:
    found = over(data, torch=True)
    assert 0 <= found.end <= len(data)
    assert found.problem or data[found.end - 1 : found.end] == b"."


OS_SYSTEM = {
    "GLOBAL": b"cos\nsystem\n.",
    "STACK_GLOBAL": short("os") + short("system") + b"\x93.",
    "INST": b"(ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x02\0\0\0lso.",
    "through the memo": short("os") + b"\x94" + short("system") + b"\x940" + b"0h\x00h\x01\x93.",
    "through BINPUT out of order": short("system") + b"q\x07" + short("os") + b"q\x030" + b"0h\x03h\x07\x93.",
    "through LONG_BINPUT": short("os") + b"r\xff\x00\x00\x00" + b"0j\xff\x00\x00\x00" + short("system") + b"\x93.",
    "through PUT and GET": b"Vos\np9\n0g9\nVsystem\n\x93.",
    "MEMOIZE after BINPUT counts entries": b"Nq\x010" + short("os") + b"q\x000" + short("system") + b"\x940"
    b"h\x00h\x02\x93.",
    "MEMOIZE into the place of another": b"Nq\x010" + short("system") + b"\x940" + short("os") + b"h\x01\x93.",
    "BINUNICODE": b"X\x02\0\0\0osX\x06\0\0\0system\x93.",
    "BINUNICODE8": b"\x8d\x02\0\0\0\0\0\0\0os\x8d\x06\0\0\0\0\0\0\0system\x93.",
    "BINSTRING": b"T\x02\0\0\0osT\x06\0\0\0system\x93.",
    "SHORT_BINSTRING": b"U\x02osU\x06system\x93.",
    "UNICODE with escapes": b"V\\u006fs\nV\\u0073ystem\n\x93.",
    "STRING with escapes": b"S'\\x6fs'\nS\"\\x73ystem\"\n\x93.",
    "with a value popped in between": short("os") + b"K\x010" + short("system") + b"\x93.",
    "with a mark popped in between": short("os") + b"(" + b"NN1" + short("system") + b"\x93.",
    "with DUP": short("system") + b"2q\x000" + b"0" + short("os") + b"h\x00\x93.",
    "after many frames": b"\x80\x04" + b"\x95\0\0\0\0\0\0\0\0" * 100 + short("os") + short("system") + b"\x93.",
    "after a window of junk": b"N0" * 100_000 + b"cos\nsystem\n.",
    "after a long text": b"X\x00\x00\x20\x00" + b"a" * (1 << 21) + b"0cos\nsystem\n.",
    "in the midst of texts of all lengths": b"".join(b"\x8c" + bytes([n]) + b"c" * n + b"0" for n in range(256)) * 20
    + b"cos\nsystem\n.",
}  # fmt: skip


@pytest.mark.parametrize("way", OS_SYSTEM)
def test_a_name_is_found_whichever_way_it_comes(way: str) -> None:
    found = over(OS_SYSTEM[way])
    assert [(one.module, one.name, one.kind) for one in found.globals] == [("os", "system", "")]
    assert found.end == len(OS_SYSTEM[way])
    assert not found.problem or way == "OBJ"


# what no constant names: the walk must not be led to another name
COMPUTED_NAMES = {
    "a number": b"K\x01" + short("system") + b"\x93.",
    "the result of a call": short("os") + b"cbuiltins\nstr\n" + b")R\x93.",
    "a persistent object": b"NQ" + short("system") + b"\x93.",
    "bytes": b"C\x02os" + short("system") + b"\x93.",
    "a memo entry that was never put": b"h\x05" + short("system") + b"\x93.",
    "a memo of four billion": short("os") + b"r\xff\xff\xff\xff0j\xff\xff\xff\xff" + short("system") + b"\x93.",
    "a text of 2,000 characters": b"X\xd0\x07\0\0" + b"o" * 2000 + short("system") + b"\x93.",
    "a memo entry that an uncounted one moved": short("posix") + b"r\xff\xff\xff\xff" + b"\x940h\x01"
    + short("system") + b"\x93.",
    "a line of 2,000 characters": b"c" + b"o" * 2000 + b"\nsystem\n.",
}  # fmt: skip


@pytest.mark.parametrize("way", COMPUTED_NAMES)
def test_a_name_that_is_no_constant_is_dangerous(way: str) -> None:
    found = [one for one in over(COMPUTED_NAMES[way]).globals if one.module != "builtins"]
    assert [one.kind for one in found] == [COMPUTED]
    assert grade(found[0], ALLOWED)[0] == DANGEROUS


def test_numbers_of_the_extension_registry_are_dangerous() -> None:
    for data, code in ((b"\x82\x07.", 7), (b"\x83\x07\x01.", 263), (b"\x84\x07\0\0\x01.", 16777223)):
        (found,) = over(data).globals
        assert (found.module, found.name, found.kind) == ("copyreg", f"extension {code}", EXTENSION)
        assert grade(found, ALLOWED)[0] == DANGEROUS


def test_how_a_global_is_used_is_counted() -> None:
    data = b"cos\nsystem\nq\x00)R0h\x00)\x810h\x00)}\x920h\x00}b0(h\x00o0(ios\nsystem\n0ca\nb\n."
    system, altered, named = over(data).globals
    assert (altered.module, altered.name, altered.kind, altered.count) == ("os", "system", ALTERED, 1)
    assert (system.count, system.called) == (2, 6)
    assert (named.count, named.called) == (1, 0)
    assert (system.offset, named.offset) == (0, data.index(b"ca\n"))


ALTERATIONS = {
    "BUILD": b"chome\nThing\n}b.",
    "BUILD with slots": b"chome\nThing\nN}\x86b.",
    "BUILD through the memo": b"chome\nThing\nq\x00}b0h\x00.",
    "BUILD of a class that is data": b"ccollections\nOrderedDict\n}b.",
    "SETITEM": b"chome\nTHINGS\nK\x01K\x02s.",
    "SETITEMS": b"chome\nTHINGS\n(K\x01K\x02u.",
    "APPEND": b"chome\nTHINGS\nK\x01a.",
    "APPENDS": b"chome\nTHINGS\n(K\x01e.",
    "ADDITEMS": b"chome\nTHINGS\n(K\x01\x90.",
}


@pytest.mark.parametrize("way", ALTERATIONS)
def test_what_is_stored_in_a_global_itself_is_dangerous_and_not_read(way: str) -> None:
    named, altered = over(ALTERATIONS[way]).globals
    assert (named.module, named.name, named.kind) == (altered.module, altered.name, "")
    assert altered.kind == ALTERED
    assert grade(altered, ALLOWED) == (DANGEROUS, "something is stored in it: loading changes it for the whole process")
    with pytest.raises(CorruptFileError):
        load(ALTERATIONS[way], ALLOWED)


def test_what_is_stored_in_an_object_that_a_call_made_alters_nothing() -> None:
    for data in (b"chome\nThing\n)\x81}b.", b"chome\nThing\n)R(K\x01e(K\x01K\x02u(K\x01\x90K\x01aK\x01K\x02s."):
        assert [one.kind for one in over(data).globals] == [""]


def test_no_pickle_changes_what_the_next_one_reads() -> None:
    for name in ALLOWED:
        module, _, attribute = name.rpartition(" ")
        data = f"c{module}\n{attribute}\n".encode()
        for store in (b"}K\x01K\x02sb.", b"K\x01K\x02s.", b"K\x01a.", b"(K\x01\x90."):
            with pytest.raises(CorruptFileError):
                load(data + store, ALLOWED)


@pytest.mark.parametrize("protocol", range(6))
def test_a_dtype_of_python_objects_is_found(protocol: int) -> None:
    kinds = [one.kind for one in over(pickle.dumps(np.array([1, None]), protocol)).globals]
    assert kinds.count(OBJECTS) == 1
    record = np.zeros(2, [("a", "f4"), ("b", "O")])
    assert OBJECTS in [one.kind for one in over(pickle.dumps(record, protocol)).globals]
    assert OBJECTS not in [one.kind for one in over(pickle.dumps(np.zeros(3), protocol)).globals]


def handed_on(data: bytes) -> list[bytes]:
    seen: list[bytes] = []

    def nested(at: int, length: int, decode: Callable[[bytes], str | bytes] | None) -> None:
        raw = data[at : at + length]
        value = raw if decode is None else decode(raw)
        seen.append(value.encode("latin-1") if isinstance(value, str) else value)

    over(data, nested=nested)
    return seen


def test_constants_that_may_hide_a_pickle_are_handed_on() -> None:
    for protocol in range(3, 6):
        inner = pickle.dumps(list(range(20)), protocol)
        data = pickle.dumps({"x": inner, "y": b"nothing in it at all"}, protocol)
        assert handed_on(data) == [inner]
    for protocol in range(6):
        inner = pickle.dumps([1, os.system, "\n"], protocol)
        assert handed_on(pickle.dumps(inner, protocol)) == [inner]
    assert handed_on(pickle.dumps(["conv1.weight", "a much longer text", b"some more bytes"], 2)) == []


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "ends early"),
        (b"\x80\x04", "ends early"),
        (b"\xff", "is not an opcode"),
        (b"cos\nsystem\nR", "empty stack"),
        (b"cos\nsystem\n\xff", "is not an opcode"),
        (b"t.", "empty stack"),
        (b".", "without a value"),
        (b"B\xff\xff\xff\xffabc", "4,294,967,295 bytes goes past the end"),
        (b"\x8e" + struct.pack("<Q", 1 << 60), "goes past the end"),
        (b"Vabc", "a line goes past the end"),
    ],
)
def test_a_damaged_pickle_says_what_is_wrong_with_it(data: bytes, problem: str) -> None:
    assert problem in over(data).problem


def test_the_rest_of_the_last_line_is_a_name_since_one_reader_takes_it_for_one() -> None:
    for data, name in (
        (b"chome\nThing!", ("home", "Thing")),
        (b"chome!", ("home", "")),
        (b"(ihome\nThing!", ("home", "Thing")),
    ):
        found = over(data)
        assert found.truncated
        assert names(data) == [name]
        assert found.cut is found.globals[0]


# what makes walks slow or large; each grows with its size
HEAVY: dict[str, Callable[[int], bytes]] = {
    "marks": lambda n: b"(" * n,
    "tuples": lambda n: b")" * n,
    "short texts": lambda n: b"\x8c\x01a\x94" * (n // 4),
    "globals": lambda n: b"ca\nb\n" * (n // 5),
    "distinct globals": lambda n: b"".join(b"ca\n%d\n" % i for i in range(n // 9)),
    "names from the memo": lambda n: short("a") + b"\x94" + b"h\x00h\x00\x93" * (n // 5),
    "distinct names from the memo": lambda n: b"".join(b"\x8c\x04%04d\x94" % i for i in range(256)) + b"".join(
        b"h%ch%c\x93" % (i % 256, i // 256 % 256) for i in range(n // 5)
    ),
    "far memo": lambda n: b"N" + b"".join(b"r" + struct.pack("<I", i * 7 + 5) for i in range(n // 5)),
    "doubling memo": lambda n: b"N" + b"".join(b"r" + struct.pack("<I", 1 << i) for i in range(32)) * (n // 160),
    "persistent ids": lambda n: b"P\n" * (n // 2),
    "extensions": lambda n: b"".join(b"\x84" + struct.pack("<I", i) for i in range(n // 5)),
    "integers": lambda n: b"I1\n" * (n // 3),
    "a long line": lambda n: b"V" + b"a" * n,
    "long lines": lambda n: (b"V" + b"a" * 5000 + b"\n") * (n // 5002),
    "storages": lambda n: short("storage") + b"\x94ctorch\nFloatStorage\n\x94(h\x00h\x01U\x01aNNt0" * (n // 40),
}  # fmt: skip


@pytest.mark.parametrize("case", HEAVY)
def test_work_is_linear_and_memory_bounded(case: str) -> None:
    assert_linear(lambda size: steps(partial(over, HEAVY[case](size), torch=True)), 20_000, 80_000)
    data = HEAVY[case](120_000)
    tracemalloc.start()
    over(data, torch=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (16 << 20) + 20 * len(data)


def test_globals_beyond_the_limit_are_counted_under_one_name() -> None:
    found = over(HEAVY["distinct globals"](9 * (MAX_DISTINCT + 500)))
    assert len(found.globals) == MAX_DISTINCT + 1
    last = found.globals[-1]
    assert (last.kind, last.count) == (MORE, 500)
    assert grade(last, ALLOWED)[0] == DANGEROUS


@pytest.mark.parametrize(
    "name",
    [
        "os system", "posix system", "nt system", "subprocess Popen", "builtins eval", "builtins exec",
        "__builtin__ eval", "__builtin__ apply", "builtins compile", "builtins open", "builtins getattr",
        "builtins __import__", "runpy run_path", "importlib import_module", "pty spawn", "socket create_connection",
        "webbrowser open", "shutil rmtree", "sys exit", "ctypes CDLL", "code InteractiveInterpreter", "codeop Compile",
        "pickle loads", "_pickle loads", "cPickle loads", "dill loads", "cloudpickle loads", "joblib load",
        "torch load", "torch.serialization load", "torch.jit load", "torch.hub load", "torch.package PackageImporter",
        "torch.storage _load_from_bytes", "torch.fx.graph_module reduce_graph_module", "numpy load",
        "numpy.testing._private.utils runstring", "functools partial", "operator attrgetter", "operator methodcaller",
        "types FunctionType", "types CodeType", "asyncio run", "multiprocessing Process", "threading Thread",
        "timeit timeit", "cProfile run", "pdb run", "profile run", "trace Trace", "bdb Bdb", "pip main",
        "pydoc pipepager", "doctest debug_script", "idlelib.run Executive", "lib2to3.pgen2.grammar Grammar",
        "distutils.file_util write_file", "setuptools setup", "requests get", "urllib.request urlopen",
        "http.client HTTPConnection", "logging.config dictConfig", "tempfile mktemp", "pathlib unlink",
        "builtins globals", "builtins locals", "builtins vars", "builtins setattr", "builtins delattr",
        "builtins type", "builtins map", "builtins filter", "builtins super", "builtins input", "builtins breakpoint",
        "_io open", "io open", "marshal loads", "posixpath os.system", "collections OrderedDict.__class__",
        "my_module __class__", "my-module x", " x", "os\n system", "my_module a b", "commands getoutput",
        "aiohttp get", "ssl get_server_certificate", "numpy.f2py.crackfortran getlincoef", "venv create",
        "torch.utils.bottleneck.__main__ run_cprofile", "torch.utils.collect_env run",
        "torch._inductor.codecache compile_file", "torch.jit.unsupported_tensor_ops execWrapper",
        "_osx_support _read_output", "_aix_support _read_cmd_output", "_pyrepl.pager pipe_pager", "_pyio open",
        "test.support.script_helper assert_python_ok", "mailcap findmatch", "_imp create_dynamic",
        "numpy._core.multiarray fromfile",
        "keras.layers.core.Lambda Lambda", "tensorflow.raw_ops WriteFile", "encodings search_function",
        "p\u043esix system",
    ],
)  # fmt: skip
def test_a_name_that_runs_code_is_dangerous(name: str) -> None:
    module, _, rest = name.partition(" ")
    verdict, why = grade(GlobalRef(module, rest, "", 0), ALLOWED)
    assert verdict == DANGEROUS
    assert why


@pytest.mark.parametrize(
    "name",
    [
        "argparse Namespace", "omegaconf.dictconfig DictConfig", "my_module Config", "__main__ Net",
        "test Net", "datasets Mine", "builtins object",
        "pathlib PosixPath", "datetime datetime", "torch.optim.adam Adam", "torch.nn.modules.linear Linear",
        "__torch__.Net Net", "types SimpleNamespace", "numpy.random._pickle __randomstate_ctor",
    ],
)  # fmt: skip
def test_a_class_of_someone_is_opaque(name: str) -> None:
    module, _, rest = name.partition(" ")
    assert grade(GlobalRef(module, rest, "", 0), ALLOWED)[0] == OPAQUE


def test_the_allow_list_alone_says_data() -> None:
    for name in ALLOWED:
        module, _, rest = name.partition(" ")
        assert grade(GlobalRef(module, rest, "", 0), ALLOWED)[0] == DATA
        assert grade(GlobalRef(module, rest, "", 0), ())[0] != DATA


def test_a_walk_that_ends_behind_any_opcode_of_a_pickle_says_that_it_ends_early() -> None:
    data = pickle.dumps([os.system, {"a": (1, 2.5, b"x", -300, 1 << 70)}], 2)
    assert all(over(data[:length]).truncated for length in range(len(data)))


def test_a_walk_imports_nothing() -> None:
    program = (
        "import sys\n"
        "from statedict.scanner.globals import walk\n"
        "before = set(sys.modules)\n"
        "data = b'cantigravity\\nfly\\n)Rcthis\\ns\\n0.'\n"
        "assert len(walk(lambda at, length: data[at : at + length]).globals) == 2\n"
        "assert set(sys.modules) == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
