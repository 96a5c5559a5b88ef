"""Repositories of the Hugging Face Hub, through huggingface_hub: `hf://ORG/NAME[@REVISION][/PATH]`.

They are read. Tokens, mirrors (HF_ENDPOINT) and the like are huggingface_hub's own affair.
"""

from __future__ import annotations

import errno
from functools import lru_cache

from statedict.errors import FileError, MissingExtraError
from statedict.io.urls import Item, missing_error, read_only_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.pipeline import Block

try:
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import HfHubHTTPError
except ImportError as error:
    raise MissingExtraError("hf:// needs huggingface_hub; pip install 'statedict[hub]'") from error


_CLIENT = "httpx"  # what releases before 2 ask with, and whose errors some of them let through


@lru_cache(1)
def _file_system() -> Any:
    return HfFileSystem()


def connect(url: str) -> _HubFile:
    """Connect to what may lie behind a URL."""
    return _HubFile(url)


class _HubFile:
    """A file or folder of a repository, with the methods of `object_store._Object`."""

    __slots__ = ("_path", "name")

    def __init__(self, url: str) -> None:
        self.name, self._path = url, url.removeprefix("hf://").strip("/")

    def get(self, start: int, end: int) -> tuple[Block, int, str]:
        info = self._ask("info")
        if info["type"] != "file":
            raise missing_error(self.name, "is a folder of the repository, not a file")
        end = min(end, info["size"])
        data = self._ask("cat_file", start=start, end=end) if start < end else b""
        return data, info["size"], info.get("blob_id") or ""

    def stream(self) -> tuple[Iterator[Block], int]:
        size = self.size()
        return iter([self._ask("cat_file")]), size

    def size(self) -> int:
        return int(self._ask("info")["size"])

    def exists(self) -> bool:
        try:
            return bool(self._ask("info")["type"] == "file")
        except FileNotFoundError:
            return False

    def contents(self) -> dict[str, Item]:
        return {  # without times: the hub's are those of commits
            item["name"].rpartition("/")[2]: Item(int(item["size"] or 0), 0.0, item["type"] != "file")
            for item in self._ask("ls", detail=True)
        }

    def _refuse(self, *_: object) -> Any:
        raise read_only_error(self.name, "save to a folder and upload it with `hf upload`")

    put = look = write_if = _refuse

    def delete(self) -> None:
        raise read_only_error(self.name, "delete it with huggingface_hub")

    def _ask(self, what: str, **options: Any) -> Any:
        try:
            if "/" not in self._path:  # some releases ask the hub, others refuse
                raise ValueError(self._path)
            return getattr(_file_system(), what)(self._path, **options)
        except (ValueError, NotImplementedError):  # what huggingface_hub says of a path without a repository
            no_repository = "names no repository; write hf://ORG/NAME[@REVISION][/PATH]"
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
