"""Snapshots of repositories that huggingface_hub keeps on this disk, found without asking anyone.

    CACHE/models--ORG--NAME/refs/REVISION       the commit that a branch or tag stood for when it was last fetched
    CACHE/models--ORG--NAME/snapshots/COMMIT/   the files that were fetched, as links into ../../blobs

Source: huggingface_hub 2.4, constants.py and file_download.py (try_to_load_from_cache).
"""

from __future__ import annotations

import os
import re

_NAME = re.compile(r"(?!.*(--|\.\.))(?!\.)[\w.-]+(/(?!\.)[\w.-]+)?", re.ASCII)  # -- stands for / in the cache
_SNAPSHOT = re.compile(r".*/models--([\w.-]+?)(?:--([\w.-]+))?/snapshots/([0-9a-f]{40})/?", re.ASCII)


def is_repository(name: str) -> bool:
    """Whether a repository of the hub may have that name.

    >>> is_repository("gpt2"), is_repository("org/name"), is_repository("../name"), is_repository("a/b/c")
    (True, True, False, False)
    """
    return _NAME.fullmatch(name) is not None


def get_cache() -> str:
    """The folder that huggingface_hub downloads into."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return os.path.expandvars(os.path.expanduser(cache))


def find_snapshot(repository: str, revision: str = "") -> str | None:
    """The folder of a repository at a branch, tag or whole commit hash, `main` by default; None if it is not there."""
    folder = os.path.join(get_cache(), f"models--{repository.replace('/', '--')}")
    revision = revision or "main"
    if not is_repository(repository) or os.path.isabs(revision) or ".." in revision.split("/") or "\0" in revision:
        return None
    try:
        with open(os.path.join(folder, "refs", revision), encoding="ascii") as file:
            commit = file.read(100).strip()
    except (OSError, ValueError):
        commit = revision
    if not re.fullmatch(r"[\w.-]+", commit, re.ASCII) or commit in (os.curdir, os.pardir):
        return None
    snapshot = os.path.join(folder, "snapshots", commit)
    return snapshot if os.path.isdir(snapshot) else None


def name_repository(path: str) -> str:
    """The repository, with the commit or revision, that a path or URL is of; nothing if it is not of the hub.

    >>> name_repository("/cache/models--org--name/snapshots/" + "0" * 40)
    'org/name@0000000000000000000000000000000000000000'
    >>> name_repository("hf://org/name/"), name_repository("org/name")
    ('org/name', '')
    """
    if path.startswith("hf://"):
        return "/".join(path.removeprefix("hf://").split("/")[:2])
    found = _SNAPSHOT.fullmatch(os.path.abspath(path))
    return "" if found is None else f"{'/'.join(filter(None, found.groups()[:2]))}@{found[3]}"
