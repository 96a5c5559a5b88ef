"""Renames that travel with the code: a class says what its entries were called before, and old files still load.

    @statedict.renamed_in(2, {"attn.*": "attention.*"})
    @statedict.renamed_in(1, {"layers.{n}.*": "blocks.{n}.*"})
    class Encoder(torch.nn.Module): ...

The rules are those of statedict/tree/rename.py, for names below the module, wherever it stands in a model. What a
module's `state_dict()` gives carries the version, beside PyTorch's own version of the module, as `renamed_in` in its
metadata. A state without it is from before version 1. A state without any metadata, such as a flat file of others, is
read as the version from which most names fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

from statedict.adapters.names import plain, unwrap
from statedict.errors import RenameError
from statedict.tree.rename import Rules, modules

_RULES = "_statedict_renamed_in"
_VERSION = "renamed_in"
Kind = TypeVar("Kind", bound=type)
Versions = dict[int, list[dict[str, str]]]
Known = list[tuple[str, Versions]]
"""Paths of modules and what their classes have registered, outer ones first."""


def renamed_in(version: int, rules: Mapping[str, str]) -> Callable[[Kind], Kind]:
    """Register on a `torch.nn.Module` class what was renamed in a version of it, so that `restore` reads older states.

    Args:
        version: 1 for the first refactoring, 2 for the next; each one once.
        rules: old name → new name below the module, in the language of `restore(rename=…)`.

    Returns:
        A class decorator; subclasses inherit what it registers.

    Raises:
        RenameError: a rule is malformed, the version is below 1 or registered already.

    >>> import statedict, torch
    >>> @statedict.renamed_in(1, {"fc": "head"})
    ... class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.head = torch.nn.Linear(2, 1)
    >>> old = {"fc.weight": torch.ones(1, 2), "fc.bias": torch.zeros(1)}
    >>> statedict.restore(Net(), old).paths("renamed")
    ['head.weight', 'head.bias']
    """
    if type(version) is not int or version < 1:
        raise RenameError(f"renamed_in({version!r}): versions are whole numbers and begin with 1")
    if not isinstance(rules, Mapping):
        raise RenameError(f"renamed_in({version}): expected rules as a dict, old name → new name, got {rules!r:.40}")
    Rules(rules)

    def register(kind: Kind) -> Kind:
        if not isinstance(kind, type) or not hasattr(kind, "load_state_dict"):
            raise RenameError(f"renamed_in({version}): is for classes of torch.nn.Module, not for {kind!r:.60}")
        if version in vars(kind).get(_RULES, {}):
            raise RenameError(f"renamed_in({version}): {kind.__name__} has a version {version} of its names already")
        if not versions(kind):
            module: Any = kind
            module.state_dict = _record_version(module.state_dict)
        if _RULES not in vars(kind):
            setattr(kind, _RULES, {})
        getattr(kind, _RULES)[version] = dict(rules)
        return kind

    return register


def versions(kind: type) -> Versions:
    """Version → the rules of each class that has some, of a class and those that it derives from."""
    found: Versions = {}
    for base in reversed(kind.__mro__):
        for version, rules in vars(base).get(_RULES, {}).items():
            found.setdefault(version, []).append(rules)
    return dict(sorted(found.items()))


def _record_version(save: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(save)
    def state_dict(self: Any, *args: Any, **options: Any) -> Any:
        made = save(self, *args, **options)
        prefix = args[1] if len(args) > 1 else options.get("prefix", "")
        metadata = getattr(made, "_metadata", {}).get(prefix[:-1])
        if isinstance(metadata, dict):
            metadata[_VERSION] = max(versions(type(self)))
        return made

    return state_dict


@dataclass(slots=True)
class Past:
    """What the names of a state became since it was made.

    Attributes:
        names: name in the state → its name now, for all that have changed.
        metadata: the state's metadata by the modules' names now.
        notes: what was read as which version.
        problem: why that cannot be told; empty if it can.
    """

    names: dict[str, str]
    metadata: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    fitting: int = 0


def brought_up_to_date(
    classes: Iterable[tuple[str, type]], names: Iterable[str], metadata: Mapping[str, Any] | None, target: Iterable[str]
) -> Past | None:
    """Apply what the classes of modules have registered to the names of a state; None where none has anything.

    Args:
        classes: path and class of each module, outer ones first.
        names: those of the state.
        metadata: module → its metadata, as PyTorch keeps it beside the state; None if there is none.
        target: the names that the model has.
    """
    classes = list(classes)
    each = {kind: versions(kind) for kind in {kind for _, kind in classes}}
    found = [(unwrap(path), each[kind]) for path, kind in classes if each[kind]]
    if not found:
        return None
    names, wanted = list(names), {plain(name) for name in target}
    best: Past | None = None
    for above, below in _places(names, wanted):  # either side may have the model below a prefix
        inside = [((path + ".").removeprefix(below).rstrip("."), known) for path, known in found]
        past = _update(inside, above, names, metadata, {name.removeprefix(below) for name in wanted})
        if best is None or past.fitting > best.fitting:
            best = past
        if best.fitting >= len(wanted):
            break
    return best


def _places(names: list[str], wanted: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What may stand before the names of either side: nothing, or the first keys of one of them."""
    yield "", ""
    yield from ((above, "") for above in _prefixes(names))
    yield from (("", below) for below in _prefixes(wanted))


def _prefixes(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        keys = plain(name).split(".")
        for depth in (1, 2):
            above = ".".join([*keys[:depth], ""])
            if len(keys) > depth and above not in seen and len(seen) < 8:
                seen.add(above)
                yield above


def _update(found: Known, above: str, names: list[str], metadata: Mapping[str, Any] | None, wanted: set[str]) -> Past:
    now = {name: plain(name) for name in names}
    about = None if metadata is None else {unwrap(path): entry for path, entry in metadata.items()}
    past = Past({}, None)
    levels: dict[int, Known] = {}
    for path, known in found:
        levels.setdefault(len(path.split(".")) if path else 0, []).append((path, known))
    lead = above.count(".")
    for depth in sorted(levels):
        mine, inside = _below(now.items(), depth + lead), _below(((name, name) for name in wanted), depth)
        for path, known in levels[depth]:
            base = (above + path).rstrip(".")
            becomes, start, problem = _update_module(base, known, mine.get(base, {}), about, inside.get(path, {}))
            past.problem = past.problem or problem
            changed = {name: becomes[old] for name, old in mine.get(base, {}).items() if becomes.get(old, old) != old}
            if not changed:
                continue
            below = base + "." if base else ""
            past.notes.append(f"{base or 'the model'} from version {start} of its names, {max(known)} is the latest")
            if about is not None:
                for old, (new, *_) in modules((mine[base][name], new) for name, new in changed.items()).items():
                    if below + old in about:
                        about[below + new] = about.pop(below + old)
            now |= {name: below + new for name, new in changed.items()}
    past.names = {name: new for name, new in now.items() if new != plain(name)}
    past.metadata = about
    past.fitting = sum(new.removeprefix(above) in wanted for new in now.values())
    if len(past.notes) > 1 and len({note.split(" from ")[1] for note in past.notes}) == 1:
        past.notes = [f"{len(past.notes):,} modules from {past.notes[0].split(' from ')[1]}"]
    return past


def _below(names: Iterable[tuple[str, str]], depth: int) -> dict[str, dict[str, str]]:
    """Module of that many keys → name → what it is called within the module."""
    found: dict[str, dict[str, str]] = {}
    for name, new in names:
        keys = new.split(".")
        if len(keys) > depth:
            found.setdefault(".".join(keys[:depth]), {})[name] = ".".join(keys[depth:])
    return found


def _update_module(
    base: str, known: Versions, mine: Mapping[str, str], about: Mapping[str, Any] | None, inside: Mapping[str, str]
) -> tuple[dict[str, str], int, str]:
    """What the names of one module become, the version that they are from, and why that cannot be told."""
    where, latest = base or "the root", max(known)
    if about is None:
        start, becomes, other = _likeliest(list(mine.values()), known, set(inside.values()))
        return becomes, start, other and f"{where}: the state does not say which version it is, and {other}"
    entry = about.get(base)
    start = entry.get(_VERSION, 0) if isinstance(entry, dict) else 0
    if type(start) is not int or start > latest:
        return {}, 0, f"{where}: the state has version {start} of the names, the code {latest}"
    return _rename_names(mine.values(), known, start), start, ""


def _rename_names(names: Iterable[str], known: Versions, start: int) -> dict[str, str]:
    """Names as all versions after `start` make them."""
    steps = [Rules(rules) for version, several in known.items() if version > start for rules in several]
    result = {}
    for name in names:
        new = name
        for step in steps:
            new = step(new)
        result[name] = new
    return result


def _likeliest(names: list[str], known: Versions, wanted: set[str]) -> tuple[int, dict[str, str], str]:
    """The version from which most names fit, what they become, and what speaks against it."""
    beginnings = {name[:at] for name in wanted for at, letter in enumerate(name) if letter == "."}
    tried = {start: _rename_names(names, known, start) for start in (0, *known)}
    fitting = {
        start: (sum(new in wanted for new in made.values()), sum(_depth(new, beginnings) for new in made.values()))
        for start, made in tried.items()
    }
    start = max(reversed(fitting), key=fitting.__getitem__)
    for rival, made in tried.items():
        if fitting[rival] == fitting[start] and any(
            made[name] != tried[start][name] for name in names if made[name] in wanted
        ):
            other = f"version {start} and version {rival} fit alike; pass rename=… or save it with its metadata"
            return start, tried[start], other
    return start, tried[start], ""


def _depth(name: str, beginnings: set[str]) -> int:
    """How many keys of a name are right, for modules inside may have a history of their own."""
    keys = name.split(".")
    return sum(".".join(keys[:depth]) in beginnings for depth in range(1, len(keys)))
