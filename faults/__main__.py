"""Kill, cut the power, fill the disk and damage files while checkpoints are saved; see docs/reliability.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from faults import shim

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- made by python -m faults {}--write -->\n", "<!-- end -->\n"
SABOTAGE = ("digests", "files", "folders")


def main() -> int:
    """Run the command line; the exit status."""
    if sys.argv[1:2] == ["interrupts"]:
        from faults.interrupts import main as interrupt

        return interrupt()
    parser = argparse.ArgumentParser("python -m faults", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="WORD", help="rows of the matrix with this word; all by default")
    parser.add_argument("--job", default="", metavar="WORD", help="points of jobs with this word; all by default")
    parser.add_argument("--points", type=int, default=1 << 60, help="at most so many of a row, spread over it")
    parser.add_argument("--seed", default="0", help="which ones (default 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time (default: one a core)")
    parser.add_argument(
        "--write", action="store_true", help="put the matrix, or that of --job, into docs/reliability.md"
    )
    parser.add_argument("--without", choices=SABOTAGE, help="no fsync of files, of folders, no digests: must fail")
    options = parser.parse_args()
    if "STATEDICT_FAULTS" not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            try:
                library = shim.build(Path(folder))
            except RuntimeError as error:
                print(error, file=sys.stderr)
                return 2
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            here = os.environ | threads | {"LD_PRELOAD": str(library), "STATEDICT_FAULTS": "1"}
            return subprocess.run([sys.executable, "-m", "faults", *sys.argv[1:]], env=here, check=False).returncode
    return _in_the_shim(options)


def _in_the_shim(options: argparse.Namespace) -> int:
    from faults import matrix

    if options.without:
        matrix.SABOTAGE[options.without]()
    scores = {}
    for name, score in matrix.run(options.rows, options.job, options.points, options.seed, options.jobs):
        scores[name] = score
        print(f"{name:<60} {score.points:>6,}  {len(score.broken) or 'none'} broken", flush=True)
        for what, why in list(score.broken.items())[:5]:
            print(f"  {what}: {why}", flush=True)
    if not scores:
        print("no row or job has such a word in its name", file=sys.stderr)
        return 2
    print(matrix.table(scores))
    if options.write:
        begin = BEGIN.format(f"--job {options.job} " if options.job else "")
        before, _, rest = PAGE.read_text().partition(begin)
        PAGE.write_text(f"{before}{begin}\n{matrix.table(scores)}\n\n{END}{rest.partition(END)[2]}")
    return int(any(score.broken for score in scores.values()))


if __name__ == "__main__":
    sys.exit(main())
