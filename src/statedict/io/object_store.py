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
from statedict.io.remote import NoRangesError, missing_error, read_only
from statedict.io.urls import Item, redact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.blocks import Block
    from statedict.io.remote import Version

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


_process: list[int] = []  # the one in which obstore has been used; it does not survive a fork


def at(url: str) -> Object:
    """What lies, or may lie, behind a URL.

    Raises:
        FileError: the URL, or the environment's words on its store, cannot be used.
        UnsupportedError: this process is a fork of one that uses obstore.
    """
    _check_process()
    name = redact(url)
    scheme, _, rest = url.partition("://")
    host, _, key = rest.partition("/")
    far = scheme in ("http", "https")
    if not host:
        where = "server" if far else "bucket"
        raise FileError(errno.EINVAL, f"names no {where}; write {scheme}://{where.upper()}/…", name)
    try:
        if far:
            return Object(_http(url, _environment()), "", name, url)
        return Object(_store(f"{scheme}://{host}", _environment()), key.strip("/"), name, "")
    except FileError:
        raise
    except Exception as error:
        if far:
            what = "is no address that can be used; check its host and port"
        elif "Account must be" in str(error):
            what = "its account is not known; set AZURE_STORAGE_ACCOUNT_NAME"
        else:
            what = "its store cannot be used; check the bucket's name, and the profile and settings in the environment"
        raise FileError(errno.EINVAL, what, name) from None


def _check_process() -> None:
    if not _process:
        _process.append(os.getpid())
    if _process[0] != os.getpid():
        raise UnsupportedError(FORKED)


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

    __slots__ = ("_key", "_store", "_url", "name")

    def __init__(self, store: Any, key: str, name: str, url: str) -> None:
        self._store, self._key, self.name = store, key, name
        self._url = url  # of a plain server's file; empty for the object of a store

    def get(self, start: int, end: int) -> tuple[Block, int, str]:
        """Bytes of a range, fewer at the end; the size of the whole, and its tag."""
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
            raise self._said(error) from None
        meta = answer.meta
        return memoryview(data), meta["size"], meta["e_tag"] or str(meta["last_modified"])

    def stream(self) -> tuple[Iterator[Block], int]:
        """All of its bytes, and how many there are."""
        self._check_key()
        try:
            answer = obstore.get(self._store, self._key)
        except Exception as error:
            if self._url and "MissingContentLength" in str(error):
                return self._plainly(), -1
            raise self._said(error) from None
        return self._streamed(answer), answer.meta["size"]

    def _streamed(self, answer: Any) -> Iterator[Block]:
        try:
            for piece in answer.stream():
                yield memoryview(piece)
        except Exception as error:
            raise self._said(error) from None

    def _plainly(self) -> Iterator[Block]:
        """The bytes from a server that does not say how many there are, which obstore does not read."""
        from http.client import HTTPException
        from urllib import request as web
        from urllib.parse import urlsplit

        parts = urlsplit(self._url)
        host = parts.netloc.rpartition("@")[2]  # obstore sends no password either
        asked = web.Request(parts._replace(netloc=host, fragment="").geturl())
        opener = web.OpenerDirector()  # of http and https only
        for kind in (
            web.ProxyHandler,
            web.UnknownHandler,
            web.HTTPHandler,
            web.HTTPSHandler,
            web.HTTPDefaultErrorHandler,
            web.HTTPRedirectHandler,
            web.HTTPErrorProcessor,
        ):
            opener.add_handler(kind())
        try:
            with opener.open(asked, timeout=_number("STATEDICT_TIMEOUT", 30)) as answer:
                while piece := answer.read(1 << 20):
                    yield piece
        except (OSError, HTTPException):
            what = "the server broke off, and does not say how long the file is; try again"
            raise FileError(errno.EIO, what, self.name) from None

    def size(self) -> int:
        """Bytes of the object."""
        try:
            return int(self._head()["size"])
        except FileError:  # a server, or a signature, that allows no HEAD
            try:
                return self.get(0, 1)[1]
            except NoRangesError:
                pieces, size = self.stream()
                return size if size >= 0 else sum(len(piece) for piece in pieces)

    def exists(self) -> bool:
        """Whether there is such an object."""
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
        try:
            return obstore.head(self._store, self._key)
        except Exception as error:
            raise self._said(error) from None

    def names(self) -> list[str] | None:
        """The files and folders below the key; None from a plain HTTP server, which does not tell."""
        found = self.contents()
        return None if found is None else sorted(found)

    def contents(self) -> dict[str, Item] | None:
        """The same with their sizes and times."""
        if self._url:
            return None
        try:
            found = obstore.list_with_delimiter(self._store, self._key or None)
        except Exception as error:
            raise self._said(error) from None
        folders = {_last(path): Item(0, 0.0, True) for path in found["common_prefixes"]}
        files = {_last(one["path"]): one for one in found["objects"]}
        return folders | {
            name: Item(int(one["size"]), one["last_modified"].timestamp(), False) for name, one in files.items()
        }

    def put(self, pieces: Iterator[bytes], size: int) -> None:
        """Write the object, by a multipart upload; if the pieces raise, there is none afterwards.

        When the answer to the end of the upload is lost, or late, the client asks again, and the server no longer knows
        the upload. So after an error the object itself is looked at.
        """
        if self._url:
            raise read_only(self.name, "name a file, or an object of s3://, gs:// or az://")
        if not self._key:
            raise FileError(errno.EISDIR, "is a bucket; name an object in the bucket", self.name)
        part = max(_PART, -(-size // _PARTS))
        sent = _Sent(pieces)
        try:
            obstore.put(self._store, self._key, sent, use_multipart=True, chunk_size=part, max_concurrency=_CONCURRENT)
        except InterruptedError:
            raise
        except Exception as error:
            if not (sent.complete and self._has(sent)):
                raise self._said(error) from None

    def _has(self, sent: _Sent) -> bool:
        """Whether the object is what was sent; its bytes are read only if its size is the same."""
        try:
            if self._head()["size"] != sent.size:
                return False
            pieces, _ = self.stream()
            there = _Sent(pieces)
            for _ in there:
                pass
        except FileError:
            return False
        return there.digest == sent.digest

    def look(self) -> tuple[bytes, Version] | None:
        """The bytes of a small object and its version; None if there is none."""
        try:
            answer = obstore.get(self._store, self._key)
            data = bytes(answer.bytes())
        except Exception as error:
            said = self._said(error)
            if said.errno == errno.ENOENT and _code(error) not in _NO_PLACE:
                return None
            raise said from None
        return data, _version(answer.meta)

    def write_if(self, data: bytes, seen: Version | None) -> Version | None:
        """Write a small object in one step, if nobody has written it since it was seen.

        The answer may be lost although the object was written, and the request is then refused when it is repeated. So
        whoever gets no clear answer looks at what is there. Different writers have to write different bytes.

        Args:
            data: its bytes.
            seen: the version that it replaces; None if there was no object.

        Returns:
            The version that was written; None if there is another one.
        """
        if self._url:
            raise read_only(self.name, "name an object of s3://, gs:// or az://")
        self._check_key()
        mode: Any = "create" if seen is None else seen
        for n in range(_TRIES):
            try:
                return _version(obstore.put(self._store, self._key, data, mode=mode))
            except Exception as error:
                said, code = self._said(error), _code(error)
            if said.errno in (errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL) or code in _NO_PLACE:
                break
            there = self.look()
            if there is not None and there[0] == data:
                return there[1]
            if (there and there[1]) != seen:
                return None
            time.sleep(_PAUSE * 2**n)  # the request was lost, or two were under way and neither was let through
        raise said

    def delete(self) -> None:
        """Take it away."""
        try:
            obstore.delete(self._store, self._key)
        except Exception as error:
            raise self._said(error) from None

    def _said(self, error: Exception) -> FileError:
        """What a store's error means, without the URLs in it."""
        text, code = str(error), _code(error)
        if code in _CODES:
            number, what = _CODES[code]
            return missing_error(self.name, what) if number == errno.ENOENT else FileError(number, what, self.name)
        said = f"{_status(error)} {text}"
        number, what = next(
            (number, what)
            for number, what, meant in _MEANINGS
            if (isinstance(error, meant) if isinstance(meant, type) else re.search(meant, said))
        )
        if number == errno.ENOENT:
            return missing_error(self.name, what)
        tries = re.search(r"after (\d+) retries", text)
        return FileError(number, what + (f" (tried {int(tries[1]) + 1} times)" if tries else ""), self.name)


class _Sent:
    """Pieces on their way: how many bytes they are, and their digest."""

    def __init__(self, pieces: Iterator[Block]) -> None:
        from xxhash import xxh3_128

        self._pieces, self._hash = pieces, xxh3_128()
        self.size, self.complete = 0, False

    def __iter__(self) -> Iterator[Block]:
        for piece in self._pieces:
            self._hash.update(piece)
            self.size += len(piece)
            yield piece
        self.complete = True

    @property
    def digest(self) -> bytes:
        return self._hash.digest()


def _version(of: Any) -> Version:
    """What names a version of an object: some stores go by its tag, some by a number."""
    return {key: of[key] for key in ("e_tag", "version") if of[key] is not None}


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _status(error: Exception) -> str:
    status = re.search(r"status code: (\d+)", str(error))
    return status[1] if status else ""


def _code(error: Exception) -> str:
    """The code in a store's answer, by which causes of one status are told apart."""
    code = re.search(r"<Code>(\w+)</Code>", str(error))
    return code[1] if code else ""


_NO_PLACE = ("NoSuchBucket", "ContainerNotFound")
_NO_BUCKET = "there is no such bucket (404); check its name, or make it first"
_GONE = "the server has no such object (404); check the address"
_UNKNOWN = "the server asks for credentials (401); give them in the usual way"
# what a code means where the status alone does not say
_CODES = dict.fromkeys(_NO_PLACE, (errno.ENOENT, _NO_BUCKET)) | {
    "NoSuchUpload": (
        errno.EIO,
        "the server has ended the upload (404), and the object is not there as it was sent; try again, with a longer "
        "STATEDICT_TIMEOUT if the server is slow",
    ),
}
# what an error's kind, or its status and text, mean: number of the error, words
_MEANINGS: tuple[tuple[int, str, Any], ...] = (
    (errno.EOPNOTSUPP, "the server does not answer such a request (405, 501); download the file", "^(405|501) "),
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
