#!/usr/bin/env bash
# Versions: obstore 0.12.1, Python 3.11, Linux x86-64; a web server on this machine in the place of S3.
#
# Behaviour: obstore repeats a conditional PUT (`mode="create"`, `If-None-Match: *`) by itself when the connection breaks
# before the answer. If the first request had been carried out, the store answers the repeated one 412, and the caller
# gets `AlreadyExistsError` for an object that its own call has just made. Who takes a lock that way is locked out by
# itself.
#
# A confident guess: a request that is not idempotent is not repeated, and the caller is told that the connection broke;
# or the library knows the object as its own.
#
# Output seen:
#   requests: ['PUT If-None-Match=*', 'PUT If-None-Match=*']
#   put raised AlreadyExistsError
#   the object holds b'mine'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet obstore==0.12.1
"$work/venv/bin/python" - > "$work/output" <<'PY'
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import obstore
from obstore.store import S3Store

requests, objects = [], {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        requests.append(f"PUT If-None-Match={self.headers['If-None-Match']}")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path not in objects:
            objects[self.path] = data
            self.close_connection = True  # it is done, and the answer is lost
            return
        self.send_response(412)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
store = S3Store(
    "bucket",
    endpoint=f"http://127.0.0.1:{server.server_port}",
    access_key_id="x",
    secret_access_key="x",
    region="us-east-1",
    client_options={"allow_http": True},
)
try:
    obstore.put(store, "lock", b"mine", mode="create", use_multipart=False)
    told = "nothing"
except Exception as error:
    told = type(error).__name__
print("requests:", requests)
print("put raised", told)
print("the object holds", *objects.values())
PY
cat "$work/output"
diff "$work/output" - <<'SEEN'
requests: ['PUT If-None-Match=*', 'PUT If-None-Match=*']
put raised AlreadyExistsError
the object holds b'mine'
SEEN
