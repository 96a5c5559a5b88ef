"""Large files that take no room, and what a command takes of time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

_RUN = """
import sys

def status(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])

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
    print(status("VmHWM:"), file=sys.stderr)  # unlike ru_maxrss it does not count what the parent had
"""


class Taken(NamedTuple):
    """What a command printed, the seconds and the kilobytes that it took."""

    printed: str
    seconds: float
    kilobytes: int


def run(*arguments: object, room: int = 0) -> Taken:
    """`statedict ARGUMENTS` as a process.

    Args:
        arguments: of the command line.
        room: bytes of address space beyond what its imports take; 0 for as much as there is.
    """
    start = time.perf_counter()
    command = [sys.executable, "-c", _RUN, str(room), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Taken(done.stdout, time.perf_counter() - start, int(done.stderr.split()[-1]))


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
