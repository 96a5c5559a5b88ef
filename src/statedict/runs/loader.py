"""ResumableLoader: a `torch.utils.data.DataLoader` that resumes in the middle of an epoch; what trees lack without it.

The order of an epoch is drawn again, not saved: the generators are set to their states at the start of the epoch, the
sampler draws anew, and the batches that were given out are skipped.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from statedict.adapters import generators, join, qualified_name, stateful
from statedict.adapters.collect import is_module, visit
from statedict.errors import RestoreError, RunError, UnsupportedError
from statedict.runs.rng import Rng, shared_generators

_LOADERS = ("DataLoader", "Dataset", "Sampler")
_REMEDY = "its position is lost, unless statedict.ResumableLoader(loader) stands for the loader"


class ResumableLoader:
    """A `DataLoader` with a state: the epoch, and how many of its batches have been given out.

    Iterate over it instead of the loader; it has all attributes of the loader. The first iteration after a restore
    continues after the last batch that was given out, every later one is a whole epoch. Put `statedict.rng()` into the
    same tree if samplers draw from the generators of the process; generators that are attributes of the loader, its
    samplers or datasets are saved with it.

    Batches that were given out are skipped in the sampler, not loaded. What workers loaded ahead is loaded again. The
    generators in workers end with them: the order is exact, but random augmentations differ unless `replay` is set.

    Args:
        loader: of map-style or iterable datasets, with or without workers. A sampler that draws from the generators of
            the process must do so before its first batch, as PyTorch's do.
        replay: load what was given out again and drop it, so that workers draw the same numbers again, except
            `persistent_workers` that have been through epochs before. An `IterableDataset` always does.

    Attributes:
        epoch: how many epochs have ended; an unfinished one ends when the next begins.
        position: how many batches of the epoch have been given out.

    Raises:
        RunError: the loader or its sampler has a state of its own, or gives its batches in any order.

    >>> import statedict, torch
    >>> def make():
    ...     return statedict.ResumableLoader(torch.utils.data.DataLoader(range(6), batch_size=2, shuffle=True))
    >>> loader, resumed = make(), make()
    >>> batches = iter(loader)
    >>> first = next(batches)
    >>> state = statedict.capture({"loader": loader, "rng": statedict.rng()})
    >>> rest = [batch.tolist() for batch in batches]
    >>> _ = statedict.restore({"loader": resumed, "rng": statedict.rng()}, state)
    >>> [batch.tolist() for batch in resumed] == rest
    True
    """

    def __init__(self, loader: Any, *, replay: bool = False) -> None:
        from torch.utils.data import DataLoader, IterableDataset

        _admit(loader, DataLoader)
        self.epoch = self.position = 0
        self._given, self._own = loader, _find_generators(loader)
        self._stream = isinstance(loader.dataset, IterableDataset)
        self._replay = replay or self._stream
        self._start: dict[str, Any] | None = None  # the generators at iter(); None between epochs
        self._first: dict[str, Any] | None = None  # the generators before the first batch, when most samplers draw
        self._loaded = self._warm = False  # whether the next iteration goes on; whether workers may be there
        self._turn = 0
        self._loader, self._sampler = _skip_batches(loader)

    def __len__(self) -> int:
        return len(self._given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._given, name)

    @property
    def not_captured(self) -> str:
        """What the state lacks; empty if nothing."""
        workers = self._given.num_workers
        if not workers or (self._replay and not self._given.persistent_workers):
            return ""
        return f"what its {workers} workers draw at random"

    def __iter__(self) -> Iterator[Any]:
        self._turn += 1
        if not self._loaded:
            self.end_epoch()
        if self.epoch:
            self._warm_up()
        if self._start is not None:
            batches = self._resume(self._start)
        else:
            self.position, self._start, self._first = 0, _read(self._live()), None
            batches = iter(self._loader)
        self._loaded, self._warm = False, True
        return self._give(batches, self._turn)

    def _warm_up(self) -> None:
        """Start persistent workers, as PyTorch draws a seed for them only then."""
        if self._given.num_workers and self._given.persistent_workers and not self._warm:
            now = _read(self._live())
            self._sampler.skip = None
            iter(self._loader)
            self._sampler.skip = 0
            _write(self._live(), now)

    def _resume(self, start: dict[str, Any]) -> Iterator[Any]:
        """The rest of the epoch that began with these states of the generators."""
        live = self._live()
        now = _read(live)
        _write(live, start)
        try:
            self._sampler.skip = 0 if self._replay else self.position
            batches: Iterator[Any] = iter(self._loader)
            _write(live, self._first or now)
            self._sampler.skip_now()
            for _ in range(self.position if self._replay else 0):
                next(batches, None)
        finally:
            _write(live, now)
        return batches

    def _give(self, batches: Iterator[Any], turn: int) -> Iterator[Any]:
        if self._first is None:
            self._first = _read(self._live())
        for batch in batches:
            if turn != self._turn:
                raise RunError("the loader was begun anew or restored; one iteration at a time has a position")
            self.position += 1
            yield batch
        if turn == self._turn:
            self.end_epoch()

    def end_epoch(self) -> None:
        """End an unfinished epoch, so that a state taken now does not resume it."""
        if self._start is not None:
            self.epoch, self.position, self._start, self._first = self.epoch + 1, 0, None, None
            self._loaded, self._turn = False, self._turn + 1

    def _live(self) -> dict[str, Any]:
        return shared_generators() | self._own

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was given out."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "batches": self._batches(),
            "generators": _read(self._own),
            "start": self._start,
            "first": self._first,
        }

    def check_state_dict(self, state: Any) -> Iterator[str]:
        """Why the loader cannot take a state."""
        own, others = self._own, state.get("generators", {})
        if list(own) != list(others):
            yield f"generators: the loader has {list(own)}, the state {list(others)}"
            return
        for name, generator in own.items():
            for _, path, detail in generators.faults(generators.read(generator), others[name], name):
                yield f"{path}: {detail}"
        if state.get("position") and state.get("batches") != self._batches():
            here, there = self._batches(), state.get("batches")
            yield (
                f"batches: {state['position']} of {there} of an epoch were given out, here an epoch has {here}; the "
                "dataset or the size of batches has changed; leave the loader out of the tree to begin an epoch"
            )

    def load_state_dict(self, state: Any) -> None:
        """Resume from a state at the next iteration.

        Raises:
            RestoreError: it is that of another loader.
        """
        for fault in self.check_state_dict(state):
            raise RestoreError(fault)
        _write(self._own, state["generators"])
        self.epoch, self.position = state["epoch"], state["position"]
        self._start, self._first = state["start"], state["first"]
        self._loaded, self._turn = True, self._turn + 1
        self._warm, (self._loader, self._sampler) = False, _skip_batches(self._given)

    def _batches(self) -> int | None:
        try:
            return None if self._stream else len(self._given)
        except TypeError:  # a sampler without a length
            return None


class _Skipping:
    """A sampler that can start later, or be empty (`skip=None`)."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.skip: int | None = 0
        self._advance: Callable[[], None] = lambda: None  # skips in the last iteration that began

    def __iter__(self) -> Iterator[Any]:
        if self.skip is None:
            return iter(())
        indices = iter(self._sampler)  # an iteration over workers asks for two
        count = max(self.skip, 0)
        start = islice(indices, count, count)
        self._advance = lambda: next(start, None)
        return chain(start, indices)

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def skip_now(self) -> None:
        self.skip = 0
        self._advance()


def _admit(loader: Any, kind: Any) -> None:
    if not isinstance(loader, kind):
        raise RunError(f"loader: expected a torch.utils.data.DataLoader, got a {type(loader).__qualname__}")
    for name, part in (("loader", loader), ("sampler", loader.sampler), ("batch_sampler", loader.batch_sampler)):
        if callable(getattr(part, "state_dict", None)):
            raise RunError(f"{name}: a {type(part).__qualname__} has a state of its own; put it into the tree as it is")
    if loader.num_workers and not getattr(loader, "in_order", True):
        raise RunError("loader: in_order=False gives batches in any order, of which no position says which were given")


def _skip_batches(loader: Any) -> tuple[Any, _Skipping]:
    """A copy of a loader, and its sampler that can start later."""
    twin = copy.copy(loader)
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    sampler = _Skipping(getattr(loader, name))
    vars(twin).update({name: sampler, "_iterator": None})  # DataLoader forbids setattr
    return twin, sampler


def _find_generators(loader: Any) -> dict[str, Any]:
    """Path → generator, of the attributes of a loader, its samplers and its datasets, each once."""
    from torch.utils.data import Dataset, Sampler

    paths: dict[str, Any] = {}
    seen = {id(generator) for generator in shared_generators().values()}
    todo = [("", loader)]
    while todo:
        path, part = todo.pop(0)
        for name, value in vars(part).items():
            several = isinstance(value, list | tuple) and len(value) and isinstance(value[0], Dataset)
            for key, one in enumerate(value) if several else [(None, value)]:
                full = join(path, name if key is None else join(name, key))
                if id(one) not in seen and generators.accepts(one):
                    paths[full] = one
                elif id(one) not in seen and isinstance(one, Dataset | Sampler):
                    todo.append((full, one))
                seen.add(id(one))
    return paths


def _read(live: dict[str, Any]) -> dict[str, Any]:
    return {name: generators.read(generator) for name, generator in live.items()}


def _write(live: dict[str, Any], states: Any) -> None:
    for name, generator in live.items():
        generators.write(generator, states[name])


def split_covered(tree: Any) -> tuple[Any, tuple[str, ...]]:
    """The part of a tree that can be captured, and descriptions of the rest."""
    left: list[str] = []
    kept = _drop_loaders(tree, "", left)
    has_rng = has_modules = False
    for path, node in visit(kept, lambda node: is_module(node) or _lacks_state(node, _LOADERS[:1])):
        has_rng, has_modules = has_rng or isinstance(node, Rng), has_modules or is_module(node)
        if isinstance(node, ResumableLoader) and node.not_captured:
            left.append(f"{path}: {node.not_captured}")
        elif _lacks_state(node, _LOADERS[:1]):  # others may be captured by their attributes
            raise UnsupportedError(f"{_describe(node, path)}; {_REMEDY}. Only entries of dicts can be left out")
    if has_modules and not has_rng:
        left.append("the states of random generators; put statedict.rng() into the tree")
    return kept, tuple(left)


def put_back(tree: Any, kept: Any) -> None:
    """Copy what was restored into the captured part of a tree into the tree itself."""
    if kept is not tree and type(kept) is dict:
        for key, child in kept.items():
            put_back(tree[key], child)
            if type(tree[key]) is not dict:
                tree[key] = child


def _drop_loaders(node: Any, path: str, left: list[str]) -> Any:
    """A dict without the loaders in it; itself if there are none."""
    if type(node) is not dict:
        return node
    kept, before = {}, len(left)
    for key, child in node.items():
        full = join(path, key)
        if _lacks_state(child):
            left.append(f"{_describe(child, full)}; {_REMEDY}")
        else:
            kept[key] = _drop_loaders(child, full, left)
    return kept if len(left) > before else node


def _describe(value: Any, path: str) -> str:
    return f"{path}: a {qualified_name(type(value))} without state_dict() and load_state_dict()"


def _lacks_state(value: Any, names: tuple[str, ...] = _LOADERS) -> bool:
    data = sys.modules.get("torch.utils.data")
    kinds = () if data is None else tuple(getattr(data, name) for name in names)
    return isinstance(value, kinds) and not stateful.accepts(value)
