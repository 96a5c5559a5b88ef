"""Names of the variables of Keras's layers and optimizers, which their files only number.

Source: keras 3.15.1, `add_weight`, `variable_serialization_spec` and `add_optimizer_variables`.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_KERNEL = ("kernel bias", "kernel")
_CELL = ("kernel recurrent_kernel bias", "kernel recurrent_kernel")
_NORM = ("gamma beta",)
_SEPARABLE = ("depthwise_kernel pointwise_kernel bias", "depthwise_kernel pointwise_kernel")
# class, as Keras spells it in a file → the variables that a layer of it may have, in order
VARIABLES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("dense", "einsum_dense", "conv1d", "conv2d", "conv3d"), _KERNEL),
    **dict.fromkeys(("conv1d_transpose", "conv2d_transpose", "conv3d_transpose"), _KERNEL),
    **dict.fromkeys(("depthwise_conv1d", "depthwise_conv2d"), _KERNEL),
    **dict.fromkeys(("separable_conv1d", "separable_conv2d"), _SEPARABLE),
    **dict.fromkeys(("lstm_cell", "gru_cell", "simple_rnn_cell", "conv_lstm_cell"), _CELL),
    "embedding": ("embeddings", "embeddings embeddings_scale"),
    "batch_normalization": ("gamma beta moving_mean moving_variance", "moving_mean moving_variance"),
    "layer_normalization": _NORM,
    "group_normalization": _NORM,
    "rms_normalization": ("scale",),
    "normalization": ("mean variance count",),
    "p_re_lu": ("alpha",),
    "additive_attention": ("scale",),
}
_QUANTIZED = (  # of a Dense or EinsumDense with a kernel of 8 or 4 bits
    "kernel kernel_scale",
    "kernel bias kernel_scale",
    "kernel kernel_scale kernel_zero g_idx",
    "kernel bias kernel_scale kernel_zero g_idx",
)
# class → attribute of it → class of the layer in it, and the name that Keras gives that
CHILDREN: dict[str, dict[str, tuple[str, str]]] = {
    "lstm": {"cell": ("lstm_cell", "lstm_cell")},
    "gru": {"cell": ("gru_cell", "gru_cell")},
    "simple_rnn": {"cell": ("simple_rnn_cell", "simple_rnn_cell")},
    "multi_head_attention": {
        "_query_dense": ("einsum_dense", "query"),
        "_key_dense": ("einsum_dense", "key"),
        "_gate_dense": ("einsum_dense", "gate"),
        "_value_dense": ("einsum_dense", "value"),
        "_output_dense": ("einsum_dense", "attention_output"),
    },
}
CHILDREN["grouped_query_attention"] = CHILDREN["multi_head_attention"]
# class of an optimizer → what it keeps of each parameter, one parameter after the other
SLOTS = {
    **dict.fromkeys(("adam", "adam_w", "nadam", "lamb", "schedule_free_adam_w"), "momentum velocity"),
    "adamax": "momentum norm",
    "adadelta": "accumulated_grad accumulated_delta_var",
    "adagrad": "accumulator",
    "ftrl": "accumulator linear",
    "lion": "momentum",
    "rm_sprop": "velocity",
    "sgd": "momentum",
}
FIXED = {"moving_mean", "moving_variance", "mean", "variance", "count", "kernel_scale", "embeddings_scale"}
"""Variables that no optimizer trains."""


def snake_case(name: str) -> str:
    """A class's name as Keras spells it in files.

    >>> snake_case("EinsumDense"), snake_case("Conv2D"), snake_case("LSTM")
    ('einsum_dense', 'conv2d', 'lstm')
    """
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def name_variables(kind: str, tensors: Sequence[Any], config: Mapping[str, Any]) -> list[str]:
    """The names of the numbered variables of a layer of a class; their numbers if it does not tell."""
    numbers = [str(index) for index in range(len(tensors))]
    options = list(VARIABLES.get(kind, ()))
    if kind in ("dense", "einsum_dense") and tensors and tensors[0].dtype.name in ("int8", "uint8"):
        options = list(_QUANTIZED)
    if kind in ("batch_normalization", "layer_normalization", "group_normalization") and config:
        flags = ("gamma", "scale"), ("beta", "center")
        rest = ["moving_mean moving_variance"] if kind == "batch_normalization" else []
        options = [" ".join([name for name, flag in flags if config.get(flag) is not False] + rest)]
    found = [option.split() for option in options if len(option.split()) == len(tensors)]
    return found[0] if len(found) == 1 else numbers
