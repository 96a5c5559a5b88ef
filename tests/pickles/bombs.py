"""Pickles that try to exhaust memory or time, by name and size, and a measurement of reading one.

Run as `python bombs.py NAME SIZE SIZE …`, which prints a line of measurements for each size.
"""

from __future__ import annotations

import gc
import os
import resource
import struct
import sys
from collections.abc import Callable

from statedict.errors import StateDictError
from statedict.pickles.machine import load
from statedict.pickles.tables import DATA


def _u4(number: int) -> bytes:
    return struct.pack("<I", number)


def _ints(count: int) -> bytes:
    return b"".join(b"J" + _u4(i) for i in range(count))


def _pairs(count: int) -> bytes:
    return b"".join(b"J" + _u4(i) + b"N" for i in range(count))


def _text(length: int) -> bytes:
    return b"X" + _u4(length) + b"a" * length + b"\x940"


def _colliding_tuples(count: int) -> bytes:
    """Pairs of integers that all have one hash, by CPython's formula (xxHash) solved for the second."""
    p1, p2, mask = 11400714785074694791, 14029467366897019727, (1 << 64) - 1
    inverse, out, first = pow(p2, -1, 1 << 64), [], 0
    while len(out) < count:
        first += 1
        acc = (2870177450012600261 + first * p2) & mask
        acc = ((acc << 31 | acc >> 33) * p1) & mask
        second = (12345 - acc) * inverse & mask
        if second < (1 << 61) - 1:
            out.append(b"J" + _u4(first) + b"\x8a\x08" + second.to_bytes(8, "little") + b"\x86N")
    return b"".join(out)


LONG = 100_000
_OBJECT = b"ca\nb\n\x940"
_NESTED = b"K\x01" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(200)) + b"q\xff0"
_AGAIN = b"h\x00h\x01\x85R"
BOMBS: dict[str, Callable[[int], bytes]] = {
    # one opcode, again and again
    "empty tuples": lambda n: b")" * n,
    "marks": lambda n: b"(" * n,
    "marks over tuples": lambda n: b")(" * (n // 2),
    "dicts": lambda n: b"}" * n,
    "lists": lambda n: b"]" * n,
    "sets": lambda n: b"\x8f" * n,
    "frozensets": lambda n: b"(\x91" * (n // 2),
    "nested tuples": lambda n: b")" + b"\x85" * n,
    "nested lists": lambda n: b"]" * (n // 2) + b"a" * (n // 2 - 1) + b".",
    "persistent ids": lambda n: b"P\n" * (n // 2),
    "extensions": lambda n: b"".join(b"\x84" + _u4(i) for i in range(n // 5)),
    "calls of calls": lambda n: b"ca\nb\n" + b")R\x94" * (n // 3),
    "opaque keys": lambda n: _OBJECT + b"}" + b"h\x00)RNs" * (n // 6),
    "nothings": lambda n: b"N" * n,
    "marks over nothings": lambda n: b"N(" * (n // 2),
    "objects of a state": lambda n: _OBJECT + b"h\x00)R}b" * (n // 6),
    "objects of entries": lambda n: _OBJECT + b"h\x00)RNNs" * (n // 7),
    "metadata": lambda n: b"}}b" * (n // 3),
    "arrays": lambda n: (
        b"cnumpy.core.numeric\n_frombuffer\n\x94(C\0cnumpy\ndtype\nU\2f4\x85RK\0\x85U\1Ct\x940" + b"h\0h\1R" * (n // 5)
    ),
    "arrays of a state": lambda n: (
        b"cnumpy.core.multiarray\n_reconstruct\n\x94(cnumpy\nndarray\nK\0\x85C\1bt\x94"
        b"(K\1K\0\x85cnumpy\ndtype\nU\2f4\x85R\x89C\0t\x940" + b"h\0h\1Rh\2b" * (n // 8)
    ),
    "dtypes": lambda n: b"cnumpy\ndtype\n\x94U\2f4\x85\x940" + b"h\0h\1R" * (n // 5),
    "sizes": lambda n: b"ctorch\nSize\n\x94)\x85\x940" + b"h\0h\1R" * (n // 5),
    "sparse tensors": lambda n: (
        b"ctorch._utils\n_rebuild_sparse_tensor\n\x94ctorch.serialization\n_get_layout\nU\20torch.sparse_coo\x85R"
        b"NNN\x87\x86\x940" + b"h\0h\1R" * (n // 5)
    ),
    "subclasses": lambda n: (
        b"ctorch._tensor\n_rebuild_from_type_v2\n\x94(ca\nb\nca\nc\n)}t\x940" + b"h\0h\1R" * (n // 5)
    ),
    "sets of nothing": lambda n: b"c__builtin__\nset\n\x94)\x940" + b"h\0h\1R" * (n // 5),
    "tensors without a state": lambda n: b"ctorch\nFloatTensor\n\x94)\x940" + b"h\0h\1R" * (n // 5),
    "scalars of a long dtype": lambda n: (
        b"cnumpy.core.multiarray\nscalar\n\x94cnumpy\ndtype\nX\x90\1\0\0" + "\U0001f600".encode() * 100
        + b"\x85RC\1a\x86\x940" + b"h\0h\1R" * (n // 5)
    ),
    "calls of a wide name": lambda n: (
        b"c" + "\U0001f600".encode() * 990 + b"\nb\n)R\x94" + b"h\0)R" * (n // 4)
    ),
    # values that are larger in memory
    "short old strings": lambda n: b"U\2ab" * (n // 4),
    "short lines": lambda n: b"V\xff\xfe\n" * (n // 4),
    "short integers": lambda n: b"".join(b"M" + struct.pack("<H", 300 + i % 60_000) for i in range(n // 3)),
    "short long integers": lambda n: b"\x8a\1\x80" * (n // 3),
    "short numbers": lambda n: b"F1\n" * (n // 3),
    "wide text": lambda n: b"X" + _u4(n) + b"a" * (n - 4) + "\U0001f600".encode() + b".",
    "a tuple of nothings": lambda n: b"(" + b"N" * n + b"t.",
    "a list of nothings": lambda n: b"](" + b"N" * n + b"e.",
    "small keys": lambda n: b"}(" + b"".join(b"J" + _u4(i) + b"\x85N" for i in range(n // 7)) + b"u.",
    "short strings": lambda n: b"".join(b"\x8c\x02" + chr(0x100 + i % 0x600).encode() for i in range(n // 4)),
    "integers in a set": lambda n: b"\x8f(" + _ints(n // 5) + b"\x90.",
    "integers in a dict": lambda n: b"}(" + _pairs(n // 6) + b"u.",
    "a long list": lambda n: b"](" + b")" * n + b"e.",
    "a long tuple": lambda n: b"(" + b")" * n + b"t.",
    "a long integer": lambda n: b"\x8b" + _u4(n) + b"\x7f" * n + b".",
    "a long decimal": lambda n: b"L" + b"7" * n + b"L\n.",
    "far memo": lambda n: b"N" + b"".join(b"r" + _u4(i * 7 + 5) for i in range(n // 5)),
    "colliding memo": lambda n: b"N" + b"".join(b"p%d\n" % ((i + 5) * ((1 << 61) - 1)) for i in range(n // 22)),
    # something long, used again and again
    "set of a long list": lambda n: b"c__builtin__\nset\n\x94](" + _ints(LONG) + b"e\x940" + _AGAIN * (n // 6),
    "long bytes": lambda n: b"c_codecs\nencode\n\x94" + _text(LONG) + _AGAIN * (n // 6),
    "dict of a long dict": lambda n: (
        b"ccollections\nOrderedDict\n\x94}(" + _pairs(LONG) + b"u\x940"
        + _AGAIN * (n // 6)
    ),
    "long metadata": lambda n: (
        b"}\x8c\x09_metadata}(" + _pairs(LONG) + b"us\x940" + b"}h\x00b" * (n // 4)
    ),
    "long arguments": lambda n: _OBJECT + b"(" + b")" * LONG + b"t\x940" + b"h\x00h\x01K\x01\x92" * (n // 7),
    "long names": lambda n: _text(LONG) + b"h\x00\x8c\x01b\x93" * (n // 6),
    # things that are small to write and slow to handle
    "a key of nested pairs": lambda n: b"}K\x01" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(200)) + b"Ns.",
    "a key of nested frozensets": lambda n: (
        b"}K\x01" + b"".join(b"q%c0(h%ch%c\x86h%cK\x02\x86\x91" % (i, i, i, i) for i in range(200)) + b"Ns."
    ),
    "a deep frozenset": lambda n: b"K\x01" + b"q\x000(h\x00\x91" * (n // 6) + b".",
    "integers of one hash": lambda n: (
        b"}(" + b"".join(b"L%dL\nN" % ((1 << 61) * i - i) for i in range(n // 23)) + b"u."
    ),
    "keys of one hash": lambda n: b"}(" + _colliding_tuples(n // 17) + b"u.",
    "a dtype of nested pairs": lambda n: _NESTED + b"cnumpy\ndtype\nh\xff\x85R.",
    "a shape of nested pairs": lambda n: _NESTED + b"ctorch\nSize\n](h\xffe\x85R.",
    "a device of nested pairs": lambda n: _NESTED + b"ctorch\ndevice\nh\xff\x85R.",
    "an encoding of nested pairs": lambda n: _NESTED + b"c_codecs\nencode\nVa\nh\xff\x86R.",
    "an array of nested pairs": lambda n: (
        _NESTED + b"cnumpy.core.numeric\n_frombuffer\n(C\1acnumpy\ndtype\nU\2f4\x85Rh\xff\x85U\1CtR."
    ),
    "laughs": lambda n: b"K\x01" + b"".join(b"q%c0(" % i + b"h%c" % i * 10 + b"l" for i in range(200)) + b".",
    "a claim of four gigabytes": lambda n: b"B\xff\xff\xff\xff",
    "a claim of an exabyte": lambda n: b"\x8e" + struct.pack("<Q", 1 << 60),
    "a memo index of four billion": lambda n: b"Nr\xff\xff\xff\xff.",
}  # fmt: skip


def measure(name: str, size: int) -> str:
    """What reading one bomb takes, in a process of its own: outcome, bytes of memory, bytes of pickle."""
    data = BOMBS[name](size)
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os.wait()
        return os.read(reader, 1000).decode()
    gc.disable()
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load(data, DATA)
        outcome = "read"
    except StateDictError as error:
        outcome = type(error).__name__
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    os.write(writer, f"{outcome} {memory} {len(data)}".encode())
    os._exit(0)


if __name__ == "__main__":
    for size in sys.argv[2:]:
        print(measure(sys.argv[1], int(size)))
