"""Archives that contradict themselves, read by us and by others: what they find, our verdict must have seen.

Each archive is scanned, opened and, where it opens, verified by us, and read by Python's zipfile and by PyTorch's
reader, in a forked process with a limit of memory. It fails where

    scan says nothing of damage, and another reader finds a pickle in it that names what the verdict lacks
    reading gives the records, and another reader finds others, or other bytes under a name

Its pickles name modules that do not exist, and nobody unpickles them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import pickletools
import re
import resource
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzz import hunt
from fuzz.mutate import NUMBERS, change_bytes
from fuzz.zips import CENTRAL, END, END64, LOCAL, LOCATOR, Fields, Member, Zip

ROUND = 5000  # archives a process
MEMORY = 16 << 30  # of addresses, which PyTorch takes many of
LARGE = 1 << 20  # records that claim more are not asked for
NAMES = (
    b"a/data.pkl", b"a/data.pkl", b"a/version", b"a/byteorder", b"a/data/0", b"a/DATA.PKL", b"A/data.pkl", b"a/x.pkl",
    b"a\\data.pkl", b"b/data.pkl", b"./a/data.pkl", b"a/data.pkl\0", b"a/\xc3\xbc", b"a/\x81", b"x.npy", b"a/", b"",
)  # fmt: skip
_SIGNATURE = re.compile(rb"PK(?:\x03\x04|\x01\x02|\x05\x06|\x06\x06|\x06\x07)")
_STORAGE = re.compile(r"(^|/)(data|constants)/\d+$")
_NAMED = re.compile(rb"c([\w.]+)\n([\w.]+)\n")


@dataclass
class Score:
    """What became of the archives."""

    archives: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)  # what failed, the archive in hexadecimal

    def add(self, other: Score) -> None:
        """Count another round."""
        self.archives += other.archives
        self.counts += other.counts
        self.failures += other.failures


def main(arguments: list[str]) -> int:
    """Run `python -m fuzz archives`; the exit status."""
    parser = argparse.ArgumentParser("python -m fuzz archives", description=__doc__)
    parser.add_argument("--programs", type=int, default=200_000, help="how many archives (default 200,000)")
    parser.add_argument("--seed", default="0", help="the same seed and number give the same archives (default 0)")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    score = run(options.programs, options.seed)
    for how, data in score.failures[:10]:
        print(f"{how}: {data[:4000]}")
    for what, count in sorted(score.counts.items()):
        print(f"{what:<40} {count:>9,}")
    print(f"{score.archives:,} archives, {len(score.failures):,} failures, {time.monotonic() - start:,.0f} s")
    return int(bool(score.failures))


def run(count: int, seed: str) -> Score:
    """Read so many archives, in one process after the other."""
    import torch  # here, so that the processes need not import it

    assert torch.PyTorchFileReader
    score = Score()
    while score.archives < count:
        score.add(_round(f"{seed} {score.archives}", min(ROUND, count - score.archives)))
        print(f"{score.archives:,} archives, {len(score.failures):,} failures", flush=True)
    return score


def _round(seed: str, count: int) -> Score:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        path, tally = Path(name, "archive"), Path(name, "tally")
        child = os.fork()
        if not child:
            hunt.run_child(lambda: _read_all(Random(seed), count, path, tally))
        died = hunt.wait_for(child, tally)
        score = Score(**json.loads(tally.read_text()))
        score.counts = Counter(score.counts)
        score.failures = [(how, data) for how, data in score.failures]
        if died:  # the next round has another seed
            score.archives += 1
            reader = path.with_name("reader").read_text().strip()
            score.counts[f"{reader}: {died}"] += 1
            if reader == "statedict":
                score.failures.append((died, path.read_bytes().hex()))
        return score


def _read_all(random: Random, count: int, path: Path, tally: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    score = Score()
    while score.archives < count:
        data = forged(random)
        score.archives += 1
        if score.archives % 100 == 1 or score.archives == count:
            tally.write_text(json.dumps(vars(score)))
        for how in probe(data, path, score.counts):
            score.failures.append((how, data.hex()))
    tally.write_text(json.dumps(vars(score)))


def probe(data: bytes, path: Path, counts: Counter[str]) -> list[str]:
    """What another reader finds in an archive and we do not."""
    import statedict

    path.write_bytes(data)
    reader = path.with_name("reader")  # who it is if the process dies
    reader.write_text("statedict")
    report = statedict.scan(path)
    ours = _ours(path)
    reader.write_text("PyTorch")
    others = {"PyTorch": _by_torch(path, ours[0][0] if ours else "")}
    reader.write_text("zipfile")
    others["zipfile"] = _by_zipfile(data)
    counts[f"scan: {'damage' if report.damage else report.verdict}"] += 1
    counts["ours: read" if ours is not None else "ours: refused"] += 1
    failures = []
    named = {(found.module, found.name) for found in report.globals}
    for reader, members in others.items():
        if members is None:
            counts[f"{reader}: refused"] += 1
            continue
        counts[f"{reader}: read"] += 1
        if not report.damage:
            missing = {one for name, held in members if held for one in _names(name, held)} - named
            failures += [f"{reader} finds {one}, scan says {report.verdict}" for one in sorted(missing)[:1]]
        if ours is not None:
            failures += [f"{reader} finds {what}" for what in _differences(ours, members, reader == "zipfile")][:1]
    return failures


Members = list[tuple[str, bytes | None]]  # a name, and the bytes if they can be read


def _ours(path: Path) -> Members | None:
    from statedict.errors import StateDictError
    from statedict.io.source import FileSource
    from statedict.io.zip import read_directory

    def read(record: Any) -> bytes | None:
        try:
            return bytes(record.read(0, record.size))
        except StateDictError:
            return None

    try:
        return [(name, read(record)) for name, record in read_directory(FileSource(str(path))).items()]
    except StateDictError:
        return None


def _by_zipfile(data: bytes) -> Members | None:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except Exception:  # whatever it raises, it does not read it
        return None

    def read(info: zipfile.ZipInfo) -> bytes | None:
        try:
            return archive.read(info) if info.file_size < LARGE else None
        except Exception:
            return None

    return [(info.filename, read(info)) for info in archive.infolist()]


def _by_torch(path: Path, first: str) -> Members | None:
    """What PyTorch finds; `first` is the first name as we see it, from which it takes its folder."""
    import torch

    try:
        reader = torch.PyTorchFileReader(str(path))
        folder = first.partition("/")[0] + "/" if "/" in first else ""
        names = set(_records(reader)) | {"data.pkl", "version", "byteorder", "data/0", "constants.pkl"}
    except Exception:
        return None

    def read(name: str) -> bytes | None:
        try:
            return bytes(reader.get_record(name)) if reader.get_record_size(name) < LARGE else None
        except Exception:
            return None

    def has(name: str) -> bool:
        try:
            return bool(reader.has_record(name))
        except RuntimeError:  # an assertion of its own, where names have no order
            return False

    return [(folder + name, read(name)) for name in sorted(names) if has(name)]


def _records(reader: Any) -> list[str]:
    try:
        return list(reader.get_all_records())
    except Exception:  # one in another folder, or whose name is no Unicode
        return []


def _names(name: str, held: bytes) -> set[tuple[str, str]]:
    """What a pickle that some bytes begin with names, as far as it goes.

    One that breaks off counts only where a loader may look for a pickle, for tensors begin so: without PROTO in a file
    that is called so, with PROTO anywhere but in a storage.
    """
    if held[:1] not in (b"c", b"\x80") or not _NAMED.search(held):
        return set()
    named = set()
    try:
        for operation, argument, _ in pickletools.genops(held):
            if operation.name == "PROTO" and argument > pickle.HIGHEST_PROTOCOL:
                break
            if operation.name == "GLOBAL":
                named.add(tuple(str(argument).split(" ", 1)))
    except Exception:  # it breaks off; what was named before would have been looked up
        looked = held[:1] == b"\x80" and not _STORAGE.search(name)
        return named if looked or name.endswith(".pkl") else set()  # type: ignore[return-value]
    return named  # type: ignore[return-value]


def _differences(ours: Members, theirs: Members, all_of_them: bool) -> list[str]:
    if all_of_them:
        if len(ours) != len(theirs):
            return [f"{len(theirs)} records where we find {len(ours)}"]
        pairs = [(name, a, b) for (name, a), (other, b) in zip(ours, theirs, strict=True)]
        if any(name != other and name.isascii() for (name, _), (other, _) in zip(ours, theirs, strict=True)):
            return ["other names than we do"]
    else:
        held = dict(ours)
        pairs = [(name, held.get(name, b""), b) for name, b in theirs]
        if lacking := [name for name, _ in theirs if name not in held]:
            return [f"{lacking[0]!r}, which we do not"]
    return [f"other bytes in {name!r} than we do" for name, a, b in pairs if None not in (a, b) and a != b]


# how archives are forged


def forged(random: Random) -> bytes:
    """An archive of members and fields at random, or a real one, with or without changes of its bytes."""
    if random.random() < 0.15:
        data = random.choice(_real())
        for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
            data = change_bytes(data, random.choice(_real()), random)
        return data[: 1 << 17]
    archive = _archive(random, 2)
    data = archive.build()
    if random.random() < 0.3:  # offsets that lead somewhere
        places = [found.start() for found in _SIGNATURE.finditer(data)]
        data = _pointed(archive, random, places, len(data)).build()
    for _ in range(random.choice((0, 0, 0, 0, 0, 1, 1, 2))):
        data = change_bytes(data, b"", random)
    return data[: 1 << 17]


@cache
def _real() -> tuple[bytes, ...]:
    """What PyTorch, numpy and zipfile write, stored and deflated."""
    import numpy
    import torch

    files = [io.BytesIO() for _ in range(4)]
    torch.save({"w": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16)}, files[0])
    numpy.savez(files[1], a=numpy.arange(4), b=numpy.ones(3))
    numpy.savez_compressed(files[2], a=numpy.arange(4), b=numpy.ones(3))
    with zipfile.ZipFile(files[3], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("policy.pth", files[0].getvalue())
        archive.writestr("data", b"{}")
    return (*(file.getvalue() for file in files), files[0].getvalue() * 2)


def _archive(random: Random, depth: int) -> Zip:
    members = [_member(random, depth) for _ in range(random.choice((1, 2, 2, 3, 4)))]
    if random.random() < 0.8:  # names that readers tell apart
        members = list({member.name.replace(b"\\", b"/").strip(b"./\0").lower(): member for member in members}.values())
    archive = Zip(members)
    if random.random() < 0.8:
        archive.members.insert(random.randrange(len(archive.members) + 1), Member(b"a/version", b"3\n"))
    archive.wide = random.random() < 0.4
    inner = _archive(random, depth - 1).build() if depth and random.random() < 0.3 else b""
    if inner:
        cut = random.choice((0, 0, inner.find(b"PK\1\2"), inner.rfind(b"PK\5\6")))
        until = random.choice((len(inner), len(inner), inner.find(b"PK\1\2"), inner.rfind(b"PK\5\6")))
        piece = inner[max(cut, 0) : max(until, 0)]
        place = random.choice(("prefix", "prefix", "between", "after", "comment", "tail", "behind64"))
        setattr(archive, place, piece)
        if place == "prefix":
            archive.shift = random.choice((0, len(piece), len(piece) // 2))
    return archive


def _member(random: Random, depth: int) -> Member:
    module = b"m%d" % random.randrange(1 << 30)
    data = random.choice((b"c%s\nn\n.", b"\x80\2c%s\nn\n.", b"\x80\2c%s\nn\n.")) % module
    if depth and random.random() < 0.1:
        data = _archive(random, depth - 1).build()
    if random.random() < 0.1:
        data = random.choice((b"", b"text", bytes(40), data + bytes(30)))
    member = Member(random.choice(NAMES), data, random.choice((0, 0, 0, 8)))
    if random.random() < 0.04:
        member.flags = random.choice((0x800, 1, 0x20, 0x40, 0x2000, 8))
    member.described = random.random() < 0.2
    member.listed = random.random() > 0.03
    if random.random() < 0.03:
        member.local_name = random.choice(NAMES)
    if random.random() < 0.1:
        member.central_extra = _extra(random, member.name)
    if random.random() < 0.05:
        packed = member.pack()
        member.packed = change_bytes(packed, b"", random)
    for fields, names in ((member.local, LOCAL), (member.central, CENTRAL)):
        if random.random() < 0.05:
            fields[random.choice(names[1:])] = random.choice((0, 1, 8, len(data), len(data) + 1, *NUMBERS))
    return member


def _extra(random: Random, name: bytes) -> bytes:
    other = random.choice(NAMES)
    wide = b"".join(random.choice((0, 1, 50, 100)).to_bytes(8, "little") for _ in range(random.randrange(4)))
    path = b"\1" + zlib.crc32(random.choice((name, other))).to_bytes(4, "little") + other
    bodies = [
        (kind, body) for kind, body in ((1, wide), (0x7075, path), (1, wide), (0x4246, b"ZZ")) if random.random() < 0.4
    ]
    field = b"".join(kind.to_bytes(2, "little") + len(body).to_bytes(2, "little") + body for kind, body in bodies)
    return field + random.choice((b"", b"", b"\0", b"\1\0\xff\0"))


def _pointed(archive: Zip, random: Random, places: list[int], size: int) -> Zip:
    """The archive with a field or two of its ends that lead to something in it."""
    changes: dict[str, Fields] = {}
    for _ in range(random.choice((0, 1, 1, 2))):
        where, names = random.choice((("end", END), ("end", END), ("end64", END64), ("locator", LOCATOR)))
        name = random.choice(names[1:])
        likely = places if name in ("offset", "size") else [0, 1, 2, 3, 0xFFFF]
        value = random.choice((*likely, *likely, size, random.choice(NUMBERS)))
        changes.setdefault(where, {})[name] = value
    for member in archive.members:
        if random.random() < 0.05:
            member.central["header"] = random.choice((*places, 0xFFFFFFFF))
    return replace(archive, **changes)  # type: ignore[arg-type]
