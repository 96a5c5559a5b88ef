"""A member of an enumeration is a `Member` in a tree: it keeps its class everywhere, and no live object gets one."""

from __future__ import annotations

import enum
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import statedict
import statedict.torch
from statedict.errors import CorruptFileError, FormatError, RestoreError
from statedict.render.tree_text import summary_lines
from statedict.testing.same import assert_same
from statedict.tree.walk import walk
from statedict.values import Member, from_json, member, same_value, to_json

from .test_labels import Access, Extra, Holder, Level, Norm, Word, pair

FORMS = ["x.pth", "x.safetensors", "distributed", "shards/"]
WHERE = f"{__name__.rpartition('.')[0]}.test_labels"
BOTH = Access.READ | Access.WRITE


class Other(enum.Enum):
    AUTO = 1
    SPECTRAL = 2


class Modes(enum.Flag):
    READ = 1
    WRITE = 2


def write(tree: Any, folder: Path, form: str) -> str:
    path = str(folder / form) + "/" * form.endswith("/")
    statedict.save(tree, path, format="distributed" if form == "distributed" else None)
    return path


def members(state: Any) -> dict[str, Member]:
    return {path: leaf for path, leaf in walk(state) if isinstance(leaf, Member)}


def everywhere(value: Any, seed: int = 1) -> dict[str, Any]:
    """Live objects of each kind that have a value, or nothing, where one of an enumeration may stand."""
    tree = pair(torch.optim.SGD, seed=seed, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(tree["optimizer"], 5)
    scheduler.mine = value  # type: ignore[attr-defined]
    if value is not None:
        tree["optimizer"].param_groups[0]["norm"] = value
        tree["optimizer"].state[tree["model"].weight]["kept"] = {"deep": (value, [value])}
    holder = Holder({"a": [value]} if value is not None else None)
    return tree | {"s": scheduler, "extra": Extra(value), "holder": holder, "best": value}


PLACES = {
    "optimizer.param_groups.0.norm",
    "optimizer.state.0.kept.deep.0",
    "optimizer.state.0.kept.deep.1.0",
    "s.mine",
    "extra._extra_state",
    "holder.held.a.0",
    "best",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [Norm.SPECTRAL, BOTH, Access(0)])
def test_a_member_is_refused_wherever_the_target_has_none(value: Any, form: str, tmp_path: Path) -> None:
    state = statedict.load(write(everywhere(value), tmp_path, form))
    held = members(state)
    assert held.keys() == PLACES
    assert {member.kind for member in held.values()} == {f"{WHERE}.{type(value).__name__}"}
    target = everywhere(None, seed=2)
    before = statedict.capture(target)
    report = statedict.restore(target, state, dry_run=True)
    assert {problem.path for problem in report.problems if problem.action == "object"} == PLACES
    assert {problem.path for problem in report.problems} == PLACES
    assert not {entry.path for entry in report.entries} & PLACES
    with pytest.raises(RestoreError, match=r"no member of that class there; pass override=.*allow_unexpected="):
        statedict.restore(target, state)
    assert_same(statedict.capture(target), before)
    statedict.restore(target, state, allow_unexpected=sorted(PLACES))
    assert not members(statedict.capture(target))
    statedict.restore(target, state, override=dict.fromkeys(PLACES, value))
    assert target["s"].mine is target["best"] is target["extra"].value is value
    assert target["optimizer"].state[target["model"].weight]["kept"] == {"deep": (value, [value])}
    target = everywhere(next(iter(type(value))), seed=2)
    statedict.restore(target, state)
    assert target["holder"].held == {"a": [value]}
    assert target["optimizer"].param_groups[0]["norm"] is target["s"].mine is target["best"] is value


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("value", "other"), [(Norm.SPECTRAL, Other.AUTO), (BOTH, Modes.READ), (BOTH, Norm.AUTO)])
def test_a_member_of_another_class_is_refused_whatever_its_name(
    value: Any, other: Any, form: str, tmp_path: Path
) -> None:
    path = write(everywhere(value), tmp_path, form)
    report = statedict.restore(everywhere(other, seed=2), path, dry_run=True)
    assert {problem.path for problem in report.problems} == PLACES
    assert all("is not a member of" in problem.detail for problem in report.problems)


def test_a_live_member_of_another_class_is_refused() -> None:
    with pytest.raises(RestoreError, match=r"object: best \(is not a member of .*Norm"):
        statedict.restore({"best": Norm.AUTO}, {"best": Other.AUTO})


@pytest.mark.parametrize("value", [Norm.SPECTRAL, BOTH])
def test_a_name_from_a_file_of_an_older_version_means_the_member(value: Any) -> None:
    plain = value.value if isinstance(value, enum.Flag) else value.name
    target = everywhere(next(iter(type(value))), seed=2)
    statedict.restore(target, statedict.capture(everywhere(plain)))
    assert target["s"].mine is target["best"] is target["optimizer"].param_groups[0]["norm"] is value


def test_pytorch_reads_exactly_the_name_or_the_number(tmp_path: Path) -> None:
    tree = {"norm": Norm.SPECTRAL, "access": [BOTH, Access(0)], "level": Level.HIGH, "word": Word.UP}
    statedict.save(tree, tmp_path / "x.pth")
    statedict.save(tree, tmp_path / "x.safetensors")
    for load in (torch.load, statedict.torch.load):
        loaded = load(tmp_path / "x.pth")  # type: ignore[operator]
        assert repr(loaded) == "{'norm': 'SPECTRAL', 'access': [3, 0], 'level': 2, 'word': 'down'}"
    assert statedict.torch.load(tmp_path / "x.safetensors") == loaded
    for plain in (statedict.load(tmp_path / "x.pth").torch(), statedict.load(tmp_path / "x.pth").numpy()):
        assert (plain, type(plain["norm"]), type(plain["access"][0])) == (loaded, str, int)


def test_members_go_through_every_format_and_edit(tmp_path: Path) -> None:
    path: Any = write(everywhere(Norm.SPECTRAL) | {"a": {"b.c": BOTH}}, tmp_path, FORMS[0])
    first = statedict.load(path)
    wanted = members(first)
    assert len(members(first.flatten().unflatten())) == len(PLACES) + 1
    for form in ("y.safetensors", "z.pth", "shards/", "distributed", "y.pth"):
        path = write(statedict.load(path), tmp_path, form)
        assert_same(statedict.load(path), first)
        for (one, held), (other, was) in zip(wanted.items(), members(statedict.load(path)).items(), strict=True):
            assert (one, type(held), held.kind) == (other, type(was), was.kind)
    statedict.edit(path, None, [{"rename": {"holder": "kept"}}])  # in place
    assert members(statedict.load(path)).keys() == {one.replace("holder", "kept") for one in members(first)}
    statedict.edit(path, None, [{"cast": "bf16", "only": "model.*"}, {"prefix": "all."}, {"drop": "*.c"}])
    after = members(statedict.load(path))
    assert [(held, held.kind) for held in after.values()] == [("SPECTRAL", f"{WHERE}.Norm")] * len(PLACES)


def test_two_entries_of_one_path_keep_their_classes(tmp_path: Path) -> None:
    tree = {"a": {"b.c": BOTH}, "a.b": {"c": Norm.AUTO}, 1: Norm.SPECTRAL, "1": "SPECTRAL", "2": Access.READ, 2: 1}
    statedict.save(tree, tmp_path / "x.pth")
    state = statedict.load(tmp_path / "x.pth")
    assert repr(state) == repr(statedict.capture(tree))


def test_a_tree_has_version_2_only_for_members(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for value, version in ((Norm.AUTO, 2), ('{"$member":', 1), ({"$member": 1}, 1)):
        statedict.save({"value": value}, path)
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert json.loads(header["__metadata__"]["statedict"])["version"] == version
        assert statedict.load(path)["value"] == ("AUTO" if value is Norm.AUTO else value)
    statedict.save({"value": Norm.AUTO}, path)
    data = path.read_bytes().replace(rb"{\"version\":2", rb"{\"version\":3")
    path.write_bytes(data)
    with pytest.raises(FormatError, match="its skeleton has version 3; a newer version may read it"):
        statedict.load(path)


@pytest.mark.parametrize("body", [[1, "A"], ["lab.Norm", None], ["lab.Norm", True], ["lab.Norm"], {}, ["a", "b", "c"]])
def test_what_is_no_member_in_a_header_is_damage(body: Any) -> None:
    with pytest.raises(CorruptFileError):
        from_json({"$member": body})


def test_members_compare_by_class_and_name() -> None:
    one, other = member("lab.Norm", "AUTO"), member("lab.Other", "AUTO")
    assert same_value(one, from_json(to_json(one)))
    assert same_value(member("lab.F", 1 << 70), from_json(to_json(member("lab.F", 1 << 70))))
    assert not same_value(one, other)
    assert not same_value(one, "AUTO")
    assert not same_value(member("lab.F", 3), 3)
    assert repr(member("lab\n", "x")) == r"'lab\n.x'"
    differences = statedict.diff({"a": one, "b": one, "c": one}, {"a": other, "b": "AUTO", "c": one})
    text = str(differences)
    assert "lab.Norm.AUTO → lab.Other.AUTO" in text
    assert "lab.Norm.AUTO (MemberName) → 'AUTO' (str)" in text
    assert [value.path for value in differences.values] == ["a", "b"]


def test_a_member_is_shown_with_its_class() -> None:
    state = statedict.capture(pair(norm=Norm.SPECTRAL) | {"best": Norm.SPECTRAL})
    shown = f"{WHERE}.Norm.SPECTRAL"
    assert repr(state["best"]) == shown
    summary = statedict.inspect(state)
    assert "tests.adapt…orm.SPECTRAL" in "\n".join(summary_lines(summary, None))
    assert shown in state._repr_html_()
    assert f'{{"$member": ["{WHERE}.Norm", "SPECTRAL"]}}' in json.dumps(summary.to_json())
    assert str(statedict.stats(state))


def test_a_run_keeps_members(tmp_path: Path) -> None:
    for format in ("safetensors", "torch"):
        with statedict.CheckpointManager(tmp_path / format, format=format) as manager:
            manager.save(1, everywhere(Norm.SPECTRAL))
            target = everywhere(Norm.AUTO, seed=2)
            manager.restore(target)
            assert target["s"].mine is Norm.SPECTRAL
            with pytest.raises(RestoreError, match="no member of that class"):
                manager.restore(everywhere(None, seed=2))


def test_a_label_is_no_override() -> None:
    for label in (member("lab.Norm", "AUTO"), statedict.Opaque("lab.X")):
        with pytest.raises(RestoreError, match=r"override: best\.deep\.0: (lab.Norm.AUTO|Opaque.*) is a label"):
            statedict.restore({"best": None}, {"best": 1}, override={"best": {"deep": [label]}})


def rewrite(path: Path, changes: dict[str, Any]) -> None:
    """Write an archive anew with some records changed, as another program would."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            archive.writestr(name, changes.get(name, data))


def test_classes_of_what_another_program_has_changed_are_left_aside(tmp_path: Path) -> None:
    statedict.save({"norm": Norm.AUTO, "lost": Norm.AUTO}, tmp_path / "x.pth")
    torch.save({"norm": [1]}, tmp_path / "y.pth")
    with zipfile.ZipFile(tmp_path / "y.pth") as archive:
        rewrite(tmp_path / "x.pth", {"archive/data.pkl": archive.read("y/data.pkl")})
    assert statedict.load(tmp_path / "x.pth") == {"norm": [1]}


def test_classes_that_are_no_texts_are_damage(tmp_path: Path) -> None:
    statedict.save({"norm": Norm.AUTO}, tmp_path / "x.pth")
    for classes in ({"norm": 1}, ["norm"], 3):
        rewrite(tmp_path / "x.pth", {"archive/.statedict.json": json.dumps({"classes": classes}).encode()})
        with pytest.raises(CorruptFileError, match="is damaged"):
            statedict.load(tmp_path / "x.pth")


def test_a_module_without_extra_state_yet_takes_no_text_for_a_member(tmp_path: Path) -> None:
    model = nn.ModuleList([Extra(Norm.SPECTRAL)])
    statedict.save(model, tmp_path / "x.pth")
    target = nn.ModuleList([Extra()])
    nn.init.zeros_(target[0].weight)  # type: ignore[arg-type]
    with pytest.raises(RestoreError, match=r"object: 0\._extra_state \(is .*Norm\.SPECTRAL"):
        statedict.restore(target, tmp_path / "x.pth")
    assert target[0].weight.sum() == 0
