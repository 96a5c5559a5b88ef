"""Large files that take no room, and what a command takes of memory and reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

_RUN = """
import sys

def status(key, file="/proc/self/status"):
    return int(next(line for line in open(file) if line.startswith(key)).split()[1])

before = status("rchar:", "/proc/self/io")

def capped(room):
    import resource
    import ml_dtypes, numpy, xxhash, zlib_ng.zlib_ng, concurrent.futures.thread
    import statedict.api.files, statedict.ops.alter.steps, statedict.ops.alter.tensors, statedict.cli.edit
    allowed = status("VmSize:") * 1024 + room
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))

from statedict.cli import main
try:
    room = int(sys.argv[1])
    if room:
        capped(room)
    main(sys.argv[2:])
finally:
    # unlike ru_maxrss VmHWM does not count what the parent had
    print(status("VmHWM:"), status("rchar:", "/proc/self/io") - before, file=sys.stderr)
"""


class Taken(NamedTuple):
    """What a command printed, the kilobytes of memory that it took, and the bytes that it read."""

    printed: str
    kilobytes: int
    read: int


def run(*arguments: object, room: int = 0) -> Taken:
    """`statedict ARGUMENTS` as a process.

    Args:
        arguments: of the command line.
        room: bytes of address space beyond what its imports take; 0 for as much as there is.
    """
    command = [sys.executable, "-c", _RUN, str(room), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kilobytes, read = map(int, done.stderr.split()[-2:])
    return Taken(done.stdout, kilobytes, read)


def hollow(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """A safetensors file whose tensors are holes.

    Args:
        path: the file.
        tensors: name → dtype, shape and bytes.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, (kind, shape, nbytes) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
