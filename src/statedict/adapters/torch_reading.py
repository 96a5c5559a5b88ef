"""How a state is read for a module: by names as they are, renamed, below a prefix, or as the module itself reads it.

Modules may translate older states themselves, with `_load_from_state_dict` of their own or with hooks before it: the
new weight_norm takes `weight_g`, the observers of quantization take buffers of any size. Where names or shapes do not
fit, the state is loaded into a twin of the module that has the same modules and hooks but tensors of the meta device,
which have shapes and no memory.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from statedict import torch_private
from statedict.adapters import join
from statedict.adapters.history import apply_history
from statedict.adapters.names import Reading
from statedict.adapters.plan import Plan
from statedict.errors import UnsupportedError
from statedict.tensor.lazy import LazyTensor, as_lazy, is_array
from statedict.tree.roles import unwrap

_MISMATCH = re.compile(r"size mismatch for (\S+?):")


@dataclass(slots=True)
class Rehearsal:
    """What became of a state that was loaded into a twin of a module."""

    sources: dict[str, str] = field(default_factory=dict)  # name in the module → whose tensor it got, "" if from others
    reads: set[str] = field(default_factory=set)  # names in the state that were read, by hooks or by the modules
    shapers: set[str] = field(default_factory=set)  # names whose modules load in their own way, and judge shapes
    errors: list[str] = field(default_factory=list)  # what the modules said
    dtypes: dict[str, Any] = field(default_factory=dict)  # name in the module → PyTorch's dtype of what was made for it


@dataclass(slots=True)
class Reader:
    """A module, a state, and how one is read for the other."""

    module: Any
    state: Any
    path: str  # where both stand
    own: Any  # the module's own `state_dict()`
    live: dict[str, Any]  # its parameters and buffers by all their names
    parameters: list[str]  # the names of its parameters
    tensors: dict[str, LazyTensor]  # the state's
    origins: dict[str, str]  # name in the state → what it was called before it was renamed
    metadata: Any = None  # the state's, by the module's names
    ways: Mapping[str, bool] = field(default_factory=dict)  # `special` of its modules
    sources: dict[str, str] = field(default_factory=dict)  # name in the module → name in the state
    inputs: dict[str, str] = field(default_factory=dict)  # name under which `load_state_dict` gets it → in the state
    replacements: dict[str, Any] = field(default_factory=dict)  # that name → what it gets instead of what the state has
    leftovers: list[Any] = field(default_factory=list)  # names of the state that nothing takes
    products: set[str] = field(default_factory=set)  # names in the module that its own loading makes from others
    rehearsal: Rehearsal = field(default_factory=Rehearsal)  # of the module's own loading, where that was asked

    def original(self, name: Any) -> Any:
        """What an entry of the state was called before it was renamed."""
        return self.origins.get(name, name)

    def old_name(self, name: str) -> str:
        """What an entry of the module is called in the state, if it is another name."""
        old = self.sources[name]
        return self.origins.get(old, "" if self.inputs.get(name) == old else old)


def read(module: Any, state: Any, plan: Plan, path: str) -> Reader | None:
    """How the state is read; None where that cannot be told, which is then a problem of the plan."""
    tensors: dict[str, LazyTensor] = {}
    for name, held in state.items():
        if is_lazy(held):
            plan.problem("kind", join(path, name), "the state has a parameter that has taken no shape yet")
        elif is_array(held):
            try:
                tensors[name] = as_lazy(held)
            except UnsupportedError as error:
                plan.problem("kind", join(path, name), str(error))
    own = module.state_dict()
    strings = [name for name in state if type(name) is str]
    origins = {name: plan.origins[full] for name in strings if (full := join(path, name)) in plan.origins}
    reader = Reader(module, state, path, own, *_live(module, own), tensors, origins, getattr(state, "_metadata", None))
    modules = [*module.named_modules(remove_duplicate=False)]
    known = _update_names(reader, modules, strings, plan)
    reading = None if known is None else plan.align(reader.own, known, path)
    if known is None or reading is None:
        return None
    places = {unwrap(name): name for name, _ in modules}
    reader.metadata = _versions(reader.metadata, reading, places)
    reader.sources = {name: known[now] for name, now in reading.pairs.items()}
    reader.inputs = dict(reader.sources)
    taken = set(reader.sources.values())
    reader.leftovers = [name for name in state if name not in taken]
    reader.ways = special(modules)
    if reader.ways:
        _ask_module(reader, known, reading, places)
    return reader


def _update_names(
    reader: Reader, modules: list[tuple[str, Any]], names: list[str], plan: Plan
) -> dict[str, str] | None:
    """Names of the state as the code has them now → as they are; None where that cannot be told."""
    known = {name: name for name in names}
    past = apply_history(((name, type(child)) for name, child in modules), known, reader.metadata, reader.own)
    if past is None:
        return known
    if past.problem:
        plan.problem("version", reader.path, past.problem)
        return None
    plan.notes += [f"{reader.path}: {note}" if reader.path else note for note in past.notes]
    known = {}
    for name in names:
        now = past.names.get(name, name)
        if known.setdefault(now, name) != name:
            plan.problem("collision", reader.path, f"{known[now]!r} and {name!r} both become {now!r}")
        if now != name:
            reader.origins.setdefault(name, name)
    reader.metadata = past.metadata
    return known


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
    import torch

    return torch.nn.parameter.is_lazy(entry)


def _ask_module(reader: Reader, known: dict[str, str], reading: Reading, places: Mapping[str, str]) -> None:
    """What modules that load in a way of their own make of the state.

    PyTorch's own are asked where names or shapes differ; anybody else's always, for it may do anything.
    """
    odd = []
    for name, entry in reader.own.items():
        tensor = reader.tensors.get(reader.sources.get(name, ""))
        resized = tensor is not None and is_array(entry) and (is_lazy(entry) or entry.shape != tensor.shape)
        if name not in reader.sources or resized:
            odd.append(name)
    given, unread = dict(reader.sources), set(reader.leftovers)
    for now, name in known.items():
        if name in unread and (there := reading.translate(now, places)) is not None:
            given.setdefault(there, name)
            odd.append(there)
    below = tuple(path + "." if path else "" for path in reader.ways)
    if not any(name.startswith(below) for name in odd) and not any(
        _is_foreign(reader.module, at) for at in reader.ways
    ):
        return
    entries = {name: reader.tensors[old] for name, old in given.items() if old in reader.tensors}
    result = rehearse(reader.module, entries, reader.metadata, reader.own, reader.live)
    if result is None or not (result.reads or result.errors):
        return
    extra = {name: old for name, old in reader.sources.items() if old not in reader.tensors}  # no twin gets extra state
    reader.sources = {
        name: given[before] for name, before in result.sources.items() if before and name in reader.own
    } | extra
    reader.products = {name for name, before in result.sources.items() if not before and name in reader.own}
    taken = {given[name] for name in result.reads} | set(reader.sources.values())
    reader.inputs = {name: old for name, old in given.items() if old in taken}
    reader.leftovers = [name for name in reader.state if name not in taken]
    reader.rehearsal = result


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
        entry = metadata[path]
        if there is not None:
            assign = "assign_to_params_buffers"  # which `load_state_dict(assign=True)` leaves in the dict it was given
            result[there] = {k: v for k, v in entry.items() if k != assign} if isinstance(entry, dict) else entry
    return result


# rehearsal


def special(modules: Iterable[tuple[str, Any]]) -> dict[str, bool]:
    """The paths of the modules that load in a way of their own → whether by a method, not by hooks before it only."""
    usual, found = torch_private.find_load(), dict[str, bool]()
    for path, child in modules:
        by_method = usual is None or torch_private.find_load(child) is not usual
        if by_method or torch_private.get_pre_hooks(child) != {}:
            found[path] = by_method
    return found


def rehearse(
    module: Any, state: Mapping[str, LazyTensor], metadata: Any, own: Iterable[str], live: Mapping[str, Any]
) -> Rehearsal | None:
    """Load a state into a twin of a module; None where there can be no twin, as of TorchScript.

    `state` and `metadata` go by the module's names where they have one. `live` has the module's tensors by its `own`
    names, which in a wrapper may not be where they stand.
    """
    import torch

    if torch_private.find_load() is None:
        return None
    places = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    where = {id(tensor): name for name, tensor in places.items()}
    names = {name if name in places else where.get(id(live.get(name)), name): name for name in own}
    shells = {name: torch.empty(t.shape, dtype=t.dtype.torch, device="meta") for name, t in state.items()}
    try:
        result = _load_into(_twin(module, {}), shells, metadata, names)
        if result.errors:  # it may be of a hook that looks at values
            values = {name: tensor.torch(copy=True) for name, tensor in state.items()}
            result = _load_into(_twin(module, {}), values, metadata, names)
    except (TypeError, AttributeError, RuntimeError):
        return None
    return result


def _load_into(twin: Any, state: dict[str, Any], metadata: Any, names: Mapping[str, str]) -> Rehearsal:
    """Load a state into a twin, module by module as `Module.load_state_dict` does; `names` are the module's own."""
    import torch

    result = Rehearsal()
    origins = {id(tensor): name for name, tensor in state.items()}
    inside: dict[str, list[tuple[str, str]]] = {}  # path of a module → names in it, and what they are called
    for name, called in names.items():
        inside.setdefault(name.rpartition(".")[0], []).append((name, called))
    entries: Any = OrderedDict(state)
    entries._metadata = versions = metadata if isinstance(metadata, dict) else {}

    def load_module(module: Any, entries: dict[str, Any], path: str) -> None:
        prefix = path + "." if path else ""
        before, missing, load = dict(entries), list[str](), torch_private.find_load(module)
        try:
            load(module, entries, prefix, versions.get(path, {}), True, missing, [], result.errors)
        except Exception as error:  # a hook's own
            result.errors.append(f"{path or 'the module'}: {type(error).__name__}: {error}")
        result.reads |= {name for name in before if entries.get(name) is not before[name]} & state.keys()
        by_method = load is not torch_private.find_load()
        for name, called in inside.get(path, ()):
            if name not in missing and (name in entries or by_method):
                result.sources[called] = origins.get(id(entries.get(name)), "")
                if not result.sources[called] and name in entries:
                    result.dtypes[called] = getattr(entries[name], "dtype", None)
                if by_method:
                    result.shapers.add(called)
        below: dict[str, dict[str, Any]] = {}
        for name, value in entries.items():
            if name.startswith(prefix):
                below.setdefault(name[len(prefix) :].partition(".")[0], {})[name] = value
        for name, child in torch_private.get_parts(module)[2].items():
            if child is not None:
                load_module(child, below.get(name, {}), prefix + name)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of copies to the meta device
        load_module(twin, entries, "")
    result.reads |= state.keys() & set(result.sources.values())
    mismatches = {error: match[1] for error in result.errors if (match := _MISMATCH.match(error))}
    result.shapers -= set(mismatches.values())  # the plan says so itself
    result.errors = [error for error in result.errors if not result.sources.get(mismatches.get(error, ""))]
    return result


def _twin(module: Any, made: dict[int, Any]) -> Any:
    """The module with tensors of the meta device; its modules and hooks are twins too."""
    if id(module) in made:
        return made[id(module)]
    twin = made[id(module)] = object.__new__(type(module))
    parameters, buffers, modules = torch_private.get_parts(module)
    hooks = torch_private.get_pre_hooks(module)
    if hooks is None:
        raise TypeError(f"{type(module).__name__}: what it calls before it loads is not known")
    twin.__dict__.update(module.__dict__)
    twin.__dict__.update(
        _parameters={name: _shell(tensor) for name, tensor in parameters.items()},
        _buffers={name: _shell(tensor) for name, tensor in buffers.items()},
        _modules={name: child and _twin(child, made) for name, child in modules.items()},
        _load_state_dict_pre_hooks=OrderedDict((key, _rebind(hook, module, twin)) for key, hook in hooks.items()),
    )
    return twin


def _shell(tensor: Any) -> Any:
    """A tensor like this one without memory."""
    import torch

    if tensor is None:
        return None
    if torch.nn.parameter.is_lazy(tensor):
        lazy: Any = type(tensor)
        return lazy(device="meta", dtype=tensor.dtype)
    shell = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.nn.Parameter(shell, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else shell


def _rebind(hook: Any, module: Any, twin: Any) -> Any:
    """A hook of the module, to be called for its twin."""
    inner = getattr(hook, "hook", hook)
    if getattr(inner, "__self__", None) is module:
        inner = MethodType(inner.__func__, twin)
    if not getattr(hook, "with_module", False):
        return inner
    return lambda *args: inner(twin, *args)
