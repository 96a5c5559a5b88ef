"""What `restore` takes for a source: a tree may hold live objects; what is not data never reaches the target."""

import pytest
import torch
from torch import nn

import statedict
from statedict.errors import RestoreError, TreeError, UnsupportedError


class Thing:
    __slots__ = ()

    def __reduce__(self):
        raise AssertionError("never pickled")


def trained():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return model, optimizer


def fresh():
    model = nn.Linear(2, 2)
    return model, torch.optim.AdamW(model.parameters())


def looped(tensor):
    tree = {"a": tensor}
    tree["s"] = tree
    return tree


@pytest.mark.parametrize(
    "shape",
    [
        lambda model, optimizer: {"m": model, "o": optimizer},
        lambda model, optimizer: [model, optimizer],
        lambda model, optimizer: {"run": {"parts": [model, optimizer]}, "epoch": 3},
        lambda model, optimizer: statedict.StateDict({"m": model, "o": optimizer}),
    ],
)
def test_a_source_may_hold_live_objects_at_any_depth(shape):
    source, target = trained(), fresh()
    report = statedict.restore(shape(*target), shape(*source))
    assert not report.problems
    assert torch.equal(target[0].weight, source[0].weight)
    moments = [optimizer.state[model.weight]["exp_avg"] for model, optimizer in (source, target)]
    assert torch.equal(*moments)
    assert moments[0].data_ptr() != moments[1].data_ptr()


def test_an_optimizer_between_state_dicts_keeps_the_names_of_its_model():
    source, target = trained(), fresh()
    state = {"m": source[0].state_dict(), "o": source[1].state_dict(), "live": source[0]}
    report = statedict.restore({"m": target[0], "o": target[1]}, state, allow_unexpected="live")
    assert not report.problems
    assert torch.equal(target[0].weight, source[0].weight)


@pytest.mark.parametrize("value", [open, Thing(), Thing, lambda: None, [1, Thing()], {"x": Thing()}])
def test_an_object_in_a_source_never_reaches_a_plain_target(value):
    target = {"a": None}
    with pytest.raises(RestoreError, match=r"a(\.\w)? \(is an object of .*override="):
        statedict.restore(target, {"a": value})
    assert target == {"a": None}


def test_an_object_in_a_source_can_be_left_out_or_overridden():
    target = {"a": None, "b": 0}
    statedict.restore(target, {"a": Thing(), "b": 2, "c": Thing()}, override={"a": 5}, allow_unexpected="c")
    assert target == {"a": 5, "b": 2}


def test_an_object_in_the_state_of_an_optimizer_is_an_error_that_names_it():
    source, target = trained(), fresh()
    before = target[0].weight.clone()
    for state in (source[1], source[1].state_dict()):
        source[1].state[source[0].weight]["thing"] = Thing()
        with pytest.raises((RestoreError, UnsupportedError), match=r"thing.*Thing"):
            statedict.restore({"m": target[0], "o": target[1]}, {"m": source[0], "o": state})
        assert torch.equal(before, target[0].weight)
        assert not target[1].state


def test_a_source_that_contains_itself_is_an_error(tmp_path):
    tree = looped(torch.ones(2))
    with pytest.raises(TreeError, match="'s': the tree contains itself"):
        statedict.restore({"a": torch.zeros(2)}, tree)
    with pytest.raises(TreeError, match="'s': the tree contains itself"):
        statedict.restore(tree, tree)
    torch.save(tree, tmp_path / "loop.pth")
    with pytest.raises(TreeError, match="'s': the tree contains itself"):
        statedict.restore(tree, tmp_path / "loop.pth")


@pytest.mark.parametrize("target", ["ck.pth", "s3://bucket/ck.pth"])
def test_a_path_as_the_target_is_an_error_that_shows_the_order(target):
    with pytest.raises(UnsupportedError, match=r"is a path, not a live object; call restore\(target, source\)"):
        statedict.restore(target, nn.Linear(2, 2))


def test_other_shapes_come_with_a_hint_at_the_policies():
    model = nn.Linear(2, 3)
    state = nn.Linear(2, 2).state_dict()
    with pytest.raises(RestoreError, match=r"pass shapes=\{'weight': 'skip', 'bias': 'skip'\} to leave the target"):
        statedict.restore(model, state)
    statedict.restore(model, state, shapes={"weight": "skip", "bias": "overlap"})
    (hint,) = statedict.restore(model, state, shapes={"bias": "reshape", "w*": "error"}, dry_run=True).hints
    assert "shapes={'weight': 'skip'}" in hint
    many = nn.Sequential(*[nn.Linear(2, 3) for _ in range(2)])
    smaller = nn.Sequential(*[nn.Linear(2, 2) for _ in range(2)]).state_dict()
    (hint,) = statedict.restore(many, smaller, dry_run=True).hints
    assert "pass shapes='skip' to" in hint


def test_a_prefix_that_is_not_there_comes_with_a_hint_in_whole_sentences():
    with pytest.raises(RestoreError, match="all 2 keys have the names of the target as they are; leave prefix at"):
        statedict.restore(nn.Linear(2, 2), nn.Linear(2, 2).state_dict(), prefix="x.")


def test_what_is_refused_is_not_reported_as_restored():
    report = statedict.restore({"a": 1, "b": 0}, {"a": Thing(), "b": 2}, dry_run=True)
    assert [entry.path for entry in report.entries] == ["b"]
    assert [entry.path for entry in report.problems] == ["a"]
