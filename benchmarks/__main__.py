"""Run the jobs whose names contain one of the words given, all of them by default."""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import data
from benchmarks.harness import Result, as_json, cells, markdown, measure
from benchmarks.jobs import ROWS


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="only jobs with one of these in their name")
    parser.add_argument("--runs", type=int, default=5, help="runs a side; the medians are compared (default 5)")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir(), "statedict-benchmarks"))
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    options = parser.parse_args()
    rows = [row for row in ROWS if not options.names or any(name in row.name for name in options.names)]
    if not rows:
        parser.error(
            f"no job has {' or '.join(options.names)} in its name; there are: " + "; ".join(row.name for row in ROWS)
        )
    found = importlib.util.find_spec("statedict")
    if found is None or not found.submodule_search_locations:
        parser.error("statedict is not installed here")
    compileall.compile_dir(found.submodule_search_locations[0], quiet=1)
    data.ensure(options.directory, {"small-1000.pth"} | {row.data for row in rows})
    results: list[Result] = []
    for row in rows:
        results.append(measure(row, options.directory, options.runs))
        print(markdown([cells(results[-1])]).splitlines()[-1], file=sys.stderr, flush=True)
    print(markdown(cells(result) for result in results))
    print("", *flatness(results), sep="\n")
    if options.json:
        options.json.write_text(json.dumps([as_json(result) for result in results], indent=1))
    return int(any(result.verdict in ("FAIL", "error") for result in results))


def flatness(results: list[Result]) -> list[str]:
    """Time per tensor of the jobs that index a number of them, and how far it is from the same for each."""
    lines: list[str] = []
    for suffix in ("pth", "safetensors"):
        each: dict[int, float] = {}
        for result in results:
            stem, _, end = result.row.data.partition(".")
            if result.row.name.startswith("index") and end == suffix and result.verdict != "error":
                count = int(stem.partition("-")[2])
                each[count] = result.ours.median / count * 1e6
        if len(each) > 1:
            per = ", ".join(f"{value:.2f} µs at {count:,}" for count, value in each.items())
            lines.append(
                f".{suffix}, time per tensor: {per}; largest / smallest {max(each.values()) / min(each.values()):.2f}"
            )
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
