"""One side of one row, in a process of its own: read a job as JSON from stdin, run it, print what it took.

A job is Python source in four pieces: `setup` once, then `before` and `run` untimed as a warm-up, then `before`
(untimed) and `run` (timed) again until a tenth of a second or twenty runs are together. The sources see the job's
`path` (the data), `out` (a file to write) and `directory`.
"""

import gc
import json
import resource
import statistics
import sys
import time

job = json.loads(sys.stdin.read())
names = {key: job[key] for key in ("path", "out", "directory")}
setup, before, run = (compile(job[key], f"<{key}>", "exec") for key in ("setup", "before", "run"))
exec(setup, names)
times: list[float] = []
for warm in [False] + [True] * 20:
    gc.collect()
    exec(before, names)
    began = time.perf_counter()
    exec(run, names)
    took = time.perf_counter() - began
    names.pop("result", None)  # frees what the run kept, outside the timing
    if warm:
        times.append(took)
        if sum(times) > 0.1:
            break
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": statistics.median(times), "megabytes": peak}))
