"""The names and numbers of low-rank adapters: which tensors belong to which module, and how large its change is.

    delta = scale · up · down                LoRA, Hu et al., arXiv:2106.09685; down is r × in, up is out × r
    delta = scale · up · diag(gains) · down  AdaLoRA, Zhang et al., arXiv:2303.10512
    delta = scale · (up · down) ∘ (up₂ · down₂)  LoHa, Hyeon-Woo et al., arXiv:2108.06098

| dialect | names | scale |
|---|---|---|
| PEFT | `base_model.model.MODULE.lora_A.weight` | adapter_config.json: alpha / r, or alpha / √r (rsLoRA) |
| diffusers | `unet.MODULE.lora_A.weight`, `….lora.down.weight`, `….to_q_lora.down.weight` | `.alpha` / r, or 1 |
| kohya | `lora_unet_MODULE_WITH_UNDERSCORES.lora_down.weight` | `.alpha` / r, or 1 |

Sources: peft 0.21.2 (tuners/lora), diffusers 0.37 (loaders), sd-scripts (networks/lora.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy

from statedict.errors import CombineError
from statedict.ops.combine.lora_checks import check_config, check_parts
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.values import abbreviate, count

PEFT, DIFFUSERS, KOHYA = "PEFT", "diffusers", "kohya"
CONFIG = "adapter_config"
"""The key of an adapter's metadata that has the text of its adapter_config.json."""

# the end of a key → what the tensor is of its module
_PARTS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.bias": "bias",
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_E": "gains",
    ".hada_w1_a": "up",
    ".hada_w1_b": "down",
    ".hada_w2_a": "up2",
    ".hada_w2_b": "down2",
    ".lora_embedding_A": "down",
    ".lora_embedding_B": "up",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".token_adapter.trainable_tokens_delta": "tokens",
    ".trainable_tokens_delta": "tokens",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
}
_KOHYA = (".lora_down.weight", ".lora_up.weight", ".hada_w1_a", ".hada_w1_b")
# what a key has → the kind of adapter that it tells
_OTHERS = {
    r"\.hada_t[12]$": "LoHa with a core",
    r"\.lokr_w[12]": "LoKr",
    r"\.oft_|\.boft_": "OFT",
    r"\.ia3_l|\.on_input$": "IA3",
    r"\.vera_lambda": "VeRA",
    r"\.hra_u": "HRA",
    r"\.diff(_b)?$|\.w_norm$|\.b_norm$": "LyCORIS full",
    r"\.dora_scale$": "DoRA of LyCORIS",
    r"^prompt_embeddings$": "prompt tuning",
    r"\.ln_tuning_layers": "LN tuning",
    r"\.adaption_": "adaption prompt",
}
# kinds of peft that are read → the setting that has alpha
_ALPHAS = {"LORA": "lora_alpha", "TRAINABLE_TOKENS": "lora_alpha", "LOHA": "alpha", "ADALORA": "lora_alpha"}
# settings that make another formula than up · down
_VARIANTS = {
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
_RESIDUAL = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initializations that change the base


@dataclass(slots=True)
class Module:
    """What an adapter has for one module.

    Attributes:
        name: of the module, without the prefix of the dialect.
        parts: what a tensor is (`down`, `up`, `mid`, `down2`, `up2`, `gains`, `magnitude`, …) → the tensor.
        embedding: whether they are those of an embedding, whose change is transposed.
        depth: how many parameters of the same module were wrapped before this one.
        scale: the factor of up · down.
        said: the rank that the configuration says; 0 without one.
        doubled: whether it is the output of `torch.nn.MultiheadAttention`, to which peft adds its change twice.
    """

    name: str
    parts: dict[str, LazyTensor] = field(default_factory=dict)
    embedding: bool = False
    depth: int = 0
    scale: float = 1.0
    said: int = 0
    doubled: bool = False

    @property
    def rank(self) -> int:
        """The rank; that of all experts together."""
        return self.parts["down"].shape[0] if "down" in self.parts else 0


@dataclass(slots=True)
class Adapter:
    """An adapter by modules.

    Attributes:
        name: what messages call it.
        dialect: how its tensors are named.
        config: its adapter_config.json; empty without one.
        modules: name and depth → what it has for the module.
        whole: name of a parameter → the tensor that takes its place.
        saved: those of `whole` that stand for themselves, and not as the base of what is added.
        fault: why it cannot be applied; empty if it can.
    """

    name: str
    dialect: str
    config: Mapping[str, Any]
    modules: dict[tuple[str, int], Module]
    whole: dict[str, LazyTensor]
    saved: set[str] = field(default_factory=set)
    kind: str = "LoRA"
    fault: str = ""
    notes: list[str] = field(default_factory=list)


def read_adapter(name: str, tree: Mapping[str, Any], config: Mapping[str, Any] | None) -> Adapter:
    """Sort the tensors of an adapter by modules.

    Args:
        name: what messages call it.
        tree: its tensors by name.
        config: its adapter_config.json, if there is one.

    Raises:
        CombineError: there is no tensor of an adapter in it, or one stands twice.

    >>> one = {"base_model.model.fc.lora_A.weight": numpy.ones((2, 4)), "base_model.model.fc.lora_B.weight":
    ...        numpy.ones((3, 2))}
    >>> read_adapter("a", one, {"r": 2, "lora_alpha": 4}).modules["fc", 0].scale
    2.0
    """
    check_config(name, config or {})
    tensors = {key: as_lazy(value) for key, value in tree.items() if is_array(value)}
    for key, value in tree.items():
        if key.endswith(".alpha") and type(value) in (int, float):
            tensors[key] = as_lazy(numpy.array(value, "f8"))
    dialect = _find_dialect(tensors, config)
    kinds = [kind for pattern, kind in _OTHERS.items() if any(re.search(pattern, key) for key in tensors)]
    made = Adapter(name, dialect, config or {}, {}, {})
    for key, tensor in tensors.items():
        _sort_in(made, key, tensor)
    for module in made.modules.values() if not kinds else ():
        check_parts(f"{name}: {module.name}", module.parts)
    if kinds or (config and str(config.get("peft_type", "LORA")) not in _ALPHAS):
        made.kind = kinds[0] if kinds else str(config["peft_type"]) if config else ""
        made.fault = f"is {made.kind}, which cannot be applied yet"
    elif not any("down" in one.parts or "tokens" in one.parts for one in made.modules.values()):
        raise CombineError(
            f"{name}: has no tensor of a low-rank adapter, such as lora_A.weight or lora_down.weight; it holds "
            f"{abbreviate(list(tree)) or 'nothing'}"
        )
    else:
        made.fault = _find_fault(made, config)
        if config is not None or dialect != PEFT:
            _set_scales(made, tree)
    for role, kind in (("magnitude", "DoRA"), ("up2", "LoHa"), ("gains", "AdaLoRA")):
        if not kinds and any(role in one.parts for one in made.modules.values()):
            made.kind = kind
    return made


def _find_dialect(tensors: Mapping[str, Any], config: Mapping[str, Any] | None) -> str:
    if config or any(key.startswith("base_model.model.") for key in tensors):
        return PEFT
    return KOHYA if any(key.endswith(_KOHYA) and "." not in _stem(key, _KOHYA) for key in tensors) else DIFFUSERS


def _stem(key: str, ends: tuple[str, ...]) -> str:
    return next((key[: -len(end)] for end in ends if key.endswith(end)), key)


def _sort_in(made: Adapter, key: str, tensor: LazyTensor) -> None:
    plain = key.removeprefix("base_model.model.") if made.dialect == PEFT else key
    plain = re.sub(r"(\.(?:lora_\w+|trainable_tokens_delta))\.default(?=\.|$)", r"\1", plain)
    plain = re.sub(r"\.modules_to_save(\.default)?(?=\.)", "", plain)
    end = next((end for end in sorted(_PARTS, key=len, reverse=True) if plain.endswith(end)), "")
    if not end:
        name = plain.replace(".base_layer.", ".")
        if name in made.whole:
            raise CombineError(f"{made.name}: has two tensors for {name}")
        made.whole[name] = tensor
        made.saved |= {name} if ".base_layer." not in plain else set()
        return
    name, role = plain[: -len(end)], _PARTS[end]
    if end.startswith("_lora"):  # `attn1.processor.to_out_lora`: a module of the attention around its processor
        name = name.replace(".processor.", ".")
        name += ".0" * name.endswith(".to_out")
    depth = 0
    while name.endswith(".base_layer"):
        name, depth = name.removesuffix(".base_layer"), depth + 1
    doubled = made.dialect == PEFT and name.endswith(".base_layer.out_proj")
    name = name.replace(".base_layer.", ".")
    module = made.modules.setdefault((name, depth), Module(name, depth=depth))
    if role in module.parts:
        raise CombineError(f"{made.name}: has two tensors {role!r} for {name}")
    module.parts[role] = tensor
    module.embedding |= "lora_embedding" in end
    module.doubled |= doubled


def _find_fault(made: Adapter, config: Mapping[str, Any] | None) -> str:
    """Why an adapter of LoRA cannot be applied; empty if it can."""
    for key, one in made.modules.items():
        lacking = {"down", "up"} - one.parts.keys() if one.parts.keys() - {"tokens"} else set()
        lacking |= {"down2", "up2"} - one.parts.keys() if {"down2", "up2"} & one.parts.keys() else set()
        if lacking:
            return (
                f"has no {' and no '.join(sorted(lacking))} for {key[0]}, only {', '.join(one.parts)}; fetch it again"
            )
    if config is None:
        peft = made.dialect == PEFT
        return "has no adapter_config.json, which says alpha; pass its folder, or config={…}" if peft else ""
    for setting, kind in _VARIANTS.items():
        if config.get(setting):
            return f"is {kind} ({setting}), which cannot be applied yet"
    start = str(config.get("init_lora_weights"))
    if start.lower().startswith(_RESIDUAL):
        return (
            f"was initialized by {start}, which changes the base, so base + delta is not the tuned model; let peft "
            "save it with path_initial_model_for_weight_conversion"
        )
    return ""


def _set_scales(made: Adapter, tree: Mapping[str, Any]) -> None:
    parts = _read_metadata(made, tree) if made.dialect != PEFT else {}
    for one in made.modules.values():
        if "down" not in one.parts:
            continue
        component, _, rest = one.name.partition(".")
        if made.dialect == PEFT and "gains" in one.parts:
            one.scale = _scale_of_adalora(made)
            continue
        if made.dialect == PEFT:
            one.scale = _scale_by(made, made.config, one, one.name) * (2 if one.doubled else 1)
            if one.doubled:
                made.notes.append(f"{one.name}: is an output of attention, to which peft adds its change twice")
        elif "alpha" in one.parts:
            one.scale = float(one.parts["alpha"].numpy().reshape(-1)[0]) / one.rank
        elif component in parts or "" in parts:
            one.scale = _scale_by(made, parts.get(component, parts.get("", {})), one, rest)


def _scale_by(made: Adapter, config: Mapping[str, Any], one: Module, name: str) -> float:
    """The scale that a configuration of PEFT says; the rank is that of the tensors."""
    found: dict[str, Any] = {}
    alpha = _ALPHAS.get(str(config.get("peft_type")), "lora_alpha")
    for setting, default in (("rank", config.get("r", 8)), ("alpha", config.get(alpha, 8))):
        patterns = config.get(f"{setting}_pattern") or {}
        hits = [value for pattern, value in patterns.items() if _fits(pattern, name)]
        found[setting] = hits[0] if hits else default
        if any(value != found[setting] for value in hits):
            made.notes.append(
                f"{name}: several patterns of {setting}_pattern match; the first one in the file counts, and peft "
                "sorts them when it saves"
            )
    rank, alpha = found["rank"], found["alpha"]
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or one.rank % rank:
        raise CombineError(
            f"{made.name}: {name}: has tensors of rank {one.rank:,}, and adapter_config.json says {rank!r}, "
            f"alpha {alpha!r}; fetch both again"
        )
    one.said = rank
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _scale_of_adalora(made: Adapter) -> float:
    """Alpha / the rank at the start, whatever was pruned since; peft adds 1e-5 to it."""
    rank, alpha = made.config.get("init_r", 12), made.config.get("lora_alpha", 8)
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise CombineError(f"{made.name}: adapter_config.json says init_r {rank!r}, alpha {alpha!r}; fetch it again")
    return (float(alpha) if alpha > 0 else rank) / (rank + 1e-5)


def _read_metadata(made: Adapter, tree: Any) -> dict[str, dict[str, Any]]:
    """The configurations that diffusers writes into a file's metadata, by component."""
    text = (getattr(tree, "metadata", None) or {}).get("lora_adapter_metadata")
    found: dict[str, dict[str, Any]] = {}
    try:
        for key, value in json.loads(text).items() if text else ():
            component, _, setting = key.rpartition(".")
            found.setdefault(component, {})[setting] = value
    except (ValueError, AttributeError) as error:
        raise CombineError(f"{made.name}: its lora_adapter_metadata is not a JSON object") from error
    return found


def _fits(pattern: str, name: str) -> bool:
    """Whether peft's patterns match a module: a regular expression, at the end of its name."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    except re.error as error:
        raise CombineError(f"adapter_config.json: {pattern!r} is not a regular expression: {error}") from error


def find_names(made: Adapter, names: Mapping[str, str]) -> dict[str, str]:
    """The module of a base for each module of an adapter; names may differ by one prefix.

    Args:
        made: the adapter.
        names: the modules of the base.

    Raises:
        CombineError: one is not there, or several could be meant.
    """
    wanted = list(dict.fromkeys(name for name, _ in made.modules))
    if not wanted:
        return {}
    if made.dialect == KOHYA:
        options = _flatten(wanted, names)
    else:
        prefixes = {("", "")}
        for base in names:
            if base.endswith(f".{wanted[0]}"):
                prefixes.add((base[: -len(wanted[0])], ""))
            elif wanted[0].endswith(f".{base}") and base:
                prefixes.add(("", wanted[0][: -len(base)]))
        options = [
            {name: new for name in wanted if (new := add + name.removeprefix(cut)) in names and name.startswith(cut)}
            for add, cut in sorted(prefixes)
        ]
    whole = [option for option in options if len(option) == len(wanted)]
    if len(whole) > 1 and {name: name for name in wanted} not in whole:
        places = abbreviate([option[wanted[0]] for option in whole])
        raise CombineError(f"{made.name}: {wanted[0]} could be {places} of the base; name one part as file::path")
    if not whole:
        best: dict[str, str] = max(options, key=len, default={})
        missing = [name for name in wanted if name not in best]
        raise CombineError(
            f"{made.name}: the base lacks {count(len(missing), 'module')} of its {len(wanted):,}: "
            f"{abbreviate(missing)}; is it the adapter of another model? only=… applies a part of it"
        )
    return next((option for option in whole if option.get(wanted[0]) == wanted[0]), whole[0])


def _flatten(wanted: list[str], names: Mapping[str, str]) -> list[dict[str, str]]:
    """For kohya's names, in which every dot is an underscore: the options, one for each prefix of the base."""
    short = {name: re.sub(r"^(lora|lycoris)_((unet|te\d?|transformer|prior|dit)_)?", "", name) for name in wanted}
    first = short[wanted[0]]
    found: list[dict[str, str]] = []
    heads = {""}
    for base in names:
        keys = base.split(".")
        heads.update(".".join(keys[:n]) + "." for n in range(1, len(keys)) if "_".join(keys[n:]) == first)
    for head in sorted(heads):
        flat: dict[str, list[str]] = {}
        for base in names:
            if base.startswith(head):
                flat.setdefault(base[len(head) :].replace(".", "_"), []).append(base)
        twice = next((flat[key] for key in short.values() if len(flat.get(key, ())) > 1), None)
        if twice:
            raise CombineError(f"{abbreviate(twice)} are one name with underscores for dots; rename one in the base")
        found.append({name: flat[key][0] for name, key in short.items() if key in flat})
    return found
