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
import time
from functools import lru_cache

from statedict.errors import FileError, MissingExtraError, UnsupportedError
from statedict.io.parallel import FORKED
from statedict.io.urls import Item, NoRangesError, missing_error, read_only_error, redact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.pipeline import Block

    Version = dict[str, str]

try:
    import obstore
    from obstore import exceptions
    from obstore.store import HTTPStore, from_url
except ImportError as error:
    raise MissingExtraError("URLs need obstore; pip install 'statedict[remote]'") from error

_PART = 8 << 20  # of an upload; a store takes up to 10,000
_PARTS = 9_000
_CONCURRENT = 4  # parts under way
_TRIES, _PAUSE = 4, 0.2  # of a conditional write; seconds, each pause twice the one before
_PROCESS = os.getpid()  # obstore does not survive a fork


def connect(url: str) -> _Object:
    """Connect to what may lie behind a URL."""
    _check_process()
    name = redact(url)
    scheme, _, rest = url.partition("://")
    host, _, key = rest.partition("/")
    far = scheme in ("http", "https")
    if not host:
        where = "server" if far else "bucket"
        raise FileError(errno.EINVAL, f"names no {where}; write {scheme}://{where.upper()}/…", name)
    try:
        root, key = (url, "") if far else (f"{scheme}://{host}", key.strip("/"))
        return _Object(_store(root, _read_environment()), key, name, url if far else "")
    except FileError:
        raise
    except Exception as error:
        if far:
            what = "is not a usable address; check its host and port"
        elif "Account must be" in str(error):
            what = "its account is not known; set AZURE_STORAGE_ACCOUNT_NAME"
        else:
            what = "its store cannot be used; check the bucket's name, and the profile and settings in the environment"
        raise FileError(errno.EINVAL, what, name) from None


def _check_process() -> None:
    if os.getpid() != _PROCESS:
        raise UnsupportedError(FORKED)


def _read_environment() -> tuple[tuple[str, str], ...]:
    """The settings of stores; a store made with other settings is not used again."""
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


@lru_cache(32)
def _store(root: str, environment: tuple[tuple[str, str], ...]) -> Any:
    if root.startswith("http"):
        return HTTPStore.from_url(root, **_options(root.startswith("http:")))
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
    files = env.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), "~/.aws/config"
    wanted = "AWS_PROFILE" in env or any(os.path.exists(os.path.expanduser(file)) for file in files)
    return wanted and importlib.util.find_spec("boto3") is not None


class _Object:
    """An object of a store; as a folder, what lies below its key."""

    __slots__ = ("_key", "_store", "_url", "name")

    def __init__(self, store: Any, key: str, name: str, url: str) -> None:
        self._store, self._key, self.name = store, key, name
        self._url = url  # of a plain server's file; empty for the object of a store

    def get(self, start: int, end: int) -> tuple[Block, int, str]:
        """Return the bytes of a range, fewer at the end; the size of the whole; a tag that changes with the object."""
        _check_process()
        self._check_key()
        try:
            answer = obstore.get(self._store, self._key, options={"range": (start, end)})
            data = answer.bytes()
        except exceptions.NotSupportedError as error:
            raise NoRangesError from error
        except Exception as error:
            if "NotPartial" in str(error):
                raise NoRangesError from None
            if _status(error) == "416" and self._is_empty():
                return b"", 0, ""
            raise self._explain(error) from None
        meta = answer.meta
        return memoryview(data), meta["size"], meta["e_tag"] or str(meta["last_modified"])

    def stream(self) -> tuple[Iterator[Block], int]:
        """Return all bytes, and how many there are (-1 if the server does not say)."""
        self._check_key()
        try:
            answer = obstore.get(self._store, self._key)
        except Exception as error:
            if self._url and "MissingContentLength" in str(error):
                return self._stream_without_length(), -1
            raise self._explain(error) from None
        return self._stream(answer), answer.meta["size"]

    def _stream(self, answer: Any) -> Iterator[Block]:
        try:
            for piece in answer.stream():
                yield memoryview(piece)
        except Exception as error:
            raise self._explain(error) from None

    def _stream_without_length(self) -> Iterator[Block]:
        """The bytes from a server that does not say how many there are, which obstore does not read."""
        from http.client import HTTPException
        from urllib import request as web
        from urllib.parse import urlsplit

        parts = urlsplit(self._url)
        host = parts.netloc.rpartition("@")[2]  # obstore sends no password either
        request = web.Request(parts._replace(netloc=host, fragment="").geturl())
        opener = web.OpenerDirector()  # of http and https only
        kinds = [web.ProxyHandler, web.UnknownHandler, web.HTTPHandler, web.HTTPSHandler, web.HTTPDefaultErrorHandler]
        for kind in [*kinds, web.HTTPRedirectHandler, web.HTTPErrorProcessor]:
            opener.add_handler(kind())
        try:
            with opener.open(request, timeout=_number("STATEDICT_TIMEOUT", 30)) as answer:
                while piece := answer.read(1 << 20):
                    yield piece
        except (OSError, HTTPException):
            what = "the server broke off, and does not say how long the file is; try again"
            raise FileError(errno.EIO, what, self.name) from None

    def size(self) -> int:
        try:
            return int(self._head()["size"])
        except FileError:  # a server, or a signature, that allows no HEAD
            try:
                return self.get(0, 1)[1]
            except NoRangesError:
                pieces, size = self.stream()
                return size if size >= 0 else sum(len(piece) for piece in pieces)

    def exists(self) -> bool:
        try:
            self._head()
        except FileNotFoundError:
            return False
        except FileError as error:
            if error.errno not in (errno.EACCES, errno.EOPNOTSUPP):
                raise
            try:
                self.get(0, 1)
            except NoRangesError:
                return True
            except FileNotFoundError:
                return False
        return True

    def _is_empty(self) -> bool:
        try:
            return bool(self._head()["size"] == 0)
        except FileError:
            return False

    def _check_key(self) -> None:
        if not self._key and not self._url:
            raise missing_error(self.name, "is a bucket; name an object in the bucket, or a folder")

    def _head(self) -> Any:
        self._check_key()
        return self._ask(obstore.head, self._key)

    def _ask(self, call: Any, key: str | None) -> Any:
        try:
            return call(self._store, key)
        except Exception as error:
            raise self._explain(error) from None

    def contents(self) -> dict[str, Item] | None:
        if self._url:  # a plain HTTP server does not tell
            return None
        found = self._ask(obstore.list_with_delimiter, self._key or None)
        items = {path: Item(0, 0.0, True) for path in found["common_prefixes"]}
        for file in found["objects"]:
            items[file["path"]] = Item(int(file["size"]), file["last_modified"].timestamp(), False)
        return {path.rstrip("/").rpartition("/")[2]: item for path, item in items.items()}

    def put(self, pieces: Iterator[bytes], size: int) -> None:
        if self._url:
            raise read_only_error(self.name, "name a file, or an object of s3://, gs:// or az://")
        if not self._key:
            raise FileError(errno.EISDIR, "is a bucket; name an object in the bucket", self.name)
        part = max(_PART, -(-size // _PARTS))
        upload = _Digest(pieces)
        try:
            obstore.put(
                self._store, self._key, upload, use_multipart=True, chunk_size=part, max_concurrency=_CONCURRENT
            )
        except InterruptedError:
            raise
        except Exception as error:
            # If the last answer is lost or late, the client asks again, and the server no longer knows the upload.
            if not (upload.complete and self._holds(upload)):
                raise self._explain(error) from None

    def _holds(self, upload: _Digest) -> bool:
        try:
            if self._head()["size"] != upload.size:
                return False
            stored = _Digest(self.stream()[0])
            for _ in stored:
                pass
        except FileError:
            return False
        return stored.hash.digest() == upload.hash.digest()

    def look(self) -> tuple[bytes, Version] | None:
        """Return the bytes of a small object and its version; None if there is none."""
        try:
            answer = obstore.get(self._store, self._key)
            return bytes(answer.bytes()), _version(answer.meta)
        except Exception as raw:
            error = self._explain(raw)
        if error.errno == errno.ENOENT and error.strerror != _NO_BUCKET:
            return None
        raise error

    def write_if(self, data: bytes, seen: Version | None) -> Version | None:
        """Replace the version `seen` (None: no object); return the new version, None if another one is there."""
        # The answer may be lost although the object was written, and a repeated request is then refused. So without a
        # clear answer it looks at what is there. Different writers have to write different bytes.
        if self._url:
            raise read_only_error(self.name, "name an object of s3://, gs:// or az://")
        self._check_key()
        mode: Any = "create" if seen is None else seen
        for n in range(_TRIES):
            try:
                return _version(obstore.put(self._store, self._key, data, mode=mode))
            except Exception as raw:
                error = self._explain(raw)
            if error.errno in (errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL) or error.strerror == _NO_BUCKET:
                break
            there = self.look()
            if there is not None and there[0] == data:
                return there[1]
            if (there and there[1]) != seen:
                return None
            time.sleep(_PAUSE * 2**n)  # the request was lost, or two were under way and neither was let through
        raise error

    def delete(self) -> None:
        self._ask(obstore.delete, self._key)

    def _explain(self, error: Exception) -> FileError:
        text = f"{_status(error)} {error}"
        number, what = next(
            (number, what)
            for number, what, kind in _MEANINGS
            if (isinstance(error, kind) if isinstance(kind, type) else re.search(kind, text))
        )
        if number == errno.ENOENT:
            return missing_error(self.name, what)
        tries = re.search(r"after (\d+) retries", text)
        return FileError(number, what + (f" (tried {int(tries[1]) + 1} times)" if tries else ""), self.name)


class _Digest:
    def __init__(self, pieces: Iterator[Block]) -> None:
        from xxhash import xxh3_128

        self._pieces, self.hash = pieces, xxh3_128()
        self.size, self.complete = 0, False

    def __iter__(self) -> Iterator[Block]:
        for piece in self._pieces:
            self.hash.update(piece)
            self.size += len(piece)
            yield piece
        self.complete = True


def _version(of: Any) -> Version:
    """What names a version of an object: some stores go by its tag, some by a number."""
    return {key: of[key] for key in ("e_tag", "version") if of[key] is not None}


def _status(error: Exception) -> str:
    status = re.search(r"status code: (\d+)", str(error))
    return status[1] if status else ""


_NO_BUCKET = "there is no such bucket (404); check its name, or make it first"
_GONE = "the server has no such object (404); check the address"
# what an error's kind, or its status and text, mean: number of the error, words
_MEANINGS: tuple[tuple[int, str, Any], ...] = (
    (errno.ENOENT, _NO_BUCKET, "<Code>(NoSuchBucket|ContainerNotFound)</Code>"),
    (
        errno.EIO,
        "the server has ended the upload (404), and the object is not there as it was sent; try again, with a longer "
        "STATEDICT_TIMEOUT if the server is slow",
        "<Code>NoSuchUpload</Code>",
    ),
    (errno.EOPNOTSUPP, "the server does not answer such a request (405, 501); download the file", "^(405|501) "),
    (errno.ENOENT, _GONE, FileNotFoundError),
    (errno.ENOENT, _GONE, "^(404|410) "),
    (
        errno.EACCES,
        "the server refuses access (403); check the credentials and what they may do, or the address",
        exceptions.PermissionDeniedError,
    ),
    (
        errno.EACCES,
        "the server asks for credentials (401); give them in the usual way",
        exceptions.UnauthenticatedError,
    ),
    (
        errno.EACCES,
        "there are no credentials; give them in the usual way, or set AWS_SKIP_SIGNATURE=true for a public bucket",
        r"(?i)credential|InstanceMetadata|169\.254",
    ),
    (errno.EBUSY, "the server is asked too often (429); try again later", "^429 "),
    (errno.EIO, "the server failed (5xx); try again later", "^5"),
    (
        errno.ERANGE,
        "the server sends another range than it is asked for, or does not say which; download the file and name that",
        "^416 |UnexpectedRange|NoContentRange|ParseContentRange",
    ),
    (errno.EOPNOTSUPP, "the server does not say how long the file is; download it and name that", "MissingContent"),
    (errno.ELOOP, "the server's redirects lead nowhere; check the address", "error following redirect"),
    (
        errno.EINVAL,
        "the key cannot be used: a part between its slashes is empty, . or ..; copy the object to another key",
        "Could not parse path",
    ),
    (errno.ETIMEDOUT, "the server does not answer in time; try again, or set STATEDICT_TIMEOUT", "Timeout,|TimedOut"),
    (errno.ECONNREFUSED, "the server refuses connections; check the address and that it runs", "ConnectionRefused"),
    (errno.EHOSTUNREACH, "the server cannot be found; check the address and the network", "dns error"),
    (errno.EIO, "the server failed; try again later, or fetch the file by other means", ""),
)
