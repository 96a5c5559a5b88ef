"""What the configuration beside a model says of its quantization: method, bits and groups, weight by weight."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from contextlib import suppress
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
        self._default, self._targets = _read_groups(self.values.get("config_groups"))
        self._own = _Rules()
        for key in ("dynamic", "extra_config"):  # of GPTQModel, where `-:` leaves modules out, and of auto-round
            rules = self.values.get(key)
            for pattern, settings in rules.items() if isinstance(rules, dict) else ():
                if isinstance(pattern, str) and isinstance(settings, dict) and not pattern.startswith("-:"):
                    self._own.add(pattern.removeprefix("+:"), settings)

    def _text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) and value else None

    @property
    def by_auto_round(self) -> bool:
        """Whether auto-round wrote it, whose symmetric scales are of both signs."""
        marks = (self._text("quant_method"), self._text("provider"), self._text("quantizer"))
        return "autoround_version" in self.values or any(mark and "round" in mark.lower() for mark in marks)

    def of(self, name: str) -> tuple[int | None, int | None, Mapping[str, Any]]:
        """Bits and group of the weights of a module, None where it does not say, and the settings they stand in."""
        own = self.values.get(name, self.values.get(_PREFIX.sub("", name)))
        groups = self._targets.of(name) or self._default
        found = ChainMap(own if isinstance(own, dict) else {}, self._own.of(name) or {}, groups, self.values)
        bits = next((found[key] for key in ("bits", "w_bit", "num_bits") if _is_size(found.get(key))), None)
        group = next((found[key] for key in ("group_size", "q_group_size") if type(found.get(key)) is int), None)
        if bits is None and self.values.get("load_in_4bit") is True:
            bits = 4
        return bits, group, found


class _Rules:
    """Settings by the names of modules, or by patterns of them."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, Any]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Any]]] = []

    def add(self, pattern: str, settings: dict[str, Any]) -> None:
        self._exact.setdefault(pattern, settings)
        simple = not _SLOW.search(pattern) and len(_REPEATS.findall(pattern)) <= 3 and len(self._patterns) < _MOST
        if simple and re.search(r"[\\^$*+?|\[(]", pattern):
            with suppress(re.error):
                self._patterns.append((re.compile(pattern), settings))

    def of(self, name: str) -> dict[str, Any] | None:
        """The settings of a module; None without any."""
        known = self._exact.get(name)
        if known is None and len(name) <= _LONGEST:
            known = next((settings for pattern, settings in self._patterns if pattern.match(name)), None)
        return known


# patterns come from a file: none that may take much longer than the name is long
_SLOW = re.compile(r"\)[*+?{]|\\[1-9]|\(\?(?!:)")
_REPEATS = re.compile(r"[*+{]")
_MOST, _LONGEST = 100, 300


def _read_groups(groups: Any) -> tuple[dict[str, Any], _Rules]:
    """The settings of weights in the groups of compressed-tensors: those of a single group, and all by target."""
    rules, found = _Rules(), []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            found.append(weights)
            targets = group.get("targets")
            for target in targets if isinstance(targets, list) else ():
                if isinstance(target, str):
                    rules.add(target.removeprefix("re:"), weights)
    return found[0] if len(found) == 1 else {}, rules


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
