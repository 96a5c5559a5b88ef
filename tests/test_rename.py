"""The language of rules that rename paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statedict.errors import RenameError
from statedict.tree.rename import inverse, rename

from .work import assert_linear, steps

CASES = {
    "a whole path": ({"head.weight": "classifier.weight"}, "head.weight", "classifier.weight"),
    "a path and what lies below": ({"head": "classifier.0"}, "head.norm.bias", "classifier.0.norm.bias"),
    "no path that only begins alike": ({"head": "x", "*": "*"}, "header.bias", "header.bias"),
    "stars in their order": ({"a.*.b.*": "x.*.y.*"}, "a.1.2.b.3", "x.1.2.y.3"),
    "a star takes as little as it can": ({"*.b.*": "*|*"}, "a.b.c.b.d", "a|c.b.d"),
    "a prefix goes": ({"module.*": "*"}, "module.a.b", "a.b"),
    "a parent goes": ({"module": ""}, "module.a.b", "a.b"),
    "a prefix comes": ({"*": "model.*"}, "a.b", "model.a.b"),
    "a key by name": ({"layers.{n}.w": "blocks.{n}.w"}, "layers.7.w", "blocks.7.w"),
    "keys change places": ({"{a}.{b}.w": "{b}.{a}.w"}, "x.y.w", "y.x.w"),
    "a number up": ({"layers.{n}.*": "layers.{n+6}.*"}, "layers.7.w", "layers.13.w"),
    "a number down": ({"layers.{n}": "layers.{n-2}"}, "layers.7.w", "layers.5.w"),
    "a number times": ({"pair.{n}.b": "{2*n+1}"}, "pair.4.b", "9"),
    "a number on the left": ({"{2*n+1}": "pair.{n}.b"}, "9", "pair.4.b"),
    "a number that does not divide": ({"{2*n+1}": "odd.{n}", "{2*n}": "even.{n}"}, "8", "even.4"),
    "a key that stands twice": ({"{a}.{a}": "{a}", "*": "*"}, "x.x", "x"),
    "characters that expressions know": ({"a+b.(c)": "d"}, "a+b.(c).w", "d.w"),
    "a regular expression": ({r"re:^(\w+)\.gamma$": r"\1.weight"}, "ln.gamma", "ln.weight"),
    "a regular expression anywhere": ({r"re:_attn": ".attn"}, "h.0_attn.w", "h.0.attn.w"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_renames(name: str) -> None:
    rules, path, wanted = CASES[name]
    if len(rules) == 1:
        assert rename(rules, [path]).paths == {path: wanted}
    else:  # the others are there for the rest
        from statedict.tree.rename import Rules

        assert Rules(rules)(path) == wanted


def test_what_no_rule_matches_stays_and_each_rule_counts() -> None:
    found = rename({"a": "b", "x.{n}": "y.{n}"}, ["a.w", "a.b", "x.1", "z"])
    assert found.paths == {"a.w": "b.w", "a.b": "b.b", "x.1": "y.1", "z": "z"}
    assert found.matched == {"a → b": 2, "x.{n} → y.{n}": 1}


def test_the_first_rule_that_matches_is_the_only_one() -> None:
    assert rename({"a.w": "b.w", "a": "c", "b": "d"}, ["a.w", "a.v", "b.x"]).paths == {
        "a.w": "b.w", "a.v": "c.v", "b.x": "d.x",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"a": "b.*"}, "has a * or a {name} that the old one lacks"),
        ({"a.{n}": "b.{m}"}, "has a * or a {name} that the old one lacks"),
        ({"a.{n-}": "b"}, r"\{n-\} is neither \{name\} nor such as"),
        ({"re:(": "b"}, "not a regular expression"),
        ({r"re:(a)": r"\2"}, "not a regular expression"),
        ({"zzz": "b"}, "no entry of 2, such as 'a.w', matches the rule 'zzz → b'"),
        ({"a": "x", "b": "x"}, "'a.w' and 'b.w' both become 'x.w'"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rules: dict[str, str], message: str) -> None:
    with pytest.raises(RenameError, match=message.replace("*", r"\*") if "\\" not in message else message):
        rename(rules, ["a.w", "b.w"])


@pytest.mark.parametrize("rules", [{"re:a": "b"}, {"a.*": "b"}, {"a.{n}.{m}": "b.{n}"}, {"a.*": "x.*", "b.*": "x.*"}])
def test_what_forgets_has_no_inverse(rules: dict[str, str]) -> None:
    with pytest.raises(RenameError, match="inverse"):
        inverse(rules)


KEYS = st.from_regex(r"[a-z]{1,4}", fullmatch=True)


@given(
    st.lists(st.tuples(KEYS, st.integers(0, 300), KEYS), unique=True, min_size=1, max_size=20),
    st.sampled_from([
        {"old.{n}.*": "new.{n+3}.x.*"},
        {"old.{n}.{k}.*": "new.{k}.{2*n+1}.*"},
        {"old.*": "*.new"},
        {"old": "a.b"},
        {"old.{n+0}": "q{3*n}"},
    ]),
)  # fmt: skip
def test_the_inverse_undoes(parts: list[tuple[str, int, str]], rules: dict[str, str]) -> None:
    paths = [f"old.{number}.{first}.{last}" for first, number, last in parts]
    there = rename(rules, paths).paths
    assert rename(inverse(rules), there.values()).paths == {new: old for old, new in there.items()}


def test_the_cost_of_a_path_does_not_depend_on_the_number_of_paths() -> None:
    rules = {"model.embed": "tok", "model.norm": "n", "model.layers.{n}.attn.*": "blocks.{n+1}.attention.*"}

    def cost(layers: int) -> int:
        names = [f"model.layers.{i}.attn.{k}.weight" for i in range(layers) for k in "qkvo"]
        return steps(lambda: rename(rules, [*names, "model.embed.w", "model.norm.w"]))

    assert_linear(cost, 500, 2_000)
    assert cost(500) < 100 * 4 * 500
