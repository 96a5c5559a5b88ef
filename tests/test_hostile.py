"""Files made to do harm: they are read as the data that they are, or refused, at a cost that their size justifies.

What else is hostile is tested where it belongs: pickles that exhaust memory or time in pickles/test_bounds.py, numbers
that lie in formats/test_*_damage.py and io/test_zip.py, links and names that lead out of a folder in
formats/test_sharded.py and formats/test_distributed.py.
"""

from __future__ import annotations

import collections
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import statedict
from statedict.tensor.lazy import LazyTensor

from . import dcp, work

RESERVE, FACTOR = 64 << 20, 20
EMPTY = b"\x80\x02}."


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode() + data


def skeleton(tree: str) -> bytes:
    return header(json.dumps({"__metadata__": {"statedict": f'{{"version":1,"tree":{{"a":{tree}}}}}'}}))


def longs(*numbers: int) -> bytes:
    return b"(" + b"".join(b"\x8a\x0a" + n.to_bytes(10, "little", signed=True) for n in numbers) + b"t"


def with_tensor(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, count: int = 1) -> bytes:
    """A .pth file with the tensor `w` over 4 bytes that are 1.5."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpu" + longs(count)[1:-1] + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + longs(offset)[1:-1] + longs(*shape) + longs(*strides)
    pickled = b"\x80\x02}X\1\0\0\0w" + tensor + b"\x89NtRs."
    return zipped({"a/data.pkl": pickled, "a/data/0": struct.pack("<f", 1.5)})


def made(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# memory and time


def test_an_integer_that_python_could_not_print_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x80\2}U\1aI1\ns\x8b" + struct.pack("<i", 3000) + b"\x7f" * 3000 + b".")
    with pytest.raises(statedict.errors.CorruptFileError, match="an integer of 3,000 bytes"):
        statedict.load(path, format="pickle")


def many(count: int, text: str) -> str:
    return ",".join([text] * count)


def names(count: int, value: str) -> str:
    return ",".join(f'"{index:x}":{value}' for index in range(count))


def of_one_hash(count: int) -> str:
    """Integers that Python gives one hash."""
    return ",".join(f'{{"$int":"{index * ((1 << 61) - 1) + 7:#x}"}}' for index in range(10, 10 + count))


BOMBS: dict[str, Callable[[], bytes]] = {
    "a header of empty lists": lambda: header('{"a":[' + many(2_500_000, "[]") + "]}"),
    "a header of empty objects": lambda: header('{"a":[' + many(2_500_000, "{}") + "]}"),
    "a header of small objects": lambda: header('{"a":[' + many(1_000_000, '{"":0}') + "]}"),
    "a header of numbers": lambda: header('{"a":[' + many(3_000_000, "1.5") + "]}"),
    "a header of names": lambda: header("{" + names(600_000, "[]") + "}"),
    "a header with a name twice": lambda: header("{" + names(40_000, "0") + ',"9c3f":1}'),
    "a header of sizes beyond all numbers": lambda: header(
        '{"w":{"dtype":"U8","shape":[' + many(100_000, str((1 << 63) - 1)) + '],"data_offsets":[0,1]}}', b"x"
    ),
    "a header of many aliases": lambda: header(
        '{"__metadata__":{' + names(300_000, '"w"') + '},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "a skeleton of empty lists": lambda: skeleton("[" + many(2_500_000, "[]") + "]"),
    "a skeleton of empty objects": lambda: skeleton("[" + many(2_500_000, "{}") + "]"),
    "a skeleton of keys of one hash": lambda: skeleton('{"$set":[' + of_one_hash(20_000) + "]}"),
    "an index of empty lists": lambda: ('{"weight_map":[' + many(2_500_000, "[]") + "]}").encode(),
    "a record of JSON": lambda: zipped({"a/data.pkl": EMPTY, "a/.statedict.json": b"[" + b"{}," * 2_500_000 + b"1]"}),
    "a deflated pickle": lambda: zipped(
        {"a/data.pkl": b"\x80\x02(" + b"]" * 20_000_000 + b"l."}, zipfile.ZIP_DEFLATED
    ),
    "members that are deflated pickles": lambda: zipped(
        {f"{index}.pkl": b"\x80\x02(" + b"}" * 200_000 + b"l." for index in range(40)}, zipfile.ZIP_DEFLATED
    ),
    "members that are pickles of empty dicts": lambda: zipped(
        {f"{index}.pkl": b"\x80\x02(" + b"}" * 100_000 + b"l." for index in range(40)}
    ),
    "members that are pickles of empty dicts, deflated": lambda: zipped(
        {f"{index}.pkl": b"\x80\x02(" + b"}" * 150_000 + b"l." for index in range(50)}, zipfile.ZIP_DEFLATED
    ),
    "members that are deflated texts": lambda: zipped(
        {"p.pkl": EMPTY} | {f"{index}.txt": b"a" * (1 << 20) for index in range(200)}, zipfile.ZIP_DEFLATED
    ),
    "a numpy shape of sizes beyond all numbers": lambda: (
        b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(C\1acnumpy\ndtype\nU\2f4\x85R"
        + longs(*[(1 << 63) - 1] * 50_000) + b"U\1CtR."
    ),
}  # fmt: skip

MEASURE = """
import os, resource, sys
import statedict
from statedict.formats import FORMATS
for row in FORMATS.values():
    row.load()
def outcome():
    try:
        statedict.load(sys.argv[1])
        return "read"
    except BaseException as error:
        return type(error).__name__ if isinstance(error, statedict.StateDictError) else repr(error)[:80]
if not os.fork():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = outcome()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(said.replace(" ", "_"), memory * (1 if sys.platform == "darwin" else 1024), flush=True)
    os._exit(0)
os.wait()
if not os.fork():
    print(steps(outcome), flush=True)
    os._exit(0)
os.wait()
"""


def cost(path: Path) -> tuple[str, int, int]:
    """Outcome, bytes of memory and steps of opening a file, each in a process of its own."""
    command = [sys.executable, "-c", Path(work.__file__).read_text() + MEASURE, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    outcome, memory, count = done.stdout.split()
    return outcome, int(memory), int(count)


@pytest.mark.parametrize("name", BOMBS)
def test_opening_takes_memory_and_work_that_the_size_of_the_file_justifies(name: str, tmp_path: Path) -> None:
    path = made(tmp_path / "bomb", BOMBS[name]())
    outcome, memory, count = cost(path)
    assert outcome == "read" or hasattr(statedict.errors, outcome)
    assert memory <= RESERVE + FACTOR * path.stat().st_size
    assert count <= 250_000_000 + 10 * path.stat().st_size


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_many_names_for_one_chunk_of_bytes_do_not_cost_its_reading_for_each(tmp_path: Path) -> None:
    dcp.save({f"n{index}": index for index in range(300)}, tmp_path)
    buffer = io.BytesIO()
    torch.save([{} for _ in range(100_000)], buffer)
    (tmp_path / "__0_0.distcp").write_bytes(buffer.getvalue())
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path, place.offset, place.length = "__0_0.distcp", 0, len(buffer.getvalue())
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    _, memory, count = cost(tmp_path)
    assert memory <= 2 * RESERVE + FACTOR * len(buffer.getvalue())
    assert count <= 10_000_000


def test_records_that_overlap_are_refused(tmp_path: Path) -> None:
    data = bytearray(zipped({"a/data.pkl": EMPTY, "a/data/0": bytes(8), "a/data/1": bytes(8)}))
    at = data.rindex(b"PK\1\2")  # of the last record: now it lies where the one before does
    before = data.rindex(b"PK\1\2", 0, at)
    data[at + 42 : at + 46] = data[before + 42 : before + 46]
    with pytest.raises(statedict.errors.CorruptFileError, match="overlap"):
        statedict.load(made(tmp_path / "x.pth", data))


# what a pickle may call


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\nbytearray\n" + longs(1 << 60),
        b"cbuiltins\nbytes\n" + longs(1 << 60),
        b"cbuiltins\nset\n" + longs(1 << 60),
        b"ctorch\nSize\n" + longs(1 << 60),
        b"ccollections\nCounter\n" + longs(1 << 60),
        b"ccollections\nOrderedDict\n" + longs(1 << 60),
        b"cnumpy\nndarray\n" + longs(1 << 60),
        b"cnumpy\nzeros\n" + longs(1 << 60),
        b"ctorch\nFloatStorage\n" + longs(1 << 60),
        b"ctorch\nzeros\n" + longs(1 << 60),
        b"cbuiltins\nrange\n" + longs(1 << 60),
        b"cbuiltins\npow\n" + longs(1 << 60, 1 << 60),
        b"cnumpy\ndtype\n(X\x0d\0\0\0V999999999999\0t",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + longs(1 << 60) + b"C\1bt",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nU\2f8\x85RC\0t",
        b"cnumpy.core.numeric\n_frombuffer\n(C\1acnumpy\ndtype\nU\2f8\x85R" + longs(1 << 60) + b"U\1Ct",
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n" + longs(1 << 60) * 2 + b"\x89t",
    ],
    ids=lambda call: call.split(b"\n(")[0].replace(b"\n", b".").decode("latin-1"),
)
def test_a_call_with_an_absurd_size_makes_nothing_of_that_size(call: bytes, tmp_path: Path) -> None:
    path = made(tmp_path / "x.pkl", b"\x80\x02}X\1\0\0\0w" + call + b"Rs.")
    try:
        assert list(statedict.load(path)) == ["w"]
    except statedict.StateDictError:
        pass
    _, memory, _ = cost(path)
    assert memory < 8 << 20


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "count"),
    [
        ((-1,), (1,), 0, 1),
        ((1,), (-1,), 0, 1),
        ((2,), (-1,), 1, 1),
        ((1,), (1,), -1, 1),
        ((1,), (1,), 0, -1),
        ((2,), (1,), 0, 1),
        ((2,), (1,), 0, 2),
        ((1 << 63,), (0,), 0, 1),
        ((1 << 62, 1 << 62), (0, 0), 0, 1),
        ((2,), (1 << 62,), 0, 1),
        ((2,), (1 << 70,), 0, 1),
        ((1,), (1,), 1 << 62, 1),
        ((1,), (1,), 1 << 64, 1),
        ((1,), (1,), 0, 1 << 62),
        ((1,) * 65, (1,) * 65, 0, 1),
        ((1, 1), (1,), 0, 1),
    ],
)
def test_numbers_that_are_negative_or_overflow_are_refused(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int, count: int, tmp_path: Path
) -> None:
    with pytest.raises(statedict.errors.CorruptFileError, match=r"x\.pth"):
        statedict.load(made(tmp_path / "x.pth", with_tensor(shape, strides, offset, count)))


def test_sizes_beyond_all_numbers_are_refused_in_a_short_message(tmp_path: Path) -> None:
    shape = many(300, str((1 << 63) - 1))
    entry = f'{{"w":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}'
    with pytest.raises(statedict.errors.CorruptFileError, match="'w'") as caught:
        statedict.load(made(tmp_path / "x.safetensors", header(entry, b"x")))
    assert len(str(caught.value)) < 1000


# trees that have no end


def test_a_container_that_holds_itself_opens_and_is_refused_by_all_that_walk_it(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"w": [1]}
    loop["w"].append(loop)
    state = statedict.load(made(tmp_path / "x.pkl", pickle.dumps(loop)))
    assert state["w"][1] is state
    for walk in (state.flatten, state.tensors, lambda: statedict.inspect(state), state.numpy):
        with pytest.raises(statedict.errors.TreeError, match="contains itself"):
            walk()
    with pytest.raises(statedict.errors.TreeError, match="contains itself"):
        statedict.save(state, tmp_path / "y.pth")
    assert len(state._repr_html_()) < 100_000


def test_a_billion_laughs_are_one_small_file_and_refused_by_all_that_walk_them(tmp_path: Path) -> None:
    laughs: list[Any] = [1]
    for _ in range(60):
        laughs = [laughs] * 10
    state = statedict.load(made(tmp_path / "x.pkl", pickle.dumps({"ha": laughs})))
    for walk in (state.flatten, state.tensors, lambda: statedict.inspect(state), state.numpy):
        with pytest.raises(statedict.errors.TreeError, match="shared multiply"):
            walk()
    for suffix in (".pth", ".safetensors"):
        with pytest.raises(statedict.errors.TreeError, match="shared multiply"):
            statedict.save(state, tmp_path / f"y{suffix}")


def test_nesting_without_end_opens_and_is_refused_by_all_that_walk_it(tmp_path: Path) -> None:
    path = made(tmp_path / "x.pkl", b"\x80\x02}X\1\0\0\0w" + b"]" * 100_000 + b"a" * 99_999 + b"s.")
    state = statedict.load(path)
    for walk in (state.flatten, state.tensors, lambda: statedict.inspect(state), state.numpy):
        with pytest.raises(statedict.errors.TreeError, match="nested deeper than 200"):
            walk()


def test_a_tensor_as_a_key_opens_and_is_refused_when_written(tmp_path: Path) -> None:
    torch.save({torch.ones(1): 1}, tmp_path / "x.pth")
    state = statedict.load(tmp_path / "x.pth")
    assert [type(key) for key in state] == [LazyTensor]
    for suffix in (".pth", ".safetensors"):
        with pytest.raises(statedict.errors.UnsupportedError):
            statedict.save(state, tmp_path / f"y{suffix}")


# a tensor of four bytes that claims to be of exabytes


@pytest.fixture(params=[((1 << 59,), (0,)), ((1 << 30, 1 << 28), (0, 0)), ((1 << 34,), (0,))], ids=str)
def expanded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return made(tmp_path / "expanded.pth", with_tensor(*request.param))


def test_an_expanded_tensor_opens_shows_and_reads_in_parts(expanded: Path) -> None:
    state = statedict.load(expanded)
    assert statedict.inspect(state).total.tensors == 1
    corner = (0,) * (state["w"].ndim - 1) + (slice(5, 7),)
    assert state["w"][corner].tolist() == [1.5, 1.5]
    assert state["w"].numpy().strides == (0,) * state["w"].ndim
    assert statedict.verify(expanded).ok


def test_an_expanded_tensor_is_copied_by_nobody(expanded: Path, tmp_path: Path) -> None:
    state = statedict.load(expanded)
    for copy in (state["w"].raw, lambda: state["w"].numpy(copy=True), lambda: state["w"].torch(copy=True)):
        with pytest.raises(statedict.errors.LimitError, match="repeats"):
            copy()
    with pytest.raises(statedict.errors.LimitError, match="repeats"):
        statedict.convert(expanded, tmp_path / "y.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expanded.pth"]


def test_an_expanded_tensor_is_kept_as_it_is_where_the_format_has_strides(expanded: Path, tmp_path: Path) -> None:
    statedict.convert(expanded, tmp_path / "y.pth")
    assert (tmp_path / "y.pth").stat().st_size < 4000
    assert statedict.load(tmp_path / "y.pth")["w"].shape == statedict.load(expanded)["w"].shape


def test_a_tensor_that_is_expanded_within_reason_is_written_whole(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(100).expand(1000, 100)}, tmp_path / "x.pth")
    statedict.convert(tmp_path / "x.pth", tmp_path / "y.safetensors")
    assert statedict.load(tmp_path / "y.safetensors")["w"][999, 98:].tolist() == [98, 99]


# names that lead elsewhere


@pytest.mark.parametrize("name", ["../../outside.pth", "/outside.pth", "a/../../outside.pth", "C:\\outside.pth"])
def test_a_member_s_name_is_a_key_and_no_path(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    path = made(tmp_path / "in" / "x.zip", zipped({name: buffer.getvalue()}))
    assert statedict.load(path)[name]["w"].tolist() == [1, 1]
    assert [file.name for file in tmp_path.rglob("*")] == ["in", "x.zip"]


def test_a_storage_s_name_is_a_record_and_no_path(tmp_path: Path) -> None:
    made(tmp_path / "secret", bytes(40))
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\x09\0\0\0../secretX\3\0\0\0cpuK\1tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
    path = made(tmp_path / "x.pth", zipped({"a/data.pkl": b"\x80\x02" + tensor + b"K\0K\1\x85K\1\x85\x89NtR."}))
    with pytest.raises(statedict.errors.CorruptFileError, match="missing from the archive"):
        statedict.load(path)


@pytest.mark.parametrize("weight_map", [{"w": "\ud800"}, {"\ud800": "model.safetensors"}])
def test_names_that_are_no_text_are_refused(weight_map: dict[str, str], tmp_path: Path) -> None:
    statedict.save({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    index = made(tmp_path / "model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())
    with pytest.raises(statedict.errors.CorruptFileError, match=r"'\\ud800' has half of a surrogate pair"):
        statedict.load(index)


def test_metadata_that_is_no_text_is_refused_when_written(tmp_path: Path) -> None:
    state = statedict.StateDict(w=torch.ones(1))
    state.metadata = {"note": "\ud800"}
    with pytest.raises(statedict.errors.UnsupportedError, match="Unicode"):
        statedict.save(state, tmp_path / "y.safetensors")
    statedict.save(state, tmp_path / "y.pth")
    assert list(statedict.load(tmp_path / "y.pth")) == ["w"]


# protocols


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_legacy_file_is_known_by_its_magic_number_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    tree = collections.OrderedDict(w=torch.ones(2), epoch=3)
    torch.save(tree, tmp_path / "x.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert list(statedict.load(tmp_path / "x.pth")) == ["w", "epoch"]


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
@pytest.mark.parametrize("elements", [1 << 48, 1 << 61])
def test_a_distributed_tensor_of_four_bytes_that_claims_to_be_huge_is_refused(elements: int, tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(1)}, tmp_path)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    entry = metadata.state_dict_metadata["w"]
    entry.size = entry.chunks[0].sizes = torch.Size([elements])
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(
        statedict.errors.FormatError, match=r"'w' (takes 1,125,.* bytes, its chunks have|has a size that no)"
    ):
        statedict.load(tmp_path)


def test_memory_that_the_system_does_not_have_is_an_error_of_ours() -> None:
    from statedict.errors import OutOfMemoryError
    from statedict.io.source import allocate, zeros

    for take in (allocate, zeros):
        for size in (1 << 62, 1 << 70):
            with pytest.raises(OutOfMemoryError, match=f"the system gives no {size:,} bytes of memory"):
                take(size)
    assert issubclass(OutOfMemoryError, MemoryError)
