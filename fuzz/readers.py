"""Python's own unpicklers, in C and in Python, made inert: they note what they would look up, and build labels.

`find_class` resolves nothing. It returns a class that notes what it is called with, so what a pickle builds can be
compared with what `statedict` shows.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fuzz.programs import EXTENSIONS

_C: Any = pickle.Unpickler
_PYTHON: Any = pickle._Unpickler  # the one that C's stands in for


class Label(type):
    """The class of a global: what is stored in the global itself goes nowhere."""

    module: str
    name: str

    def __setstate__(cls, state: object) -> None:
        """Nothing is altered."""

    def append(cls, item: object) -> None:
        """Nothing is altered."""

    def extend(cls, items: object) -> None:
        """Nothing is altered."""

    def add(cls, item: object) -> None:
        """Nothing is altered."""

    def __setitem__(cls, key: object, value: object) -> None:
        """Nothing is altered."""


class Made:
    """What a call made: of what, with which arguments, and all that was stored in it since."""

    def __init__(self, of: Any, args: Any, named: dict[str, Any]) -> None:
        self.of, self.args, self.named = of, args, named
        self.state: Any = None
        self.items: list[Any] | None = None
        self.entries: dict[Any, Any] | None = None
        self.set_by_call = False
        if len(args) == 2 and type(args[0]) is Made and not named:
            args[0].set_by_call = True  # as copyreg's setter of a state is called; we show what it would set

    def __call__(self, *args: Any, **named: Any) -> Made:
        """What a call of it makes."""
        return Made(self, args, named)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Keep it."""
        self.extend([item])

    add = append

    def extend(self, items: list[Any]) -> None:
        """Keep them."""
        self.items = [*(self.items or ()), *items]

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.entries is None:
            self.entries = {}
        self.entries[key] = value


_labels: dict[tuple[str, str], Label] = {}


def label(module: str, name: str) -> Label:
    """The class that stands for a global."""
    known = _labels.get((module, name))
    if known is None:
        if len(_labels) > 5000:
            _labels.clear()
        known = _labels[module, name] = Label(
            "Label", (), {"__new__": lambda cls, *args, **named: Made(cls, args, named)}
        )
        known.module, known.name = module, name
    return known


def _inert(base: Any) -> Any:
    class Inert(base):  # type: ignore[misc]
        def __init__(self, file: Any, names: set[tuple[str, str]], encoding: str) -> None:
            super().__init__(file, encoding=encoding)
            self.names = names

        def find_class(self, module: str, name: str) -> Label:
            self.names.add((module, name))
            return label(module, name)

        def persistent_load(self, identifier: Any) -> Made:
            return Made("persistent object", (identifier,), {})

    return Inert


# a BytesIO has no `peek`: there the C unpickler drops what a frame cuts off
READERS: dict[str, tuple[Any, Any]] = {
    "C": (_inert(_C), io.BytesIO),
    "C, peeking": (_inert(_C), lambda data: io.BufferedReader(io.BytesIO(data))),
    "Python": (_inert(_PYTHON), io.BytesIO),
}


def read(reader: str, data: bytes, encoding: str) -> tuple[set[tuple[str, str]], bool, Any]:
    """The names that a reader looks up, whether it reads to STOP, and what it builds then."""
    unpickler, file = READERS[reader]
    names: set[tuple[str, str]] = set()
    copyreg._extension_cache.clear()  # type: ignore[attr-defined]
    try:
        return names, True, unpickler(file(data), names, encoding).load()
    except Exception:  # whatever a damaged pickle raises there
        return names, False, None


@contextmanager
def registered() -> Iterator[None]:
    """Python's registry of extension codes holds ours meanwhile, and nothing else."""
    registry = copyreg._inverted_registry  # type: ignore[attr-defined]
    before = dict(registry)
    registry.clear()
    registry.update(EXTENSIONS)
    try:
        yield
    finally:
        registry.clear()
        registry.update(before)
        copyreg._extension_cache.clear()  # type: ignore[attr-defined]
