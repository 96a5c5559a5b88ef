"""State_dicts and tensors in a notebook: a tree that opens at a click. It reads no tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from statedict.errors import StateDictError
from statedict.io.source import FileSource, find_base
from statedict.render.html import TREE_CHILDREN, Safe, entry, page, table, text, tree
from statedict.render.text import shape
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.walk import label, nest
from statedict.values import Opaque, Size, count, human_bytes

_ON_A_ROW = 20
_COUNTED = 200_000  # entries to add up, so that a display takes no longer than a blink


class _Module(list[tuple[str, Any]]):
    """The rows whose keys have a prefix in common."""


def html(state: Any) -> str:
    """The tree of a state_dict, nested by module, with totals."""
    totals = _Totals()
    title = ", ".join(filter(None, (f"state_dict: {_entries(state)}", totals.of(state))))
    return page(title, tree(state, lambda key, node: _line(key, node, totals), _below))


def tensor(one: LazyTensor) -> str:
    """A tensor and where its bytes are."""
    hint = "statedict.stats(tensor) reads it, and shows its figures and a histogram"
    facts = table(("", ""), [*_facts(one), ("to see inside", hint)])
    return page(f"{one.dtype} {shape(one.shape)}, {human_bytes(one.nbytes)}", facts)


def _facts(tensor: LazyTensor) -> Iterator[tuple[str, str]]:
    storage, source = tensor.storage, tensor.storage.source
    where = ""
    if not source.remote:
        with suppress(StateDictError):  # a damaged header of an archive's member, which reading the tensor raises again
            base, start = find_base(source)
            start += storage.offset + tensor.offset
            where = f", bytes {start:,} to {start + tensor.span:,}" if isinstance(base, FileSource) else ""
    yield "elements", f"{tensor.numel():,}"
    yield "bytes", f"{tensor.nbytes:,}"
    yield "in", f"{storage.source.name}{where}"
    if storage.nbytes > tensor.nbytes:
        yield "of a storage of", human_bytes(storage.nbytes)
    if tensor.strides is not None:
        yield "strides", str(tensor.strides)
    if storage.device != "cpu":
        yield "saved from", storage.device
    if tensor.parameter or tensor.requires_grad:
        yield "saved as", " ".join(["parameter"] * tensor.parameter + ["requires_grad"] * tensor.requires_grad)
    if tensor.attributes:
        yield "attributes", ", ".join(map(str, tensor.attributes))


class _Totals:
    """How many tensors there are below a node, and their bytes; tied ones count once."""

    def __init__(self) -> None:
        self.left = _COUNTED
        self.known: dict[int, tuple[object, int]] = {}  # by the id of arrays, which live as long as the tree

    def of(self, node: Any) -> str:
        """In words; nothing without tensors, or with too many entries."""
        tensors = nbytes = 0
        regions: set[object] = set()
        seen: set[int] = set()
        pending = [node]
        while pending:
            item = pending.pop()
            if id(item) in self.known or is_array(item):
                if id(item) not in self.known:
                    found = as_lazy(item, parts=True)
                    self.known[id(item)] = found.region, found.nbytes
                region, size = self.known[id(item)]
                tensors += 1
                nbytes += size if region not in regions else 0
                regions.add(region)
            elif id(item) not in seen and _holds(item):
                seen.add(id(item))
                inner = _children(item)
                self.left -= len(inner)
                if self.left < 0:
                    return ""
                pending += inner
        return f"{count(tensors, 'tensor')}, {human_bytes(nbytes)}" if tensors else ""


def _holds(node: Any) -> bool:
    return isinstance(node, dict | list | tuple | Opaque) and node.__class__ is not Size


def _is_plain(node: Any) -> bool:
    """Whether a container's items stand on its own row: a few that hold nothing."""
    return not _children(node) or (
        isinstance(node, list | tuple)
        and not isinstance(node, _Module)
        and len(node) <= _ON_A_ROW
        and not any(is_array(item) or _holds(item) for item in node)
    )


def _children(node: Any) -> Any:
    if isinstance(node, _Module):
        return [value for _, value in node]
    if isinstance(node, Opaque):
        return [value for _, value in _slots(node)]
    return node.values() if isinstance(node, dict) else node


def _slots(node: Opaque) -> list[tuple[str, Any]]:
    return [(slot, value) for slot in ("args", "state", "items", "entries") if (value := getattr(node, slot))]


def _below(node: Any) -> tuple[int, Sequence[tuple[str, Any]]]:
    if not _holds(node) or _is_plain(node):
        return 0, ()
    if isinstance(node, list | tuple) and not isinstance(node, _Module):
        return len(node), [(str(index), item) for index, item in enumerate(node[:TREE_CHILDREN])]
    if isinstance(node, dict):
        rows = nest([(label(key), value) for key, value in node.items()], _Module)
    else:
        rows = _slots(node) if isinstance(node, Opaque) else node
    return len(rows), rows


def _line(key: str, node: Any, totals: _Totals) -> Safe:
    if is_array(node):
        tensor = as_lazy(node, parts=True)
        return entry(key, tensor.dtype, shape(tensor.shape), human_bytes(tensor.nbytes))
    if isinstance(node, _Module):
        return entry(key, totals.of(node))
    if isinstance(node, Opaque):
        return entry(key, repr(node), totals.of(node))
    if _holds(node) and not _is_plain(node):
        return entry(key, ", ".join(filter(None, (_entries(node), totals.of(node)))))
    return Safe(f"<b>{text(key)}</b> <code>{text(_value(node), 200)}</code>")


def _entries(node: Any) -> str:
    return count(len(node), "entry", "entries")


def _value(value: Any) -> str:
    try:
        return repr(value[:1000] if type(value) in (str, bytes) else value)
    except ValueError:  # an integer of more digits than Python prints
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else f"a {type(value).__name__}"
