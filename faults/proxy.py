"""Stands between a process and an S3 server, and at the n-th request loses it, loses its answer, refuses it or is slow.

It is set up through requests to itself, below `/-/`. It answers for the server in one thing: who asks to complete an
upload once more is told that there is none, as many servers do.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import re
import signal
import threading
import time
from typing import Any
from urllib.parse import urlsplit

ACTIONS = ("nothing", "answer lost", "request lost", "refused", "refused and done", "slow", "kill", "kill after")
LATE = 1.4  # seconds; the client waits one
_GONE = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchUpload</Code><Message>The specified upload does not '
    b"exist.</Message></Error>"
)
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection of the client, and one to the server."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server: Proxy

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/-/"):
            self._answer(200, {}, json.dumps(self.server.control(self.path.split("/")[2:])).encode())
            return
        action = self.server.gate(f"{self.command} {self.path}")
        if action == "kill":
            self.server.kill()
        if action == "refused":
            self._answer(503, {}, _BUSY)
        if action in ("kill", "request lost", "refused"):
            self.close_connection = True
            return
        status, headers, answer = self._forward(body)
        if action == "kill after":
            self.server.kill()
        if action == "slow":
            time.sleep(LATE)
        if action == "refused and done":
            status, headers, answer = 503, {}, _BUSY
        if action in ("kill after", "answer lost"):
            self.close_connection = True
            return
        try:
            self._answer(status, headers, answer)
        except OSError:  # nobody listens any more
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upload = re.search(r"[?&]uploadId=([^&]+)", self.path) if self.command == "POST" else None
        conditional = self.headers.get("If-Match") or self.headers.get("If-None-Match")
        with self.server.one_at_a_time if conditional or upload else threading.Lock():
            if upload and upload[1] in self.server.completed:
                return 404, {"Content-Type": "application/xml"}, _GONE
            connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
            finally:
                connection.close()
            if upload and answer.status == 200:
                self.server.completed.add(upload[1])
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED_ON}
        if self.command == "HEAD":
            kept["Content-Length"] = answer.headers.get("Content-Length", "0")
        return answer.status, kept, data

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


_NOT_PASSED_ON = {"connection", "content-length", "transfer-encoding", "keep-alive"}


class Proxy(http.server.ThreadingHTTPServer):
    """A proxy of one server, for one process that is to meet faults, and others.

    Attributes:
        upstream: host and port of the server.
        requests: those that were counted, in order.
        fired: whether the fault has happened.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream.removeprefix("http://")
        self.one_at_a_time, self._mutex = threading.Lock(), threading.Lock()
        self.completed: set[str] = set()
        self.disarm()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing; a client that was killed is none of its faults."""

    def start(self) -> None:
        """Serve, in a thread of this process."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Serve no more."""
        self.shutdown()
        self.server_close()

    def disarm(self) -> None:
        """No more faults."""
        self.arm("nothing", 0, "")

    def arm(self, action: str, n: int, lasts: str, of: str = "", pid: int = 0) -> None:
        """From now on count requests; the n-th has the fault, and those after it if it `lasts`.

        Args:
            action: one of `ACTIONS`.
            n: which request, from 1.
            lasts: `yes`, or nothing.
            of: only requests in whose method and path this occurs.
            pid: the process to kill.
        """
        if action not in ACTIONS:
            raise ValueError(action)
        self.requests: list[str] = []
        self.fired = False
        self._action, self._n, self._lasts, self._of, self._pid = action, n, bool(lasts), of, pid

    def gate(self, request: str) -> str:
        """Count a request; what is to become of it."""
        with self._mutex:
            if self._of not in request:
                return "nothing"
            self.requests.append(request)
            now = len(self.requests)
            if self._action == "nothing" or not (now == self._n or (self._lasts and now > self._n)):
                return "nothing"
            self.fired = True
            return self._action

    def kill(self) -> None:
        """End the process without a word."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)

    def control(self, words: list[str]) -> Any:
        """What a request to the proxy itself does; see `Remote`."""
        if words[0] == "arm":
            action, n, lasts, of, pid = json.loads(bytes.fromhex(words[1]))
            self.arm(action, n, lasts, of, pid)
        return {"fired": self.fired, "requests": self.requests}


class Remote:
    """A proxy that another process serves.

    Args:
        url: where it listens.
    """

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc

    def arm(self, action: str, n: int = 0, lasts: str = "", of: str = "") -> None:
        """Let it be this process that meets the fault; see `Proxy.arm`."""
        self._ask("arm/" + json.dumps([action, n, lasts, of, os.getpid()]).encode().hex())

    def disarm(self) -> None:
        """No more faults."""
        self.arm("nothing")

    @property
    def fired(self) -> bool:
        """Whether the fault has happened."""
        return bool(self._ask("state")["fired"])

    @property
    def requests(self) -> list[str]:
        """What was counted."""
        return list(self._ask("state")["requests"])

    def _ask(self, what: str) -> Any:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        try:
            connection.request("GET", f"/-/{what}")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()
