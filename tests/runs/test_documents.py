"""The documents of a run that a stranger may have written: what they name is never opened elsewhere, what they say
never more than damage."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner

import statedict
from statedict import CheckpointManager
from statedict.cli import cli
from statedict.errors import CorruptFileError, FormatError, StateDictError
from statedict.runs import about, blame, pin, prune, verify_run
from statedict.runs.lock import parse_owner
from statedict.runs.look.listing import listing
from statedict.runs.manifest import digest

At = Callable[[int], dict[str, Any]]


@pytest.fixture
def made(run: Path, at: At) -> Path:
    """A run with steps 1 to 3."""
    with CheckpointManager(run, background=False) as manager:
        for step in (1, 2, 3):
            manager.save(step, at(step), metrics={"loss": 1 / step})
    return run


def manifest(run: Path, step: int = 3) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / str(step) / "manifest.json").read_bytes())
    return found


def commit(run: Path, fields: dict[str, Any] | str, step: int = 3) -> None:
    """Put a manifest in the place of another, committed by its digest."""
    data = (fields if isinstance(fields, str) else json.dumps(fields)).encode()
    (run / str(step) / "manifest.json").write_bytes(data)
    (run / str(step) / "COMMITTED").write_bytes(digest(data))


COMMANDS = (
    "ls", "ls --json", "show {} 3", "show {} 3 --json", "show", "verify", "verify {} --quick", "best {} loss",
    "prune {} --keep 1 --dry-run", "prune {} --keep best:loss:1 --yes", "diff {} 2 3", "blame {} *", "pin {} 2",
    "bisect {} --test true",
)  # fmt: skip


def use(run: Path, tree: dict[str, Any]) -> None:
    """All that people do with a run; each says what it has to or raises an error of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manager = CheckpointManager(run, background=False)
        for do in (
            manager.steps, manager.latest, lambda: manager.best("loss"), lambda: manager.metrics(3), manager.load,
            lambda: manager.load(3), lambda: manager.restore(tree, 3), lambda: manager.restore(tree),
            lambda: manager.prune(dry_run=True), lambda: listing(run), lambda: about(run, 3).to_json(),
            lambda: verify_run(run).to_json(), lambda: blame(run, ["*"]).to_json(), lambda: pin(run, [2]),
            lambda: prune(run, keep=1, dry_run=True), lambda: statedict.report(run),
        ):  # fmt: skip
            try:
                do()
            except StateDictError:
                pass
        manager.close()
    for command in COMMANDS:
        name, _, rest = command.partition(" ")
        words = (rest if "{}" in rest else f"{{}} {rest}").replace("{}", str(run)).split()
        result = CliRunner().invoke(cli, ["runs", name, *words], standalone_mode=False)
        assert result.exception is None or isinstance(result.exception, StateDictError), (command, result.exc_info)


OPENED: list[str] = []
_HOOKED: list[bool] = []


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The real paths of what this process opens."""
    if not _HOOKED:
        _HOOKED.append(True)
        sys.addaudithook(lambda event, args: _note(event, args) if _HOOKED[-1] else None)
    OPENED.clear()
    _HOOKED.append(True)
    yield OPENED
    _HOOKED.append(False)


def _note(event: str, args: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir", "os.remove", "os.rename") and isinstance(args[0], str):
        OPENED.append(os.path.realpath(args[0]))


@pytest.mark.parametrize(
    "name", ["{}", "../../secret/checkpoint.safetensors", "../1/checkpoint.safetensors", "manifest.json", "", "a\0b",
             "\ud800", "checkpoint.safetensors/.", "./checkpoint.safetensors", "http://127.0.0.1:9/x", "COMMITTED"],
)  # fmt: skip
def test_a_manifest_names_no_file_but_a_checkpoint_s_own(
    name: str, made: Path, at: At, tmp_path: Path, opened: list[str]
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "checkpoint.safetensors").write_bytes((made / "3" / "checkpoint.safetensors").read_bytes())
    fields = manifest(made)
    (size,) = fields["files"].values()
    commit(made, fields | {"files": {name.format(tmp_path / "secret" / "checkpoint.safetensors"): size}})
    opened.clear()
    with pytest.warns(
        UserWarning, match=r"step 3 is passed over, it is damaged: .*(has another name than checkpoint|surrogate)"
    ):
        assert CheckpointManager(made).latest() == 2
    use(made, at(0))
    assert not [path for path in opened if path.startswith(str(tmp_path / "secret"))]


def move_file(run: Path, secret: Path, name: str) -> None:
    (run / "3" / name).rename(secret / name)
    (run / "3" / name).symlink_to(secret / name)


def to_folder(run: Path, secret: Path, name: str) -> None:
    (run / "3" / name).unlink()
    (run / "3" / name).symlink_to(secret)


def move_step(run: Path, secret: Path, _: str) -> None:
    (run / "3").rename(secret / "3")
    (run / "3").symlink_to(secret / "3")


@pytest.mark.parametrize(
    ("move", "name"),
    [
        (move_step, ""),
        (move_file, "checkpoint.safetensors"),
        (move_file, "manifest.json"),
        (move_file, "COMMITTED"),
        (to_folder, "checkpoint.safetensors"),
    ],
)
def test_a_link_out_of_a_run_is_not_followed(
    move: Callable[[Path, Path, str], None], name: str, made: Path, at: At, tmp_path: Path, opened: list[str]
) -> None:
    (tmp_path / "secret").mkdir()
    move(made, tmp_path / "secret", name)
    opened.clear()
    with pytest.warns(UserWarning, match=r"step 3 is passed over, it is damaged: .* outside of the folder"):
        assert CheckpointManager(made).latest() == 2
    assert {one.name: one.state for one in listing(made)} == {"1": "committed", "2": "committed", "3": "damaged"}
    assert [name for name, damage in verify_run(made).damage.items() if damage] == ["3"]
    with pytest.raises(FormatError, match="outside of the folder"):
        CheckpointManager(made).load(3)
    use(made, at(0))
    assert not [path for path in opened if path.startswith(str(tmp_path / "secret"))]
    assert not (made / "3").is_symlink() or (tmp_path / "secret" / "3" / "manifest.json").exists()


def test_links_within_a_run_and_a_run_that_is_a_link_are_followed(made: Path, at: At, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(made)
    (made / "best.safetensors").symlink_to("3/checkpoint.safetensors")
    assert CheckpointManager(tmp_path / "elsewhere").latest() == 3
    assert [one.name for one in listing(tmp_path / "elsewhere")] == ["1", "2", "3", "best.safetensors"]
    assert verify_run(tmp_path / "elsewhere").ok


@pytest.mark.parametrize("name", ["step-7.safetensors", "step-7.ckpt", "checkpoint-7", "step-7.index.json", "0007"])
def test_a_foreign_checkpoint_that_is_a_link_out_of_the_directory_is_listed_and_not_opened(
    name: str, made: Path, at: At, tmp_path: Path, opened: list[str]
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    if "." in name:
        statedict.save(at(7), secret / "file", format="safetensors")
        (made / name).symlink_to(secret / "file")
    else:
        statedict.save(at(7), secret / "model.safetensors")
        (secret / "trainer_state.json").write_text('{"log_history":[],"global_step":7}')
        (made / name).symlink_to(secret)
    opened.clear()
    (found,) = (one for one in listing(made) if one.name == name)
    assert (found.step, found.state) == (7, "damaged")
    assert "outside of the folder" in found.damage
    use(made, at(0))
    assert not [path for path in opened if path.startswith(str(secret))]


def test_a_trainer_s_state_that_is_a_link_is_not_followed(made: Path, at: At, tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"log_history":[{"step":7,"loss":4.5}],"global_step":7}')
    (made / "checkpoint-7").mkdir()
    statedict.save(at(7), made / "checkpoint-7" / "model.safetensors")
    (made / "checkpoint-7" / "trainer_state.json").symlink_to(tmp_path / "log")
    (found,) = (one for one in listing(made) if one.name == "checkpoint-7")
    assert not found.metrics
    assert "outside of the folder" in found.damage


def test_pins_and_the_lock_are_no_links(made: Path, at: At, tmp_path: Path) -> None:
    (tmp_path / "pins").write_text('{"pinned":[1]}')
    (made / "pins.json").symlink_to(tmp_path / "pins")
    with pytest.raises(CorruptFileError, match=r"pins\.json: not a list of pinned steps; remove it"):
        prune(made, keep=1, dry_run=True)
    (made / "pins.json").unlink()
    (tmp_path / "diary").write_text("dear diary")
    (made / ".lock").unlink(missing_ok=True)
    (made / ".lock").symlink_to(tmp_path / "diary")
    with pytest.raises(statedict.errors.FileError, match=r"\.lock: is a link, remove it"):
        CheckpointManager(made, existing="continue").save(4, at(4))
    with pytest.raises(statedict.errors.FileError, match=r"\.lock: is a link, remove it"):
        prune(made, keep=1)
    assert (tmp_path / "diary").read_text() == "dear diary"


def test_what_is_left_over_is_removed_and_what_it_links_to_is_not(made: Path, at: At, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "diary").write_text("dear diary")
    (made / ".7.0123abcd.tmp").symlink_to(tmp_path / "secret")
    with CheckpointManager(made, existing="continue") as manager:
        manager.save(4, at(4))
    assert not (made / ".7.0123abcd.tmp").is_symlink()
    assert (tmp_path / "secret" / "diary").read_text() == "dear diary"


def test_a_step_that_is_a_link_is_replaced_and_what_it_links_to_stays(made: Path, at: At, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    move_step(made, tmp_path / "secret", "")
    with CheckpointManager(made, existing="continue") as manager:
        manager.save(3, at(3), overwrite=True)
    assert CheckpointManager(made).latest() == 3
    assert not (made / "3").is_symlink()
    assert (tmp_path / "secret" / "3" / "checkpoint.safetensors").exists()


FIELDS: dict[str, list[Any]] = {
    "time": [
        "0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00-23:59", "9999-12-31T23:59:59.999999-23:59",
        "9999-12-31T23:59:59.999999+00:00", "9999-12-31T23:59:59.999999", "0001-01-01T00:00:00", "", "now", 5, None, [],
        "2026-01-01T00:00:00+24:00", "\0", "\ud800", "2026-02-30T00:00:00+00:00", 1e999,
    ],
    "step": [-1, 1e999, 3.0, "3", True, None, 1 << 70, 10**4000, [], {}],
    "version": [2, "1", None, [[]], 1e999, {"a": "b" * 100}, 1.0],
    "format": ["x" * 10_000, None, 5, ["statedict checkpoint"]],
    "metrics": [
        {"loss": "inf"}, {"loss": "-inf"}, {"loss": "nan"}, {"loss": 1e308}, {"loss": 10**400}, {"loss": "many"},
        {"loss": None}, {"loss": []}, {"loss": True}, {"\x1b[2J\n\u202e": 1}, {"": 0}, {"\0": 1}, [], None, 5, "loss",
        {"loss": -0.0}, {"loss": 5e-324},
    ],
    "libraries": [{"a": 5}, {"\x1b]0;": "\n\u202e"}, [], None, {"a": {"b": []}}, {"a": None}],
    "files": [{}, [], None, "checkpoint.safetensors", {"checkpoint.safetensors": -1},
              {"checkpoint.safetensors": 1e999}, {"checkpoint.safetensors": 1 << 62},
              {"checkpoint.safetensors": 1 << 70}, {"checkpoint.safetensors": "5"}, {"checkpoint.pth": 1},
              {"checkpoint.safetensors": 1, "checkpoint.pth": 1}, {"checkpoint.safetensors": None}],
    "entries": [[], None, [[]], [["w", "float32", [1e999], "x"]], [["w", "float32", [-1], "x"]], {"a": 1}, "text",
                [["w", "float32", 5, "x"]], [[1, 2, [], 3]], [["w", "x", [1 << 70], ""]], [["\0", "", [], ""]]],
    "not_captured": [None, 5, [5], "text", ["\x1b[2J"], {"a": 1}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in FIELDS.items() for value in values],
    ids=lambda v: f"{v!r:.30}",
)
def test_a_manifest_that_says_odd_things_is_damaged_or_shown(field: str, value: Any, made: Path, at: At) -> None:
    commit(made, manifest(made) | {field: value})
    use(made, at(0))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "5", '"x"', "NaN", "{}", "[" * 100_000, '{"a":' * 100_000, '{"step":3,"step":3}',
        "1" * 5000, "[1e999]", '{"format":"statedict checkpoint","format":"statedict checkpoint"}', "\ufeff{}",
    ],
    ids=lambda text: f"{text:.20}",
)  # fmt: skip
def test_a_document_that_is_no_json_of_ours_is_damaged(text: str, made: Path, at: At) -> None:
    commit(made, text)
    with pytest.warns(UserWarning, match="step 3 is passed over, it is damaged"):
        assert CheckpointManager(made).latest() == 2
    (made / "pins.json").write_text(text)
    with pytest.raises(CorruptFileError, match=r"pins\.json: not a list of pinned steps"):
        prune(made, keep=1)
    (made / ".lock").write_text(text)
    (made / "checkpoint-7").mkdir()
    statedict.save(at(7), made / "checkpoint-7" / "model.safetensors")
    (made / "checkpoint-7" / "trainer_state.json").write_text(text)
    use(made, at(0))


@pytest.mark.parametrize(
    "pinned",
    [[1e999], [-1], [1.5], ["1"], {"1": 1}, "12", 5, None, [None], [True], [[1]], [1 << 70], [10**4000]],
    ids=repr,
)
def test_pins_that_are_no_steps_are_damaged(pinned: Any, made: Path, at: At) -> None:
    (made / "pins.json").write_text(json.dumps({"pinned": pinned}))
    with pytest.raises(CorruptFileError, match=r"pins\.json: not a list of pinned steps"):
        prune(made, keep=1, dry_run=True)
    use(made, at(0))


def test_a_document_that_python_writes_with_nan_is_a_trainer_s(made: Path, at: At) -> None:
    (made / "checkpoint-7").mkdir()
    statedict.save(at(7), made / "checkpoint-7" / "model.safetensors")
    log = {"log_history": [{"step": 7, "loss": float("nan"), "lr": 10**400, "\x1b[2J": 1.5}, 5], "global_step": 7}
    (made / "checkpoint-7" / "trainer_state.json").write_text(json.dumps(log))
    use(made, at(0))
    del log["log_history"][0]["lr"]  # type: ignore[index]
    (made / "checkpoint-7" / "trainer_state.json").write_text(json.dumps(log))
    (found,) = (one for one in listing(made) if one.name == "checkpoint-7")
    assert found.metrics.keys() == {"loss", "\x1b[2J"}


@pytest.mark.parametrize("seconds", [-(1 << 40), -1, 1 << 33, 253_402_300_800, 1 << 40])
def test_files_of_odd_times_are_listed(seconds: int, made: Path, at: At) -> None:
    statedict.save(at(7), made / "step-7.safetensors")
    (made / "3" / "COMMITTED").write_text("x")
    for file in (made / "step-7.safetensors", *(made / "3").iterdir()):
        with contextlib.suppress(OSError):  # a file system without such times keeps its own, and the list is tried
            os.utime(file, (seconds, seconds))
    use(made, at(0))


@pytest.mark.parametrize(
    "owner", [{"pid": 1 << 80}, {"pid": -1}, {"pid": True}, {"pid": "1"}, {"host": ["x"]}, {"time": "now"},
              {"time": 1e300},              {"time": None}, {"host": "x" * 1000}, {"id": 5}, {"more": 1}],
    ids=repr,
)  # fmt: skip
def test_what_makes_no_sense_in_a_lock_is_not_there(owner: dict[str, Any]) -> None:
    sound = {"host": "a", "pid": 5, "id": "b", "time": 1.5}
    assert parse_owner(json.dumps(sound | owner).encode()) == {k: v for k, v in sound.items() if k not in owner}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_run_says_steers_no_terminal(command: str, made: Path, at: At, tmp_path: Path) -> None:
    evil = "\x1b[2J\r\u202e\n"
    fields = manifest(made)
    commit(made, fields | {"metrics": {evil: 1, "loss": 2}, "libraries": {evil: evil}, "not_captured": [evil]})
    hostile = tmp_path / f"run{evil}"
    made.rename(hostile)
    statedict.save({evil: numpy.ones(2), "w": {evil: evil}}, hostile / f"{evil}step-7.safetensors")
    (hostile / f"{evil}step-8.pth").write_bytes(b"PK\3\4")
    name, _, rest = command.partition(" ")
    words = [word if word != "{}" else str(hostile) for word in (rest if "{}" in rest else f"{{}} {rest}").split()]
    result = CliRunner().invoke(cli, ["runs", name, *words])
    text = result.output if name != "best" else ""  # whose path is for other programs
    assert not re.search(r"[^\n -~…·▁-█–×≥→]", text), text
    assert "2J" not in text or re.search(r"\\x1b\[2J|\\u001b\[2J", text)
    assert len(text.splitlines()) < 60
