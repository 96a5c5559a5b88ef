"""Compressed files and deltas that are damaged, forged, or rewritten by another program."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import statedict
from statedict import CheckpointManager, delta
from statedict.errors import CorruptFileError, FormatError, StateDictError, UnsupportedError
from statedict.formats import detect
from statedict.io.source import FileSource

BASE = {"w": np.random.default_rng(0).standard_normal(1000).astype("f4")}
TUNED = {"w": BASE["w"] * np.float32(1.0001)}


def forged(path: Path, change: Callable[[Any], Any], key: str = "statedict.coding") -> Path:
    """The file with another coding; digests are not those of it, which `load` does not look at."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    coding = json.loads(header["__metadata__"]["statedict.coding"])
    found = change(coding)
    metadata = {key: found if isinstance(found, str) else json.dumps(coding)}
    header["__metadata__"] = metadata | {k: v for k, v in header["__metadata__"].items() if k != "statedict.coding"}
    raw = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    delta.make(BASE, TUNED, tmp_path / "x.delta")
    return tmp_path / "x.delta"


def entry(at: int, value: object) -> Callable[[Any], None]:
    def change(coding: Any) -> None:
        coding["tensors"]["w"][at] = value

    return change


def test_a_compressed_file_is_told_by_its_first_key(file: Path) -> None:
    assert detect(FileSource(str(file))) == "coded"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda coding: "{", "the coding under 'statedict.coding'"),
        (lambda coding: "[]", r"the coding under 'statedict.coding' is damaged"),
        (lambda coding: coding.update(version=2), "has version 2; a newer statedict may read it"),
        (lambda coding: coding.pop("tensors"), "is damaged"),
        (entry(0, "float31"), "is damaged"),
        (entry(1, [-1]), "is damaged"),
        (entry(1, [True]), "is damaged"),
        (entry(1, [1 << 62, 8]), "is damaged"),
        (entry(2, 7), "is damaged"),
        (entry(3, 7), "is damaged"),
        (lambda coding: coding["tensors"].update(v=coding["tensors"]["w"]), "tensor 'v' is described and not there"),
        (lambda coding: coding.update(base={"name": "x"}), "is damaged"),
        (lambda coding: coding.update(base={"digest": "x"}), "its base has no name"),
        (lambda coding: coding.update(base={"digest": "x", "step": -1}), "its base has no name"),
        (entry(1, [1 << 40]), "bytes are too few for it"),
    ],
)
def test_a_coding_that_is_wrong_is_named(file: Path, change: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        statedict.load(forged(file, change))
    assert not statedict.verify(file).ok


@pytest.mark.parametrize("change", [entry(1, [999]), entry(1, [1001]), entry(0, "bfloat16"), entry(3, "other")])
def test_what_the_blocks_or_the_base_do_not_fit_is_damage(file: Path, change: Callable[[Any], Any]) -> None:
    with pytest.raises((CorruptFileError, FormatError)):
        delta.apply(BASE, forged(file, change))["w"].numpy()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors["b"].__setitem__(0, "int32"), "the tensors in it are not coded alike"),
        (lambda tensors: tensors["b"].__setitem__(3, None), "the tensors in it are not coded alike"),
        (lambda tensors: tensors["b"].__setitem__(4, "c"), "tensor 'c' is described and not there"),
        (lambda tensors: tensors["b"].__setitem__(1, [10**9]), "bytes are too few for it"),
        (lambda tensors: tensors["b"].__setitem__(4, 3), "TypeError"),
        (lambda tensors: tensors.update(plain=tensors.pop("b")), "'plain' is in the file twice"),
    ],
)
def test_what_small_tensors_share_has_to_fit_them(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    tree = {"a": BASE["w"][:300], "b": BASE["w"][300:900], "plain": np.zeros(3)}
    delta.make({name: value * np.float32(1.0001) for name, value in tree.items()}, tree, tmp_path / "x.delta")
    with pytest.raises(CorruptFileError, match=message):
        statedict.load(forged(tmp_path / "x.delta", lambda coding: change(coding["tensors"])))


def test_a_file_that_another_program_rewrote_is_not_taken_for_bytes(file: Path, tmp_path: Path) -> None:
    forged(file, lambda coding: None, "another")
    data = file.read_bytes().replace(b'{"another":', b'{"a":"","statedict.coding":')
    length = int.from_bytes(data[:8], "little") + len(b'{"a":"","statedict.coding":') - len(b'{"another":')
    file.write_bytes(length.to_bytes(8, "little") + data[8:])
    for verb in (statedict.load, statedict.verify):
        try:
            problem = str(verb(file).problems[0])  # type: ignore[union-attr]
        except CorruptFileError as error:
            problem = str(error)
        assert "its tensors are compressed, and another program rewrote its header" in problem
    assert statedict.load(file, format="coded")["w"].shape == (1000,)


def test_without_its_coding_a_file_is_one_of_bytes(file: Path, tmp_path: Path) -> None:
    save_file(load_file(file), tmp_path / "plain.safetensors")
    assert statedict.load(tmp_path / "plain.safetensors")["w"].dtype == "uint8"


def test_a_run_whose_delta_refers_to_a_delta_or_itself_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with CheckpointManager(run, compress="delta", background=False) as manager:
        for step in (1, 2):
            manager.save(step, {"w": BASE["w"] + np.float32(step * 1e-5)})
    shutil.copytree(run / "2", run / "3")
    for step in (2, 3):
        forged(run / "2" / "checkpoint.safetensors", lambda coding, step=step: coding["base"].update(step=step))
        with pytest.raises(CorruptFileError, match=r"cannot be read \(.*is a delta itself\)"):
            statedict.load(run / "2")["w"].numpy()


def test_a_step_never_leads_out_of_the_run(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run", compress="delta", background=False) as manager:
        for step in (1, 2):
            manager.save(step, {"w": BASE["w"] + np.float32(step * 1e-5)})
    shutil.move(tmp_path / "run" / "1", tmp_path / "elsewhere")
    (tmp_path / "run" / "1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptFileError, match="lies outside of the folder"):
        statedict.load(tmp_path / "run" / "2")["w"].numpy()


def test_a_compressed_file_is_not_altered_in_place(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(UnsupportedError, match="is coded, which is not altered in place; name another file"):
        statedict.edit(file, None, {"set": "epoch", "value": 3})
    assert file.read_bytes() == before


def test_every_truncation_is_noticed(file: Path) -> None:
    good = file.read_bytes()
    for size in range(0, len(good), 37):
        file.write_bytes(good[:size])
        with pytest.raises(StateDictError):
            delta.apply(BASE, file)["w"].numpy()
