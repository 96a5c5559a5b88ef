"""Real servers for the tests: plain HTTP with ranges and without, with faults, and the Hugging Face Hub's interface."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit


class WithoutRanges(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server` does."""

    def log_message(self, *_: Any) -> None:
        pass


class WithRanges(WithoutRanges):
    """A server that answers with the range that it is asked for, as most do, and counts what it sends."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        server.requests.append((self.path, self.headers.get("Range", "")))
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int):
            self.send_error(fault)
            return
        if fault == "slow":
            time.sleep(3)
        path = Path(self.translate_path(unquote(urlsplit(self.path).path)))
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        start, end = 0, size
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, size) if last else size
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        server.sent += len(data)
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            self.close_connection = True


class Hub(WithRanges):
    """As much of the Hub's interface as huggingface_hub asks for when it lists and reads a repository."""

    revision: ClassVar[str] = "0" * 40

    def do_GET(self) -> None:
        self._count("GET")
        path = urlsplit(self.path).path
        root = Path(self.directory)
        if path.startswith("/api/models/"):
            owner, name, *rest = [*unquote(path).split("/")[3:], ""]
            if not name or not (root / owner / name).is_dir():
                self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            elif rest[:1] == ["tree"]:
                folder = root / owner / name / "/".join(rest[2:])
                files = [folder] if folder.is_file() else sorted(folder.iterdir()) if folder.is_dir() else None
                if files is None:
                    self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
                else:
                    self._answer([self._entry(file, root / owner / name) for file in files])
            else:
                names = [{"rfilename": file.name} for file in sorted((root / owner / name).iterdir())]
                self._answer({"id": f"{owner}/{name}", "sha": self.revision, "siblings": names})
        elif "/resolve/" in path:
            owner_name, _, rest = path.partition("/resolve/")
            self.path = f"{owner_name}/{rest.partition('/')[2]}"
            super().do_GET()
        else:
            self.send_error(404)

    def do_HEAD(self) -> None:
        self._count("HEAD")
        owner_name, _, rest = unquote(urlsplit(self.path).path).partition("/resolve/")
        file = Path(self.directory) / owner_name.lstrip("/") / rest.partition("/")[2]
        if not file.is_file():
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", self.revision)
        self.send_header("ETag", f'"{file.stat().st_mtime_ns:040x}"')
        self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()

    def do_POST(self) -> None:
        self._count("POST")
        length = int(self.headers.get("Content-Length", 0))
        asked = json.loads(self.rfile.read(length) or b"{}")
        _, _, _, owner, name, *_ = unquote(urlsplit(self.path).path).split("/")
        root = Path(self.directory) / owner / name
        there = [root / path for path in asked.get("paths", []) if (root / path).exists() and path]
        self._answer([self._entry(file, root) for file in there])

    def _count(self, verb: str) -> None:
        server: Any = self.server
        server.requests.append((self.path, verb))

    def _entry(self, file: Path, root: Path) -> dict[str, Any]:
        path = str(file.relative_to(root))
        if file.is_dir():
            return {"type": "directory", "oid": "1" * 40, "size": 0, "path": path}
        return {"type": "file", "oid": f"{file.stat().st_mtime_ns:040x}", "size": file.stat().st_size, "path": path}

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(http.server.ThreadingHTTPServer):
    """A server of a folder.

    `requests` are those that came, `sent` the bytes that went, `faults` what the next answers are: a status, "slow",
    "cut", or None for one that is right.
    """

    daemon_threads = True

    def __init__(self, folder: Path, handler: type[http.server.SimpleHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(handler, directory=os.fspath(folder)))
        self.requests: list[tuple[str, str]] = []
        self.faults: list[int | str | None] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(folder: Path, handler: type[http.server.SimpleHTTPRequestHandler]) -> Iterator[Server]:
    server = Server(folder, handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
