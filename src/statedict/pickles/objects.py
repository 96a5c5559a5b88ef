"""The objects that a pickle's program builds: data, by the caller's constructors, or inert labels.

`machine` reads opcodes; here are the memo, the globals and the objects that they act on. Each object is charged before
it is made (budget.py).
"""

from __future__ import annotations

from collections import OrderedDict

from statedict.dtypes import DType
from statedict.errors import CorruptFileError, FormatError, LimitError
from statedict.pickles.budget import DICT, ENTRY, KEY, OBJECT, STATE, Budget, weigh
from statedict.pickles.opcodes import MAX_INDEX
from statedict.tensor.lazy import LazyTensor
from statedict.tree.state_dict import StateDict
from statedict.values import Device, Opaque, Size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

_MAX_ITEMS = 64
_MAX_ALIKE = 64
_SIMPLE = (str, bytes, float, bool, type(None), Device, DType, LazyTensor)
_MAX_BITS = 4096
_COMPOUND = (tuple, frozenset, Size, complex, int)
_MAX_NAME = 1000
_MODULE = dict.fromkeys(("_parameters", "_buffers", "_modules"))


class Keys:
    """Checks that the keys of dicts and sets cost little to hash and to compare.

    Hashing a nested tuple can take for ever, and so can a dict whose keys share one hash. Python protects strings and
    bytes against the latter by a secret, but not numbers and tuples. `charge` takes the cost of a note on a key.
    """

    __slots__ = ("_alike", "_charge")

    def __init__(self, charge: Callable[[int], object] = lambda cost: None) -> None:
        self._alike: dict[int, list[Any]] = {}
        self._charge = charge

    def check(self, key: Any) -> Any:
        """Return the key, or raise LimitError if it exceeds the bounds above."""
        kind = type(key)
        if kind in _SIMPLE or (kind is int and -(1 << 63) <= key < 1 << 64) or isinstance(key, Opaque):
            return key
        if kind in _COMPOUND and self._is_small(key):
            # a file can choose these hashes, and a dict of one hash is as slow as a list
            alike = self._alike.setdefault(hash(key), [])
            if not alike:
                self._charge(KEY)
            if key not in alike:
                if len(alike) == _MAX_ALIKE:
                    raise LimitError(f"more than {_MAX_ALIKE} keys with one hash; the pickle is hostile")
                alike.append(key)
            return key
        raise LimitError(f"a key is a {kind.__name__}, which can take for ever to hash")

    def _is_small(self, key: Any) -> bool:
        pending, seen = [key], 0
        while pending:
            item = pending.pop()
            if type(item) in (tuple, frozenset, Size):
                seen += len(item)
                if seen > _MAX_ITEMS:
                    return False
                pending += item
            elif type(item) is int:
                if item.bit_length() > _MAX_BITS:
                    return False
            elif type(item) is not complex:
                self.check(item)
        return True


def _check_twins(keys: list[Any]) -> None:
    """Raise FormatError if a dtype and its name are both keys: they are equal here, and one would be lost."""
    names = {key.name for key in keys if type(key) is DType}
    if twins := names.intersection(key for key in keys if type(key) is str):
        raise FormatError(f"a dict has the keys torch.{min(twins)} and {min(twins)!r}, which are equal here")


class Global(Opaque):
    """A global that the pickle names; as a value, an Opaque with a name and nothing else.

    `build` makes data of a call; without it a call becomes an Opaque. A call with fewer than `bulk` arguments makes one
    small object; any other makes up to `cost` bytes besides copies of its arguments.
    """

    __slots__ = ("build", "bulk", "cost")

    def __init__(self, name: str, build: Callable[..., Any] | None = None, bulk: int = 1, cost: int = OBJECT) -> None:
        super().__init__(name)
        self.build, self.bulk, self.cost = build, bulk, cost


def table(builds: dict[str, Callable[..., Any]], bulk: int = 1, cost: int = OBJECT) -> dict[str, Global]:
    """The globals of some constructors, by "module name"."""
    return {name: Global(name.replace(" ", "."), build, bulk, cost) for name, build in builds.items()}


class Builder:
    """The state of a machine, and the objects that it makes."""

    def __init__(
        self,
        data: bytes,
        constructors: Mapping[str, Any],
        persistent_load: Callable[[Any], Any] | None,
        position: int,
        factor: int,
    ) -> None:
        self.data, self.constructors, self.position = data, constructors, position
        self.persistent = persistent_load or (lambda identifier: Opaque("persistent object", (identifier,)))
        self.budget = Budget(position, factor)
        self.charge = self.budget.charge
        self.globals: dict[str, Any] = {}
        self.memo: list[Any] = []
        self.far_memo: dict[int, Any] = {}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.key = Keys(self.charge).check

    def put(self, index: int, value: Any) -> None:
        """Store a value in the memo."""
        memo = self.memo
        if index < len(memo):
            memo[index] = value
        elif index == len(memo):
            memo.append(value)
        elif index >= MAX_INDEX:
            raise CorruptFileError(f"a memo index of {index:,}, which no pickler writes")
        else:
            if index not in self.far_memo:
                self.charge(OBJECT)
            self.far_memo[index] = value

    def find(self, module: Any, name: Any) -> Any:
        """The global of a name."""
        if type(module) is not str or type(name) is not str:
            raise CorruptFileError("a global whose name is not a string")
        if len(module) + len(name) > _MAX_NAME:
            raise LimitError(f"a global's name has {len(module) + len(name):,} characters, over {_MAX_NAME:,}")
        full = f"{module} {name}"
        known = self.globals.get(full)
        if known is None:
            known = self.constructors.get(full)
            if known is None:
                known = Global(f"{module}.{name}")
            self.charge(3 * OBJECT + 8 * len(full))
            self.globals[full] = known
        return known

    def call(self, function: Any, args: Any) -> Any:
        """The result of a call; a label where no constructor is known."""
        if not isinstance(args, tuple):  # the C unpickler refuses it, the Python one takes its items
            raise CorruptFileError(f"calls something with a {type(args).__name__}, expected a tuple of arguments")
        if type(function) is not Global or function.build is None:
            name = name_call(function)
            if type(function) is not Opaque:
                return Opaque(name, args)
            self.charge(OBJECT + weigh(name))
            return Opaque(name, (function, args))
        if len(args) >= function.bulk:
            self.charge(function.cost)
            self.charge_copies(args)
        return function.build(*args)

    def charge_copies(self, args: tuple[Any, ...]) -> None:
        """Charge copies of all arguments."""
        for argument in args:
            if isinstance(argument, str):
                self.charge(2 * weigh(argument))
            elif isinstance(argument, (bytes, bytearray)):
                self.charge(2 * len(argument))
            elif isinstance(argument, (list, tuple, dict, set, frozenset)):
                self.charge((2 * ENTRY + KEY) * len(argument))
                if type(argument) is tuple:
                    self.charge(2 * ENTRY * sum(len(item) for item in argument if isinstance(item, dict)))

    def set_items(self, target: Any, items: list[Any]) -> None:
        """Set entries of a dict or a label; `items` alternates keys and values."""
        if len(items) % 2:
            raise CorruptFileError("a key has no value")
        if type(target) is Opaque:
            if target.entries is None:
                self.charge(DICT)
                target.entries = StateDict()
            target = target.entries
        elif not isinstance(target, dict):
            raise CorruptFileError(f"sets items in a {type(target).__name__}")
        before = len(target)
        for index in range(0, len(items), 2):
            key = items[index]
            if type(key) is not str:
                key = self.key(key)
            target[key] = items[index + 1]
        if len(target) - before < len(items) >> 1:
            _check_twins(items[::2])

    def append(self, target: Any, items: list[Any]) -> None:
        """Append to a list, or to a label."""
        if type(target) is Opaque:
            if target.items is None:
                self.charge(OBJECT)
                target.items = []
            target = target.items
        elif type(target) is not list:
            raise CorruptFileError(f"appends to a {type(target).__name__}")
        target += items

    def add(self, target: Any, items: list[Any]) -> None:
        """Add to a set, or to a label."""
        if type(target) is Opaque:
            self.append(target, items)
        elif type(target) is set:
            self.charge(2 * ENTRY * len(items))
            target.update(map(self.key, items))
        else:
            raise CorruptFileError(f"adds to a {type(target).__name__}")

    def build(self, target: Any, state: Any) -> Any:
        """Give an object its state; the object that replaces it."""
        if type(target) is Opaque:
            target.state = self.module(state) if isinstance(state, dict) and state.keys() >= _MODULE.keys() else state
        elif isinstance(target, StateDict):
            metadata = state.get("_metadata") if isinstance(state, dict) else None
            if isinstance(metadata, dict):
                self.charge(2 * DICT + 2 * ENTRY * len(metadata))
                target._metadata = OrderedDict(metadata)
        elif hasattr(target, "set_state"):
            self.charge(STATE)
            if type(state) is tuple:
                self.charge_copies(state)
            replacement = target.set_state(state)
            if replacement is not target:
                self.replace(target, replacement)
            return replacement
        else:
            raise CorruptFileError(f"gives a state to a {type(target).__name__}")
        return target

    def drop(self, value: Any) -> None:
        """Drop a value, but keep the state that a call gives to another object, as `copyreg` allows."""
        args = value.args if type(value) is Opaque else None
        if type(args) is not tuple or len(args) != 2 or type(args[0]) is not Opaque or args[0].state is not None:
            return
        if value.name != name_call(args[0]):  # else it is a call of that object
            self.build(*args)

    def module(self, state: dict[Any, Any]) -> dict[Any, Any]:
        """The attributes of a `torch.nn.Module`, with its parameters, buffers and modules under their own names."""
        members = [state[name] for name in _MODULE]
        if not all(isinstance(part, dict) for part in members):
            return state
        self.charge(2 * DICT + 2 * ENTRY * sum(map(len, (state, *members))))
        flat = StateDict((name, value) for part in members for name, value in part.items())
        rest = {name: value for name, value in state.items() if name not in _MODULE}
        if len(flat) != sum(map(len, members)) or not flat.keys().isdisjoint(rest):
            return state
        flat.update(rest)
        return flat

    def replace(self, old: Any, new: Any) -> None:
        """Put `new` where the memo last holds `old`."""
        memo = self.memo
        for at in range(len(memo) - 1, -1, -1):
            if memo[at] is old:
                memo[at] = new
                self.charge(len(memo) - at)
                return
        self.charge(len(memo) + 1)


def name_call(function: Any) -> str:
    """The name of the result of a call of something that is not in the table."""
    if type(function) is Global:
        return function.name
    return f"{function.name}()"[:_MAX_NAME] if type(function) is Opaque else f"a call of {type(function).__name__}"
