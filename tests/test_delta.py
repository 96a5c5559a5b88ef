"""`statedict.delta`: lossless deltas between checkpoints, of trees of every kind."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import statedict
from statedict import delta
from statedict.api.delta import apply_file, base_of
from statedict.dtypes import BY_NAME, DType
from statedict.errors import (
    CorruptFileError,
    ExistingFileError,
    FormatError,
    MissingExtraError,
    MissingFileError,
    StateDictError,
    UnsupportedError,
)
from statedict.io.source import BytesSource
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.testing.same import assert_same, overlaps

from .work import assert_linear, bytes_read, steps


def trained(steps: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """A model and its optimizer after some steps."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        model(torch.randn(16, 96, dtype=dtype)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer, "step": steps}


def round_trip(base: Any, tuned: Any, folder: Path) -> Any:
    path = folder / "x.delta"
    delta.make(base, tuned, path, fsync=False)
    return delta.apply(base, path)


def test_a_checkpoint_comes_back_as_it_was_and_its_delta_is_smaller(tmp_path: Path) -> None:
    base, tuned = trained(20), trained(21)
    statedict.save(base, tmp_path / "base.safetensors")
    statedict.save(tuned, tmp_path / "tuned.safetensors")
    report = delta.make(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "x.delta")
    found = delta.apply(tmp_path / "base.safetensors", tmp_path / "x.delta")
    assert_same(found, statedict.load(tmp_path / "tuned.safetensors"))
    statedict.save(found, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "tuned.safetensors").read_bytes()
    size = (tmp_path / "x.delta").stat().st_size
    assert report.nbytes[1] == size < 0.6 * report.nbytes[0]
    assert (report.tensors, report.deltas > 6) == (16, True)
    restored = trained(0)
    statedict.restore(restored, found)
    assert_same(statedict.capture(restored["model"]), statedict.capture(tuned["model"]))


def tensor(kind: DType, shape: tuple[int, ...], seed: int) -> LazyTensor:
    size = kind.nbytes(math.prod(shape))
    return LazyTensor(kind, shape, Storage(BytesSource(np.random.default_rng(seed).bytes(size)), 0, size))


def saved(tree: Any, folder: Path) -> Any:
    """What `save` and `load` make of it."""
    statedict.save(tree, folder / "saved.safetensors", fsync=False)
    return statedict.load(folder / "saved.safetensors")


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_trees_of_any_dtypes_come_back_whatever_the_base_has(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    def tensors() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in data.draw(st.sets(st.sampled_from("abcd"))):
            shape = data.draw(st.sampled_from([(4,), (0,), (3, 0), (4, 8), (300,), (17, 32)]))
            found[name] = tensor(data.draw(st.sampled_from([*BY_NAME.values()])), shape, data.draw(st.integers(0, 2)))
        return found

    folder = tmp_path_factory.mktemp("any")
    base, tuned = tensors(), {**tensors(), "epoch": 3, "nested": [tensors(), {"lr": 0.5}]}
    assert_same(round_trip(base, tuned, folder), saved(tuned, folder))


def test_ties_views_strides_and_values_survive(tmp_path: Path) -> None:
    big = torch.randn(64, 64)

    def tree(shift: float) -> dict[str, Any]:
        whole = big + shift
        return {
            "tied": whole, "again": whole, "turned": (big * 2 + shift).t(), "column": (big - shift)[:, 3],
            "zero": torch.tensor(-0.0), "none": torch.empty(0, 5), "parameter": torch.nn.Parameter(big * shift),
            "opaque": statedict.Opaque("a.B", (1, big)), "values": [1, 2.5, None, True, (1, 2)], "bytes": b"\0\1",
        }  # fmt: skip

    found, wanted = round_trip(tree(0.0), tree(1e-4), tmp_path), saved(tree(1e-4), tmp_path)
    assert_same(found, wanted)
    assert found["tied"].region == found["again"].region
    assert found["turned"].stride() == (1, 64)
    assert overlaps(found).keys() == {("tied", "again")}


def test_large_tensors_are_read_block_by_block_and_in_parts(tmp_path: Path) -> None:
    base = np.random.default_rng(0).standard_normal((1500, 700)).astype("f4")  # 4.2 MB, five blocks
    tuned = base + np.random.default_rng(1).standard_normal(base.shape).astype("f4") * np.float32(1e-6)
    found = round_trip({"w": base, "frozen": base[:400]}, {"w": tuned, "frozen": base[:400]}, tmp_path)
    assert (found["w"].numpy() == tuned).all()
    for part in (np.s_[3], np.s_[700:1100, 5:6], np.s_[::500, ::99], np.s_[-1, -1]):
        assert (found["w"][part].numpy() == tuned[part]).all()
    assert (found["w"].torch().numpy() == tuned).all()
    assert bytes(found["frozen"].raw()) == base[:400].tobytes()


def test_other_processes_decode_what_is_sent_to_them(tmp_path: Path) -> None:
    base = np.random.default_rng(0).standard_normal(400_000).astype("f4")
    statedict.save({"w": base, "v": base + 1}, tmp_path / "base.safetensors")
    tuned = {"w": base * np.float32(1.00001), "v": base + np.float32(1.00001)}
    delta.make(tmp_path / "base.safetensors", tuned, tmp_path / "x.delta")
    found = delta.apply(tmp_path / "base.safetensors", tmp_path / "x.delta")
    assert (pickle.loads(pickle.dumps(found["w"])).numpy() == tuned["w"]).all()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        statedict.save(found, tmp_path / "out.safetensors", executor=pool)
    assert_same(statedict.load(tmp_path / "out.safetensors"), tuned)


def test_an_executor_encodes_and_makes_the_same_bytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = {"large": random.standard_normal(700_000).astype("f4"), "frozen": random.standard_normal(9000)}
    base |= {f"small.{index}": random.standard_normal(300).astype("f4") for index in range(50)}
    tuned = {name: value * np.float32(1 + 1e-6 * (name != "frozen")) for name, value in base.items()}
    statedict.save(base, tmp_path / "base.safetensors")
    statedict.save(tuned, tmp_path / "tuned.pth")
    before = tmp_path / "base.safetensors"
    here = delta.make(before, tuned, tmp_path / "here.delta")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for one, other in ((before, tuned), (base, tmp_path / "tuned.pth"), (before, tmp_path / "tuned.pth")):
            delta.make(one, other, tmp_path / "there.delta", executor=pool)
            there = (tmp_path / "there.delta").read_bytes().replace(b'"name": "memory"', b'"name": "base.safetensors"')
            assert len(there) == here.nbytes[1]
            assert_same(delta.apply(before, tmp_path / "there.delta"), tuned)
        assert there == (tmp_path / "here.delta").read_bytes()
        assert delta.make(before, tuned, None, dry_run=True, executor=pool).nbytes == here.nbytes


def test_many_small_tensors_take_little_more_work_than_saving_them(tmp_path: Path) -> None:
    def work(verb: str, count: int) -> int:
        random = np.random.default_rng(0)
        base = {f"layers.{index}.w": random.standard_normal(256).astype("f4") for index in range(count)}
        tuned = {name: value + np.float32(1e-5) for name, value in base.items()}
        path = tmp_path / "x.delta"
        delta.make(base, tuned, path)
        calls: dict[str, Callable[[], object]] = {
            "save": lambda: statedict.save(tuned, tmp_path / "x.safetensors"),
            "make": lambda: delta.make(base, tuned, path),
            "apply": lambda: statedict.save(delta.apply(base, path), tmp_path / "y.safetensors"),
        }
        return steps(calls[verb])

    for verb in ("make", "apply"):
        assert_linear(partial(work, verb), 300, 1200)
        assert work(verb, 600) < 4 * work("save", 600)


def test_small_tensors_share_what_is_coded_and_keep_their_digests(tmp_path: Path) -> None:
    base = {f"w{index}": np.random.default_rng(index).standard_normal(300).astype("f4") for index in range(20)}
    tuned = {name: value * np.float32(1.0001) for name, value in base.items()} | {"new": base["w0"], "one": np.ones(99)}
    report = delta.make(base, tuned, tmp_path / "x.delta")
    assert report.deltas == 20
    with safe_open(tmp_path / "x.delta", "numpy") as file:
        assert set(file.keys()) == {"small.float32", "new", "one"}
    found = delta.apply(base, tmp_path / "x.delta")
    assert_same(found, tuned)
    assert not overlaps(found)
    data = bytearray((tmp_path / "x.delta").read_bytes())
    data[-2000] ^= 1
    (tmp_path / "x.delta").write_bytes(data)
    assert "small.float32 (coded)" in str(statedict.verify(tmp_path / "x.delta").problems[0])


def test_loading_and_one_element_read_little(tmp_path: Path) -> None:
    base = np.random.default_rng(0).standard_normal(4_000_000).astype("f4")
    statedict.save({"w": base}, tmp_path / "base.safetensors")
    delta.make(tmp_path / "base.safetensors", {"w": base * np.float32(1.0001)}, tmp_path / "x.delta")
    assert bytes_read(lambda: statedict.load(tmp_path / "x.delta")) < 10_000
    found = delta.apply(tmp_path / "base.safetensors", tmp_path / "x.delta")
    assert bytes_read(lambda: found["w"][3_000_000].item()) < 3_000_000


def test_what_did_not_change_takes_almost_nothing(tmp_path: Path) -> None:
    state = {"w": np.random.default_rng(0).standard_normal(1_000_000)}
    assert delta.make(state, state, tmp_path / "x.delta").nbytes[1] < 2000


def test_the_same_input_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        delta.make(trained(3), trained(4), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_base_that_was_converted_fits(tmp_path: Path) -> None:
    statedict.save(trained(2), tmp_path / "base.safetensors")
    statedict.convert(tmp_path / "base.safetensors", tmp_path / "base.pth")
    delta.make(tmp_path / "base.safetensors", trained(3), tmp_path / "x.delta")
    assert_same(delta.apply(tmp_path / "base.pth", tmp_path / "x.delta"), statedict.capture(trained(3)), flags=False)


def test_another_base_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    base = {"w": np.arange(1000.0), "b": np.zeros(3)}
    delta.make(base, {"w": np.arange(1000.0) + 1, "b": np.ones(3)}, tmp_path / "x.delta")
    (tmp_path / "out.pth").write_bytes(b"precious")
    for other in ({**base, "b": np.ones(3)}, {"w": base["w"]}, {"w": base["w"], "c": base["b"]}):
        with pytest.raises(CorruptFileError, match=r"x.delta: is a delta to memory with the digest .*; find the one"):
            apply_file(other, tmp_path / "x.delta", tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == b"precious"


def test_a_delta_alone_shows_what_is_in_it_and_names_its_base(tmp_path: Path) -> None:
    statedict.save({"w": np.arange(1000.0)}, tmp_path / "base.safetensors")
    delta.make(tmp_path / "base.safetensors", {"w": np.arange(1000.0) + 1, "few": np.ones(3)}, tmp_path / "x.delta")
    found = statedict.load(tmp_path / "x.delta")
    assert (found["w"].dtype, found["w"].shape, found["few"].tolist()) == ("float64", (1000,), [1, 1, 1])
    with pytest.raises(UnsupportedError, match=r"its base base\.safetensors is not in it; read it by delta\.apply"):
        found["w"].numpy()
    with pytest.raises(UnsupportedError, match=r"base\.safetensors"):
        statedict.convert(tmp_path / "x.delta", tmp_path / "y.pth")
    report = statedict.verify(tmp_path / "x.delta")
    assert (report.ok, report.tensors) == (True, 2)
    assert "applied to base.safetensors" in report.notes[0]
    assert base_of(tmp_path / "x.delta") == "base.safetensors"
    assert base_of(tmp_path / "base.safetensors") is None


def test_other_readers_open_the_file(tmp_path: Path) -> None:
    delta.make(trained(1), trained(2), tmp_path / "x.delta")
    with safe_open(tmp_path / "x.delta", "pt") as file:  # type: ignore[no-untyped-call]
        assert "model.0.weight" in file.keys()  # noqa: SIM118 - it is no dict
        assert file.get_tensor("model.0.weight").dtype == torch.uint8


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    base = {"w": np.random.default_rng(0).standard_normal(600).astype("f4")}
    delta.make(base, {"w": base["w"] * np.float32(1.001)}, tmp_path / "x.delta")
    good = (tmp_path / "x.delta").read_bytes()
    for at in range(8, len(good)):
        data = bytearray(good)
        data[at] ^= 0x10
        (tmp_path / "y.delta").write_bytes(data)
        try:
            assert not statedict.verify(tmp_path / "y.delta").ok, at
            found = delta.apply(base, tmp_path / "y.delta")["w"]
            assert isinstance(found, LazyTensor), at
        except (StateDictError, AttributeError, KeyError):
            pass


def test_a_damaged_delta_is_never_applied_and_its_base_not_blamed(tmp_path: Path) -> None:
    base = {"w": np.random.default_rng(0).standard_normal(600).astype("f4"), "small": np.ones(3, "f4")}
    tuned = {"w": base["w"] * np.float32(1.001), "small": np.zeros(3, "f4")}
    delta.make(base, tuned, tmp_path / "x.delta")
    good = (tmp_path / "x.delta").read_bytes()
    for at in range(8, len(good), 5):
        data = bytearray(good)
        data[at] ^= 0x01
        (tmp_path / "y.delta").write_bytes(data)
        with pytest.raises(StateDictError) as caught:
            delta.apply(base, tmp_path / "y.delta")
        assert "find the one that it was made from" not in str(caught.value), at
    (tmp_path / "y.delta").write_bytes(good[:-1] + b"\1")
    with pytest.raises(CorruptFileError, match=r"y\.delta: w: its digest differs, so its bytes are damaged"):
        apply_file(base, tmp_path / "y.delta", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_delta_never_replaces_its_base(tmp_path: Path) -> None:
    base, link, folder = tmp_path / "base.safetensors", tmp_path / "link.safetensors", tmp_path / "folder"
    statedict.save({"w": np.ones(300, "f4")}, base)
    statedict.convert(base, f"{folder}/", format="safetensors", max_shard_size="1MB")
    link.symlink_to(base)
    shard = next(folder.glob("*.safetensors"))
    for before, path in ((base, base), (f"{base}::w", base), (base, link), (link, base), (folder, shard)):
        with pytest.raises(UnsupportedError, match="is the base, which the delta needs; name another file"):
            delta.make(before, {"w": np.zeros(300, "f4")}, path)
    for path in (base, folder):
        assert statedict.verify(path).ok
    for _ in range(2):
        delta.make(folder, {"w": np.zeros(300, "f4")}, folder / "new.delta")
    with pytest.raises(ExistingFileError, match="is another checkpoint, by which that folder would still be opened"):
        delta.make(base, {"w": np.zeros(300, "f4")}, f"{folder}/")
    delta.make({"w": np.zeros(300, "f4")}, base, base)  # what it is made of may go


def test_a_delta_in_shards_is_the_same_checkpoint(tmp_path: Path) -> None:
    base, tuned, folder = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "x"
    statedict.save(trained(20), base)
    statedict.save(trained(21), tuned)
    whole = delta.make(base, tuned, tmp_path / "x.delta")
    for size in ("20kB", "50kB"):  # the fewer shards of the second time leave none of the first
        report = delta.make(base, tuned, folder, max_shard_size=size)
        names = sorted(path.name for path in folder.iterdir())
        assert len(names) > 3
        assert names[-1] == "delta.safetensors.index.json"
        assert {int(name[15:20]) for name in names[:-1]} == {len(names) - 1}
        assert all(statedict.verify(folder / name).ok for name in ("", *names))
        assert (report.tensors, report.deltas) == (whole.tensors, whole.deltas)
        assert report.nbytes[1] == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        assert delta.make(base, tuned, None, max_shard_size=size, dry_run=True).nbytes == report.nbytes
        assert_same(delta.apply(base, folder), statedict.load(tuned))
        assert_same(delta.apply(base, f"{folder}::optimizer"), statedict.load(tuned)["optimizer"])
    assert base_of(folder) == "base.safetensors"
    with pytest.raises(UnsupportedError, match=r"is a delta, and its base base.safetensors is not in it"):
        statedict.load(folder)["model"]["0.weight"].numpy()
    with pytest.raises(CorruptFileError, match="find the one that it was made from"):
        delta.apply(tuned, folder)
    damaged = next(folder.glob("*-00002-of-*"))
    data = bytearray(damaged.read_bytes())
    data[-100] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(CorruptFileError, match="-00002-of-"):
        delta.apply(base, folder)
    damaged.unlink()
    with pytest.raises(MissingFileError, match="-00002-of-"):
        delta.apply(base, folder)
    delta.make(base, tuned, f"{tmp_path}/one/")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["delta.safetensors"]
    assert_same(delta.apply(base, tmp_path / "one"), statedict.load(tuned))


def test_a_file_that_is_no_delta_is_refused(tmp_path: Path) -> None:
    statedict.save({"w": np.ones(3)}, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match=r"is safetensors, not a delta; make one by delta\.make\(base, tuned, path\)"):
        delta.apply({}, tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedError, match="apply takes the file of a delta, not a dict"):
        delta.apply({}, {})  # type: ignore[arg-type]


def test_a_delta_of_a_delta_needs_it_applied_first(tmp_path: Path) -> None:
    states = [{"w": np.random.default_rng(0).standard_normal(1000) * (1 + n * 1e-9)} for n in range(3)]
    delta.make(states[0], states[1], tmp_path / "one")
    with pytest.raises(UnsupportedError, match=r"its base memory is not in it"):
        delta.make(tmp_path / "one", states[2], tmp_path / "two")
    middle = delta.apply(states[0], tmp_path / "one")
    delta.make(middle, states[2], tmp_path / "two")
    assert (delta.apply(middle, tmp_path / "two")["w"].numpy() == states[2]["w"]).all()


def test_an_existing_file_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.delta").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        delta.make({"w": np.ones(3)}, {"w": np.ones(3)}, tmp_path / "x.delta", overwrite=False)
    report = delta.make({"w": np.ones(3)}, {"w": np.ones(3)}, tmp_path / "x.delta", dry_run=True)
    assert ((tmp_path / "x.delta").read_bytes(), report.written) == (b"precious", False)
    assert report.nbytes[1] == delta.make({"w": np.ones(3)}, {"w": np.ones(3)}, tmp_path / "x.delta").nbytes[1]


def test_without_the_library_the_error_tells_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'statedict\[compress\]'"):
        delta.make({"w": np.ones(3)}, {"w": np.ones(3)}, tmp_path / "x.delta")
    assert not [*tmp_path.iterdir()]


def test_into_a_folder_the_files_beside_the_base_go_along(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    statedict.save({"w": np.ones(3)}, tmp_path / "base" / "model.safetensors")
    delta.make(tmp_path / "base", {"w": np.ones(3) + 1}, tmp_path / "x.delta")
    report = apply_file(tmp_path / "base", tmp_path / "x.delta", f"{tmp_path}/out/")
    assert (tmp_path / "out" / "config.json").read_text() == '{"model_type": "llama"}'
    assert statedict.load(tmp_path / "out")["w"].tolist() == [2, 2, 2]
    assert "those of the base" in str(report)
    assert not apply_file(tmp_path / "base", tmp_path / "x.delta", tmp_path / "one.safetensors").files.copied
