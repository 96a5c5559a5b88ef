"""`torch.nn.Module`: parameters and persistent buffers, by name, through its own `state_dict` and `load_state_dict`.

So that hooks, `get_extra_state` and overridden `_load_from_state_dict` are honoured. The tensors stay where they are
and are filled straight from the file; modules that load in a way of their own get what they would get from PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from statedict.adapters import Capture, join
from statedict.adapters.history import brought_up_to_date
from statedict.adapters.names import Reading, unwrapped
from statedict.adapters.plan import Plan
from statedict.adapters.rehearsal import Rehearsal, rehearse, special
from statedict.adapters.shapes import Fit
from statedict.adapters.ties import Ties
from statedict.adapters.torch_transfer import transfer
from statedict.dtypes import dtype
from statedict.paths import matches
from statedict.tensor import LazyTensor, as_lazy, is_array
from statedict.tree import StateDict, like

STAGE = 0
_RUNNING = re.compile(r"\brunning_(mean|var)$")
_ABSENT = "the target has it, the state does not"


def accepts(value: Any) -> bool:
    """Whether it is a module."""
    import torch

    return isinstance(value, torch.nn.Module)


def names(module: Any) -> dict[int, str]:
    """The id of each parameter → its name, the first one for a tied parameter."""
    return {id(parameter): name for name, parameter in module.named_parameters()}


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its `state_dict()`, live."""
    own = value.state_dict()
    state = like(own, StateDict())
    for name, entry in own.items():
        state[name] = context.value(entry, join(path, name))
    return state


@dataclass(slots=True)
class _Matching:
    """How a state is read for a module.

    Attributes:
        held: name in the module → name in the state.
        given: name under which `load_state_dict` gets it → name in the state.
        unread: names of the state that nothing takes.
        made: names in the module that its own loading makes from others.
        own: names whose modules judge their shapes themselves.
        metadata: the state's, by the module's names.
        errors: what the module's own loading said.
    """

    held: dict[str, str]
    given: dict[str, str]
    unread: list[Any]
    made: set[str] = field(default_factory=set)
    own: frozenset[str] = frozenset()
    metadata: Any = None
    errors: tuple[str, ...] = ()


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Compare names, shapes and dtypes; then fill the tensors and let the module load."""
    if not isinstance(state, dict):
        plan.problem("kind", path, f"a module is restored from a dict, the state has a {type(state).__name__} there")
        return
    own = value.state_dict()
    tensors = {name: as_lazy(held) for name, held in state.items() if is_array(held)}
    matching = _match(value, own, state, tensors, plan, path)
    if matching is None:
        return
    live = dict(value.named_parameters(remove_duplicate=False))
    parameters = list(live)
    live |= value.named_buffers(remove_duplicate=False)
    fits = _compare(own, state, tensors, matching, live, plan, path)
    _tell_optimizers(tensors, matching, fits, {name: live[name] for name in parameters}, plan, path)
    _meta_buffers(own, live, plan, path)
    plan.act(path, lambda: _load(value, state, tensors, matching, fits, live))


def _match(
    module: Any, own: Any, state: Any, tensors: Mapping[str, LazyTensor], plan: Plan, path: str
) -> _Matching | None:
    """How the names of a state are read as those of a module; None where that cannot be told."""
    known = {name: name for name in state if type(name) is str}
    metadata = getattr(state, "_metadata", None)
    modules = [(name, type(child)) for name, child in module.named_modules()]
    past = brought_up_to_date(modules, known, metadata, own)
    if past is not None:
        if past.problem:
            plan.problem("version", path, past.problem)
            return None
        plan.notes += [f"{path}: {note}" if path else note for note in past.notes]
        known = {}
        for name in (name for name in state if type(name) is str):
            now = past.names.get(name, name)
            if known.setdefault(now, name) != name:
                plan.problem("collision", path, f"{known[now]!r} and {name!r} both become {now!r}")
            if now != name:
                plan.origins.setdefault(join(path, name), name)
        metadata = past.metadata
    reading = plan.align(own, known, path)
    if reading is None:
        return None
    pairs = reading.pairs
    if isinstance(metadata, dict):
        metadata = _versions(metadata, pairs)
    held = {name: known[now] for name, now in pairs.items()}
    read = set(held.values())
    unread = [name for name in state if name not in read]
    matching = _Matching(held, dict(held), unread, metadata=metadata)
    odd = [name for name in own if name not in held or _resized(own[name], tensors.get(held[name]))]
    if unread or odd:
        _rehearse(module, own, odd, tensors, known, reading, matching)
    return matching


def _resized(entry: Any, tensor: LazyTensor | None) -> bool:
    return tensor is not None and is_array(entry) and (_is_lazy(entry) or entry.shape != tensor.shape)


def _rehearse(
    module: Any,
    own: Any,
    odd: list[str],
    tensors: Mapping[str, LazyTensor],
    known: dict[str, str],
    reading: Reading,
    matching: _Matching,
) -> None:
    """Where names or shapes differ, what modules that load in a way of their own make of the state."""
    prefixes = tuple(path + "." if path else "" for path in special(module))
    if not prefixes:
        return
    modules = {unwrapped(name): name for name, _ in module.named_modules()}
    given = dict(matching.held)
    unread = set(matching.unread)
    for now, name in known.items():
        if name in unread and (there := reading.translate(now, modules)) is not None:
            given.setdefault(there, name)
            odd.append(there)
    if not any(name.startswith(prefixes) for name in odd):
        return
    entries = {name: tensors[old] for name, old in given.items() if old in tensors}
    found: Rehearsal | None = rehearse(module, entries, matching.metadata, own)
    if found is None or not (found.taken or found.errors):
        return
    matching.held = {name: given[before] for name, before in found.held.items() if before and name in own} | {
        name: old for name, old in matching.held.items() if old not in tensors
    }  # extra state, which no twin gets
    matching.made = {name for name, before in found.held.items() if not before and name in own}
    read = {given[name] for name in found.taken} | set(matching.held.values())
    matching.given = {name: old for name, old in given.items() if old in read}
    matching.unread = [name for name in matching.unread if name not in read]
    matching.own, matching.errors = found.own, tuple(e for e in found.errors if not e.startswith("size mismatch"))


def _compare(
    own: Any,
    state: Any,
    tensors: Mapping[str, LazyTensor],
    matching: _Matching,
    live: Mapping[str, Any],
    plan: Plan,
    path: str,
) -> dict[str, Fit]:
    """Report what becomes of each entry; the shapes that change."""
    ties = Ties(live, (name for name in own if name in matching.held))
    fits: dict[str, Fit] = {}
    absent: dict[str, Any] = {}
    for name, entry in own.items():
        full = join(path, name)
        if name in matching.made:
            plan.note("made", full, "by the module's own loading")
        elif name in matching.held:
            fit = _entry(name, entry, state, tensors, matching, ties, plan, path)
            if fit is not None:
                fits[name] = fit
                if fit.policy == "overlap" and live[name].is_meta:
                    plan.problem("shape", full, "'overlap' leaves the rest as it is, and the target has no values yet")
        elif ties.partner(name) is not None:
            plan.note("tied", full, f"the target ties it to {ties.partner(name)}, which the state has")
        else:
            absent[full] = _kind(entry)
            meta = name in live and live[name].is_meta
            plan.missing(full, _ABSENT + "; it stays on the meta device, without values" * meta)
    for error in matching.errors:
        plan.problem("refused", path, f"by the module's own loading: {error}")
    for name in matching.unread:
        if plan.unexpected(join(path, name)):
            plan.read_as[join(path, name)] = None
    plan.look_for_renames(absent, {join(path, name): _kind(state[name]) for name in matching.unread})
    return fits


def _entry(
    name: str,
    entry: Any,
    state: Any,
    tensors: Mapping[str, LazyTensor],
    matching: _Matching,
    ties: Ties,
    plan: Plan,
    path: str,
) -> Fit | None:
    """Report what becomes of an entry that the state has."""
    full, old = join(path, name), matching.held[name]
    tensor = tensors.get(old)
    if not is_array(entry) or name.rpartition(".")[2] == "_extra_state":  # of any kind and shape
        plan.note("restored", full)
    elif tensor is None:
        plan.problem("kind", full, f"the target is a tensor, the state has a {type(state[old]).__name__}")
    elif _is_lazy(entry) or (name in matching.own and tuple(entry.shape) != tensor.shape):
        plan.note("restored", full, f"takes its shape {tensor.shape} from the state")
    else:
        origin = plan.origins.get(join(path, old), "" if matching.given.get(name) == old else old)
        fit = plan.tensor(tuple(entry.shape), dtype(entry.dtype), tensor, full, origin)
        if isinstance(fit, Fit):
            return fit
        action, detail = ties.judge(name, tensor) if fit else ("", "")
        if action == "tie":
            plan.problem(action, full, detail)
        elif action:
            plan.retell(action, detail)
    return None


def _meta_buffers(own: Any, live: Mapping[str, Any], plan: Plan, path: str) -> None:
    """Buffers that no state has, and that have no values either."""
    for name, tensor in live.items():
        if name not in own and tensor.is_meta:
            plan.note(
                "missing",
                join(path, name),
                "a buffer that is not persistent, on the meta device; give it values yourself",
            )


def _tell_optimizers(
    tensors: Mapping[str, LazyTensor],
    matching: _Matching,
    fits: Mapping[str, Fit],
    parameters: Mapping[str, Any],
    plan: Plan,
    path: str,
) -> None:
    """What the optimizers of these parameters need to follow them."""
    turned = {old: name for name, old in matching.held.items()}
    plan.read_as |= {join(path, old): join(path, name) for old, name in turned.items() if old != name}
    for old, tensor in tensors.items():
        parameter = parameters.get(turned.get(old, ""))
        if parameter is not None and id(parameter) in plan.names:
            plan.shapes_in_state.setdefault(plan.names[id(parameter)], tensor.shape)
        elif old not in turned and tensor.dtype.kind in ("float", "complex") and not _RUNNING.search(old):
            plan.shapes_in_state.setdefault(old, tensor.shape)  # a parameter at that time, it may be
    for name, parameter in parameters.items():
        if name in fits:
            plan.fates[id(parameter)] = fits[name]
        elif name not in matching.held and matches(join(path, name), plan.options.allow_missing):
            plan.absent_parameters.add(plan.names.get(id(parameter), name))


def _kind(entry: Any) -> Any:
    """What agrees in two entries that are one under two names."""
    return (tuple(entry.shape), dtype(entry.dtype)) if is_array(entry) and not _is_lazy(entry) else type(entry)


def _is_lazy(entry: Any) -> bool:
    import torch

    return bool(torch.nn.parameter.is_lazy(entry))


def _versions(metadata: Any, pairs: dict[str, str]) -> Any:
    """What the state says of its modules, by their names in the target."""
    modules = {old.rpartition(".")[0]: new.rpartition(".")[0] for new, old in pairs.items()}
    return {modules.get(name, name): _without_assign(entry) for name, entry in metadata.items()}


def _without_assign(metadata: Any) -> Any:
    """A copy of a module's metadata without what `load_state_dict(assign=True)` leaves in the dict it was given."""
    if not isinstance(metadata, dict):
        return metadata
    return {key: value for key, value in metadata.items() if key != "assign_to_params_buffers"}


def _load(
    module: Any,
    state: Any,
    tensors: Mapping[str, LazyTensor],
    matching: _Matching,
    fits: Mapping[str, Fit],
    live: Mapping[str, Any],
) -> None:
    """Fill what can be filled directly, then `load_state_dict` with the rest."""
    import torch

    for name, tensor in live.items():
        if name in matching.held and tensor.is_meta and not _skipped(fits.get(name)):
            _materialize(tensor, tensor.shape if name in fits else tensors[matching.held[name]].shape)
    methods = special(module)
    above = tuple(path + "." if path else "" for path in methods)
    # where somebody looks at what was loaded, everything is given; what is filled already costs nothing then
    watched = type(module).load_state_dict is not torch.nn.Module.load_state_dict or any(
        child._load_state_dict_post_hooks for child in module.modules()
    )
    chosen: Any = StateDict()
    chosen._metadata = matching.metadata
    direct: dict[int, tuple[LazyTensor, Any]] = {}
    for given, old in matching.given.items():
        if old not in tensors:
            chosen[given] = StateDict({"": state[old]}).torch(copy=True)[""]
            continue
        fit, tensor, target = fits.get(given), tensors[old], live.get(given)
        if _skipped(fit):
            continue
        if fit is not None:
            chosen[given] = fit.apply(tensor, base=target if fit.policy == "overlap" else None)
        elif target is None or _is_lazy(target) or given.startswith(above) or matching.held.get(given) != old:
            chosen[given] = tensor.torch(copy=methods.get(given.rpartition(".")[0], False))  # a method may keep it
        else:
            direct[id(target)] = tensor, target
            if watched:
                chosen[given] = target
    transfer(direct.values())
    result = module.load_state_dict(chosen, strict=False)
    if result.unexpected_keys:
        raise RuntimeError(f"{type(module).__name__}.load_state_dict refused {result.unexpected_keys[:3]}")


def _skipped(fit: Fit | None) -> bool:
    return fit is not None and fit.policy == "skip"


def _materialize(tensor: Any, shape: tuple[int, ...]) -> None:
    """Give a tensor of the meta device memory, in place: its ties stay, and an optimizer that has it still does."""
    import torch

    if torch.nn.parameter.is_lazy(tensor):
        tensor.materialize(shape)
    with torch.inference_mode(False), torch.no_grad():
        real: Any = torch.empty_like(tensor.detach(), device="cpu")
        if isinstance(tensor, torch.nn.Parameter):
            real = torch.nn.Parameter(real, requires_grad=tensor.requires_grad)
        real.__dict__.update(tensor.__dict__)
        torch.utils.swap_tensors(tensor, real)  # type: ignore[no-untyped-call]
