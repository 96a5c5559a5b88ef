"""`torch.nn.Module`: parameters and persistent buffers, by name, through its own `state_dict` and `load_state_dict`.

So that hooks, `get_extra_state` and overridden `_load_from_state_dict` are honoured. The tensors stay where they are:
`copy_` from a LazyTensor reads from the file straight into the parameter.
"""

from __future__ import annotations

from typing import Any

from statedict.adapters import Capture, Plan, join
from statedict.dtypes import dtype
from statedict.tensor import as_lazy, is_array
from statedict.tree import StateDict, like


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


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Compare names, shapes and dtypes; then `load_state_dict`."""
    import torch

    if not isinstance(state, dict):
        plan.problem("kind", path, f"a module is restored from a dict, the state has a {type(state).__name__} there")
        return
    own = value.state_dict()
    pairs = plan.align(own, (name for name in state if type(name) is str), path)
    if pairs is None:
        return
    chosen = like(state, StateDict())
    if isinstance(chosen._metadata, dict):
        chosen._metadata = _versions(chosen._metadata, pairs)
    regions: dict[object, str] = {}
    for name, entry in own.items():
        full = join(path, name)
        if name not in pairs:
            plan.missing(full)
            continue
        held = state[pairs[name]]
        if not isinstance(entry, torch.Tensor) or name.rpartition(".")[2] == "_extra_state":  # of any kind and shape
            plan.note("restored", full)
            chosen[name] = StateDict({"": held}).torch(copy=True)[""]
            continue
        if not is_array(held):
            plan.problem("kind", full, f"the target is a tensor, the state has a {type(held).__name__}")
            continue
        tensor = as_lazy(held)
        if torch.nn.parameter.is_lazy(entry):
            plan.note("restored", full, f"takes its shape {tensor.shape} from the state")
        elif not plan.tensor(entry.shape, dtype(entry.dtype), tensor, full):
            continue
        region = (tensor.storage.key, tensor.offset, tensor.shape)
        if tensor.numel() and region in regions:
            plan.entries.pop()
            plan.note("tied", full, f"shares its bytes with {regions[region]}")
        regions.setdefault(region, full)
        chosen[name] = tensor
    read = set(pairs.values())
    for name in state:
        if name not in read:
            plan.unexpected(join(path, name))
    absent = {join(path, name): _kind(entry) for name, entry in own.items() if name not in pairs}
    plan.suggest(absent, {join(path, name): _kind(held) for name, held in state.items() if name not in read})
    plan.actions.append(lambda: _load(value, chosen))


def _kind(entry: Any) -> Any:
    """What agrees in two entries that are one under two names."""
    return (tuple(entry.shape), dtype(entry.dtype)) if is_array(entry) else type(entry)


def _versions(metadata: Any, pairs: dict[str, str]) -> Any:
    """What the state says of its modules, by their names in the target."""
    modules = {old.rpartition(".")[0]: new.rpartition(".")[0] for new, old in pairs.items()}
    return {modules.get(name, name): _without_assign(entry) for name, entry in metadata.items()}


def _without_assign(metadata: Any) -> Any:
    """A copy of a module's metadata without what `load_state_dict(assign=True)` leaves in the dict it was given."""
    if not isinstance(metadata, dict):
        return metadata
    return {key: value for key, value in metadata.items() if key != "assign_to_params_buffers"}


def _load(module: Any, state: StateDict) -> None:
    for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]:
        if name in state and tensor.is_meta:
            _materialize(tensor, state[name].shape)
    result = module.load_state_dict(state, strict=False)
    if result.unexpected_keys:
        raise RuntimeError(f"{type(module).__name__}.load_state_dict refused {result.unexpected_keys[:3]}")


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
