"""Repositories of the Hugging Face Hub, through huggingface_hub: `hf://ORG/NAME[@REVISION][/PATH]`.

They are read. Tokens, mirrors (HF_ENDPOINT) and the like are huggingface_hub's own affair.
"""

from __future__ import annotations

import errno
from functools import lru_cache

from statedict.errors import FileError, MissingExtraError
from statedict.io.remote import missing_error, read_only
from statedict.io.urls import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.blocks import Block
    from statedict.io.remote import Version

try:
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import HfHubHTTPError
except ImportError as error:
    raise MissingExtraError("hf:// needs huggingface_hub; pip install 'statedict[hub]'") from error


_CLIENT = "httpx"  # what releases before 2 ask with, and whose errors some of them let through


@lru_cache(1)
def _files() -> Any:
    return HfFileSystem()


def at(url: str) -> HubFile:
    """What lies, or may lie, behind a URL."""
    return HubFile(url)


class HubFile:
    """A file or folder of a repository."""

    __slots__ = ("_path", "name")

    def __init__(self, url: str) -> None:
        self.name, self._path = url, url.removeprefix("hf://").strip("/")

    def get(self, start: int, end: int) -> tuple[Block, int, str]:
        """Bytes of a range, fewer at the end; the size of the whole, and its blob's name."""
        about = self._asked("info")
        if about["type"] != "file":
            raise missing_error(self.name, "is a folder of the repository, not a file")
        end = min(end, about["size"])
        data = self._asked("cat_file", start=start, end=end) if start < end else b""
        return data, about["size"], about.get("blob_id") or ""

    def stream(self) -> tuple[Iterator[Block], int]:
        """All of its bytes, and how many there are."""
        size = self._asked("info")["size"]
        return iter([self._asked("cat_file")]), size

    def size(self) -> int:
        """Bytes of the file."""
        return int(self._asked("info")["size"])

    def exists(self) -> bool:
        """Whether there is such a file."""
        try:
            return bool(self._asked("info")["type"] == "file")
        except FileNotFoundError:
            return False

    def names(self) -> list[str] | None:
        """The files and folders of this folder."""
        return sorted(path.rpartition("/")[2] for path in self._asked("ls", detail=False))

    def contents(self) -> dict[str, Item] | None:
        """The same with their sizes; the hub's own times are those of commits."""
        return {
            one["name"].rpartition("/")[2]: Item(int(one["size"] or 0), 0.0, one["type"] != "file")
            for one in self._asked("ls", detail=True)
        }

    def put(self, pieces: Iterator[bytes], size: int) -> None:
        """Raise UnsupportedError."""
        raise read_only(self.name, "save to a folder and upload it with `hf upload`")

    def look(self) -> tuple[bytes, Version] | None:
        """Raise UnsupportedError."""
        raise read_only(self.name, "save to a folder and upload it with `hf upload`")

    def write_if(self, data: bytes, seen: Version | None) -> Version | None:
        """Raise UnsupportedError."""
        raise read_only(self.name, "save to a folder and upload it with `hf upload`")

    def delete(self) -> None:
        """Raise UnsupportedError."""
        raise read_only(self.name, "delete it with huggingface_hub")

    def _asked(self, what: str, **options: Any) -> Any:
        no_repository = "names no repository; write hf://ORG/NAME[@REVISION][/PATH]"
        if "/" not in self._path:  # some releases ask the hub, others refuse
            raise FileError(errno.EINVAL, no_repository, self.name)
        try:
            return getattr(_files(), what)(self._path, **options)
        except (ValueError, NotImplementedError):  # what huggingface_hub says of a path without a repository
            raise FileError(errno.EINVAL, no_repository, self.name) from None
        except FileNotFoundError:
            raise missing_error(
                self.name, "the hub has no such file or repository; check its name and your token"
            ) from None
        except HfHubHTTPError as error:
            code = getattr(error.response, "status_code", "no answer")
            what = f"the hub refuses or fails ({code}); check your token, or try again"
            raise FileError(errno.EIO, what, self.name) from None
        except Exception as error:
            if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] != _CLIENT:
                raise
            what = "the hub cannot be reached; check the network, and HF_HUB_OFFLINE"
            raise FileError(getattr(error, "errno", None) or errno.EIO, what, self.name) from None
