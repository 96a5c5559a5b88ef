"""URLs and names: which is which, and what lies beside what."""

from __future__ import annotations

import os
import re

SCHEMES = dict.fromkeys(
    ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https"), "statedict.io.object_store"
) | {"hf": "statedict.io.hub"}  # scheme → the module that asks its servers


def is_url(name: str) -> bool:
    """Whether a name is the URL of something remote.

    >>> is_url("s3://bucket/model.pth"), is_url("model.pth")
    (True, False)
    """
    scheme, mark, _ = name.partition("://")
    return bool(mark) and scheme in SCHEMES


def named(path: str | bytes | os.PathLike[str]) -> str:
    """A path as text; a `file://` URL as the path that it means.

    >>> named("file:///tmp/my%20model.pth")
    '/tmp/my model.pth'
    """
    name = os.fsdecode(path)
    if name[:7].lower() == "file://":
        from urllib.parse import unquote

        host, slash, rest = name[7:].partition("/")
        return unquote(slash + rest) if host in ("", "localhost") else name
    if isinstance(path, os.PathLike):  # which has made one slash of two
        scheme, mark, rest = name.partition(":/")
        if mark and scheme in SCHEMES and not rest.startswith("/"):
            return f"{scheme}://{rest}"
    return name


def joined(folder: str, name: str) -> str:
    """The name of a file in a folder.

    >>> joined("https://host/a/", "b c"), joined("folder", "b c")
    ('https://host/a/b%20c', 'folder/b c')
    """
    if not is_url(folder):
        return os.path.join(folder, name)
    if folder.startswith("http"):
        from urllib.parse import quote

        name = quote(name)
    return f"{folder.rstrip('/')}/{name}"


def folder_of(name: str) -> str:
    """The folder that a file lies in.

    >>> folder_of("https://host/a/b.json?x=1"), folder_of("a/b")
    ('https://host/a', 'a')
    """
    if not is_url(name):
        return os.path.dirname(name)
    if name.startswith("http"):
        name = re.split("[?#]", name, maxsplit=1)[0]
    return name.rstrip("/").rpartition("/")[0]
