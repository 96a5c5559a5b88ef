"""Object stores and HTTP servers, through obstore.

Credentials are found as the platform's own tools find them: the environment, a role of the machine, a web identity; for
S3 also the profiles of `~/.aws` where boto3 is installed. What a store says in an error may hold a signed URL, so it is
put in words of our own. STATEDICT_TIMEOUT (seconds, 30) and STATEDICT_RETRIES (5) say how long to be patient.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
from functools import lru_cache

from statedict.errors import FileError, MissingExtraError
from statedict.io.remote import NoRangesError, missing, read_only

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.blocks import Block

try:
    import obstore
    from obstore import exceptions
    from obstore.store import HTTPStore, from_url
except ImportError as error:
    raise MissingExtraError("URLs need obstore; pip install 'statedict[remote]'") from error

_PART = 8 << 20  # of an upload; a store takes up to 10,000
_PARTS = 9_000
_CONCURRENT = 4  # parts under way


def at(url: str) -> Object:
    """What lies, or may lie, behind a URL."""
    scheme, _, rest = url.partition("://")
    if scheme in ("http", "https"):
        host, _, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
        return Object(_http(url, _environment()), "", f"{scheme}://{host.rpartition('@')[2]}/{path}", False)
    host, _, key = rest.partition("/")
    return Object(_store(f"{scheme}://{host}", _environment()), key.strip("/"), url, True)


def _environment() -> tuple[tuple[str, str], ...]:
    """What the environment says of stores; one that was made with other words is not used again."""
    return tuple(item for item in os.environ.items() if item[0].startswith(("AWS_", "GOOGLE_", "AZURE_", "STATEDICT_")))


def _options(allow_http: bool) -> dict[str, Any]:
    from datetime import timedelta

    seconds, retries = (_number(name, usual) for name, usual in (("STATEDICT_TIMEOUT", 30), ("STATEDICT_RETRIES", 5)))
    return {
        "client_options": {
            "allow_http": allow_http,
            "timeout": f"{10 * seconds}s",
            "read_timeout": f"{seconds}s",
            "connect_timeout": f"{seconds}s",
        },
        "retry_config": {
            "max_retries": retries,
            "retry_timeout": timedelta(seconds=10 * seconds * (retries + 1)),
            "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2},
        },
    }


def _number(name: str, usual: int) -> int:
    text = os.environ.get(name, str(usual))
    if not text.isdecimal():
        raise FileError(f"{name}={text!r}: expected a whole number")
    return int(text)


@lru_cache(16)
def _http(url: str, environment: tuple[tuple[str, str], ...]) -> Any:
    return HTTPStore.from_url(url, **_options(url.startswith("http:")))


@lru_cache(16)
def _store(root: str, environment: tuple[tuple[str, str], ...]) -> Any:
    options = _options(os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:"))
    if root.startswith(("s3:", "s3a:")) and _wants_profile():
        from obstore.auth.boto3 import Boto3CredentialProvider

        options["credential_provider"] = Boto3CredentialProvider()
    return from_url(root, **options)


def _wants_profile() -> bool:
    """Whether S3's credentials are those of a profile, which only boto3 reads."""
    env = os.environ
    if {"AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"} & env.keys():
        return False
    kept = env.get("AWS_SHARED_CREDENTIALS_FILE", os.path.expanduser("~/.aws/credentials"))
    wanted = "AWS_PROFILE" in env or os.path.exists(kept) or os.path.exists(os.path.expanduser("~/.aws/config"))
    return wanted and importlib.util.find_spec("boto3") is not None


class Object:
    """An object of a store; as a folder, what lies below its key."""

    __slots__ = ("_key", "_store", "_whole_store", "name")

    def __init__(self, store: Any, key: str, name: str, whole_store: bool) -> None:
        self._store, self._key, self.name, self._whole_store = store, key, name, whole_store

    def get(self, start: int, end: int) -> tuple[Block, int, str]:
        """Bytes of a range, fewer at the end; the size of the whole, and its tag."""
        try:
            answer = obstore.get(self._store, self._key, options={"range": (start, end)})
            data = answer.bytes()
        except exceptions.NotSupportedError as error:
            raise NoRangesError from error
        except Exception as error:
            if "416" in str(error) and self._head()["size"] == 0:
                return b"", 0, ""
            raise self._said(error) from None
        meta = answer.meta
        return memoryview(data), meta["size"], meta["e_tag"] or str(meta["last_modified"])

    def stream(self) -> tuple[Iterator[Block], int]:
        """All of its bytes, and how many there are."""
        try:
            answer = obstore.get(self._store, self._key)
        except Exception as error:
            raise self._said(error) from None
        return self._streamed(answer), answer.meta["size"]

    def _streamed(self, answer: Any) -> Iterator[Block]:
        try:
            for piece in answer.stream():
                yield memoryview(piece)
        except Exception as error:
            raise self._said(error) from None

    def size(self) -> int:
        """Bytes of the object."""
        try:
            return int(self._head()["size"])
        except FileError:  # a server, or a signature, that allows no HEAD
            try:
                return self.get(0, 1)[1]
            except NoRangesError:
                return self.stream()[1]

    def exists(self) -> bool:
        """Whether there is such an object."""
        try:
            self._head()
        except FileNotFoundError:
            return False
        return True

    def _head(self) -> Any:
        try:
            return obstore.head(self._store, self._key)
        except Exception as error:
            raise self._said(error) from None

    def names(self) -> list[str] | None:
        """The files and folders below the key; None from a plain HTTP server, which does not tell."""
        if not self._whole_store:
            return None
        try:
            found = obstore.list_with_delimiter(self._store, self._key or None)
        except Exception as error:
            raise self._said(error) from None
        paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def put(self, pieces: Iterator[bytes], size: int) -> None:
        """Write the object, by a multipart upload; if the pieces raise, there is none afterwards."""
        if not self._whole_store:
            raise read_only(self.name, "name a file, or an object of s3://, gs:// or az://")
        part = max(_PART, -(-size // _PARTS))
        try:
            obstore.put(
                self._store, self._key, pieces, use_multipart=True, chunk_size=part, max_concurrency=_CONCURRENT
            )
        except InterruptedError:
            raise
        except Exception as error:
            raise self._said(error) from None

    def delete(self) -> None:
        """Take it away."""
        try:
            obstore.delete(self._store, self._key)
        except Exception as error:
            raise self._said(error) from None

    def _said(self, error: Exception) -> FileError:
        """What a store's error means, without the URLs in it."""
        text = str(error)
        status = re.search(r"status code: (\d+)", text)
        code = status[1] if status else ""
        said = f"{code} {text}"
        number, what = next(
            (number, what)
            for number, what, meant in _MEANINGS
            if (isinstance(error, meant) if isinstance(meant, type) else re.search(meant, said))
        )
        if number == errno.ENOENT:
            return missing(self.name, what)
        tries = re.search(r"after (\d+) retries", text)
        return FileError(number, what + (f" (tried {int(tries[1]) + 1} times)" if tries else ""), self.name)


_GONE = "the server has no such object (404); check the address"
_UNKNOWN = "the server asks for credentials (401); give them in the usual way"
# what an error's kind, or its status and text, mean: number of the error, words
_MEANINGS: tuple[tuple[int, str, Any], ...] = (
    (errno.ENOENT, _GONE, FileNotFoundError),
    (errno.ENOENT, _GONE, "^(404|410) "),
    (
        errno.EACCES,
        "the server refuses access (403); check the credentials and what they may do, or the address",
        exceptions.PermissionDeniedError,
    ),
    (errno.EACCES, _UNKNOWN, exceptions.UnauthenticatedError),
    (
        errno.EACCES,
        "there are no credentials; give them in the usual way, or set AWS_SKIP_SIGNATURE=true for a public bucket",
        r"(?i)credential|InstanceMetadata|169\.254",
    ),
    (errno.EBUSY, "the server is asked too often (429); try again later", "^429 "),
    (errno.EIO, "the server failed (5xx); try again later", "^5"),
    (errno.ETIMEDOUT, "the server does not answer in time; try again, or set STATEDICT_TIMEOUT", "Timeout,|TimedOut"),
    (errno.ECONNREFUSED, "the server refuses connections; check the address and that it runs", "ConnectionRefused"),
    (errno.EHOSTUNREACH, "the server cannot be found; check the address and the network", "dns error"),
    (errno.EIO, "the server failed; try again later, or fetch the file by other means", ""),
)
