"""How a state is read for a module: by names as they are, renamed, below a prefix, or as the module itself reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from statedict import torch_private
from statedict.adapters import join
from statedict.adapters.history import brought_up_to_date
from statedict.adapters.names import Reading, unwrap
from statedict.adapters.plan import Plan
from statedict.adapters.rehearsal import rehearse, special
from statedict.errors import UnsupportedError
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array


@dataclass(slots=True)
class Reader:
    """A module, a state, and how one is read for the other.

    Attributes:
        module: the module.
        state: the state.
        path: where both stand.
        own: the module's own `state_dict()`.
        live: its parameters and buffers by all their names.
        parameters: the names of its parameters.
        tensors: the state's tensors.
        origins: name in the state → what it was called before it was renamed.
        held: name in the module → name in the state.
        given: name under which `load_state_dict` gets it → name in the state.
        unread: names of the state that nothing takes.
        made: names in the module that its own loading makes from others.
        judged: names whose modules judge their shapes themselves.
        metadata: the state's, by the module's names.
        errors: what the module's own loading said.
        kinds: PyTorch's dtypes of what it makes.
        settled: name under which `load_state_dict` gets it → what it gets instead of what the state has.
    """

    module: Any
    state: Any
    path: str
    own: Any
    live: dict[str, Any]
    parameters: list[str]
    tensors: dict[str, LazyTensor]
    origins: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    unread: list[Any] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    judged: frozenset[str] = frozenset()
    metadata: Any = None
    errors: tuple[str, ...] = ()
    kinds: Mapping[str, Any] = field(default_factory=dict)
    settled: dict[str, Any] = field(default_factory=dict)

    def original(self, name: Any) -> Any:
        """What an entry of the state was called before it was renamed."""
        return self.origins.get(name, name)

    def renamed(self, name: str) -> str:
        """What an entry of the module is called in the state, if it is another name."""
        old = self.held[name]
        return self.origins.get(old, "" if self.given.get(name) == old else old)


def read(module: Any, state: Any, plan: Plan, path: str) -> Reader | None:
    """How the state is read; None where that cannot be told, which is then a problem of the plan."""
    own = module.state_dict()
    live, parameters = _live(module, own)
    reader = Reader(module, state, path, own, live, parameters, {})
    for name, held in state.items():
        if is_lazy(held):
            plan.problem("kind", join(path, name), "the state has a parameter that has taken no shape yet")
        elif is_array(held):
            try:
                reader.tensors[name] = as_lazy(held)
            except UnsupportedError as error:
                plan.problem("kind", join(path, name), str(error))
    strings = [name for name in state if type(name) is str]
    reader.origins = {name: plan.origins[full] for name in strings if (full := join(path, name)) in plan.origins}
    known, metadata = {name: name for name in strings}, getattr(state, "_metadata", None)
    modules = [*module.named_modules(remove_duplicate=False)]
    past = brought_up_to_date(((name, type(child)) for name, child in modules), known, metadata, reader.own)
    if past is not None:
        if past.problem:
            plan.problem("version", path, past.problem)
            return None
        plan.notes += [f"{path}: {note}" if path else note for note in past.notes]
        known = {}
        for name in strings:
            now = past.names.get(name, name)
            if known.setdefault(now, name) != name:
                plan.problem("collision", path, f"{known[now]!r} and {name!r} both become {now!r}")
            if now != name:
                reader.origins.setdefault(name, name)
        metadata = past.metadata
    reading = plan.align(reader.own, known, path)
    if reading is None:
        return None
    places = {unwrap(name): name for name, _ in modules}
    reader.metadata = _versions(metadata, reading, places)
    reader.held = {name: known[now] for name, now in reading.pairs.items()}
    reader.given = dict(reader.held)
    taken = set(reader.held.values())
    reader.unread = [name for name in state if name not in taken]
    _ask_module(reader, special(modules), known, reading, places)
    return reader


def _live(module: Any, own: Any) -> tuple[dict[str, Any], list[str]]:
    """The live tensors by the names that `state_dict()` has for them, and which of them are parameters.

    A wrapper's hooks may take its key out of the names, as that of activation checkpointing does.
    """
    inner = dict(module.named_parameters(remove_duplicate=False))
    parameters = {id(tensor) for tensor in inner.values()}
    inner |= module.named_buffers(remove_duplicate=False)
    if inner.keys() >= own.keys():
        live = inner
    else:
        known = {id(tensor) for tensor in inner.values()}
        kept = module.state_dict(keep_vars=True)
        live = {name: tensor for name, tensor in kept.items() if id(tensor) in known}
        there = {id(tensor) for tensor in live.values()}
        live |= {name: tensor for name, tensor in inner.items() if id(tensor) not in there}
    return live, [name for name, tensor in live.items() if id(tensor) in parameters]


def is_lazy(entry: Any) -> bool:
    """Whether it is a parameter that takes its shape at the first input."""
    import sys

    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.nn.parameter.is_lazy(entry))


def _resize(entry: Any, tensor: LazyTensor | None) -> bool:
    return tensor is not None and is_array(entry) and (is_lazy(entry) or entry.shape != tensor.shape)


def _ask_module(
    reader: Reader, ways: Mapping[str, bool], known: dict[str, str], reading: Reading, places: Mapping[str, str]
) -> None:
    """What modules that load in a way of their own make of the state.

    PyTorch's own are asked where names or shapes differ; anybody else's always, for it may do anything.
    """
    if not ways:
        return
    odd = [name for name, entry in reader.own.items() if _is_odd(name, entry, reader)]
    given, unread = dict(reader.held), set(reader.unread)
    for now, name in known.items():
        if name in unread and (there := reading.translate(now, places)) is not None:
            given.setdefault(there, name)
            odd.append(there)
    below = tuple(path + "." if path else "" for path in ways)
    if not any(name.startswith(below) for name in odd) and not any(_is_foreign(reader.module, path) for path in ways):
        return
    entries = {name: reader.tensors[old] for name, old in given.items() if old in reader.tensors}
    found = rehearse(reader.module, entries, reader.metadata, reader.own, reader.live)
    if found is None or not (found.taken or found.errors):
        return
    extra = {name: old for name, old in reader.held.items() if old not in reader.tensors}  # no twin gets extra state
    reader.held = {name: given[before] for name, before in found.held.items() if before and name in reader.own} | extra
    reader.made = {name for name, before in found.held.items() if not before and name in reader.own}
    taken = {given[name] for name in found.taken} | set(reader.held.values())
    reader.given = {name: old for name, old in given.items() if old in taken}
    reader.unread = [name for name in reader.state if name not in taken]
    reader.judged, reader.errors, reader.kinds = found.own, found.errors, found.kinds


def _is_odd(name: str, entry: Any, reader: Reader) -> bool:
    return name not in reader.held or _resize(entry, reader.tensors.get(reader.held[name]))


def _is_foreign(module: Any, path: str) -> bool:
    """Whether a module's way of loading is not one of torch.nn's, which only read older versions."""
    child = module.get_submodule(path)
    method, calls = torch_private.find_load(child), torch_private.get_pre_hooks(child)
    hooks = (getattr(hook, "hook", hook) for hook in (calls or {}).values())
    return not all(str(getattr(way, "__module__", "")).startswith("torch.nn.") for way in (method, *hooks))


def _versions(metadata: Any, reading: Reading, places: Mapping[str, str]) -> Any:
    """What the state says of its modules, by their paths in the target."""
    if not isinstance(metadata, dict):
        return metadata
    result: dict[Any, Any] = {}
    for path in sorted(metadata, key=lambda path: str(path).count(".")):  # of wrapped modules the innermost counts
        there = reading.module(path, places) if type(path) is str else path
        if there is not None:
            result[there] = _without_assign(metadata[path])
    return result


def _without_assign(metadata: Any) -> Any:
    """A copy of a module's metadata without what `load_state_dict(assign=True)` leaves in the dict it was given."""
    if not isinstance(metadata, dict):
        return metadata
    return {key: value for key, value in metadata.items() if key != "assign_to_params_buffers"}
