"""Damage and forge valid files of each target, and report what breaks. See docs/security.md."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz import differential, hunt
from fuzz.seeds import REAL, TARGETS

CRASHES = Path(__file__).parent / "crashes"


def main() -> int:
    """Run the command line; the exit status."""
    if sys.argv[1:2] == ["differential"]:
        return differential.main(sys.argv[2:])
    if sys.argv[1:2] == ["archives"]:
        from fuzz import archives

        return archives.main(sys.argv[2:])
    parser = argparse.ArgumentParser("python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=float, default=600, help="for all of them together (default 600)")
    parser.add_argument("--seed", default="0", help="the same seed and number give the same inputs (default 0)")
    parser.add_argument("--inputs", type=int, default=1 << 60, help="a target, at most")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--seeds", type=Path, help="use the valid files in this folder, written by fuzz.seeds before")
    parser.add_argument(
        "--again", type=Path, metavar="FOLDER", help="probe one kept input once more, and make it small"
    )
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if options.again:
        real = bool(REAL & set(options.targets))
        files = hunt.smaller(hunt.read(options.again), real)
        print(hunt.again(files, real) or "holds", *(f"{name}: {data!r}" for name, data in files.items()), sep="\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if not options.seeds:
            subprocess.run([sys.executable, "-m", "fuzz.seeds", folder], check=True)
        valid = hunt.seeds(options.seeds or Path(folder))
    targets = options.targets or list(TARGETS)
    share = options.seconds * options.jobs / len(targets)

    def work(target: str) -> hunt.Score:
        return hunt.hunt(valid[target], f"{options.seed} {target}", share, options.inputs, CRASHES, target in REAL)

    print(f"{'target':<12} {'inputs':>9} {'a second':>9} {'loaded':>7} {'outcomes':>9} {'crashes':>8}", flush=True)
    total = hunt.Score()
    with ThreadPoolExecutor(options.jobs) as pool:
        for target, score in zip(targets, pool.map(work, targets), strict=True):
            print(
                row(target, score), *(f"  {how}: {kept}" for how, kept in score.crashes.items()), sep="\n", flush=True
            )
            total.add(score)
    print(row("together", total))
    return int(bool(total.crashes))


def row(target: str, score: hunt.Score) -> str:
    """What became of the inputs of a target."""
    speed, share = score.inputs / max(score.seconds, 1e-9), score.loaded / max(score.inputs, 1)
    kinds, crashes = len(score.outcomes), len(score.crashes)
    return f"{target:<12} {score.inputs:>9,} {speed:>9.0f} {share:>7.0%} {kinds:>9,} {crashes:>8}"


if __name__ == "__main__":
    sys.exit(main())
