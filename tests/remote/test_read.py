"""Any path may be a URL: what is read there, and how little of it."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

import statedict
from statedict.errors import CorruptFileError, FileError, MissingFileError, UnknownFormatError
from statedict.formats.places import open_checkpoint
from statedict.io.location import location
from statedict.io.remote import RemoteSource
from statedict.io.urls import folder_of, join, to_name
from statedict.testing.same import assert_same

from .servers import Hub, Server, WithRanges, serving

NAMES = ("a.pth", "a.safetensors", "shards/model.safetensors.index.json")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEDICT_TIMEOUT", "1")
    monkeypatch.setenv("STATEDICT_RETRIES", "2")


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_of_a_url_are_those_of_the_file(files: Path, web: Server, name: str) -> None:
    assert statedict.stats(f"{web.url}/{name}").to_json() == statedict.stats(files / name).to_json()


@pytest.mark.parametrize("name", NAMES)
def test_a_url_of_http_loads_as_the_file_does(files: Path, web: Server, name: str) -> None:
    assert_same(statedict.load(f"{web.url}/{name}"), statedict.load(files / name))


@pytest.mark.parametrize("name", NAMES)
def test_a_server_without_ranges_is_read_too(files: Path, plain: Server, name: str) -> None:
    assert_same(statedict.load(f"{plain.url}/{name}"), statedict.load(files / name))


@pytest.mark.parametrize("name", [*NAMES, "shards", "shards/"])
def test_an_object_of_s3_loads_as_the_file_does_and_a_folder_too(files: Path, s3: Any, name: str) -> None:
    for path in files.rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), "bucket", f"some where/{path.relative_to(files)}")
    assert_same(statedict.load(f"s3://bucket/some where/{name}"), statedict.load(files / name))


def test_a_folder_on_a_plain_server_is_found_by_the_names_that_it_may_have(files: Path, web: Server) -> None:
    assert_same(statedict.load(f"{web.url}/shards/"), statedict.load(files / "shards"))


def test_a_folder_of_torch_distributed_is_read_from_a_url(tmp_path: Path, web: Server, state: dict[str, Any]) -> None:
    import torch

    from .. import dcp

    tensors = {name: torch.from_numpy(array) for name, array in state["model"].items()}
    dcp.save({"model": tensors, "epoch": 3}, tmp_path / "step")
    found = statedict.load(f"{web.url}/step/")
    assert found["epoch"] == 3
    assert_same(found["model"], statedict.load(tmp_path / "step")["model"])


def test_a_url_of_a_file_is_its_path(files: Path) -> None:
    (files / "with space.pth").write_bytes((files / "a.pth").read_bytes())
    url = (files / "with space.pth").as_uri()
    assert "%20" in url
    assert_same(statedict.load(url), statedict.load(files / "a.pth"))


def test_one_tensor_of_a_large_file_costs_its_bytes_and_the_header(tmp_path: Path, web: Server) -> None:
    large = {f"layers.{i}": numpy.zeros((1 << 18,), "float32") for i in range(64)}  # 64 MB
    large["wanted"] = numpy.arange(1 << 18, dtype="float32")
    for name in ("x.safetensors", "x.pth"):
        statedict.save(large, tmp_path / name)
        web.sent, web.requests[:] = 0, []
        state = statedict.load(f"{web.url}/{name}")
        assert state["wanted"][:10].tolist() == list(range(10))
        assert web.sent < 400_000
        assert len(web.requests) <= 4
        numpy.testing.assert_array_equal(state["wanted"].numpy(), large["wanted"])
        assert web.sent < 2_000_000


def test_opening_a_file_takes_one_request_and_shards_are_opened_several_at_a_time(files: Path, web: Server) -> None:
    statedict.load(f"{web.url}/a.safetensors")
    assert len(web.requests) == 1
    web.requests.clear()
    statedict.load(f"{web.url}/shards/model.safetensors.index.json")
    assert len(web.requests) == 1 + len(list((files / "shards").glob("*.safetensors")))


def test_show_edit_convert_verify_and_scan_take_urls(files: Path, web: Server) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "statedict", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=files).stdout

    assert "148,039" in run("show", f"{web.url}/a.pth")
    run("convert", f"{web.url}/a.pth", "b.safetensors")
    assert (files / "b.safetensors").read_bytes() == (files / "a.safetensors").read_bytes()
    run("edit", f"{web.url}/a.pth", "c.pth", "--keep", "model.*", "--cast", "bf16")
    assert str(statedict.load(files / "c.pth")["model"]["layers.0.weight"].dtype) == "bfloat16"
    assert "fine" in run("verify", f"{web.url}/a.pth")
    assert "data" in run("scan", f"{web.url}/a.pth")


def test_restoring_from_a_url_reads_what_the_target_has(files: Path, web: Server, state: dict[str, Any]) -> None:
    target = {name: numpy.zeros_like(array) for name, array in state["model"].items()}
    statedict.restore({"model": target}, f"{web.url}/a.safetensors", allow_unexpected=["epoch", "big"])
    for name, array in state["model"].items():
        numpy.testing.assert_array_equal(target[name], array)
    assert web.sent < 2_000_000


def test_pytorch_s_way_of_loading_takes_a_url_too(files: Path, web: Server) -> None:
    import torch

    import statedict.torch

    found = statedict.torch.load(f"{web.url}/a.pth")
    assert torch.equal(found["model"]["layers.0.bias"], torch.load(files / "a.pth")["model"]["layers.0.bias"])


def test_a_query_goes_to_the_server_and_into_no_message(files: Path, web: Server) -> None:
    secret = "X-Amz-Signature=s3cr3t"
    state = statedict.load(f"{web.url}/a.pth?{secret}&x=a%2Fb")
    assert web.requests[0][0] == f"/a.pth?{secret}&x=a%2Fb"
    assert "s3cr3t" not in repr(state)
    user = web.url.replace("http://", "http://me:pa55@")
    for url in (f"{web.url}/none.pth?{secret}", f"{user}/none.pth"):
        with pytest.raises(MissingFileError) as caught:
            statedict.load(url)
        assert "s3cr3t" not in str(caught.value)
        assert "pa55" not in str(caught.value)
    web.faults[:] = [500] * 3
    with pytest.raises(FileError) as other:
        statedict.load(f"{web.url}/a.pth?{secret}")
    assert "s3cr3t" not in str(other.value)


def test_what_is_not_there_is_missing(files: Path, web: Server, s3: Any) -> None:
    for url in (f"{web.url}/none.pth", "s3://bucket/none.pth"):
        with pytest.raises(MissingFileError, match=r"no such object \(404\); check the address"):
            statedict.load(url)
    with pytest.raises(MissingFileError, match=r"there is no such bucket \(404\); check its name"):
        statedict.load("s3://no-such-bucket/none.pth")
    os.unlink(files / "shards" / "model-00002-of-00002.safetensors")
    with pytest.raises(MissingFileError, match=r"model-00002.*missing, with 0 more of 2 shards"):
        statedict.load(f"{web.url}/shards/model.safetensors.index.json")


@pytest.mark.parametrize(
    ("status", "words", "number"),
    [(403, r"refuses access \(403\)", errno.EACCES), (401, r"credentials \(401\)", errno.EACCES)],
)
def test_a_refusal_says_what_to_check_and_is_not_tried_again(
    files: Path, web: Server, status: int, words: str, number: int
) -> None:
    web.faults[:] = [status] * 9
    with pytest.raises(FileError, match=words) as caught:
        statedict.load(f"{web.url}/a.pth")
    assert caught.value.errno == number
    assert len(web.requests) == 1


@pytest.mark.parametrize("fault", [500, 503, 429, "slow", "cut"])
def test_a_server_that_fails_for_a_while_is_asked_again(files: Path, web: Server, fault: int | str) -> None:
    web.faults[:] = [fault, None, fault]
    assert_same(statedict.load(f"{web.url}/a.pth"), statedict.load(files / "a.pth"))


@pytest.mark.parametrize(
    ("fault", "words"), [(500, r"failed \(5xx\).*tried 3 times"), ("slow", "not answer in time.*STATEDICT_TIMEOUT")]
)
def test_a_server_that_goes_on_failing_is_given_up(files: Path, web: Server, fault: int | str, words: str) -> None:
    web.faults[:] = [fault] * 9
    with pytest.raises(FileError, match=words):
        statedict.load(f"{web.url}/a.pth")
    assert len(web.requests) == 3


def test_a_server_that_is_not_there_cannot_be_reached() -> None:
    with pytest.raises(FileError, match="refuses connections; check the address"):
        statedict.load("http://127.0.0.1:9/a.pth")


def test_a_page_instead_of_a_checkpoint_is_named(tmp_path: Path, web: Server) -> None:
    (tmp_path / "a.pth").write_text("<!DOCTYPE html><html>log in</html>")
    with pytest.raises(UnknownFormatError, match=r"is an HTML page .*; the download needs a login"):
        statedict.load(f"{web.url}/a.pth")


def test_an_empty_object_is_an_empty_file(tmp_path: Path, web: Server, s3: Any) -> None:
    (tmp_path / "a.pth").write_bytes(b"")
    s3.put_object(Bucket="bucket", Key="a.pth", Body=b"")
    for url in (f"{web.url}/a.pth", "s3://bucket/a.pth"):
        with pytest.raises(UnknownFormatError, match="is empty; fetch or save it again"):
            statedict.load(url)


def test_a_file_that_is_replaced_while_it_is_read_is_noticed(files: Path, web: Server) -> None:
    state = statedict.load(f"{web.url}/a.safetensors")
    statedict.save({"other": numpy.zeros(3 << 20)}, files / "a.safetensors")
    with pytest.raises(CorruptFileError, match="replaced since it was loaded; load it again"):
        state["big"].numpy()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_remote_tensor_goes_to_another_process_by_its_url(files: Path, web: Server, name: str) -> None:
    tensor = statedict.load(f"{web.url}/{name}")["big"]
    data = pickle.dumps(tensor)
    assert len(data) < 2_000
    assert pickle.loads(data).raw() == tensor.raw()
    os.utime(files / name, ns=(1, 1))
    with pytest.raises(FileError, match="changed since it was loaded"):
        pickle.loads(data)


def test_a_url_that_leaves_its_folder_is_refused(files: Path, web: Server) -> None:
    index = files / "shards" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../../model-00001"))
    with pytest.raises(statedict.errors.FormatError, match="outside of the folder"):
        statedict.load(f"{web.url}/shards/model.safetensors.index.json")


@pytest.mark.parametrize("name", ["", "a.pth", "shards", "@main/a.pth", "@main/shards"])
def test_a_repository_of_the_hub_is_read(files: Path, tmp_path: Path, name: str) -> None:
    hub = tmp_path / "hub"
    (hub / "me").mkdir(parents=True)
    os.symlink(files, hub / "me" / "model")
    if not name:
        (files / "model.safetensors").write_bytes((files / "a.safetensors").read_bytes())
    with serving(hub, Hub) as server:
        url = "hf://me/model" + (name if name.startswith("@") or not name else "/" + name)
        code = (
            "import statedict, sys\n"
            f"state = statedict.load({url!r})\n"
            "print(state['epoch'], state['model']['layers.0.bias'].tolist())\n"
            "for bad in ('hf://me/none', 'hf://me/model/none.pth'):\n"
            "    try:\n"
            "        statedict.load(bad)\n"
            "    except statedict.errors.MissingFileError as error:\n"
            "        print(str(error).split('; ')[-1])\n"
            "try:\n"
            "    statedict.save({}, 'hf://me/model/b.pth')\n"
            "except statedict.errors.UnsupportedError as error:\n"
            "    print(error)\n"
        )
        online = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        env = online | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    bias = statedict.load(files / "a.pth")["model"]["layers.0.bias"].tolist()
    assert done.stdout.splitlines() == [
        f"3 {bias}",
        *["check its name and your token"] * 2,
        "hf://me/model/b.pth: is read, not written; save to a folder and upload it with `hf upload`",
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b", "a/b"),
        (Path("a/b"), "a/b"),
        ("s3://bucket/a", "s3://bucket/a"),
        (Path("s3://bucket/a"), "s3://bucket/a"),
        (Path("https://host/a"), "https://host/a"),
        ("file:///a%20b", "/a b"),
        ("FILE://localhost/a", "/a"),
        (b"a", "a"),
        ("S3://bucket/A", "s3://bucket/A"),
        (Path("HTTP://host/A"), "http://host/A"),
        ("C:/a", "C:/a"),
    ],
)
def test_a_path_is_named_as_it_is_meant(path: Any, expected: str) -> None:
    assert to_name(path) == expected


def test_what_lies_beside_a_file_is_found_by_its_name() -> None:
    assert join(folder_of("https://host/a/b.json?x=y/z"), "c d#1") == "https://host/a/c%20d%231"
    assert join(folder_of("s3://bucket/a b/b.json"), "c d") == "s3://bucket/a b/c d"
    assert join(folder_of("a/b.json"), "c d") == "a/c d"


def test_without_obstore_a_url_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "import statedict\n"
        "try: statedict.load('s3://bucket/a')\n"
        "except statedict.errors.MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "URLs need obstore; pip install 'statedict[remote]'\n"


def test_ranges_of_any_size_are_those_of_the_file(files: Path, web: Server) -> None:
    data = (files / "a.pth").read_bytes()
    source = open_checkpoint(f"{web.url}/a.pth")
    assert isinstance(source, RemoteSource)
    random = numpy.random.default_rng(1)
    for length in (0, 1, 30, 65_536, 65_537, 262_144, 262_145, 3_000_000):
        for start in (0, len(data) - length, int(random.integers(0, len(data) - length))):
            assert bytes(source.read(start, length)) == data[start : start + length]
    with pytest.raises(CorruptFileError, match="outside the file"):
        source.read(len(data) - 1, 2)


def test_the_size_that_is_printed_is_asked_for_and_not_downloaded(files: Path, plain: Server, web: Server) -> None:
    for server in (plain, web):
        assert location(f"{server.url}/a.pth").size() == (files / "a.pth").stat().st_size
    assert not web.sent


def test_the_size_of_a_folder_of_a_store_is_that_of_its_files(s3: Any) -> None:
    for key in ("a/x", "a/y", "a/deeper/z"):
        s3.put_object(Bucket="bucket", Key=key, Body=b"12345")
    assert location("s3://bucket/a").size() == 10


def test_a_server_that_allows_no_head_tells_the_size_too(files: Path) -> None:
    class NoHead(WithRanges):
        def do_HEAD(self) -> None:  # noqa: N802
            self.send_error(405)

    with serving(files, NoHead) as server:
        assert location(f"{server.url}/a.pth").size() == (files / "a.pth").stat().st_size
        assert server.sent == 1
