"""Every report shows itself in a notebook: balanced, inert whatever the names are, small and fast."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from html import unescape
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import statedict
from statedict.render import html
from statedict.render.html import ROWS, histogram, page, table, text
from statedict.reports.combine import CombineReport, DeltaReport
from statedict.reports.diff import TensorDiff
from statedict.reports.lora import LoraApplied, LoraExtracted, LoraModule, LoraReport, LoraTarget
from statedict.reports.outcomes import (
    Change,
    EditReport,
    Entry,
    Finding,
    Nonfinite,
    RestoreReport,
    ScanReport,
    SideFiles,
    VerifyReport,
)
from statedict.reports.runs import Pruned, RunVerified
from statedict.reports.stats import GroupStats, Histogram
from statedict.tensor.checks import Problem

from .pages import parsed
from .work import steps

COUNT = 10_000
HOSTILE = "<script>alert(1)</script>"
NASTY = (
    HOSTILE, '"><img src=x onerror=alert(1)>', "' onmouseover='x", "</details></table>", "&lt;b&gt;", "\u202egnp.exe",
    "\0\x1b[2J", "\ud800", "$\\alpha$", "<!--",
)  # fmt: skip


def paths() -> list[str]:
    return [f"layers.{i // 10}.{NASTY[i % 10]}{i}.weight" for i in range(COUNT)]


def state(value: float = 1.0, dtype: str = "f4") -> statedict.StateDict:
    return statedict.StateDict({path: np.full((2, 2), value, dtype) for path in paths()})


def tree() -> Any:
    return statedict.StateDict({HOSTILE: state().tensors(), "list": paths(), "o": statedict.Opaque(HOSTILE)})


def tensor() -> Any:
    return statedict.StateDict({HOSTILE: np.zeros(3)}).tensors()[HOSTILE][::2]


def summary() -> Any:
    return statedict.inspect({HOSTILE: state(), "odd": statedict.Opaque(HOSTILE, (HOSTILE,)), "text": HOSTILE})


def stats() -> Any:
    return statedict.stats(state(float("nan")))


def tensor_stats() -> Any:
    return statedict.stats({HOSTILE: np.arange(8.0)})[HOSTILE]


def group_stats() -> Any:
    return statedict.stats({f"{HOSTILE}.w": np.arange(8.0)})[HOSTILE]


def diff() -> Any:
    one, other = {**state(), **{f"n{i}{HOSTILE}": HOSTILE for i in range(COUNT)}}, state(2.0)
    renamed = {f"new.{path}": tensor for path, tensor in list(other.items())[: COUNT // 2]}
    return statedict.diff(one, {**other, **renamed})


def tensor_diff() -> Any:
    return statedict.diff({HOSTILE: np.ones(3)}, {HOSTILE: np.zeros(3)}).changed[0]


def verify() -> Any:
    problems = tuple(Problem(path, HOSTILE, HOSTILE, HOSTILE, HOSTILE, (path,) * 100) for path in paths())
    counts = tuple(Nonfinite(path, 4, 1, 1) for path in paths())
    return VerifyReport(HOSTILE, HOSTILE, COUNT, COUNT, problems=problems, notes=(HOSTILE,) * COUNT, nonfinite=counts)


def scan() -> Any:
    found = tuple(Finding(HOSTILE, 0, path, path, "dangerous", HOSTILE, 1, 1) for path in paths())
    return ScanReport(HOSTILE, COUNT, found, tuple(paths()), tuple(paths()))


def restore() -> Any:
    entries = tuple(Entry(path, ("restored", "renamed", "cast")[i % 3], HOSTILE) for i, path in enumerate(paths()))
    return RestoreReport(entries, entries, False, tuple(paths()), tuple(paths()))


def edit() -> Any:
    every = tuple(paths())
    return EditReport((Change(HOSTILE, every, every, every),) * COUNT, (COUNT, COUNT), (0, 0), False)


def combine() -> Any:
    pairs = tuple((path, HOSTILE) for path in paths())
    sources = tuple((path, 0.5) for path in paths())
    files = SideFiles(tuple(paths()), dict(pairs), (HOSTILE,))
    given = {HOSTILE: HOSTILE}
    return CombineReport(HOSTILE, sources, COUNT, 0, pairs, pairs, (HOSTILE,), False, given, files)


def delta() -> Any:
    return DeltaReport("make", HOSTILE, HOSTILE, COUNT, COUNT, (COUNT, COUNT), False)


def lora_applied() -> Any:
    targets = tuple(LoraTarget(path, HOSTILE, 4, 1.0, 0, HOSTILE) for path in paths())
    sources = tuple((path, 0.5) for path in paths())
    made = LoraApplied(HOSTILE, sources, COUNT, 0, (), (), (HOSTILE,), False)
    return dataclasses.replace(made, targets=targets, wrong=tuple(paths()))


def lora_report() -> Any:
    modules = tuple(LoraModule(path, ("down", HOSTILE), ((4, 2), (2, 4)), 4, 1.0, 2.0) for path in paths())
    settings = tuple((path, HOSTILE) for path in NASTY)
    return LoraReport(*[HOSTILE] * 4, COUNT, 0, modules, settings, HOSTILE, tuple(paths()))


def lora_extracted() -> Any:
    modules = tuple((path, 4, 0.5) for path in paths())
    return LoraExtracted(HOSTILE, HOSTILE, modules, tuple(paths()), tuple(paths()), 0, 0.5, 0, (HOSTILE,), False)


def pruned() -> Any:
    return Pruned(dict.fromkeys(range(COUNT), HOSTILE), tuple(range(COUNT)), COUNT)


def run_verified() -> Any:
    return RunVerified(HOSTILE, dict.fromkeys(paths(), HOSTILE), tuple(paths()))


SUBJECTS: dict[type, Callable[[], Any]] = {
    statedict.reports.Diff: diff,
    CombineReport: combine,
    DeltaReport: delta,
    EditReport: edit,
    GroupStats: group_stats,
    LoraApplied: lora_applied,
    LoraExtracted: lora_extracted,
    LoraReport: lora_report,
    Pruned: pruned,
    RestoreReport: restore,
    RunVerified: run_verified,
    ScanReport: scan,
    statedict.StateDict: tree,
    statedict.reports.StatsReport: stats,
    statedict.reports.Summary: summary,
    statedict.reports.TensorStats: tensor_stats,
    TensorDiff: tensor_diff,
    VerifyReport: verify,
    statedict.LazyTensor: tensor,
}  # fmt: skip
subjects = pytest.mark.parametrize("kind", SUBJECTS, ids=lambda kind: kind.__name__)


def reports() -> Iterator[type]:
    """The classes that public functions and items of reports return, and every public dataclass."""
    public = [getattr(place, name) for place in (statedict, statedict.reports) for name in place.__all__]
    for value in public:
        if dataclasses.is_dataclass(value):
            yield value  # type: ignore[misc]
        members = [value] if inspect.isfunction(value) else vars(value).values() if isinstance(value, type) else []
        for member in members:
            if inspect.isfunction(member):
                names = re.findall(r"\w+", str(inspect.signature(member).return_annotation))
                module = inspect.getmodule(member)
                places = (statedict, statedict.reports, module)
                found = [getattr(place, name, None) for place in places for name in names if name[0].isupper()]
                yield from (one for one in found if dataclasses.is_dataclass(one))  # type: ignore[misc]


def test_every_report_has_a_subject_here_and_is_json_too() -> None:
    found = {kind for kind in reports() if hasattr(kind, "to_json") or "Report" in kind.__name__}
    assert {statedict.reports.Diff, VerifyReport, RestoreReport, GroupStats, statedict.reports.Summary} <= found
    assert found <= set(SUBJECTS)
    assert all(hasattr(kind, "to_json") for kind in found)


@subjects
def test_a_report_of_ten_thousand_is_balanced_inert_small_and_little_work(kind: type) -> None:
    report = SUBJECTS[kind]()
    assert type(report) is kind
    shown = report._repr_html_()
    page = parsed(shown)
    assert "img" not in page.tags
    assert len(shown) < 1_000_000
    assert steps(report._repr_html_) < 3_000_000


@pytest.mark.parametrize("kind", [kind for kind in SUBJECTS if hasattr(kind, "_repr_mimebundle_")])
def test_the_text_of_a_large_report_is_a_screenful(kind: type) -> None:
    made = SUBJECTS[kind]()._repr_mimebundle_()
    assert sorted(made) == ["text/html", "text/plain"]
    assert len(made["text/plain"].splitlines()) < 60


def test_showing_reads_no_tensor() -> None:
    class Unreadable:
        name, size, in_memory, remote = "far", 1 << 40, False, False

    shape = (1 << 19, 1 << 19)
    tensor = statedict.LazyTensor(statedict.dtype("float32"), shape, statedict.Storage(Unreadable(), 0, 1 << 40))
    assert "524288×524288, 1.1 TB" in parsed(tensor._repr_html_()).text
    assert "1 tensor, 1.1 TB" in parsed(statedict.StateDict(w=tensor)._repr_html_()).text


def test_a_tensor_says_where_it_lies_and_what_it_is_a_part_of() -> None:
    weight = statedict.load("examples/checkpoint.pth").at("model_state.fc1.weight")
    seen = parsed(weight[:, :3]._repr_html_()).text
    start = int(re.search(r"checkpoint.pth, bytes ([\d,]+) to", seen)[1].replace(",", ""))  # type: ignore[index]
    with open("examples/checkpoint.pth", "rb") as file:
        file.seek(start)
        assert file.read(12) == weight[0, :3].raw()
    assert "of a storage of192.0 kB" in seen
    assert "strides(400, 1)" in seen


def test_a_tree_is_nested_by_module_with_totals_and_tied_tensors_count_once() -> None:
    shared = np.zeros((2, 3), "f4")
    seen = parsed(statedict.StateDict({"a.x.w": shared, "a.x.v": shared, "a.b": np.ones(2), "n": 3})._repr_html_()).text
    assert "state_dict: 4 entries, 3 tensors, 40 B" in seen
    assert "a 3 tensors, 40 B" in seen
    assert "x 2 tensors, 24 B" in seen
    assert "w float32 2×3 24 B" in seen


def test_of_many_rows_as_many_are_shown_and_the_others_counted() -> None:
    assert parsed(table(("n",), range(ROWS), lambda n: [n])).tags.count("tr") == ROWS + 1
    assert "… 300 more" in parsed(table(("n",), range(ROWS + 300), lambda n: [n])).text
    below = {None: (10**6, [("k", 1)] * 600)}
    wide = parsed(html.tree(None, lambda key, _: text(key), lambda node: below.get(node, (0, ()))))
    assert "… 999,500 more" in wide.text


def test_the_sides_of_a_tree_are_not_hidden_by_one_large_branch() -> None:
    many = {f"m{i}": {f"k{j}": {"v": i} for j in range(400)} for i in range(20)}
    assert "last" in parsed(statedict.StateDict({"first": many, "last": 1})._repr_html_()).text


def test_a_verdict_stands_first_and_in_its_tone() -> None:
    one = {"w": np.array([1.0, np.nan])}
    assert '<p class="bad">✗ 1 tensor, 2 elements: nan in 1</p>' in statedict.stats(one)._repr_html_()
    assert '<p class="fine">✓ ' in statedict.diff(one, one)._repr_html_()
    assert '<p class="look">⚠ ' in statedict.diff(one, {"w": np.ones(2)})._repr_html_()


def test_moments_show_their_parameters_and_optimizers_their_groups_and_troubles() -> None:
    whole = statedict.load("examples/checkpoint.pth")
    del whole["optimizer_state"]["state"][3]
    for report in (statedict.stats(whole), statedict.inspect(whole)):
        seen = parsed(report._repr_html_()).text
        assert "conv1.weight (inferred)" in seen
        assert "groups of optimizer_state: 1" in seen
        assert "1 parameter of 10 without state: conv2.bias" in seen


def test_the_bars_of_a_histogram_are_in_proportion_and_the_smallest_is_seen() -> None:
    assert 'd="M0 10v-10h.8v10zM1 10v-5h.8v5zM3 10v-1h.8v1z"' in histogram([1000, 500, 0, 1], "", 40, 10)
    assert histogram([0, 0], "", 40, 10) == histogram([], "", 40, 10) == ""


@given(st.lists(st.integers(0, 9), max_size=70), st.integers(0, 9), st.integers(1, 30))
def test_no_element_is_lost_where_octaves_are_put_together(side: list[int], zeros: int, octaves: int) -> None:
    counts = Histogram(-3, tuple(side), tuple(side[::-1])).counts(zeros, octaves)
    assert (len(counts), sum(counts)) == (2 * octaves + 1, 2 * sum(side) + zeros)


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_shown_as_it_is_or_escaped(value: str) -> None:
    shown = text(value)
    assert parsed(page(value, table(("a",), [value], lambda one: [one]))).tags.count("td") == 1
    if value.isprintable() and len(value) <= 300:
        assert unescape(shown) == value
    else:
        assert unescape(shown).isprintable()


@pytest.mark.parametrize("value", [10**5000, {10**5000}, [10**5000], "x" * 10**6, b"\0" * 10**6], ids=type)
def test_values_that_are_too_long_to_print_are_named(value: Any) -> None:
    assert len(statedict.StateDict(v=value)._repr_html_()) < 5000
