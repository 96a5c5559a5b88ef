"""What the configuration beside a model says of its quantization: method, bits and groups, weight by weight."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# what the configurations call the method → the schemes whose tensors it may have
METHODS = {
    "gptq": ("GPTQ",),
    "awq": ("AWQ", "GPTQ"),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "modelopt": ("ModelOpt",),
    "fbgemm-fp8": ("FBGEMM",),
    "quark": ("Quark",),
    "mlx": ("MLX",),
    "metal": ("MLX",),
    "mxfp4": ("MXFP4",),
    "fp8": ("FP8",),
    "eetq": ("EETQ",),
    "exl2": ("EXL2",),
    "exl3": ("EXL3",),
    "aqlm": ("AQLM",),
    "quanto": ("Quanto",),
    "torchao": ("torchao",),
    "fp_quant": ("FP-Quant",),
}
# methods whose tensors have the names of compressed-tensors, which only the configuration tells apart
ALIKE = {method: METHODS[method][0] for method in ("modelopt", "fbgemm-fp8", "quark", "fp8")}
_PREFIX = re.compile(r"^(model|language_model|module)\.")


class Config:
    """The `quantization_config` of `config.json`, MLX's `quantization`, or what older tools call so.

    Attributes:
        values: the mapping itself.
        method: what it calls the method, in lower case; None if it does not say.
    """

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.values = dict(values or {})
        method = self._text("quant_method") or ("modelopt" if self._text("quant_algo") else None)
        if method is None and "w_bit" in self.values:
            method = "awq"
        if method is None and _is_size(self.values.get("bits")) and _is_size(self.values.get("group_size")):
            method = "gptq" if "desc_act" in self.values else "mlx"
        self.method = method.lower().replace("_", "-") if method and method != "fp_quant" else method
        groups = self.values.get("config_groups")
        self._groups = [one for one in groups.values() if isinstance(one, dict)] if isinstance(groups, dict) else []
        self._rules = [*_list_rules(self.values.get("dynamic")), *_list_rules(self.values.get("extra_config"))]

    def _text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) and value else None

    @property
    def by_auto_round(self) -> bool:
        """Whether auto-round wrote it, whose symmetric scales are of both signs."""
        marks = (self._text("quant_method"), self._text("provider"), self._text("quantizer"))
        return "autoround_version" in self.values or any(mark and "round" in mark for mark in marks)

    def of(self, name: str) -> tuple[int | None, int | None, dict[str, Any]]:
        """Bits and group of the weights of a module, None where it does not say, and the settings they stand in."""
        found: dict[str, Any] = {
            key: self.values[key] for key in ("bits", "w_bit", "group_size", "q_group_size") if key in self.values
        }
        found |= next((weights for weights in self._weights(name) if weights), {})
        for pattern, changes in self._rules:
            if pattern == name or re.match(pattern, name):
                found |= changes
                break
        own = self.values.get(name, self.values.get(_PREFIX.sub("", name)))
        found |= own if isinstance(own, dict) else {}
        bits = next((found[key] for key in ("bits", "w_bit", "num_bits") if _is_size(found.get(key))), None)
        group = next((found[key] for key in ("group_size", "q_group_size") if type(found.get(key)) is int), None)
        if bits is None and self.values.get("load_in_4bit") is True:
            bits = 4
        return bits, group, self.values | found

    def _weights(self, name: str) -> Iterator[dict[str, Any]]:
        """The settings of weights in the groups of compressed-tensors that may have a module."""
        for group in self._groups:
            weights, targets = group.get("weights"), group.get("targets")
            if not isinstance(weights, dict):
                continue
            texts = [target for target in targets if isinstance(target, str)] if isinstance(targets, list) else []
            if len(self._groups) == 1 or any(target == name or _matches(target, name) for target in texts):
                yield weights


def _matches(target: str, name: str) -> bool:
    try:
        return target.startswith("re:") and re.match(target[3:], name) is not None
    except re.error:
        return False


def _list_rules(rules: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The modules with settings of their own, as GPTQModel and auto-round have them: pattern, settings."""
    for pattern, changes in rules.items() if isinstance(rules, dict) else ():
        if isinstance(pattern, str) and isinstance(changes, dict) and not pattern.startswith("-:"):
            try:
                re.compile(pattern := pattern.removeprefix("+:"))
            except re.error:
                pattern = re.escape(pattern)
            yield pattern, changes


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1 << 20


def of_document(name: str, document: Any) -> dict[str, Any] | None:
    """The settings of quantization in a file of JSON beside a model; None without any.

    Args:
        name: `config.json`, or that of an older tool in `FILES`.
        document: its content.
    """
    if not isinstance(document, dict):
        return None
    for key in ("quantization_config", "compression_config", "quantization"):
        if isinstance(found := document.get(key), dict) and found:
            return {"quant_method": "mlx", **found} if key == "quantization" and "bits" in found else found
    for key in ("text_config", "llm_config", "language_config"):
        if (inner := of_document(name, document.get(key))) is not None:
            return inner
    return document if name in FILES[1:3] and document else None


FILES = ("config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json")
