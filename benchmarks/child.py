"""One side of one row, in a process of its own: read a job as JSON from stdin, run it, print what it took.

A job is Python source in three pieces: `setup` once, then `before` (untimed) and `run` (timed) again and again, the
first time as a warm-up that does not count, then for as many runs as the job says; where one takes under 0.02 s, a run
is the median of twenty. A job that is not `warm` is about the first run in a process: `setup` warms what it calls.
The sources see the job's `path` (the data) and `out` (a file to write). A `run` that starts another program sets
`megabytes` to the peak memory of that.
"""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time

FETCH = """
import mmap, sys
memory = mmap.mmap(-1, 3 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
with open(sys.argv[1], "rb", buffering=0) as file:
    while file.readinto(memory): pass
for at in range(0, len(memory), 4096): memory[at] = 1
"""
"""The data are in the page cache, and the free memory is the machine's: a virtual one may have lent it to its host."""

job = json.loads(sys.stdin.read())
names = {"path": job["path"], "out": job["out"]}
setup, before, run = (compile(job[key], f"<{key}>", "exec") for key in ("setup", "before", "run"))


def timed() -> float:
    gc.collect()
    exec(before, names)
    began = time.perf_counter()
    exec(run, names)
    took = time.perf_counter() - began
    names.pop("result", None)  # frees what the run kept, outside the timing
    return took


exec(setup, names)
if not job["warm"]:
    subprocess.run([sys.executable, "-c", FETCH, job["path"]], check=True)
repeat = 20 if job["warm"] and timed() < 0.02 else 1
seconds = [statistics.median(timed() for _ in range(repeat)) for _ in range(job["runs"])]
peak = names.get("megabytes") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "megabytes": peak}))
