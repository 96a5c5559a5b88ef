"""`torch.nn.Module`: parameters and persistent buffers, by name, through its own `state_dict` and `load_state_dict`.

So that hooks, `get_extra_state` and overridden `_load_from_state_dict` are honoured. The tensors stay where they are
and are filled straight from the file; modules that load in a way of their own get what they would get from PyTorch.
How names are read and what modules make of them: torch_reading.py.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from statedict import torch_private
from statedict.adapters import Capture, join, to_framework
from statedict.adapters.labels import DROPPED
from statedict.adapters.plan import MISSING, UNEXPECTED, Plan
from statedict.adapters.shapes import Fit, piece, refuse_parts, repeats_elements
from statedict.adapters.torch_reading import Reader, is_lazy, read
from statedict.adapters.torch_transfer import transfer
from statedict.dtypes import dtype
from statedict.errors import UnsupportedError
from statedict.io.pipeline import compute_sums
from statedict.reports.outcomes import Entry
from statedict.tensor.arrays import live_region
from statedict.tensor.lazy import LazyTensor, is_array
from statedict.tree.roles import module_state
from statedict.tree.state_dict import StateDict
from statedict.tree.walk import matches
from statedict.values import Opaque

STAGE = 0
_RUNNING = re.compile(r"\brunning_(mean|var)$")


def accepts(value: Any) -> bool:
    """Whether it is a module."""
    import torch

    return isinstance(value, torch.nn.Module)


def capture(value: Any, context: Capture, path: str) -> Any:
    """Its `state_dict()`, live."""
    own = value.state_dict()
    refuse_parts(value, own, path)
    return context.data(own, path, value)


def plan(value: Any, state: Any, plan: Plan, path: str) -> None:
    """Compare names, shapes and dtypes; then fill the tensors and let the module load."""
    given = type(state).__name__
    state = module_state(state) if isinstance(state, Opaque) else state
    if not isinstance(state, dict):
        plan.problem("kind", path, f"a module is restored from a dict, the state has a {given} there")
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
    plan.actions.append((path, lambda: _load(reader, fits)))


def _settle(reader: Reader, plan: Plan) -> None:
    """Take no labels of objects as extra state."""
    for given, old in [*reader.inputs.items()]:
        value, own = reader.state[old], reader.own.get(given)
        if _is_extra(given) or (not is_array(value) and not is_array(own)):
            settled = plan.settle(value, own, join(reader.path, given))
            if settled is DROPPED:
                del reader.inputs[given]
            elif settled is not value:
                reader.replacements[given] = settled


def _is_extra(name: str) -> bool:
    """Whether it is what `get_extra_state` gives, which is of any kind and shape."""
    return name.rpartition(".")[2] == "_extra_state"


class _Ties:
    """Which live tensors are one, held against those of a state."""

    def __init__(self, live: Mapping[str, Any], held: Iterable[str]) -> None:
        seen: dict[Any, str] = {}
        self._first = {name: seen.setdefault(live_region(tensor), name) for name, tensor in live.items()}
        self._held: dict[str, str] = {}
        for name in held:
            self._held.setdefault(self._first.get(name, name), name)
        self._regions: dict[object, str] = {}
        self._tensors: dict[str, LazyTensor] = {}

    def partner(self, name: str) -> str | None:
        """The first name that the state has of the same live tensor."""
        return self._held.get(self._first.get(name, name))

    def judge(self, name: str, tensor: LazyTensor) -> tuple[str, str]:
        """What to say of an entry of the state beside those before it: an action and its reason, or nothing.

        `tie` is the action of what cannot be: one live tensor, and two values for it.
        """
        self._tensors[name] = tensor
        twin = self._regions.setdefault(tensor.region, name)
        partner = self.partner(name)
        if twin != name:
            if self.partner(twin) == partner:
                return "tied", f"shares its bytes with {twin}"
            return "untied", f"the state ties it to {twin}, the target has it apart"
        if partner is None or partner == name or partner not in self._tensors:
            return "", ""
        if _is_same(tensor, self._tensors[partner]):
            return "tied", f"the target ties it to {partner}, the state has it twice"
        return "tie", f"the target ties it to {partner}, the state has other values for each"


def _is_same(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes; both may be read."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and _digest(one) == _digest(other)


def _digest(tensor: LazyTensor) -> object:
    rows = tensor.contiguous()
    return compute_sums(rows.storage.source, rows.storage.offset + rows.offset, rows.nbytes, crc=False).digest


def _compare(reader: Reader, plan: Plan) -> dict[str, Fit]:
    """Report what becomes of each entry; the shapes that change."""
    ties = _Ties(reader.live, (name for name in reader.own if name in reader.sources))
    fits: dict[str, Fit] = {}
    absent: dict[str, Any] = {}
    for name, entry in reader.own.items():
        full, partner = join(reader.path, name), ties.partner(name)
        if name in reader.products:
            made, wanted = reader.rehearsal.dtypes.get(name), getattr(entry, "dtype", None)
            if made != wanted and made is not None and not matches(full, plan.options.cast):
                plan.problem("dtype", full, f"the module makes {made} of the state, the target has {wanted}")
            else:
                plan.note("made", full, "by the module's own loading")
        elif name in reader.sources:
            fit = _compare_entry(name, reader, ties, plan)
            if fit is not None:
                fits[name] = fit
        elif partner is not None:
            plan.note("tied", full, f"the target ties it to {partner}, which the state has")
        else:
            absent[full] = _kind(entry)
            meta = name in reader.live and reader.live[name].is_meta
            plan.problem("missing", full, MISSING + "; it stays on the meta device, without values" * meta)
    for name, fit in fits.items():
        partner = ties.partner(name)
        if partner is not None and fits.get(partner, fit).policy != fit.policy:
            plan.problem("tie", join(reader.path, name), f"the target ties it to {partner}, which has another policy")
    for error in reader.rehearsal.errors:
        plan.problem("refused", reader.path or "the module", f"by its own loading: {error}")
    for name in reader.leftovers:
        if plan.problem("unexpected", join(reader.path, name), UNEXPECTED):
            plan.owners[join(reader.path, reader.original(name))] = None
    plan.look_for_renames(absent, {join(reader.path, name): _kind(reader.state[name]) for name in reader.leftovers})
    return fits


def _compare_entry(name: str, reader: Reader, ties: _Ties, plan: Plan) -> Fit | None:
    """Report what becomes of an entry that the state has."""
    entry, old = reader.own[name], reader.sources[name]
    full, tensor, live = join(reader.path, name), reader.tensors.get(old), reader.live.get(name)
    if not is_array(entry) or _is_extra(name):
        plan.note("restored", full)
        return None
    if tensor is None:
        if not is_array(reader.state[old]):  # of those something was said already
            plan.mismatch(full, entry, reader.state[old])
        return None
    lazy = is_lazy(entry)
    try:
        if live is not None and not lazy and tuple(entry.shape) == tuple(live.shape):
            tensor = reader.tensors[old] = piece(live, tensor)
    except UnsupportedError as error:
        plan.problem("target", full, str(error))
    if lazy or (name in reader.rehearsal.shapers and tuple(entry.shape) != tensor.shape):
        plan.note("restored", full, f"takes its shape {tensor.shape} from the state")
        return None
    if live is not None and str(live.layout) == "torch.strided" and repeats_elements(live.shape, live.stride()):
        plan.problem("target", full, "its elements share memory, as those of expand() do; give it memory of its own")
        return None
    fit = plan.tensor(tuple(entry.shape), dtype(entry.dtype), tensor, full, reader.old_name(name))
    if fit is False:
        return None
    elsewhere, held = plan.first_values.setdefault(id(live), (reader.path, tensor))
    if live is not None and elsewhere != reader.path and not _is_same(held, tensor):
        plan.problem("tie", full, f"is in {elsewhere or 'the whole'} too, for which the state has other values")
    action, detail = ties.judge(name, tensor)
    if action == "tie":
        plan.problem(action, full, detail)
    elif action and fit is True:
        plan.entries[-1] = Entry(full, action, detail)
    if fit is True:
        return None
    if fit.policy == "overlap" and live is not None and live.is_meta:
        plan.problem("shape", full, "'overlap' leaves the rest as it is, and the target has no values yet")
    return fit


def _kind(entry: Any) -> Any:
    """What agrees in two entries that are one under two names."""
    return (tuple(entry.shape), dtype(entry.dtype)) if is_array(entry) and not is_lazy(entry) else type(entry)


def _tell_optimizers(reader: Reader, fits: dict[str, Fit], plan: Plan) -> None:
    """What the optimizers of these parameters need to follow them."""
    parameters = {name: reader.live[name] for name in reader.parameters}
    names = {old: name for name, old in reader.sources.items()}
    told: set[int] = set()
    for old, tensor in reader.tensors.items():
        full = join(reader.path, reader.original(old))
        parameter = parameters.get(names.get(old, ""))
        if parameter is not None:
            plan.owners[full] = id(parameter)
            if id(parameter) not in told:
                plan.shapes[full] = id(parameter), tensor.shape
                plan.dtypes[id(parameter)] = tensor.dtype
            told.add(id(parameter))
        elif old not in names and tensor.dtype.kind in ("float", "complex") and not _RUNNING.search(old):
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
    skipped = {name for name, fit in fits.items() if fit.policy == "skip"}
    for name, tensor in reader.live.items():
        if tensor.is_meta and (name in reader.products or name in reader.sources) and name not in skipped:
            old = reader.sources.get(name, "")
            _materialize(tensor, tensor.shape if name in fits or old not in tensors else tensors[old].shape)
    above = tuple(path + "." if path else "" for path in reader.ways)
    usual = torch.nn.Module.load_state_dict
    overridden = type(module).load_state_dict is not usual or "load_state_dict" in vars(module)
    # where somebody looks at what was loaded, everything is given; what is filled already costs nothing then
    watched = any(map(torch_private.is_watched, module.modules()))
    chosen: Any = StateDict()
    chosen._metadata = reader.metadata
    direct: dict[int, tuple[LazyTensor, Any]] = {}
    for given, old in reader.inputs.items():
        if old not in tensors or _is_extra(given):
            value = reader.replacements.get(given, reader.state[old])
            chosen[given] = to_framework(value, reader.own.get(given))
            continue
        fit, tensor, target = fits.get(given), tensors[old], reader.live.get(given)
        if given in skipped:
            continue
        if fit is not None:
            chosen[given] = fit.apply(tensor, base=target if fit.policy == "overlap" else None)
        elif not overridden and target is not None and not is_lazy(target) and not given.startswith(above):
            direct[id(target)] = tensor, target
            if watched:
                chosen[given] = target
        else:  # a method may keep what it is given, or change it
            chosen[given] = tensor.torch(copy=overridden or reader.ways.get(given.rpartition(".")[0], False))
    transfer(direct.values())
    loads = inspect.signature(module.load_state_dict).parameters
    options = {"strict": False} if "strict" in loads or any(p.kind is p.VAR_KEYWORD for p in loads.values()) else {}
    result = module.load_state_dict(chosen, **options)
    if getattr(result, "unexpected_keys", None):
        raise RuntimeError(f"{type(module).__name__}.load_state_dict refused {result.unexpected_keys[:3]}")


def _materialize(tensor: Any, shape: tuple[int, ...]) -> None:
    """Give a tensor of the meta device memory, in place: its ties stay, and an optimizer that has it still does."""
    import torch

    if is_lazy(tensor):
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
