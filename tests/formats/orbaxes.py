"""The directories of Orbax that tests/peers/orbax.py made with orbax-checkpoint 0.12.8, unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ARCHIVE = Path(__file__).parent / "data" / "orbax.tar.xz"


def unpack(folder: Path, only: str = "") -> Path:
    """Unpack the directories, or one of them, into a folder; the folder, or that directory."""
    with tarfile.open(ARCHIVE) as archive:
        members = [one for one in archive.getmembers() if not only or f"{one.name}/".startswith(f"{only}/")]
        archive.extractall(folder, members, filter="data")
    return folder / only


@pytest.fixture(scope="session")
def orbax(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder with all directories; tests that change one unpack it anew."""
    return unpack(tmp_path_factory.mktemp("orbax"))
