"""What a module's own loading would do with a state, found out without touching the module.

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
from types import MethodType
from typing import Any

from statedict import torch_private
from statedict.tensor.lazy import LazyTensor

_MISMATCH = re.compile(r"size mismatch for (\S+?):")


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
        found = Rehearsal(_twin(module, {}), shells, metadata, names)
        if found.errors:  # it may be of a hook that looks at values
            values = {name: tensor.torch(copy=True) for name, tensor in state.items()}
            found = Rehearsal(_twin(module, {}), values, metadata, names)
    except (TypeError, AttributeError, RuntimeError):
        return None
    return found


class Rehearsal:
    """What became of a state that was loaded into a twin, as `Module.load_state_dict` goes about it.

    Attributes:
        sources: name in the module → the name in the state whose tensor it got, empty for one made from others.
        reads: names in the state that were read, by hooks or by the modules.
        shapers: names whose modules load in a way of their own, and judge shapes themselves.
        errors: what the modules said.
        dtypes: name in the module → PyTorch's dtype of what was made for it.
    """

    def __init__(self, twin: Any, state: dict[str, Any], metadata: Any, names: Mapping[str, str]) -> None:
        import torch

        self.sources: dict[str, str] = {}
        self.reads: set[str] = set()
        self.shapers: set[str] = set()
        self.errors: list[str] = []
        self.dtypes: dict[str, Any] = {}
        self._metadata = metadata if isinstance(metadata, dict) else {}
        self._state = set(state)
        self._origins = {id(tensor): name for name, tensor in state.items()}
        self._names: dict[str, list[tuple[str, str]]] = {}  # path of a module → names in it, and what they are called
        for name, called in names.items():
            self._names.setdefault(name.rpartition(".")[0], []).append((name, called))
        entries: Any = OrderedDict(state)
        entries._metadata = self._metadata
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of copies to the meta device
            self._load(twin, entries, "")
        self.reads |= state.keys() & set(self.sources.values())
        mismatches = {error: match[1] for error in self.errors if (match := _MISMATCH.match(error))}
        self.shapers -= set(mismatches.values())  # the plan says so itself
        self.errors = [error for error in self.errors if not self.sources.get(mismatches.get(error, ""))]

    def _load(self, module: Any, entries: dict[str, Any], path: str) -> None:
        prefix = path + "." if path else ""
        before, missing, load = dict(entries), list[str](), torch_private.find_load(module)
        try:
            load(module, entries, prefix, self._metadata.get(path, {}), True, missing, [], self.errors)
        except Exception as error:  # a hook's own
            self.errors.append(f"{path or 'the module'}: {type(error).__name__}: {error}")
        self.reads |= {name for name in before if entries.get(name) is not before[name]} & self._state
        ours = load is not torch_private.find_load()
        for name, called in self._names.get(path, ()):
            if name not in missing and (name in entries or ours):
                self.sources[called] = self._origins.get(id(entries.get(name)), "")
                if not self.sources[called] and name in entries:
                    self.dtypes[called] = getattr(entries[name], "dtype", None)
                if ours:
                    self.shapers.add(called)
        below: dict[str, dict[str, Any]] = {}
        for name, value in entries.items():
            if name.startswith(prefix):
                below.setdefault(name[len(prefix) :].partition(".")[0], {})[name] = value
        for name, child in torch_private.get_parts(module)[2].items():
            if child is not None:
                self._load(child, below.get(name, {}), prefix + name)


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
