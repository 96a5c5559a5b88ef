"""A server of a folder that sends ranges, in a thread, and counts what it sends."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from typing import Any


class Ranges(http.server.SimpleHTTPRequestHandler):
    """`GET`, with one range or none."""

    protocol_version = "HTTP/1.1"
    sent = 0

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Send it."""
        path = self.translate_path(self.path)
        start, end = 0, os.path.getsize(path)
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{end}")
            start, end = int(first), min(int(last) + 1, end)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        Ranges.sent += end - start
        with open(path, "rb") as file:
            file.seek(start)
            while start < end:
                start += self.wfile.write(file.read(min(1 << 20, end - start)))


def serve(folder: str) -> str:
    """Its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"
