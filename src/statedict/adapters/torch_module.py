"""`torch.nn.Module`: parameters and persistent buffers, by name, through its own `state_dict` and `load_state_dict`.

So that hooks, `get_extra_state` and overridden `_load_from_state_dict` are honoured. The tensors stay where they are
and are filled straight from the file; modules that load in a way of their own get what they would get from PyTorch.
How names are read and what modules make of them: torch_reading.py.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from statedict import torch_private
from statedict.adapters import Capture, join
from statedict.adapters.labels import DROPPED
from statedict.adapters.plan import Plan
from statedict.adapters.rehearsal import special
from statedict.adapters.shapes import Fit
from statedict.adapters.shards import piece, refuse_parts
from statedict.adapters.ties import Ties, same_bytes
from statedict.adapters.torch_reading import Reader, is_lazy, read
from statedict.adapters.torch_transfer import transfer
from statedict.dtypes import dtype
from statedict.errors import UnsupportedError
from statedict.tensor.arrays import part_of
from statedict.tensor.lazy import LazyTensor, is_array
from statedict.tree.state_dict import StateDict, like
from statedict.tree.walk import matches

STAGE = 0
_RUNNING = re.compile(r"\brunning_(mean|var)$")
_ABSENT = "the target has it, the state does not"


def accepts(value: Any) -> bool:
    """Whether it is a module."""
    import torch

    return isinstance(value, torch.nn.Module)


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its `state_dict()`, live."""
    own = value.state_dict()
    refuse_parts(value, own, path)
    state = like(own, StateDict())
    for name, entry in own.items():
        state[name] = context.data(entry, join(path, name), value)
    return state


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Compare names, shapes and dtypes; then fill the tensors and let the module load."""
    if not isinstance(state, dict):
        plan.problem("kind", path, f"a module is restored from a dict, the state has a {type(state).__name__} there")
        return
    reader = read(value, state, plan, path)
    if reader is None:
        return
    _settle(reader, plan)
    fits = _compare(reader, plan)
    _tell_optimizers(reader, fits, plan)
    for name, tensor in reader.live.items():
        if name not in reader.own and tensor.is_meta:
            plan.note("missing", join(path, name), "is in no state, and has no values yet; give it some yourself")
    plan.act(path, lambda: _load(reader, fits))


def _settle(reader: Reader, plan: Plan) -> None:
    """Take no labels of objects as extra state."""
    changed: dict[str, Any] = {}
    for given, old in reader.given.items():
        value = reader.state[old]
        if not is_array(value) and not is_array(reader.own.get(given)):
            settled = plan.settle(value, reader.own.get(given), join(reader.path, given))
            if settled is not value:
                changed[given] = settled
    for given, settled in changed.items():
        if settled is DROPPED:
            del reader.given[given]
        else:
            reader.settled[given] = settled


def _compare(reader: Reader, plan: Plan) -> dict[str, Fit]:
    """Report what becomes of each entry; the shapes that change."""
    ties = Ties(reader.live, (name for name in reader.own if name in reader.held))
    fits: dict[str, Fit] = {}
    absent: dict[str, Any] = {}
    _cut(reader, plan)
    for name, entry in reader.own.items():
        full = join(reader.path, name)
        if name in reader.made:
            made, wanted = reader.kinds.get(name), getattr(entry, "dtype", None)
            if made != wanted and made is not None and not matches(full, plan.options.cast):
                plan.problem("dtype", full, f"the module makes {made} of the state, the target has {wanted}")
            else:
                plan.note("made", full, "by the module's own loading")
        elif name in reader.held:
            fit = _entry(name, reader, ties, plan)
            if fit is not None:
                fits[name] = fit
        elif ties.partner(name) is not None:
            plan.note("tied", full, f"the target ties it to {ties.partner(name)}, which the state has")
        else:
            absent[full] = _kind(entry)
            meta = name in reader.live and reader.live[name].is_meta
            plan.missing(full, _ABSENT + "; it stays on the meta device, without values" * meta)
    for name, fit in fits.items():
        partner = ties.partner(name)
        if partner is not None and fits.get(partner, fit).policy != fit.policy:
            plan.problem("tie", join(reader.path, name), f"the target ties it to {partner}, which has another policy")
    for error in reader.errors:
        plan.problem("refused", reader.path or "the module", f"by its own loading: {error}")
    for name in reader.unread:
        if plan.unexpected(join(reader.path, name)):
            plan.owners[join(reader.path, reader.original(name))] = None
    plan.look_for_renames(absent, {join(reader.path, name): _kind(reader.state[name]) for name in reader.unread})
    return fits


def _cut(reader: Reader, plan: Plan) -> None:
    """Of whole tensors take what the target has of them, where it says that it is a part."""
    for name, old in reader.held.items():
        live, tensor = reader.live.get(name), reader.tensors.get(old)
        if live is not None and tensor is not None:
            try:
                if part_of(live) is not None and tuple(reader.own[name].shape) == tuple(live.shape):
                    reader.tensors[old] = piece(live, tensor)
            except UnsupportedError as error:
                plan.problem("target", join(reader.path, name), str(error))


def _entry(name: str, reader: Reader, ties: Ties, plan: Plan) -> Fit | None:
    """Report what becomes of an entry that the state has."""
    entry, old = reader.own[name], reader.held[name]
    full, tensor, live = join(reader.path, name), reader.tensors.get(old), reader.live.get(name)
    if not is_array(entry) or name.rpartition(".")[2] == "_extra_state":  # of any kind and shape
        plan.note("restored", full)
        return None
    if tensor is None:
        if not is_array(reader.state[old]):  # of those something was said already
            plan.problem("kind", full, f"the target is a tensor, the state has a {type(reader.state[old]).__name__}")
        return None
    if is_lazy(entry) or (name in reader.judged and tuple(entry.shape) != tensor.shape):
        plan.note("restored", full, f"takes its shape {tensor.shape} from the state")
        return None
    if live is not None and _repeats(live):
        plan.problem("target", full, "its elements share memory, as those of expand() do; give it memory of its own")
        return None
    fit = plan.tensor(tuple(entry.shape), dtype(entry.dtype), tensor, full, reader.renamed(name))
    if fit is False:
        return None
    elsewhere, held = plan.filled.setdefault(id(live), (reader.path, tensor))
    if live is not None and elsewhere != reader.path and not same_bytes(held, tensor):
        plan.problem("tie", full, f"is in {elsewhere or 'the whole'} too, for which the state has other values")
    action, detail = ties.judge(name, tensor)
    if action == "tie":
        plan.problem(action, full, detail)
    elif action and fit is True:
        plan.retell(action, detail)
    if isinstance(fit, Fit) and fit.policy == "overlap" and live is not None and live.is_meta:
        plan.problem("shape", full, "'overlap' leaves the rest as it is, and the target has no values yet")
    return fit if isinstance(fit, Fit) else None


def _repeats(tensor: Any) -> bool:
    """Whether elements share memory."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_contiguous():
        return False
    return any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _kind(entry: Any) -> Any:
    """What agrees in two entries that are one under two names."""
    return (tuple(entry.shape), dtype(entry.dtype)) if is_array(entry) and not is_lazy(entry) else type(entry)


def _tell_optimizers(reader: Reader, fits: dict[str, Fit], plan: Plan) -> None:
    """What the optimizers of these parameters need to follow them."""
    parameters = {name: reader.live[name] for name in reader.parameters}
    turned = {old: name for name, old in reader.held.items()}
    told: set[int] = set()
    for old, tensor in reader.tensors.items():
        full = join(reader.path, reader.original(old))
        parameter = parameters.get(turned.get(old, ""))
        if parameter is not None:
            plan.owners[full] = id(parameter)
            if id(parameter) not in told:
                plan.shapes[full] = id(parameter), tensor.shape
            told.add(id(parameter))
        elif old not in turned and tensor.dtype.kind in ("float", "complex") and not _RUNNING.search(old):
            plan.shapes[full] = None, tensor.shape  # a parameter at that time, it may be
    for name, parameter in parameters.items():
        plan.owners.setdefault(join(reader.path, name), id(parameter))  # by another of the names of a tied one
        if name in fits:
            plan.fates[id(parameter)] = fits[name]
        elif id(parameter) not in told and matches(join(reader.path, name), plan.options.allow_missing):
            plan.absent.add(id(parameter))


def _load(reader: Reader, fits: dict[str, Fit]) -> None:
    """Fill what can be filled directly, then `load_state_dict` with the rest."""
    import torch

    module, tensors = reader.module, reader.tensors
    for name, tensor in reader.live.items():
        if tensor.is_meta and (name in reader.made or name in reader.held) and not _is_skipped(fits.get(name)):
            old = reader.held.get(name, "")
            _materialize(tensor, tensor.shape if name in fits or old not in tensors else tensors[old].shape)
    methods = special(module.named_modules(remove_duplicate=False))
    above = tuple(path + "." if path else "" for path in methods)
    usual = torch.nn.Module.load_state_dict
    overridden = type(module).load_state_dict is not usual or "load_state_dict" in vars(module)
    # where somebody looks at what was loaded, everything is given; what is filled already costs nothing then
    watched = any(map(torch_private.is_watched, module.modules()))
    chosen: Any = StateDict()
    chosen._metadata = reader.metadata
    direct: dict[int, tuple[LazyTensor, Any]] = {}
    for given, old in reader.given.items():
        if old not in tensors:
            chosen[given] = StateDict({"": reader.settled.get(given, reader.state[old])}).torch(copy=True)[""]
            continue
        fit, tensor, target = fits.get(given), tensors[old], reader.live.get(given)
        if _is_skipped(fit):
            continue
        if fit is not None:
            chosen[given] = fit.apply(tensor, base=target if fit.policy == "overlap" else None)
        elif not overridden and target is not None and not is_lazy(target) and not given.startswith(above):
            direct[id(target)] = tensor, target
            if watched:
                chosen[given] = target
        else:  # a method may keep what it is given, or change it
            chosen[given] = tensor.torch(copy=overridden or methods.get(given.rpartition(".")[0], False))
    transfer(direct.values())
    loads = inspect.signature(module.load_state_dict).parameters
    options = {"strict": False} if "strict" in loads or any(p.kind is p.VAR_KEYWORD for p in loads.values()) else {}
    result = module.load_state_dict(chosen, **options)
    if getattr(result, "unexpected_keys", None):
        raise RuntimeError(f"{type(module).__name__}.load_state_dict refused {result.unexpected_keys[:3]}")


def _is_skipped(fit: Fit | None) -> bool:
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
        for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            if getattr(tensor, hooks, None) is not None:
                setattr(real, hooks, getattr(tensor, hooks))
        torch.utils.swap_tensors(tensor, real)  # type: ignore[no-untyped-call]
