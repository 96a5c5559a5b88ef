from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import statedict

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def names(path: Path) -> list[str]:
    return list(statedict.load(path).tensors())


def test_steps_are_done_in_the_order_of_their_options(run: Run, tmp_path: Path) -> None:
    done = run(
        "edit", "checkpoint.pth", "out.safetensors", "--strip", "--drop", "conv1", "--rename", "fc{n}=head.{n}",
        "--drop", "head.1", "--rename", "conv2=stem", "--cast", "bf16", "--prefix", "model.",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "out.safetensors") == [
        f"model.{module}.{kind}" for module in ("stem", "head.2", "head.3") for kind in ("weight", "bias")
    ]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["strip", "drop", "rename", "drop", "rename", "cast", "prefix"]
    assert lines[-1] == "20 tensors, 496.0 kB → 6 tensors, 26.9 kB"


def test_neighbours_of_one_kind_are_one_step(run: Run, tmp_path: Path) -> None:
    both = ("--only", "model_state.conv1", "--keep", "model_state.fc3")  # --keep is the old name
    assert run("edit", "checkpoint.pth", "out.pth", *both).returncode == 0
    assert len(names(tmp_path / "out.pth")) == 4
    swap = ("--rename", "model_state.conv1=model_state.conv2", "--rename", "model_state.conv2=model_state.conv1")
    assert run("edit", "checkpoint.pth", "out.pth", "--overwrite", *swap).returncode == 0
    assert statedict.load(tmp_path / "out.pth")["model_state"]["conv1.weight"].shape == (16, 6, 5, 5)


@pytest.mark.parametrize(
    ("arguments", "path", "shape"),
    [
        (("--transpose", "model_state.fc3.weight"), "model_state.fc3.weight", (84, 10)),
        (("--transpose", "model_state.conv1.weight=3,2,1,0"), "model_state.conv1.weight", (5, 5, 3, 6)),
        (("--reshape", "model_state.conv1.weight=6,-1"), "model_state.conv1.weight", (6, 75)),
        (("--slice", "model_state.fc3.weight=0:4,:2"), "model_state.fc3.weight", (4, 2)),
        (("--pad", "model_state.fc3.weight=12,-1"), "model_state.fc3.weight", (12, 84)),
        (("--split", "model_state.fc3=model_state.a,model_state.b"), "model_state.b.weight", (5, 84)),
        (("--split", "model_state.fc3.weight=model_state.a,model_state.b@1"), "model_state.b", (10, 42)),
        (("--fuse", "model_state.x=model_state.fc3.bias,model_state.conv1.bias@0"), "model_state.x", (16,)),
        (("--tie", "model_state.x=model_state.fc3.bias"), "model_state.x", (10,)),
        (("--untie", "model_state"), "model_state.fc3.bias", (10,)),
    ],
)
def test_every_option_does_its_step(
    run: Run, arguments: tuple[str, ...], path: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    done = run("edit", "checkpoint.pth", "out.pth", *arguments)
    assert done.returncode == 0, done.stderr
    assert statedict.load(tmp_path / "out.pth").at(path).shape == shape
    assert torch.load(tmp_path / "out.pth", weights_only=True)["model_state"]


def test_values_are_set_as_json_or_text(run: Run, tmp_path: Path) -> None:
    run("edit", "checkpoint.pth", "out.pth", "--set", "epoch=61", "--set", "note=fine", "--set", "tags=[1, true]")
    state = statedict.load(tmp_path / "out.pth")
    assert (state["epoch"], state["note"], state["tags"]) == (61, "fine", [1, True])


def test_a_plan_file_keeps_the_steps_with_their_reasons(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        '# for serving\n[[step]]\nstrip = true\n[[step]]\nsplit = "fc3"\ninto = ["a", "b"]\n'
        '[[step]]\ncast = "bf16"\nonly = ["a", "b"]\n'
    )
    assert run("edit", "checkpoint.pth", "out.pth", "--plan", "plan.toml", "--drop", "conv*").returncode == 0
    state = statedict.load(tmp_path / "out.pth")
    assert str(state["a.weight"].dtype) == "bfloat16"
    assert next(iter(state)) == "fc1.weight"


def test_plan_files_are_applied_each_at_its_place(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[[step]]\nstrip = true\n[[step]]\nrename = {fc3 = "x"}\n')
    (tmp_path / "b.toml").write_text('[[step]]\nrename = {y = "z"}\n')
    done = run("edit", "checkpoint.pth", "out.pth", "--plan", "a.toml", "--rename", "x=y", "--plan", "b.toml")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "out.pth")[-2:] == ["z.weight", "z.bias"]


def test_neighbours_of_a_plan_are_steps_of_their_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text('[[step]]\ndrop = "epoch"\n')
    done = run("edit", "checkpoint.pth", "--dry-run", "--plan", "plan.toml", "--drop", "model_state.conv1")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()[:2]] == [
        "drop 'epoch'", "drop ['model_state.conv1']",
    ]  # fmt: skip


def test_shards_are_written_of_what_is_altered(run: Run, tmp_path: Path) -> None:
    done = run("edit", "checkpoint.pth", "parts", "--strip", "--max-shard-size", "100kB")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    assert len(names(tmp_path / "parts")) == 10
    failed = run("edit", "checkpoint.pth", "--in-place", "--strip", "--max-shard-size", "100kB")
    assert failed.returncode == 2
    assert "--max-shard-size SIZE makes a folder; name that as the target" in failed.stderr


def test_a_dry_run_prints_what_would_happen_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    done = run("edit", "checkpoint.pth", "--drop", "optimizer_state", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("20 tensors, 496.0 kB → 10 tensors, 248.0 kB (nothing was written)\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth"]
    report = json.loads(run("edit", "checkpoint.pth", "--drop", "epoch", "--dry-run", "--json").stdout)
    assert report["changes"][0]["removed"] == ["epoch"]
    assert report["written"] is False


def test_the_file_that_is_read_may_be_written(run: Run, tmp_path: Path) -> None:
    """safetensors#762: saving to the path it was loaded from wrote zeros."""
    before = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["model_state"]["fc3.weight"]
    assert run("edit", "checkpoint.pth", "checkpoint.pth", "--strip").returncode == 2
    assert run("edit", "checkpoint.pth", "checkpoint.pth", "--strip", "--overwrite").returncode == 0
    assert torch.equal(torch.load(tmp_path / "checkpoint.pth", weights_only=True)["fc3.weight"], before)


def test_in_place_writes_the_header_alone_where_names_change(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    statedict.convert(tmp_path / "checkpoint.pth", path)
    before, inode = path.read_bytes(), path.stat().st_ino
    done = run("edit", "checkpoint.safetensors", "--in-place", "--rename", "model_state.conv{n}=model_state.c{n}")
    assert done.returncode == 0, done.stderr
    after = path.read_bytes()
    start = 8 + int.from_bytes(before[:8], "little")
    assert (after[start:], path.stat().st_ino) == (before[start:], inode)
    assert "model_state.c1.weight" in names(path)
    assert statedict.verify(path).ok
    assert run("edit", "checkpoint.safetensors", "--in-place", "--set", "epoch=7").returncode == 0
    assert (statedict.load(path)["epoch"], path.stat().st_ino) == (7, inode)


_ANEW = [
    ("--cast", "bf16"),
    ("--drop", "epoch", "--drop", "model_state.conv1"),
    ("--prefix", "a" * 200),
    ("--untie", "*"),
]


@pytest.mark.parametrize(
    ("suffix", "arguments"), [(".safetensors", some) for some in _ANEW] + [(".pth", some) for some in _ANEW[:2]]
)
def test_in_place_writes_anew_what_more_than_names_change(
    run: Run, suffix: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / f"checkpoint{suffix}"
    if suffix != ".pth":
        statedict.convert(tmp_path / "checkpoint.pth", path)
    assert run("edit", path.name, "other" + suffix, *arguments).returncode == 0
    assert run("edit", path.name, "--in-place", *arguments).returncode == 0
    assert path.read_bytes() == (tmp_path / f"other{suffix}").read_bytes()


def test_in_place_appends_an_index_to_a_pth_where_names_change(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    before, inode = path.read_bytes(), path.stat().st_ino
    for arguments in (("--rename", "model_state.conv{n}=model_state.c{n}"), ("--set", "epoch=7"), ("--untie", "*")):
        done = run("edit", "checkpoint.pth", "--in-place", *arguments)
        assert done.returncode == 0, done.stderr
    assert (path.read_bytes()[: len(before)], path.stat().st_ino) == (before, inode)
    assert torch.load(path, weights_only=True)["epoch"] == 7
    assert "model_state.c1.weight" in names(path)
    assert statedict.verify(path).ok


def test_another_format_than_the_file_has_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    statedict.save({"w": torch.ones(3)}, path)
    statedict.edit(path, None, [{"rename": {"w": "v"}}], format="torch")
    assert zipfile.is_zipfile(path)


def test_a_root_that_is_no_dict_stays_one_in_place(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    statedict.save(torch.ones(2, 3), path)
    assert b"$tensor" in path.read_bytes()
    before = path.stat().st_ino
    statedict.edit(path, None, [{"reshape": "", "shape": [6]}])
    statedict.save(torch.ones(6), tmp_path / "anew.safetensors")
    assert path.stat().st_ino == before
    assert path.read_bytes() == (tmp_path / "anew.safetensors").read_bytes()


def test_a_header_of_others_is_changed_in_place_too(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {f"layers.{n}.weight": torch.randn(3, 4) for n in range(5)}
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt", "note": "kept"})
    assert run("edit", "theirs.safetensors", "--in-place", "--rename", "layers.{n}=h.{n}").returncode == 0
    renamed = load_file(tmp_path / "theirs.safetensors")
    assert all(torch.equal(renamed[f"h.{n}.weight"], tensors[f"layers.{n}.weight"]) for n in range(5))
    assert statedict.load(tmp_path / "theirs.safetensors").metadata["note"] == "kept"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("out.pth", "--in-place", "--strip"), "--in-place takes no DST"),
        (("out.pth",), "name a step, such as"),
        (("--strip",), "name DST, or use --in-place or --dry-run"),
        (("out.pth", "--drop", "nothing.*"), "drop ['nothing.*']: no entry of"),
        (("out.pth", "--rename", "a"), "--rename 'a': expected OLD=NEW"),
        (("out.pth", "--rename", "model_state.*.weight=model_state.w"), "both become 'model_state.w'"),
        (("out.pth", "--rename", "nothing=x"), "matches the rule"),
        (("out.pth", "--cast", "float33"), "unknown dtype 'float33'"),
        (("out.pth", "--reshape", "epoch=a,b"), "'a,b' is not a list of numbers"),
        (("out.pth", "--slice", "model_state.fc3.bias=x"), "'x': not an index"),
        (("out.pth", "--plan", "missing.toml"), "missing.toml: cannot open: No such file"),
        (("out.pth", "--plan", "."), ".: cannot open: "),
        (
            ("out.pth", "--rename", "epoch=b", "--rename", "epoch=c"),
            "--rename: 'epoch' is given twice, as 'b' and as 'c'",
        ),
        (("out.pth", "--tie", "a=x", "--tie", "a=y"), "--tie: 'a' is given twice, as 'x' and as 'y'"),
        (("out.pth", "--plan", "checkpoint.pth"), "checkpoint.pth: is not text"),
    ],
)
def test_what_cannot_be_done_is_one_line_status_2_and_nothing_is_written(
    run: Run, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    failed = run("edit", "checkpoint.pth", *arguments)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth"]


def test_of_several_models_strip_asks_for_one_as_one_types_it(run: Run, tmp_path: Path) -> None:
    model = statedict.load(tmp_path / "checkpoint.pth")["model_state"]
    statedict.save({"params": model, "params ema": model.copy()}, tmp_path / "esr.pth")
    failed = run("edit", "esr.pth", "out.safetensors", "--strip")
    assert failed.returncode == 2
    assert "2 models could be meant: params (10 tensors, 62,006 elements), params ema (10 tensors" in failed.stderr
    assert failed.stderr.endswith("keep one first, by --keep params\n")
    assert run("edit", "esr.pth", "out.safetensors", "--keep", "params ema", "--strip").returncode == 0
    assert names(tmp_path / "out.safetensors") == list(model)


@pytest.mark.parametrize(
    ("text", "first"), [("-net.", "model_state.conv1.weight"), ("-model_state.net.", "conv1.weight")]
)
def test_a_prefix_is_taken_away_with_the_path_of_its_dict_or_without(
    run: Run, tmp_path: Path, text: str, first: str
) -> None:
    assert run("edit", "checkpoint.pth", "below.pth", "--prefix", "net.").returncode == 0
    done = run("edit", "below.pth", "out.pth", "--prefix", text)
    assert done.returncode == 0, done.stderr
    assert first in names(tmp_path / "out.pth")
    assert not any("net." in name for name in names(tmp_path / "out.pth"))
    failed = run("edit", "below.pth", "other.pth", "--prefix", "-model.")
    assert "no name begins with 'model.', within its dict or from the root" in failed.stderr


def test_split_takes_sizes_for_grouped_queries(run: Run, tmp_path: Path) -> None:
    rule = "model_state.fc3=model_state.q:6,model_state.k:2,model_state.v:2"
    assert run("edit", "checkpoint.pth", "out.pth", "--split", rule).returncode == 0
    state = statedict.load(tmp_path / "out.pth")["model_state"]
    assert [state[f"{part}.weight"].shape[0] for part in "qkv"] == [6, 2, 2]
    by_rows = run("edit", "checkpoint.pth", "out.pth", "--overwrite", "--split", "model_state.fc3.weight=a:4,b:80@1")
    assert by_rows.returncode == 0, by_rows.stderr
    failed = run("edit", "checkpoint.pth", "other.pth", "--split", "model_state.fc3=q:6,k")
    assert failed.returncode == 2
    assert "give a size to each part or to none" in failed.stderr
    wrong = run("edit", "checkpoint.pth", "other.pth", "--split", "model_state.fc3=q:6,k:2,v:1")
    assert "cannot be split along 0 into 3 parts of [6, 2, 1]" in wrong.stderr
