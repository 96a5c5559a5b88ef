"""Names of one framework for those of another: the mapped model computes the same there, or its library agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import statedict
from statedict import alter
from statedict.cli import cli
from statedict.errors import AlterError
from statedict.tree.name_maps import MAPS

from .. import operators  # noqa: F401 - before transformers imports torchvision


class Network(torch.nn.Module):
    """A layer of every kind that the maps have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.bn = torch.nn.BatchNorm2d(4)
        self.embed = torch.nn.Embedding(10, 6)
        self.lstm = torch.nn.LSTM(6, 5, batch_first=True)
        self.gru = torch.nn.GRU(5, 4, batch_first=True)
        self.ln = torch.nn.LayerNorm(4)
        self.fc = torch.nn.Linear(8, 2)

    def forward(self, image: Any, words: Any) -> Any:
        seen = self.bn(self.conv(image)).mean((2, 3))
        read = self.ln(self.gru(self.lstm(self.embed(words))[0])[0][:, -1])
        return self.fc(torch.cat([seen, read], 1))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    made = Network().eval()
    for parameter in [*made.parameters(), *(b for b in made.buffers() if b.is_floating_point())]:
        parameter.data.uniform_(0.1, 0.9)
    return made


IMAGE = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype("float32")
WORDS = np.array([[1, 2, 3], [4, 5, 6]])


def expected(network: Network) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = network(torch.from_numpy(IMAGE), torch.from_numpy(WORDS)).numpy()
    return found


def arrays(state: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in state.flatten().items()}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras
def test_keras_computes_the_same_with_the_mapped_weights(network: Network, tmp_path: Path) -> None:
    import keras

    layers = keras.layers
    image, words = layers.Input((6, 6, 3)), layers.Input((3,), dtype="int32")
    seen = layers.BatchNormalization(name="bn", epsilon=1e-5)(layers.Conv2D(4, 3, name="conv")(image))
    seen = layers.GlobalAveragePooling2D()(seen)
    read = layers.LSTM(5, name="lstm", return_sequences=True)(layers.Embedding(10, 6, name="embed")(words))
    read = layers.LayerNormalization(name="ln", epsilon=1e-5)(layers.GRU(4, name="gru")(read))
    model = keras.Model([image, words], layers.Dense(2, name="fc")(layers.Concatenate()([seen, read])))
    mapped = arrays(alter.map_names(statedict.capture(network), "keras"))
    for weight in model.weights:
        head, *rest = weight.path.split("/")
        weight.assign(mapped.pop(".".join([head, *rest])))
    assert not mapped
    found = model([IMAGE.transpose(0, 2, 3, 1), WORDS]).detach().numpy()
    assert np.allclose(found, expected(network), rtol=1e-4, atol=1e-5)
    model.save_weights(tmp_path / "x.weights.h5")
    torch.save(network.state_dict(), tmp_path / "x.pth")
    compared = CliRunner().invoke(
        cli, ["diff", "--map", "keras", *map(str, (tmp_path / "x.pth", tmp_path / "x.weights.h5"))]
    )
    assert (compared.exit_code, compared.output) == (0, "same: 19 tensors identical\n")


def test_flax_computes_the_same_with_the_mapped_weights(network: Network, tmp_path: Path) -> None:
    import jax.numpy as np_
    from flax import linen as nn
    from flax import serialization

    class Model(nn.Module):
        @nn.compact
        def __call__(self, image: Any, words: Any) -> Any:
            seen = nn.Conv(4, (3, 3), padding="VALID", name="conv")(image)
            seen = nn.BatchNorm(use_running_average=True, epsilon=1e-5, name="bn")(seen).mean((1, 2))
            read = nn.Embed(10, 6, name="embed")(words)
            read = nn.RNN(nn.OptimizedLSTMCell(5, name="lstm"))(read)
            read = nn.RNN(nn.GRUCell(4, name="gru"))(read)[:, -1]
            return nn.Dense(2, name="fc")(np_.concatenate([seen, nn.LayerNorm(epsilon=1e-5, name="ln")(read)], 1))

    mapped = alter.map_names(statedict.capture(network), "flax")
    nested: dict[str, Any] = {}
    for name, array in arrays(mapped).items():
        *above, key = name.split(".")
        node = nested
        for part in above:
            node = node.setdefault(part, {})
        node[key] = np_.asarray(array)
    found = np.asarray(Model().apply(nested, IMAGE.transpose(0, 2, 3, 1), WORDS))
    assert np.allclose(found, expected(network), rtol=1e-4, atol=1e-5)
    (tmp_path / "x.msgpack").write_bytes(serialization.to_bytes(nested))
    assert statedict.diff(tmp_path / "x.msgpack", network, map="flax").same


@pytest.mark.parametrize("name", ["keras", "flax", "nnx"])
def test_a_map_is_undone_by_itself(name: str, network: Network) -> None:
    state = statedict.capture(network)
    there = alter.map_names(state, name)
    back = alter.map_names(there, name)
    assert statedict.diff(alter.map_names(back, name), there).same
    lost = {"bn.num_batches_tracked", "lstm.bias_ih_l0", "lstm.bias_hh_l0"}
    lost |= {"gru.bias_ih_l0", "gru.bias_hh_l0"} if name != "keras" else set()
    kept = [path for path in state if path not in lost]
    assert statedict.diff({p: state[p] for p in kept}, {p: back[p] for p in kept}).same
    assert {*state} - {*back} == {"bn.num_batches_tracked"}


def test_the_moments_of_an_optimizer_follow(network: Network) -> None:
    model = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 4), torch.nn.Linear(5, 6))
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.pow(2).sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    tree = statedict.capture({"model": model, "optimizer": optimizer})
    found = alter.map_names(tree, "keras")
    assert found["model"]["0.kernel"].shape == (4, 2, 3)
    moments = found["optimizer"]["state"]
    for number, shape in enumerate([(4, 2, 3), (3,), (5, 6), (6,)]):
        assert moments[number]["exp_avg"].shape == shape
    assert np.array_equal(moments[2]["exp_avg"].numpy(), tree["optimizer"]["state"][2]["exp_avg"].numpy().T)


def small(kind: str, **more: Any) -> Any:
    """A small model of transformers."""
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 16, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.AutoConfig.for_model(kind, **(sizes | more))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.uniform_(-1, 1)
    return model


FAMILIES = {
    "llama": ("LLAMA", "gguf:llama"),
    "mistral": ("LLAMA", "gguf:llama"),
    "qwen2": ("QWEN2", "gguf:qwen"),
    "qwen3": ("QWEN3", "gguf:qwen"),
    "gemma": ("GEMMA", "gguf:gemma"),
    "gemma2": ("GEMMA2", "gguf:gemma2"),
    "gemma3_text": ("GEMMA3", "gguf:gemma2"),
    "phi3": ("PHI3", "gguf:phi3"),
    "gpt2": ("GPT2", "gguf:gpt2"),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_names_of_gguf_are_those_of_its_own_map(kind: str) -> None:
    import gguf

    architecture, name = FAMILIES[kind]
    state = statedict.capture(small(kind))
    if kind in ("gemma", "gemma2"):  # llama.cpp has their embeddings as output, too
        del state["lm_head.weight"]
    table = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture), 2)
    found = alter.map_names(state, name, [4, 2])
    assert [*found] == [table.get_name(path, (".weight", ".bias")) for path in state]
    back = alter.map_names(found, name, [4, 2])
    compared = statedict.diff(state, back, numeric=True, atol=1e-6)  # 1 more and 1 less rounds
    assert compared.same
    assert [*back] == [*state]


KEYS = {
    "block_count": 2, "embedding_length": 32, "feed_forward_length": 48, "attention.head_count": 4,
    "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-6, "context_length": 64,
    "attention.key_length": 8, "attention.value_length": 8, "vocab_size": 16, "attention.layer_norm_epsilon": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt2"])
def test_transformers_reads_the_gguf_that_was_mapped(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = small(kind, tie_word_embeddings=kind in ("gemma2", "gpt2"))
    model.save_pretrained(tmp_path / "hf")
    state = alter.map_names(statedict.capture(model), FAMILIES[kind][1], [4, 2])
    flat = {f"{kind}.{key}": value for key, value in KEYS.items()}
    state = statedict.StateDict({"metadata": {"general.architecture": kind, **flat}, **state})
    if kind in ("gemma2", "gpt2"):
        state.pop("output.weight", None)
    statedict.save(state, tmp_path / "x.gguf")
    known = {"config": model.config} if kind == "gpt2" else {}  # whose vocabulary transformers 5.0 does not count
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", **known)
    assert statedict.diff(model, loaded, numeric=True, atol=1e-6).same
    found = statedict.diff(tmp_path / "x.gguf", tmp_path / "hf", map="gguf", numeric=True, atol=1e-6)
    assert all(tensor.passed for tensor in found.tensors), found


def test_llama_goes_to_the_names_of_meta_and_back(tmp_path: Path) -> None:
    model = small("llama")
    model.save_pretrained(tmp_path / "hf")
    report = statedict.edit(tmp_path / "hf", tmp_path / "consolidated.00.pth", {"map": "consolidated"})
    assert len(report.changes[0].added) == 21
    found = torch.load(tmp_path / "consolidated.00.pth")
    old = model.state_dict()["model.layers.1.self_attn.k_proj.weight"]
    new = found["layers.1.attention.wk.weight"]
    # `permute` of convert_llama_weights_to_hf.py
    assert torch.equal(new.view(2, 4, 2, 32).transpose(1, 2).reshape(16, 32), old)
    (tmp_path / "params.json").write_text('{"dim": 32, "n_heads": 4, "n_kv_heads": 2}')
    statedict.edit(tmp_path / "consolidated.00.pth", tmp_path / "x.safetensors", {"map": "consolidated"})
    assert statedict.diff(model, tmp_path / "x.safetensors").same
    assert statedict.diff(tmp_path / "hf", tmp_path / "consolidated.00.pth", map="consolidated").same


@pytest.mark.parametrize(
    ("state", "name", "message"),
    [
        ({"a.weight": np.ones((2, 2))}, "tensorflow", "tensorflow: is not a map of names; take one of gguf, keras"),
        ({"epoch": 3, "x": np.ones(1)}, "keras", "no entry has a name of PyTorch or of keras"),
        ({"model.layers.0.self_attn.q_proj.weight": np.ones((4, 2))}, "gguf", "names do not tell which architecture"),
        ({"model.layers.0.self_attn.q_proj.weight": np.ones((4, 2))}, "gguf:llama", "give heads, as in --map"),
        ({"a.weight": np.eye(2), "a.kernel": np.ones(2), "b.weight": np.eye(2)}, "keras", "become 'a.kernel'"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_is_an_error_that_says_why(state: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(AlterError, match=message):
        alter.map_names(statedict.StateDict(state), name)


def test_heads_that_do_not_fit_are_an_error() -> None:
    state = statedict.StateDict({"model.layers.0.self_attn.q_proj.weight": np.ones((6, 2))})
    with pytest.raises(AlterError, match="6 rows are not those of 4 heads"):
        alter.map_names(state, "gguf:llama", [4])


def test_heads_of_queries_and_keys_have_one_size() -> None:
    at = "model.layers.0.self_attn"
    state = statedict.StateDict({f"{at}.q_proj.weight": np.ones((32, 2)), f"{at}.k_proj.weight": np.ones((16, 2))})
    with pytest.raises(AlterError, match="with 4 heads they have 4 and 8 rows"):
        alter.map_names(state, "gguf:llama", [4])
    assert alter.map_names(state, "gguf:llama", [4, 2])["blk.0.attn_k.weight"].shape == (16, 2)


def test_an_architecture_that_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    small("olmo2").save_pretrained(tmp_path / "hf")
    with pytest.raises(AlterError, match="gguf:olmo2: is not a map of names"):
        statedict.edit(tmp_path / "hf", tmp_path / "x.gguf", {"map": "gguf"})
    with pytest.raises(AlterError, match="names do not tell which architecture"):
        alter.map_names(statedict.load(tmp_path / "hf"), "gguf")


def test_the_report_names_what_the_map_does_not_have(tmp_path: Path) -> None:
    state = {"fc.weight": np.ones((2, 2)), "fc.special": np.ones(2)}
    report = statedict.edit(state, tmp_path / "x.safetensors", {"map": "keras"})
    assert report.notes == ("map keras: has no name for fc.special",)


def test_diff_with_a_map_wants_a_side_with_its_names() -> None:
    with pytest.raises(AlterError, match="neither has names of keras"):
        statedict.diff({"a.weight": np.ones(2)}, {"a.weight": np.ones(2)}, map="keras")


def test_every_map_names_an_entry_once_on_either_side() -> None:
    for rules in MAPS.values():
        theirs = [path for rule in rules for path in rule.sides(True)[0]]
        assert len({*theirs}) == len(theirs)
