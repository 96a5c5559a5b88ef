"""capture and restore: live objects to state_dicts and back."""

from __future__ import annotations

from collections.abc import Mapping

from statedict.api.files import load, wrap_root
from statedict.api.names import is_path
from statedict.errors import RestoreError, UnsupportedError
from statedict.io.urls import redact, to_name
from statedict.tree.roles import ambiguity_error
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from statedict.reports.outcomes import RestoreReport


def capture(obj: Any) -> StateDict:
    """A snapshot of live objects: what happens to them afterwards does not change it.

    Args:
        obj: as `tree` of `save`.

    Returns:
        The tree; arrays are copies of their kind, torch tensors on the CPU. Tied tensors stay tied.

    Raises:
        UnsupportedError: a value that is not data and that no adapter takes; the message names its path.

    >>> import statedict, numpy
    >>> weights = {"w": numpy.zeros(3)}
    >>> state = statedict.capture(weights)
    >>> weights["w"] += 1
    >>> state["w"]
    array([0., 0., 0.])
    """
    from statedict.adapters.collect import snapshot

    return wrap_root(snapshot(obj))


def restore(
    target: Any,
    source: Any,
    *,
    allow_missing: Sequence[str] | str = (),
    allow_unexpected: Sequence[str] | str = (),
    shapes: Mapping[str, str] | str = "error",
    rename: Mapping[str, str] | None = None,
    override: Mapping[str, Any] | None = None,
    cast: Sequence[str] | str | bool = False,
    prefix: str = "auto",
    dry_run: bool = False,
) -> RestoreReport:
    """Put a state back into live objects: planned whole, then written.

    If anything is wrong that is not allowed here, nothing is written. Patterns are globs over paths (`"model.head.*"`);
    one that matches a path allows all below it. docs/restoring.md explains each argument.

    Args:
        target: a module, an optimizer, a scheduler, anything with `load_state_dict`, an object with attributes, arrays,
            or a dict or list of them. What is immutable, such as arrays of JAX, is replaced in the dict that holds it.
        source: a path or URL, as for `load`; or a tree of dicts, lists, arrays, plain values and live objects.
        allow_missing: patterns of what the state may lack and the target keeps. Optimizers follow their parameters.
        allow_unexpected: patterns of what only the state may have, objects that are not data included.
        shapes: what to do where shapes differ, for all or by pattern; the first that matches counts: `"error"`,
            `"skip"`, `"slice"` (the first entries), `"pad"` (with zeros), `"overlap"` (the rest stays), `"reshape"`.
        rename: rules for paths, `{"layers.{n}.attn.*": "blocks.{n+1}.attention.*"}`; see docs/restoring.md.
        override: values instead of the state's, by pattern; the bare name of a hyperparameter means it in every group
            of every optimizer: `{"epoch": 0, "lr": 1e-4}`.
        cast: convert where dtypes differ; True, or patterns.
        prefix: what stands before the names of models and optimizers in the state, `"model."`; `""` takes names as
            they are. `"auto"` finds it, and sets the keys of wrappers (`module.`, `_orig_mod.`) aside on both sides.
        dry_run: plan and report, write nothing, raise nothing.

    Returns:
        What happened to every entry.

    Raises:
        RenameError, TreeError, UnsupportedError: a malformed rule, a source that contains itself, a path as the target.
        RestoreError: something is not allowed and nothing was written, or writing failed and the message says where.

    >>> import statedict, numpy
    >>> target = {"w": numpy.zeros(3), "epoch": 0}
    >>> print(statedict.restore(target, {"w": numpy.ones(3), "epoch": 7}))
    restored 2 of 2 entries
      1 restored: epoch (0 → 7)
    """
    from statedict.adapters.collect import put_back
    from statedict.adapters.plan import Options

    options = Options(
        _patterns("allow_missing", allow_missing),
        _patterns("allow_unexpected", allow_unexpected),
        {"*": shapes} if isinstance(shapes, str) else _table("shapes", shapes),
        ("*",) * cast if isinstance(cast, bool) else _patterns("cast", cast),
        None if prefix == "auto" else prefix,
        _table("rename", {} if rename is None else rename),
        _table("override", {} if override is None else override),
    )
    return put_back(_check_target(target), load(source) if is_path(source) else source, options, dry_run)


def _check_target(target: Any) -> Any:
    if is_path(target):
        raise UnsupportedError(f"{redact(to_name(target))}: is a path, not a live object; call restore(target, source)")
    return target


def _patterns(name: str, given: Any) -> tuple[str, ...]:
    patterns = (given,) if isinstance(given, str) else given
    if not isinstance(patterns, list | tuple | set) or not all(isinstance(pattern, str) for pattern in patterns):
        raise RestoreError(f"{name}: expected a pattern or a list of them, got {given!r:.40}")
    return tuple(patterns)


def _table(name: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise RestoreError(f"{name}: expected a dict by pattern, got {given!r:.40}")
    return given


def fit(
    state: StateDict, wanted: Sequence[tuple[str | None, Any]], **options: Any
) -> tuple[list[str], RestoreReport] | None:
    """Plan to restore live objects from the parts of a checkpoint that fit them best. Nothing is written.

    Args:
        state: the checkpoint.
        wanted: objects, each with the path of its state in the checkpoint; None to find it.
        options: as for `restore`.

    Returns:
        The paths and the plan; None if an object is an optimizer and the checkpoint has no state of one.

    Raises:
        AlterError: several entries fit equally well.
        PathError: there is no such path.
        StateDictError: what `restore` raises.
    """
    from statedict.adapters.collect import locate

    parts: dict[str, tuple[Any, Any]] = {}
    for path, value in wanted:
        if path is None:
            places = locate(value, state, options.get("rename"))
        else:
            places = {path: state.at(path) if path else state}
        if not places:
            return None
        if len(places) > 1:
            raise ambiguity_error(places, f"name one by {'at' if not parts else 'optimizer_at'}={{}}")
        ((where, entry),) = places.items()
        parts[where] = value, entry
    if len(parts) == 1:  # paths in the report are the object's own then
        target, source = next(iter(parts.values()))
    else:
        target, source = ({path: both[side] for path, both in parts.items()} for side in (0, 1))
    return list(parts), restore(target, source, dry_run=True, **options)
