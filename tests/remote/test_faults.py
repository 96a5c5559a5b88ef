"""Servers that do not keep to the rules, names that name nothing, and what is said of them."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

import statedict
from statedict.errors import CorruptFileError, FileError, MissingFileError
from statedict.formats.causes import describe_folder, explain_unopened
from statedict.io import remote
from statedict.io.location import location
from statedict.io.urls import redact, to_name
from statedict.testing.same import assert_same

from .servers import Server, WithoutRanges, WithRanges, serving


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEDICT_TIMEOUT", "1")
    monkeypatch.setenv("STATEDICT_RETRIES", "1")


class Fixed(WithRanges):
    """A server that always gives one answer."""

    status: ClassVar[int] = 206
    headers_: ClassVar[dict[str, str]] = {}
    body: ClassVar[bytes] = bytes(100)

    def do_GET(self) -> None:  # noqa: N802
        self.send_response(self.status)
        for key, value in ({"Content-Length": str(len(self.body))} | self.headers_).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(self.body)


def fixed(status: int, headers: dict[str, str], length: int) -> type[Fixed]:
    return type("Answer", (Fixed,), {"status": status, "headers_": headers, "body": bytes(length)})


@pytest.mark.parametrize("headers", [{}, {"Content-Range": "bytes 0-9/100"}, {"Content-Range": "bytes 0-99/*"}])
def test_a_wrong_range_is_called_so(tmp_path: Path, headers: dict[str, str]) -> None:
    with (
        serving(tmp_path, fixed(206, headers, 10)) as server,
        pytest.raises(FileError, match="sends another range than it is asked for, or does not say which"),
    ):
        statedict.load(f"{server.url}/a.pth")


def test_redirects_without_end_are_called_so(tmp_path: Path) -> None:
    with (
        serving(tmp_path, fixed(302, {"Location": "/a.pth"}, 0)) as server,
        pytest.raises(FileError, match="the server's redirects lead nowhere; check the address"),
    ):
        statedict.load(f"{server.url}/a.pth")


@pytest.mark.parametrize("length", [0, 10, 99])
def test_a_first_answer_that_is_too_short_is_noticed(tmp_path: Path, length: int) -> None:
    with (
        serving(tmp_path, fixed(206, {"Content-Range": "bytes 0-99/100"}, length)) as server,
        pytest.raises(CorruptFileError, match=f"the server sent {length} bytes of 100; try again"),
    ):
        statedict.load(f"{server.url}/a.pth")


@pytest.mark.parametrize("kept", [100, 1_500_000, 0])
def test_a_file_that_a_shorter_one_replaces_was_replaced(files: Path, web: Server, kept: int) -> None:
    state = statedict.load(f"{web.url}/a.safetensors")
    data = (files / "a.safetensors").read_bytes()
    (files / "a.safetensors").write_bytes(data[:kept])
    with pytest.raises(CorruptFileError, match="was replaced since it was loaded; load it again"):
        state["big"].numpy()


class WithoutLength(WithoutRanges):
    """A server that sends a whole file and does not say how long it is."""

    def do_GET(self) -> None:  # noqa: N802
        self.send_response(200)
        self.end_headers()
        with suppress(BrokenPipeError):
            self.wfile.write(Path(self.translate_path(self.path)).read_bytes())

    def do_HEAD(self) -> None:  # noqa: N802
        self.send_response(200)
        self.end_headers()


def test_a_server_that_tells_no_length_is_read_too(files: Path) -> None:
    with serving(files, WithoutLength) as server:
        assert_same(statedict.load(f"{server.url}/a.pth"), statedict.load(files / "a.pth"))
        assert location(f"{server.url}/a.pth").size() == (files / "a.pth").stat().st_size
        assert location(f"{server.url}/a.pth").exists()
        with_user = server.url.replace("://", "://me:p%40ss@") + "/a.pth?x=1#part"
        assert_same(statedict.load(with_user), statedict.load(files / "a.pth"))


@pytest.mark.parametrize("status", [403, 405, 501])
def test_a_server_that_refuses_head_is_asked_by_get(files: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("STATEDICT_TIMEOUT", "30")  # a 501 is asked again; on a busy machine a second is short for all

    class NoHead(WithRanges):
        def do_HEAD(self) -> None:  # noqa: N802
            self.send_error(status)

    with serving(files, NoHead) as server:
        assert location(f"{server.url}/a.pth").exists()
        assert server.sent == 1
        assert not location(f"{server.url}/none.pth").exists()
        assert_same(statedict.load(f"{server.url}/shards/"), statedict.load(files / "shards"))


def test_a_bucket_is_a_folder(files: Path, s3: Any) -> None:
    with pytest.raises(MissingFileError, match="is a bucket; name an object in the bucket"):
        statedict.load("s3://bucket")
    assert not location("s3://bucket").exists()
    for path in (files / "shards").iterdir():
        s3.upload_file(str(path), "bucket", path.name)
    for url in ("s3://bucket", "s3://bucket/", "S3://bucket"):
        assert_same(statedict.load(url), statedict.load(files / "shards"))
    assert location("s3://bucket").size() == location(str(files / "shards")).size()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "names no bucket; write s3://BUCKET/"),
        ("gs:///key", "names no bucket; write gs://BUCKET/"),
        ("http://", "names no server; write http://SERVER/"),
        ("http://host:99999/a", "is not a usable address; check its host and port"),
        ("az://container/key", "its account is not known; set AZURE_STORAGE_ACCOUNT_NAME"),
        ("hf://", "names no repository; write hf://ORG/NAME"),
        ("hf://org", "names no repository; write hf://ORG/NAME"),
        ("ftp://me:pa55@host/a", "^ftp://: .*known are abfs.*file.*s3"),
        ("s4://bucket/a", "^s4://: .*known are abfs.*file.*s3"),
    ],
)
def test_a_url_that_names_nothing_says_how_to_write_it(url: str, words: str) -> None:
    with pytest.raises(FileError, match=words) as caught:
        statedict.load(url)
    assert "pa55" not in str(caught.value)


def test_what_is_shown_of_a_name_is_not_secret() -> None:
    assert redact("https://me:pa55@host/a@b.pth?x=s3cr3t#y") == "https://host/a@b.pth"
    assert redact("http://host?x") == "http://host"
    assert [redact(name) for name in ("a?b#c@d", "s3://bucket/a?b")] == ["a?b#c@d", "s3://bucket/a?b"]
    assert to_name("HTTPS://host/A?B") == "https://host/A?B"


def test_no_command_prints_what_is_secret_in_a_url(files: Path, web: Server) -> None:
    url = web.url.replace("://", "://me:pa55@") + "/a.pth?X-Amz-Signature=s3cr3t"

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "statedict", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=files)
        assert "pa55" not in done.stdout + done.stderr
        assert "s3cr3t" not in done.stdout + done.stderr
        return done.stdout

    clean = f"{web.url}/a.pth"
    assert run("convert", url, "b.pth").startswith(f"{clean} (")
    assert run("show", url).startswith(f"{clean}  ")
    assert json.loads(run("show", url, "--json"))["file"] == clean
    assert run("verify", url).startswith(f"{clean}: fine")
    assert f"{clean}: data" in run("scan", url)
    assert json.loads(run("scan", url, "--json"))["files"][0]["file"] == clean
    run("show", url, "--at", "none")
    run("diff", url, "a.safetensors")
    assert run("stats", url).startswith(f"{clean}  ")
    assert json.loads(run("stats", url, "--json"))["file"] == clean
    gone = url.replace("a.pth", "none.pth")
    for command in ("show", "verify", "scan"):
        run(command, gone)
    assert json.loads(run("verify", gone, "--json"))["files"][0]["file"] == f"{web.url}/none.pth"


def test_the_permissions_of_a_url_are_no_matter_of_chmod(files: Path, web: Server) -> None:
    web.faults[:] = [403] * 9
    with pytest.raises(FileError, match=r"refuses access \(403\)") as caught:
        statedict.load(f"{web.url}/a.pth?s3cr3t")
    assert "chmod" not in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    assert "chmod" in str(explain_unopened("a.pth", FileError(13, "no", "a.pth")))
    assert "s3cr3t" not in describe_folder("http://host/?s3cr3t", [])


def test_a_fork_of_a_process_that_has_used_obstore_says_so_and_does_not_hang(files: Path, web: Server) -> None:
    code = (
        "import os, statedict\n"
        f"state = statedict.load({web.url + '/a.pth'!r})\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try:\n"
        "        state['big'].numpy()\n"
        "    except statedict.errors.UnsupportedError as error:\n"
        "        print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert "made by fork cannot reach a URL" in done.stdout


def test_the_first_answer_of_any_server_is_checked() -> None:
    class Short:
        name = "short"

        def get(self, start: int, end: int) -> tuple[bytes, int, str]:
            return b"12", 3, ""

    source: Any = Short()
    with pytest.raises(CorruptFileError, match="sent 2 bytes of 3"):
        remote.RemoteSource("http://host/a", source)
