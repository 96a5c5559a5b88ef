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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce, wraps
from typing import Any, TypeVar

from statedict.errors import RenameError
from statedict.tree.rename import Rules, modules
from statedict.tree.roles import plain, unwrap

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
    """What the names of a state became since it was made."""

    names: dict[str, str]  # name in the state → its name now, for all that have changed
    metadata: dict[str, Any] | None  # the state's, by the modules' names now
    notes: list[str] = field(default_factory=list)  # what was read as which version
    problem: str = ""  # why that cannot be told
    fitting: int = 0  # how many of the names the model has


def apply_history(
    classes: Iterable[tuple[str, type]], names: Iterable[str], metadata: Mapping[str, Any] | None, target: Iterable[str]
) -> Past | None:
    """Apply what classes have registered to the names of a state; None where none has anything.

    `classes` has the path and class of each module, outer ones first; `metadata` is PyTorch's beside the state.
    """
    classes = list(classes)
    each = {kind: versions(kind) for kind in {kind for _, kind in classes}}
    found = [(unwrap(path), each[kind]) for path, kind in classes if each[kind]]
    if not found:
        return None
    names, wanted = list(names), {plain(name) for name in target}
    # either side may have the model below a prefix
    places = [("", ""), *((above, "") for above in _prefixes(names)), *(("", below) for below in _prefixes(wanted))]
    best: Past | None = None
    for above, below in places:
        inside = [((path + ".").removeprefix(below).rstrip("."), known) for path, known in found]
        past = _update(inside, above, names, metadata, {name.removeprefix(below) for name in wanted})
        if best is None or past.fitting > best.fitting:
            best = past
        if best.fitting >= len(wanted):
            break
    return best


def _prefixes(names: Iterable[str]) -> list[str]:
    """The first keys of names, at most eight."""
    seen: dict[str, None] = {}
    for name in names:
        keys = plain(name).split(".")
        for depth in (1, 2):
            if len(keys) > depth and len(seen) < 8:
                seen[".".join([*keys[:depth], ""])] = None
    return [*seen]


def _update(found: Known, above: str, names: list[str], metadata: Mapping[str, Any] | None, wanted: set[str]) -> Past:
    now = {name: plain(name) for name in names}
    about = None if metadata is None else {unwrap(path): entry for path, entry in metadata.items()}
    past = Past({}, about)
    levels: dict[int, Known] = {}
    for path, known in found:
        levels.setdefault(len(path.split(".")) if path else 0, []).append((path, known))
    for depth in sorted(levels):
        mine = _below(now.items(), depth + above.count("."))
        inside = _below(((name, name) for name in wanted), depth)
        for path, known in levels[depth]:
            base, latest, start, problem = (above + path).rstrip("."), max(known), 0, ""
            own = mine.get(base, {})
            if about is None:
                start, becomes, problem = _guess_version([*own.values()], known, set(inside.get(path, {}).values()))
                problem = problem and f"the state does not say which version it is, and {problem}"
            else:
                entry = about.get(base)
                start = entry.get(_VERSION, 0) if isinstance(entry, dict) else 0
                if type(start) is not int or start > latest:
                    becomes, problem = {}, f"the state has version {start} of the names, the code {latest}"
                else:
                    becomes = _rename_names(own.values(), known, start)
            past.problem = past.problem or (problem and f"{base or 'the root'}: {problem}")
            changed = {name: becomes[old] for name, old in own.items() if becomes.get(old, old) != old}
            if not changed:
                continue
            below = base + "." if base else ""
            past.notes.append(f"{base or 'the model'} from version {start} of its names, {latest} is the latest")
            if about is not None:
                for old, (new, *_) in modules((own[name], new) for name, new in changed.items()).items():
                    if below + old in about:
                        about[below + new] = about.pop(below + old)
            now |= {name: below + new for name, new in changed.items()}
    past.names = {name: new for name, new in now.items() if new != plain(name)}
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


def _rename_names(names: Iterable[str], known: Versions, start: int) -> dict[str, str]:
    """Names as all versions after `start` make them."""
    steps = [Rules(rules) for version, several in known.items() if version > start for rules in several]
    return {name: reduce(lambda new, step: step(new), steps, name) for name in names}


def _guess_version(names: list[str], known: Versions, wanted: set[str]) -> tuple[int, dict[str, str], str]:
    """The version from which most names fit, what they become, and what speaks against it."""
    beginnings = {name[:at] for name in wanted for at, letter in enumerate(name) if letter == "."}
    tries = {start: _rename_names(names, known, start) for start in (0, *known)}
    # keys count too, for modules inside may have a history of their own
    scores = {
        start: (
            sum(new in wanted for new in made.values()),
            sum(new[:at] in beginnings for new in made.values() for at, letter in enumerate(new) if letter == "."),
        )
        for start, made in tries.items()
    }
    start = max(reversed(scores), key=scores.__getitem__)
    for rival, made in tries.items():
        if scores[rival] == scores[start] and any(
            made[name] != tries[start][name] for name in names if made[name] in wanted
        ):
            other = f"version {start} and version {rival} fit alike; pass rename=… or save it with its metadata"
            return start, tries[start], other
    return start, tries[start], ""
