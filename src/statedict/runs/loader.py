"""ResumableLoader: a `torch.utils.data.DataLoader` that can go on in the middle of an epoch.

The order of an epoch is not saved but made again: the generators are set to where they were when the epoch began, the
sampler draws anew, and the batches that were given out are passed over.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from statedict.adapters import generators, join
from statedict.errors import RestoreError, RunError
from statedict.runs.rng import shared_generators


class ResumableLoader:
    """A `DataLoader` with a state: the epoch, and how many of its batches have been given out.

    Iterate over it in place of the loader; all else that the loader has, it has too. The first iteration after a
    restore goes on after the last batch that was given out, and every later one is a whole epoch. The order is the one
    that it would have been: with `statedict.rng()` in the same tree for samplers that draw from the generators of the
    process, and for those that are attributes of the loader, its samplers and datasets by itself.

    Batches that were given out are passed over in the sampler, not loaded. Those that workers have loaded ahead are
    loaded again. What runs in workers draws from generators that end with them: there the order is exact, and random
    augmentations are others, unless `replay` is set.

    Args:
        loader: of map-style or iterable datasets, with or without workers. A sampler that draws from the generators of
            the process does so before its first batch, as PyTorch's do.
        replay: load again, and throw away, what was given out. Then what was drawn in workers is drawn again too,
            except where `persistent_workers` have been through epochs before. An `IterableDataset` knows no other way.

    Attributes:
        epoch: how many epochs have ended; one that is left before its end does when the next begins.
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
        self._given, self._own = loader, _generators(loader)
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
        """What of the loader no state holds, in words; empty if nothing."""
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
            batches = self._again(self._start)
        else:
            self.position, self._start, self._first = 0, _read(self._live()), None
            batches = iter(self._loader)
        self._loaded, self._warm = False, True
        return self._give(batches, self._turn)

    def _warm_up(self) -> None:
        """Start the workers that persist; only where they start does PyTorch draw a seed for them."""
        if self._given.num_workers and self._given.persistent_workers and not self._warm:
            now = _read(self._live())
            self._sampler.skip = None
            iter(self._loader)
            self._sampler.skip = 0
            _write(self._live(), now)

    def _again(self, start: dict[str, Any]) -> Iterator[Any]:
        """The batches of the epoch that began with the generators so, without those that were given out."""
        live = self._live()
        now = _read(live)
        _write(live, start)
        try:
            self._sampler.skip = 0 if self._replay else self.position
            batches: Iterator[Any] = iter(self._loader)
            _write(live, self._first or now)
            self._sampler.pass_over()
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
        """End an epoch that was left before its last batch, so that a state taken now does not go on with it."""
        if self._start is not None:
            self.epoch, self.position, self._start, self._first = self.epoch + 1, 0, None, None
            self._loaded, self._turn = False, self._turn + 1

    def _live(self) -> dict[str, Any]:
        return shared_generators() | self._own

    def state_dict(self) -> dict[str, Any]:
        """Where it is, after the last batch that was given out."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "batches": self._batches(),
            "generators": _read(self._own),
            "start": self._start,
            "first": self._first,
        }

    def check_state_dict(self, state: Any) -> Iterator[str]:
        """Why the loader cannot take a state.

        Args:
            state: of `state_dict`.
        """
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
        """Go on from a state at the next iteration.

        Args:
            state: of `state_dict`.

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


class _Indices:
    """A sampler's iteration, of which so many are passed over before the first."""

    def __init__(self, sampler: Any, left: int) -> None:
        self.indices, self.left = iter(sampler), left

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.pass_over()
        return next(self.indices)

    def pass_over(self) -> None:
        for _ in range(self.left):
            next(self.indices, None)
        self.left = 0


class _Skipping:
    """A sampler that can begin later, until it has; with `skip=None` it is empty. All else is the sampler's."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.skip: int | None = 0
        self.indices: _Indices | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.skip is None:
            return iter(())
        self.indices = indices = _Indices(self._sampler, self.skip)  # an iteration over workers asks for two
        return indices

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def pass_over(self) -> None:
        """Do now what would be done before the first batch."""
        self.skip = 0
        if self.indices is not None:
            self.indices.pass_over()


def _admit(loader: Any, kind: Any) -> None:
    if not isinstance(loader, kind):
        raise RunError(f"loader: expected a torch.utils.data.DataLoader, got a {type(loader).__qualname__}")
    for name, part in (("loader", loader), ("sampler", loader.sampler), ("batch_sampler", loader.batch_sampler)):
        if callable(getattr(part, "state_dict", None)):
            raise RunError(f"{name}: a {type(part).__qualname__} has a state of its own; put it into the tree as it is")
    if loader.num_workers and not getattr(loader, "in_order", True):
        raise RunError("loader: in_order=False gives batches in any order, of which no position says which were given")


def _skip_batches(loader: Any) -> tuple[Any, _Skipping]:
    """A loader like this one, over the same samplers and dataset, and its sampler that can begin later."""
    made = copy.copy(loader)
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    sampler = _Skipping(getattr(loader, name))
    vars(made).update({name: sampler, "_iterator": None})  # DataLoader forbids to set them
    return made, sampler


def _generators(loader: Any) -> dict[str, Any]:
    """The generators that are attributes of a loader, of its samplers and its datasets, each by its path once."""
    from torch.utils.data import Dataset, Sampler

    found: dict[str, Any] = {}
    seen = {id(generator) for generator in shared_generators().values()}
    todo = [("", loader)]
    while todo:
        path, part = todo.pop(0)
        for name, value in vars(part).items():
            several = isinstance(value, list | tuple) and len(value) and isinstance(value[0], Dataset)
            for key, one in enumerate(value) if several else [(None, value)]:
                full = join(path, name if key is None else join(name, key))
                if id(one) in seen:
                    continue
                if generators.accepts(one):
                    found[full] = one
                elif isinstance(one, Dataset | Sampler):
                    todo.append((full, one))
                else:
                    continue
                seen.add(id(one))
    return found


def _read(live: dict[str, Any]) -> dict[str, Any]:
    return {name: generators.read(generator) for name, generator in live.items()}


def _write(live: dict[str, Any], states: Any) -> None:
    for name, generator in live.items():
        generators.write(generator, states[name])
