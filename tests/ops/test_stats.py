"""`stats`: the figures are those of numpy in float64, whatever the dtype, the blocks and who computes them."""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import statedict
from statedict import alter
from statedict.dtypes import BY_NAME
from statedict.ops.jobs import whole_elements
from statedict.ops.stats import figures as measuring
from statedict.ops.stats.figures import combine
from statedict.reports.stats import Figures

HALVES = {"complex32": "f2", "bcomplex32": BY_NAME["bfloat16"].numpy, "complex64": "f4", "complex128": "f8"}
KINDS = [kind for kind in BY_NAME.values() if measuring.is_computable(kind)]
CLOSE = 1e-12  # of the largest magnitude


def tensor(data: bytes, kind: statedict.DType, shape: tuple[int, ...] | None = None) -> statedict.LazyTensor:
    from statedict.io.source import BytesSource

    shape = (len(data) // kind.itemsize,) if shape is None else shape
    return statedict.LazyTensor(kind, shape, statedict.Storage(BytesSource(data, "memory"), 0, len(data)))


def values_of(data: bytes, kind: statedict.DType) -> Any:
    """The elements as they are, in numbers of numpy that hold them exactly."""
    if kind.kind == "complex":
        half = HALVES[kind.name]
        pairs = numpy.frombuffer(data, half).reshape(-1, 2).astype("f8")
        result = numpy.empty(len(pairs), "c16")
        result.real, result.imag = pairs[:, 0], pairs[:, 1]
        return result
    if kind.kind == "bool":
        return numpy.frombuffer(data, "u1") != 0
    array = numpy.frombuffer(data, kind.numpy)
    return array.astype("f8") if kind.kind == "float" else array


def exponent(number: Any) -> int:
    return int(abs(int(number))).bit_length() - 1 if isinstance(number, int) else math.frexp(abs(number))[1] - 1


@numpy.errstate(all="ignore")
def agrees(found: Figures, data: bytes, kind: statedict.DType) -> None:
    values = values_of(data, kind)
    real = kind.kind != "complex"
    finite = values[numpy.isfinite(values)]
    assert (found.elements, found.finite) == (len(values), len(finite))
    assert found.nan == numpy.isnan(values).sum()
    assert found.inf == numpy.isinf(values).sum()
    assert found.zeros == (values == 0).sum()
    if not len(finite):
        assert (found.min, found.max, found.mean, found.std, found.l2) == (None,) * 5
        return
    size = finite if real else numpy.hypot(finite.real, finite.imag)
    assert (found.min, found.max) == (size.min(), size.max())
    wide = finite.astype("longdouble" if real else "clongdouble")
    scale = float(max(abs(wide.real).max(), abs(wide.imag).max())) or 1.0
    mean = wide.mean()
    assert abs(found.mean - mean) <= CLOSE * scale
    if len(finite) == 1:
        assert found.std is None
    else:
        away = wide - mean
        std = numpy.sqrt((away.real**2 + away.imag**2).sum() / (len(wide) - 1))
        assert float(std) == found.std or abs(found.std - std) <= CLOSE * scale  # type: ignore[operator]
    l2 = float(numpy.sqrt((wide.real**2 + wide.imag**2).sum()))
    assert found.l2 == pytest.approx(l2, rel=CLOSE, abs=5e-324)
    bins: dict[tuple[bool, int], int] = {}
    for number in (size if real else numpy.minimum(size, numpy.finfo("f8").max)).tolist():
        if number:
            key = number < 0, exponent(int(number) if kind.kind == "bool" else number)
            bins[key] = bins.get(key, 0) + 1
    hist = found.histogram
    assert bins == {
        (below, hist.exponent + at): count
        for below, side in ((True, hist.negative), (False, hist.positive))
        for at, count in enumerate(side)
        if count
    }
    linear = found.linear
    if found.min == found.max:
        assert linear.counts == ()
    else:
        assert sum(linear.counts) == found.finite
        assert 2 <= len(linear.counts) <= 18
        assert linear.counts[0]
        assert linear.counts[-1]
        width = Fraction(2) ** linear.exponent
        floats = kind.kind in ("float", "complex")
        numbers = numpy.minimum(size, numpy.finfo("f8").max).tolist() if floats else [int(one) for one in size]
        places = [Fraction(number) / width for number in numbers]
        expected = Counter(
            (-1 - math.floor(-at) if floats and at < 0 else math.floor(at)) - linear.first for at in places
        )
        assert dict(expected) == {at: count for at, count in enumerate(linear.counts) if count}
    assert (found.min is None or isinstance(found.min, int)) == (kind.kind not in ("float", "complex"))


def extremes(kind: statedict.DType) -> list[bytes]:
    """0, -0, 1, the smallest and the largest numbers, NaN and infinities, as far as a dtype has them."""
    if kind.kind in ("float", "complex"):
        base = numpy.dtype(HALVES[kind.name]) if kind.name in HALVES else kind.numpy
        wanted = [0.0, -0.0, 1.0, -1.5, math.nan, math.inf, -math.inf, 1e-5, 1e300, -1e300, 1e-310, 5e-324, 65504, 3e38]
        with numpy.errstate(all="ignore"):
            made = [numpy.array([value]).astype(base).tobytes() for value in wanted]
        return made if kind.kind == "float" else [one + other for one in made for other in made[:6]]
    if kind.kind == "bool":
        return [b"\0", b"\1", b"\2"]
    info = numpy.iinfo(kind.numpy)
    numbers = {
        0,
        1,
        2,
        info.min,
        info.max,
        info.max - 1,
        info.min + 1,
        info.max // 2,
        *((1 << 53) + n for n in (-1, 0, 1)),
    }
    return [numpy.array(n, kind.numpy).tobytes() for n in sorted(numbers) if info.min <= n <= info.max]


@st.composite
def contents(draw: st.DrawFn) -> tuple[statedict.DType, bytes]:
    kind = draw(st.sampled_from(KINDS))
    special = st.lists(st.sampled_from(extremes(kind)), max_size=30).map(b"".join)
    count = draw(st.integers(0, 20))
    noise = st.binary(min_size=count * kind.itemsize, max_size=count * kind.itemsize)
    return kind, draw(special) + draw(noise)


@given(contents())
@example((BY_NAME["float64"], numpy.array([1e300, -1e300, 1e308, 1.7e308, -1.7e308]).tobytes()))
@example((BY_NAME["float64"], numpy.array([5e-324, 1e-310, 0]).tobytes()))
@example((BY_NAME["float64"], numpy.array([1e-200, 3e-200]).tobytes()))
@example((BY_NAME["complex128"], numpy.array([complex(1.7e308, 1.7e308), 1]).tobytes()))
@example((BY_NAME["int64"], numpy.array([2**63 - 1, -(2**63), 2**54 - 1]).tobytes()))
@example((BY_NAME["uint64"], numpy.array([2**64 - 1, 0], "u8").tobytes()))
def test_the_figures_are_those_of_numpy(content: tuple[statedict.DType, bytes]) -> None:
    kind, data = content
    agrees(statedict.stats({"w": tensor(data, kind)}).tensors[0], data, kind)


@given(contents(), st.integers(1, 40))
def test_it_does_not_matter_where_blocks_end(content: tuple[statedict.DType, bytes], size: int) -> None:
    kind, data = content
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    agrees(measuring.compute_figures(kind, whole_elements(iter(pieces), kind.itemsize)), data, kind)


@given(contents(), st.lists(st.integers(0, 600), max_size=6))
def test_parts_combine_to_the_whole(content: tuple[statedict.DType, bytes], cuts: list[int]) -> None:
    kind, data = content
    places = sorted({0, len(data), *(min(cut * kind.itemsize, len(data)) for cut in cuts)})
    parts = [
        measuring.compute_figures(kind, [data[start:stop]])
        for start, stop in zip(places, [*places[1:], len(data)], strict=True)
    ]
    agrees(combine(parts), data, kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_dtype_over_many_blocks(kind: statedict.DType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statedict.ops.stats.survey._JOB", 1 << 20)
    monkeypatch.setattr(measuring, "_PART", 10_000)
    monkeypatch.setattr(measuring, "_COMPLEX", 10_000)
    random = numpy.random.default_rng(1)
    count = (2_100_000 // kind.itemsize) + 3
    if kind.kind in ("float", "complex"):
        base = HALVES.get(kind.name) or kind.numpy
        data = random.standard_normal(count * (1 + (kind.kind == "complex"))).astype(base).tobytes()
        data += b"".join(extremes(kind)[:1])
    else:
        data = random.integers(0, 256, count * kind.itemsize, "u1").tobytes()
    agrees(statedict.stats({"w": tensor(data, kind)}).tensors[0], data, kind)


@pytest.mark.parametrize(
    "name", ["float64", "float32", "float16", "bfloat16", "int64", "int8", "uint8", "complex64", "float8_e4m3fn"]
)
def test_torch_finds_the_same(name: str) -> None:
    made = torch.linspace(-7, 9, 1000).to(getattr(torch, name))
    found = statedict.stats({"w": made}).tensors[0]
    wide = made.to(torch.complex128 if made.is_complex() else torch.float64)
    assert found.mean == pytest.approx(wide.mean().item(), rel=1e-12, abs=1e-12)
    assert found.std == pytest.approx(wide.std().item(), rel=1e-12)
    assert found.l2 == pytest.approx(wide.norm().item(), rel=1e-12)
    assert found.zeros == (wide == 0).sum().item()


@pytest.mark.parametrize("make", [lambda t: t.T, lambda t: t[::2, 1:], lambda t: t[:, None].expand(-1, 3, -1)])
def test_tensors_in_any_order_have_their_own_figures(make: Any) -> None:
    made = make(torch.arange(60.0).reshape(6, 10))
    found = statedict.stats({"w": made}).tensors[0]
    assert (found.shape, found.min, found.max) == (tuple(made.shape), made.min().item(), made.max().item())
    assert found.std == pytest.approx(made.double().std().item())


def test_what_is_packed_in_its_archive_is_unpacked_in_blocks(tmp_path: Path) -> None:
    made = numpy.tile(numpy.arange(700, dtype="f4"), (900, 1))
    made[5] = 0
    statedict.save({"w": made}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert statedict.stats(tmp_path / "b.pth").to_json() == statedict.stats(tmp_path / "a.pth").to_json()
    assert statedict.stats(tmp_path / "b.pth").tensors[0].dead_rows == 1


def test_what_is_computed_lazily_is_measured_as_it_would_be_saved(tmp_path: Path) -> None:
    random = numpy.random.default_rng(0).standard_normal((700, 900), "f4")
    state = alter.cast(alter.transpose(statedict.StateDict({"w": random}), "w"), "bf16", "w")
    statedict.save(state, tmp_path / "a.safetensors")
    assert statedict.stats(state).to_json() == statedict.stats(tmp_path / "a.safetensors").to_json()


def test_a_number_alone_has_no_standard_deviation_and_an_empty_tensor_nothing() -> None:
    report = statedict.stats({"one": numpy.array(3.0), "none": numpy.zeros((0, 4))})
    one, none = report.tensors
    assert (one.shape, one.min, one.mean, one.std, one.l2) == ((), 3.0, 3.0, None, 3.0)
    assert (none.min, none.max, none.mean, none.std, none.l2, none.zeros) == (None, None, None, None, None, 0)
    assert report.total.elements == 1


def test_packed_dtypes_are_named_and_not_computed() -> None:
    report = statedict.stats({"a": tensor(b"abcd", BY_NAME["float4_e2m1fn_x2"]), "b": numpy.ones(3)})
    record = report.to_json()["tensors"][0]
    assert not report.tensors[0].computed
    assert (record["elements"], record["min"], record["nan"], record["histogram"]) == (4, None, None, None)
    assert (report.total.tensors, report.total.elements) == (1, 3)
    assert "not computed: a: the numbers in a float4_e2m1fn_x2 are packed, or not known" in str(report)


def test_tied_tensors_count_once_and_are_named() -> None:
    w = numpy.arange(6.0)
    report = statedict.stats({"in": {"w": w}, "out": {"w": w}})
    assert [t.tied for t in report.tensors] == [None, "in.w"]
    assert report.tensors[1].mean == 2.5
    assert (report.total.tensors, report.total.elements) == (1, 6)


def test_modules_are_what_their_tensors_are_together() -> None:
    random = numpy.random.default_rng(0)
    state = {f"a.{n}.{name}": random.standard_normal(50 + n) * 10**n for n in range(3) for name in ("w", "b")}
    report = statedict.stats(state | {"top": numpy.ones(3)})
    assert [module.name for module in report.modules] == ["a", "a.0", "a.1", "a.2"]
    for name in ("a", "a.1"):
        every = numpy.concatenate([value for key, value in state.items() if key.startswith(name + ".")])
        found = report[name]
        assert found.elements == len(every)
        assert (found.min, found.max) == (every.min(), every.max())
        assert found.mean == pytest.approx(every.mean())
        assert found.std == pytest.approx(every.std(ddof=1))
        assert found.l2 == pytest.approx(numpy.linalg.norm(every))
    assert report.total.elements == sum(map(len, state.values())) + 3
    assert [(kind.name, kind.tensors) for kind in report.dtypes] == [("float64", 7)]


def test_only_takes_patterns_and_one_that_matches_nothing_is_an_error() -> None:
    state = {"a": {"w": numpy.ones(2), "b": numpy.ones(2)}, "c": numpy.ones(2)}
    assert [t.name for t in statedict.stats(state, only="a").tensors] == ["a.w", "a.b"]
    assert [t.name for t in statedict.stats(state, only=["*.b", "c"]).tensors] == ["a.b", "c"]
    with pytest.raises(statedict.errors.PathError, match="no tensor of 3 matches 'd'"):
        statedict.stats(state, only="d")
    with pytest.raises(statedict.errors.PathError, match="no tensor and no module 'd'"):
        statedict.stats(state)["d"]


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


def test_an_executor_finds_the_same(tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    random = numpy.random.default_rng(0)
    tree: dict[str, Any] = {f"small.{n}": random.standard_normal((5, n)).astype("f2") for n in range(300)}
    tree["large"] = random.standard_normal((9, 1 << 20), "f4")
    tree["large"][3] = 0
    statedict.save(tree, tmp_path / "a.safetensors")
    here = statedict.stats(tmp_path / "a.safetensors").to_json()
    assert statedict.stats(tmp_path / "a.safetensors", executor=processes).to_json() == here
    assert statedict.stats(tree, executor=processes).to_json() == statedict.stats(tree).to_json()
    assert statedict.stats(tree).tensors[-1].dead_rows == 1
    with ThreadPoolExecutor(3) as pool:
        assert statedict.stats(tmp_path / "a.safetensors", executor=pool).to_json() == here


def test_the_json_is_strict_whatever_the_numbers() -> None:
    state = {
        "nan": numpy.array([numpy.nan, numpy.inf]),
        "huge": numpy.array([1.7e308, -1.7e308]),
        "complex": numpy.array([1 + 2j, 3]),
        "int": numpy.array([2**64 - 1], "u8"),
        "none": numpy.zeros(0),
    }
    text = json.dumps(statedict.stats(state).to_json(), allow_nan=False)
    records = {record["name"]: record for record in json.loads(text)["tensors"]}
    assert records["huge"]["l2"] == records["huge"]["std"] == "inf"
    assert records["complex"]["mean"] == [2.0, 1.0]
    assert records["int"]["max"] == 2**64 - 1
    assert (records["nan"]["min"], records["nan"]["nan"], records["nan"]["inf"]) == (None, 1, 1)


def test_views_that_overlap_without_end_are_refused() -> None:
    from numpy.lib.stride_tricks import as_strided

    base = numpy.zeros(20_000)
    lazy = statedict.StateDict({str(n): as_strided(base[n:], (10_000, 9_000), (8, 8)) for n in range(40)})
    shared = statedict.Storage(tensor(base.tobytes(), BY_NAME["float64"]).storage.source, 0, base.nbytes)
    views = {
        name: statedict.LazyTensor(BY_NAME["float64"], (5_000, 5_000), shared, 8 * int(name), (1, 1)) for name in lazy
    }
    with pytest.raises(statedict.errors.LimitError, match="overlap too often"):
        statedict.stats(views)


@pytest.mark.parametrize("halves", [38, 125, 250])
def test_mean_and_deviation_of_the_largest_numbers_are_not_rounded_beyond_float64(halves: int) -> None:
    most = float(numpy.finfo("f8").max)
    (found,) = statedict.stats({"w": numpy.array([most, -most] * halves)}).tensors
    assert (found.mean, found.deviation) == (0.0, most)
    parts = [Figures(elements=n, finite=n, min=most, max=most, mean=most, deviation=0.0) for n in (30, 4, 31)]
    assert combine(parts).mean == most
    assert combine([*parts, Figures(elements=1, finite=1, min=0.0, max=0.0, mean=0.0, deviation=0.0)]).min == 0


def test_live_models_and_optimizers_have_the_figures_of_their_states() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    assert statedict.stats(model).tensors == statedict.stats(dict(model.state_dict())).tensors
    found = statedict.stats({"model": model, "optim": optimizer})
    assert [tensor.name for tensor in found.tensors][::2] == ["model.weight", "optim.state.0.momentum_buffer"]


def test_a_normal_distribution_has_one_hump_and_all_equal_ones_a_bar() -> None:
    draw = numpy.random.default_rng(0).normal(size=100_000).astype("f4")
    for values in (draw, 1 + draw / 100, draw * 1e30):
        counts = statedict.stats(values).tensors[0].bins()
        peak = counts.index(max(counts))
        assert 9 <= len(counts) <= 17
        assert counts[: peak + 1] == sorted(counts[: peak + 1])
        assert counts[peak:] == sorted(counts[peak:], reverse=True)
    assert statedict.stats(numpy.full(5, 3.0)).tensors[0].bins() == [5]


@pytest.mark.parametrize("kind", ["int64", "uint64", "int32"])
@pytest.mark.parametrize("spread", [1, 5, 100, 1 << 20])
def test_integers_far_from_0_and_close_together_have_exact_bins(kind: str, spread: int) -> None:
    low = numpy.iinfo(kind).max - spread
    values = numpy.random.default_rng(0).integers(low, low + spread, 300_000, kind, endpoint=True)
    linear = statedict.stats(values).tensors[0].linear
    width = Fraction(2) ** linear.exponent
    assert len(linear.counts) <= 17
    expected = Counter(math.floor(Fraction(number) / width) - linear.first for number in values.tolist())
    assert dict(expected) == {at: count for at, count in enumerate(linear.counts) if count}


def test_json_says_which_bins_a_histogram_has() -> None:
    values = numpy.array([-1.0, 0.0, 0.5, 3.0], "f4")
    histogram = statedict.stats(values).to_json()["tensors"][0]["histogram"]
    assert {*histogram} == {"exponent", "negative", "positive", "linear"}
    start, width, counts = (histogram["linear"][name] for name in ("start", "width", "counts"))
    edges = [start + at * width for at in range(len(counts) + 1)]
    assert sum(counts) == len(values)
    assert {edges[at] for at, count in enumerate(counts) if count} == {-1 - width, 0.0, 0.5, 3.0}
