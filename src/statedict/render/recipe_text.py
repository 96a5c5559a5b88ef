r"""A checkpoint as the loops of PyTorch's state_dict recipe print it.

    for name, tensor in model.state_dict().items(): print(name, "\t", tensor.size())
    for key, value in optimizer.state_dict().items(): print(key, "\t", value)

Source: PyTorch's recipe "What is a state_dict in PyTorch".
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from statedict.errors import FormatError
from statedict.ops.inspect import state_dicts
from statedict.render.text import printable
from statedict.tensor.lazy import as_lazy, is_array
from statedict.tree.optimizer import is_optimizer
from statedict.tree.state_dict import StateDict, transform


class _Text:
    """Something that prints as the given text inside a dict."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def recipe_lines(state: StateDict) -> Iterator[str]:
    """The lines for every model and optimizer in the checkpoint, an empty one between them.

    Raises:
        FormatError: there is neither in it.
    """
    found = False
    for _, node in state_dicts(state):
        if found:
            yield ""
        found = True
        if is_optimizer(node):
            yield "Optimizer's state_dict:"
            for key, value in _as_printed(node).items():
                yield f"{printable(str(key))} \t {_escape(value)}"
        else:
            yield "Model's state_dict:"
            for name, value in node.items():
                yield f"{printable(str(name))} \t {as_lazy(value).size() if is_array(value) else _escape(value)}"
    if not found:
        raise FormatError("there is no state_dict of a model or an optimizer in it; look at it without --recipe")


def _escape(value: Any) -> str:
    """A value as Python prints it, with what could steer a terminal escaped; tensors take several lines."""
    return printable(value) if isinstance(value, str) else "\n".join(map(printable, str(value).split("\n")))


def _as_printed(node: Any) -> dict[Any, Any]:
    """The optimizer's state_dict as plain Python, its tensors as PyTorch prints them, or as dtype and shape."""
    if find_spec("torch") is not None:
        return StateDict(node).torch()

    def leaf(value: Any) -> Any:
        return _Text(f"{value.dtype}{list(value.shape)}") if is_array(value) else value

    return dict(transform(node, leaf, lambda entries, _: entries))
