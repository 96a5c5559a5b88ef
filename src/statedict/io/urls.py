"""URLs and paths: which is which, what lies beside what, and the errors that all kinds of URL share."""

from __future__ import annotations

import errno
import os
import re
from collections import namedtuple

from statedict.errors import FileError, MissingFileError, UnsupportedError

# a file or folder in a folder: bytes, seconds since 1970, whether it is a folder; zeros if a server tells less
Item = namedtuple("Item", "size time folder")

_SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https", "hf")


def is_url(name: str) -> bool:
    """Whether a name is the URL of something remote.

    >>> is_url("s3://bucket/model.pth"), is_url("model.pth")
    (True, False)
    """
    scheme, mark, _ = name.partition("://")
    return bool(mark) and scheme in _SCHEMES


def to_name(path: str | bytes | os.PathLike[str]) -> str:
    """A path as text; a `file://` URL as the path that it means; another scheme, if it is known, in small letters.

    >>> to_name("file:///tmp/my%20model.pth")
    '/tmp/my model.pth'
    """
    name = os.fsdecode(path)
    if name[:7].lower() == "file://":
        from urllib.parse import unquote

        host, slash, rest = name[7:].partition("/")
        return unquote(slash + rest) if host in ("", "localhost") else name
    if isinstance(path, os.PathLike):  # which has made one slash of two
        scheme, mark, rest = name.partition(":/")
        if mark and scheme.lower() in _SCHEMES and not rest.startswith("/"):
            return f"{scheme.lower()}://{rest}"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        scheme, _, rest = name.partition("://")
        if scheme.lower() not in _SCHEMES:
            known = ", ".join(sorted({*_SCHEMES, "file"}))
            raise FileError(errno.EINVAL, f"is the scheme of no URL that is known; known are {known}", f"{scheme}://")
        return f"{scheme.lower()}://{rest}"
    return name


def redact(name: str) -> str:
    """A name without what may be secret in it: the user, the password, the query and the fragment of a web address.

    >>> redact("https://me:pw@host/a.pth?Signature=x"), redact("a?b.pth")
    ('https://host/a.pth', 'a?b.pth')
    """
    scheme, mark, rest = name.partition("://")
    if not mark or scheme.lower() not in ("http", "https"):
        return name
    host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def join(folder: str, name: str) -> str:
    """The name of a file in a folder; never the URL of anything where the folder is none.

    >>> join("https://host/a/", "b c"), join("folder", "b c"), join("", "s3://b/c")
    ('https://host/a/b%20c', 'folder/b c', './s3://b/c')
    """
    if not is_url(folder):
        path = os.path.join(folder, name)
        return os.path.join(os.curdir, path) if is_url(path) else path
    if folder.startswith("http"):
        from urllib.parse import quote

        name = quote(name)
    return f"{folder.rstrip('/')}/{name}"


def folder_of(name: str) -> str:
    """The folder that a file lies in.

    >>> folder_of("https://host/a/b.json?x=1"), folder_of("a/b"), folder_of("s3://bucket")
    ('https://host/a', 'a', 's3://bucket')
    """
    if not is_url(name):
        return os.path.dirname(name)
    if name.startswith("http"):
        name = re.split("[?#]", name, maxsplit=1)[0]
    folder = name.rstrip("/").rpartition("/")[0]
    return folder if is_url(folder) else name


class NoRangesError(Exception):
    """The server does not send ranges."""


def read_only_error(name: str, how: str) -> UnsupportedError:
    """The error for a URL that cannot be written to."""
    return UnsupportedError(f"{name}: is read, not written; {how}")


def missing_error(name: str, what: str) -> MissingFileError:
    """The error for a URL without anything behind it."""
    return MissingFileError(errno.ENOENT, what, name)
