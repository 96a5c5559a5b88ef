"""Arrays, keys and trees of JAX, optimizers of Optax, and flax.nnx."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy
import pytest
from flax.core import FrozenDict

import statedict
from statedict.errors import RestoreError, UnsupportedError
from statedict.testing.same import assert_same

from ..formats.orbaxes import unpack
from ..jaxes import Net, TrainState, jax, jnp, make_train_state, nnx, optax, to_numpy

all_formats = pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".msgpack"])


def same(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(to_numpy(one)), jax.tree.leaves(to_numpy(other)), strict=True)
    return all(numpy.array_equal(a, b) and type(a) is type(b) for a, b in pairs)


# arrays


@pytest.mark.parametrize(
    "kind", ["float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "uint8", "bool", "complex64"]
)
def test_an_array_of_every_dtype_comes_back_as_one_of_jax(kind: str, tmp_path: Path) -> None:
    array = jnp.asarray((numpy.arange(6) % 2).reshape(2, 3), kind)
    statedict.save({"a": array}, tmp_path / "a.safetensors")
    target = {"a": jnp.zeros_like(array)}
    assert str(statedict.restore(target, tmp_path / "a.safetensors")) == "restored 1 of 1 entries"
    assert isinstance(target["a"], jax.Array)
    assert target["a"].dtype == array.dtype
    assert same(target["a"], array)


def test_a_capture_outlives_its_buffers() -> None:
    array = jnp.arange(3.0)
    state = statedict.capture({"a": array})
    array.delete()
    assert state["a"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("make", [lambda: jnp.asarray(3), lambda: jnp.asarray(1) + jnp.asarray(2.5)])
def test_a_weak_type_stays_weak(make: Any) -> None:
    target = {"a": make() * 0}
    assert target["a"].weak_type
    statedict.restore(target, statedict.capture({"a": make()}))
    assert (target["a"].weak_type, target["a"].item()) == (True, make().item())
    target = {"a": jnp.zeros(2)}
    statedict.restore(target, {"a": jnp.ones(2)})
    assert not target["a"].weak_type


def test_a_sharding_stays_and_what_was_not_committed_is_not() -> None:
    if len(jax.devices()) < 2:
        pytest.skip("JAX was used before it could get two devices")
    mesh = jax.sharding.Mesh(numpy.array(jax.devices()[:2]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    array = jax.device_put(jnp.arange(8.0).reshape(4, 2), sharding)
    target = {"spread": jax.device_put(jnp.zeros((4, 2)), sharding), "free": jnp.zeros(2)}
    statedict.restore(target, statedict.capture({"spread": array, "free": jnp.ones(2)}))
    assert same(target["spread"], array)
    assert target["spread"].sharding == sharding
    assert not target["free"].committed


def test_shapes_and_dtypes_that_differ_are_decided_as_for_other_arrays() -> None:
    target = {"a": jnp.full((2, 3), 7.0), "b": jnp.zeros(2, jnp.bfloat16)}
    state = {"a": numpy.ones((2, 2), "f4"), "b": numpy.ones(2, "f4")}
    with pytest.raises(RestoreError, match=r"1 shape: a .*\n.*1 dtype: b"):
        statedict.restore(target, state)
    report = statedict.restore(target, state, shapes="overlap", cast="b")
    assert target["a"].tolist() == [[1.0, 1.0, 7.0]] * 2
    assert target["b"].dtype == jnp.bfloat16
    assert report.paths("cast") == ["b"]
    statedict.restore(target, {"a": numpy.zeros((2, 2), "f4")}, shapes="pad", allow_missing="b")
    assert not target["a"].any()


def test_an_abstract_array_is_a_target_and_no_source() -> None:
    target = {"a": jax.eval_shape(lambda: jnp.ones((2, 3)))}
    statedict.restore(target, {"a": numpy.ones((2, 3), "f4")})
    assert isinstance(target["a"], jax.Array)
    target = {"a": _deleted(), "b": jax.ShapeDtypeStruct((3,), jnp.float32)}
    state = {"a": numpy.ones(2, "f4"), "b": numpy.ones(2, "f4")}
    with pytest.raises(
        RestoreError, match=r"1 shape: b \('overlap' leaves the rest as it is, and the target has no val"
    ):
        statedict.restore(target, state, shapes="overlap")
    statedict.restore(target, state, shapes="pad")
    assert (target["a"].tolist(), target["b"].tolist()) == ([1.0, 1.0], [1.0, 1.0, 0.0])
    with pytest.raises(RestoreError, match=r"key without data; make one by jax\.random\.key"):
        statedict.restore({"k": jax.eval_shape(lambda: jax.random.key(0))}, statedict.capture({"k": jax.random.key(0)}))
    with pytest.raises(UnsupportedError, match=r"^a: an array of JAX that has a shape and no elements"):
        statedict.capture({"a": jax.ShapeDtypeStruct((2,), jnp.float32)})


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: jnp.ones(2, jnp.int4), "has the dtype int4, which is not written"),
        (lambda: _deleted(), "was given up, as jax.jit does with donated arguments"),
    ],
)
def test_an_array_that_cannot_be_read_is_refused_by_its_path(make: Any, what: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"^model\.w: an array of JAX that {what}"):
        statedict.capture({"model": {"w": make()}})


def _deleted() -> Any:
    array = jnp.ones(2) + 1
    array.delete()
    return array


def test_traced_arrays_are_refused() -> None:
    def work(x: Any) -> Any:
        with pytest.raises(UnsupportedError, match="is traced; call statedict outside of"):
            statedict.capture({"x": x})
        with pytest.raises(RestoreError, match="is traced; restore outside of"):
            statedict.restore({"x": x}, {"x": numpy.ones(2, "f4")})
        return x

    jax.jit(work)(jnp.ones(2))


# keys


@all_formats
def test_typed_and_raw_keys_give_the_same_numbers_again(suffix: str, tmp_path: Path) -> None:
    tree = {"typed": jax.random.key(3), "several": jax.random.split(jax.random.key(1), 2), "raw": jax.random.PRNGKey(5)}
    statedict.save(tree, tmp_path / f"keys{suffix}")
    target = {
        "typed": jax.random.key(0),
        "several": jax.random.split(jax.random.key(0), 2),
        "raw": jax.random.PRNGKey(0),
    }
    statedict.restore(target, tmp_path / f"keys{suffix}")
    for name in ("typed", "raw"):
        assert same(jax.random.normal(target[name], 3), jax.random.normal(tree[name], 3))
    assert same(target["several"], tree["several"])


def test_a_key_of_another_kind_is_an_error() -> None:
    target = {"key": jax.random.key(0)}
    with pytest.raises(
        RestoreError, match=r"key\.key_impl \(the target's keys are of 'threefry2x32', the state's of 'rbg'"
    ):
        statedict.restore(target, {"key": jax.random.key(0, impl="rbg")})
    with pytest.raises(
        RestoreError, match=r"the target is a key of jax\.random, the state has an array, as of a raw key"
    ):
        statedict.restore(target, {"key": jax.random.PRNGKey(0)})


# trees


def test_the_state_of_optax_has_its_names() -> None:
    names = [*statedict.capture(make_train_state(1)).flatten()]
    assert names == [
        "step", "params.bias", "params.kernel", "opt_state.1.0.count", "opt_state.1.0.mu.bias",
        "opt_state.1.0.mu.kernel", "opt_state.1.0.nu.bias", "opt_state.1.0.nu.kernel", "opt_state.1.2.count",
    ]  # fmt: skip


@all_formats
def test_a_train_state_is_replaced_where_it_is_held(suffix: str, tmp_path: Path) -> None:
    saved, before = make_train_state(1), make_train_state(2)
    kept = to_numpy(before)
    statedict.save({"state": saved}, tmp_path / f"run{suffix}")
    target = {"state": before}
    report = statedict.restore(target, tmp_path / f"run{suffix}")
    assert {*report.counts()} == {"restored"}
    assert isinstance(target["state"], TrainState)
    assert same(target["state"], saved)
    assert target["state"].tx is before.tx
    assert same(before, kept)  # the old one is as it was, with the dicts in it
    grads = jax.tree.map(jnp.ones_like, saved.params)
    assert same(target["state"].apply_gradients(grads=grads), saved.apply_gradients(grads=grads))


def test_a_number_in_a_node_and_an_array_without_dimensions_are_one() -> None:
    point, number = {"p": Point(jnp.asarray(3), 2.5)}, {"p": Point(0, jnp.asarray(0.0))}
    statedict.restore(number, statedict.capture(point))
    assert (number["p"].x.item(), number["p"].x.weak_type, number["p"].y.item()) == (3, True, 2.5)
    with pytest.raises(RestoreError, match=r"kind: p\.x \(the target is an array of JAX, the state has a float"):
        statedict.restore({"p": Point(jnp.asarray(3), 2.5)}, {"p": {"x": 2.5, "y": 1.0}})


def test_an_immutable_root_is_an_error_that_says_what_to_do() -> None:
    for target in (make_train_state(1), jnp.ones(2), jax.random.key(0), (jnp.ones(1), 2)):
        kept = to_numpy(target)
        with pytest.raises(RestoreError, match=r"is immutable, and no dict, list or attribute holds it; restore into"):
            statedict.restore(target, statedict.capture(target))
        assert same(target, kept)


@pytest.mark.parametrize("place", ["run/3", "v1"])
def test_a_directory_of_orbax_is_restored_into_the_live_tree(place: str, tmp_path: Path) -> None:
    params = {"dense": {"kernel": jnp.zeros((2, 3)), "bias": jnp.ones(3)}}
    target = {"params": params, "opt_state": optax.adamw(1e-3).init(params), "step": jnp.int32(0)}
    unpack(tmp_path)
    report = statedict.restore(target, tmp_path / place)
    assert {*report.counts()} == {"restored"}
    assert (target["step"].item(), params["dense"]["kernel"].tolist()) == (3, [[1.0] * 3] * 2)
    assert isinstance(target["opt_state"][0], optax.ScaleByAdamState)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any
    name: str = dataclasses.field(default="", metadata={"static": True})


def test_nodes_of_every_kind_are_rebuilt() -> None:
    def make(scale: float) -> dict[str, Any]:
        return {
            "tuple": (jnp.ones(2) * scale, None, {"deep": [jnp.ones(1) * scale, (jnp.ones(1) * scale, 3)]}),
            "frozen": FrozenDict({"a": {"b": jnp.ones(2) * scale}}),
            "point": Point(jnp.ones(1) * scale, (jnp.zeros(1) + scale,), "a name"),
            "adam": optax.adam(0.1).init({"w": jnp.ones(2)}),
            "plain": (1, 2),
        }

    target = make(1)
    statedict.restore(target, statedict.capture(make(3)))
    assert same(target, make(3))
    assert [type(one) for one in target.values()] == [type(one) for one in make(3).values()]
    assert target["point"].name == "a name"
    statedict.restore(target, make(5))  # of live objects
    assert same(target, make(5))


def test_entries_of_a_node_that_differ_are_named() -> None:
    target = {"point": Point(jnp.ones(1), (jnp.ones(1), 1))}
    state = {"point": {"x": numpy.ones(1, "f4"), "y": (numpy.ones(1, "f4"),), "z": 1}}
    with pytest.raises(
        RestoreError, match=r"1 kind: point\.y \(the target is a tuple of 2(.|\n)*1 unexpected: point\.z"
    ):
        statedict.restore(target, state)


def test_renaming_reaches_into_nodes_once() -> None:
    target = {"point": Point(jnp.zeros(1), jnp.zeros(1)), "net": Net(0)}
    state = statedict.capture({"point": Point(jnp.ones(1), jnp.zeros(1)), "net": Net(1)})
    state["net"]["first"]["weight"] = state["net"]["first"].pop("kernel")
    swap = {"point.x": "point.y", "point.y": "point.x", "net.first.weight": "net.first.kernel"}
    statedict.restore(target, state, rename=swap)
    assert (target["point"].x.tolist(), target["point"].y.tolist()) == ([0.0], [1.0])
    assert same(target["net"].first.kernel[...], Net(1).first.kernel[...])


def test_statistics_and_differences_of_live_trees() -> None:
    tree = make_train_state(1)
    assert statedict.diff(tree, statedict.capture(tree)).same
    assert statedict.stats({"params": tree.params})


# flax.nnx


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_module_and_its_optimizer_are_restored_in_place(suffix: str, tmp_path: Path) -> None:
    def make(seed: int) -> dict[str, Any]:
        net = Net(seed)
        return {"net": net, "optimizer": nnx.Optimizer(net, optax.adam(0.1), wrt=nnx.Param)}

    def step(run: dict[str, Any]) -> Any:
        def loss(net: Net) -> Any:
            return (net(jnp.ones((4, 2))) ** 2).sum()

        value, grads = nnx.value_and_grad(loss)(run["net"])
        run["optimizer"].update(run["net"], grads)
        return value

    saved, target = make(0), make(1)
    step(saved)
    statedict.save(saved, tmp_path / f"run{suffix}")
    kernel = target["net"].first.kernel
    report = statedict.restore(target, tmp_path / f"run{suffix}")
    assert {*report.counts()} == {"restored"}
    assert target["net"].first.kernel is kernel is target["net"].tied
    for _ in range(3):  # dropout and the statistics of the normalization too
        assert same(step(target), step(saved))


def test_a_module_has_each_variable_once_by_its_path() -> None:
    state = statedict.capture(Net(0))
    assert "tied" not in state
    assert state.at("layers.1.kernel").shape == (3, 3)
    assert [*state["dropout"]["rngs"]] == ["count", "key"]
    split = nnx.state(Net(0))
    assert_same(statedict.capture(split), state)
    statedict.restore(split, statedict.capture(Net(1)))
    assert_same(statedict.capture(split), statedict.capture(Net(1)))


def test_a_variable_that_is_missing_or_does_not_fit_stops_all() -> None:
    net, state = Net(0), statedict.capture(Net(1))
    kept = statedict.capture(net)
    del state["first"]["bias"]
    state["norm"]["scale"] = numpy.ones(5, "f4")
    with pytest.raises(RestoreError, match=r"1 missing: first\.bias(.|\n)*1 shape: norm\.scale"):
        statedict.restore(net, state)
    assert_same(statedict.capture(net), kept)
    statedict.restore(net, state, allow_missing="first.bias", shapes={"norm.scale": "skip"})
    assert same(net.first.kernel[...], Net(1).first.kernel[...])


def test_a_tuple_that_jax_could_not_sort_is_a_plain_one() -> None:
    tree = {"plain": ({"a": 1, 2: "b"}, {None: jax.numpy.ones(2), "x": 1})}
    assert statedict.capture(tree)["plain"][0] == {"a": 1, 2: "b"}
