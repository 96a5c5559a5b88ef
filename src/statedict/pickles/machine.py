"""A pickle reader that executes nothing.

A pickle is a program for a stack machine, and Python's own reader runs it: it imports what the program names and
calls it. This machine interprets the same opcodes (protocols 0 to 5) over plain data. A global that stands in the
caller's table of constructors builds data; every other one becomes an inert `Opaque` that keeps its name and whatever
the program would have handed to it. Nothing is imported, called or looked up by a name from the file.

Bounds, for a pickle of n bytes:
    memory   at most 64 MB + 20 n, besides what the constructors' results refer to. Containers and calls draw on
             a budget of that size; strings, integers and the memo cannot exceed it by construction.
    time     linear in n. Arguments of constructors are charged by their length, so a long one that is reused draws
             on the budget each time.
    keys     of dicts and sets: strings, bytes, floats, None, booleans, integers of 64 bits, and tuples of up to 64 of
             these in all, for hashing anything else can be made to take for ever.
    lengths  of strings and integers are checked against what is left of the pickle before anything is allocated.
Nesting is not bounded here, for it costs this machine nothing; whoever walks the result bounds it (tree.MAX_DEPTH).

Source: the opcode documentation in CPython's Lib/pickletools.py.
"""

from __future__ import annotations

from collections import OrderedDict
from struct import Struct
from struct import error as StructError

from statedict.dtypes import DType
from statedict.errors import CorruptFileError, FormatError, LimitError, StateDictError
from statedict.tensor import LazyTensor
from statedict.tree import StateDict
from statedict.values import Device, Opaque, Size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

RESERVE = 64 << 20
FACTOR = 20
_OBJECT = 128  # what a container or a call may cost at most, itself, in bytes
_INTERVAL = 10_000  # objects between two looks at the budget
_MAX_KEY_ITEMS = 64

_U2, _U4, _I4, _F8 = Struct("<H"), Struct("<I"), Struct("<i"), Struct(">d")
_SIMPLE_KEYS = (str, bytes, float, bool, type(None), Size, Device, DType, Opaque, LazyTensor)


class Global:
    """A global that the pickle names: with a `build` it makes data, without one its calls become Opaque.

    `bulk` says that the cost of a call grows with its arguments, or that nothing is built.
    """

    __slots__ = ("build", "bulk", "name")

    def __init__(self, name: str, build: Callable[..., Any] | None = None, bulk: bool = True) -> None:
        self.name, self.build, self.bulk = name, build, bulk


def load(
    data: bytes | bytearray,
    constructors: Mapping[str, Any],
    persistent_load: Callable[[Any], Any] | None = None,
    where: str = "pickle",
    start: int = 0,
) -> tuple[Any, int]:
    """Read one pickle.

    Args:
        data: the bytes.
        constructors: `"module name"` → a `Global`, or the value that the name stands for.
        persistent_load: makes the object of a persistent id.
        where: names the pickle in messages.
        start: where in `data` it begins.

    Returns:
        The object and the offset after its STOP.

    Raises:
        CorruptFileError: it ends early or makes no sense; the message names the byte.
        LimitError: it goes beyond the bounds above.

    >>> import pickle, os
    >>> load(pickle.dumps({"epoch": 3, "run": os.system}), {})[0]
    {'epoch': 3, 'run': Opaque('posix.system')}
    """
    machine = _Machine(bytes(data), constructors, persistent_load, start)
    try:
        return machine.run()
    except StateDictError as error:
        kind = type(error)
        raise kind(f"{where}: at byte {machine.position:,} of {len(data):,}: {error}") from error
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, StructError) as error:
        ended = machine.position >= len(data) or isinstance(error, StructError)
        what = "the pickle ends here" if ended else f"malformed pickle ({type(error).__name__}: {error})"
        raise CorruptFileError(
            f"{where}: at byte {machine.position:,} of {len(data):,}: {what}; the file looks truncated or damaged"
        ) from error


class _Machine:
    def __init__(
        self, data: bytes, constructors: Mapping[str, Any], persistent_load: Callable[[Any], Any] | None, position: int
    ) -> None:
        self.data, self.constructors, self.persistent_load, self.position = (
            data,
            constructors,
            persistent_load,
            position,
        )
        self.budget = RESERVE + FACTOR * len(data)
        self.globals: dict[str, Any] = {}
        self.memo: list[Any] = []
        self.far_memo: dict[int, Any] = {}
        self.stack: list[Any] = []
        self.marks: list[int] = []

    def charge(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise LimitError(
                f"asks for more than {(RESERVE + FACTOR * len(self.data)) >> 20} MiB, "
                "the most that a pickle of its size may need; it is damaged or hostile"
            )

    def run(self) -> tuple[Any, int]:  # one branch an opcode, the frequent ones first
        data, memo, stack, marks = self.data, self.memo, self.stack, self.marks
        position, size, u4 = self.position, len(data), _U4.unpack_from
        cost = 0  # in objects, paid every so often
        try:
            while True:
                if cost > _INTERVAL:
                    self.charge(cost * _OBJECT)
                    cost = 0
                op = data[position]
                position += 1
                if op == 0x72:  # LONG_BINPUT
                    (index,) = u4(data, position)
                    position += 4
                    if index == len(memo):
                        memo.append(stack[-1])
                    else:
                        self.put(index, stack[-1])
                elif op == 0x68:  # BINGET
                    index = data[position]
                    position += 1
                    stack.append(memo[index] if index < len(memo) else self.far_memo[index])
                elif op == 0x4B:  # BININT1
                    stack.append(data[position])
                    position += 1
                elif op == 0x28:  # MARK
                    marks.append(len(stack))
                elif op == 0x74:  # TUPLE
                    cost += 1
                    mark = marks.pop()
                    items = tuple(stack[mark:])
                    del stack[mark:]
                    stack.append(items)
                elif op == 0x85:  # TUPLE1
                    cost += 1
                    stack[-1] = (stack[-1],)
                elif op == 0x58:  # BINUNICODE
                    (length,) = u4(data, position)
                    position += 4
                    if position + length > size:
                        raise CorruptFileError(f"a string of {length:,} bytes goes past the end of the pickle")
                    stack.append(str(data[position : position + length], "utf-8", "surrogatepass"))
                    position += length
                elif op == 0x52 or op == 0x81:  # REDUCE, NEWOBJ
                    cost += 1
                    args = stack.pop()
                    function = stack[-1]
                    if type(function) is Global and not function.bulk and type(args) is tuple:
                        stack[-1] = function.build(*args)
                    else:
                        stack[-1] = self.call(function, args)
                elif op == 0x71:  # BINPUT
                    index = data[position]
                    position += 1
                    if index == len(memo):
                        memo.append(stack[-1])
                    else:
                        self.put(index, stack[-1])
                elif op == 0x6A:  # LONG_BINGET
                    (index,) = u4(data, position)
                    position += 4
                    stack.append(memo[index] if index < len(memo) else self.far_memo[index])
                elif op == 0x29:  # EMPTY_TUPLE
                    stack.append(())
                elif op == 0x89:  # NEWFALSE
                    stack.append(False)
                elif op == 0x51:  # BINPERSID
                    cost += 1
                    stack[-1] = self.persistent(stack[-1])
                elif op == 0x86:  # TUPLE2
                    cost += 1
                    stack[-2:] = ((stack[-2], stack[-1]),)
                elif op == 0x4D:  # BININT2
                    stack.append(_U2.unpack_from(data, position)[0])
                    position += 2
                elif op == 0x4A:  # BININT
                    stack.append(_I4.unpack_from(data, position)[0])
                    position += 4
                elif op == 0x94:  # MEMOIZE
                    memo.append(stack[-1])
                elif op == 0x8C:  # SHORT_BINUNICODE
                    end = position + 1 + data[position]
                    if end > size:
                        raise CorruptFileError(f"a string of {end - position:,} bytes goes past the end of the pickle")
                    stack.append(str(data[position + 1 : end], "utf-8", "surrogatepass"))
                    position = end
                elif op == 0x87:  # TUPLE3
                    cost += 1
                    stack[-3:] = ((stack[-3], stack[-2], stack[-1]),)
                elif op == 0x47:  # BINFLOAT
                    stack.append(_F8.unpack_from(data, position)[0])
                    position += 8
                elif op == 0x7D:  # EMPTY_DICT
                    cost += 2
                    stack.append(StateDict())
                elif op == 0x5D:  # EMPTY_LIST
                    cost += 1
                    stack.append([])
                elif op == 0x75:  # SETITEMS
                    items = self.pop_mark()
                    self.set_items(stack[-1], items)
                elif op == 0x73:  # SETITEM
                    items = stack[-2:]
                    del stack[-2:]
                    self.set_items(stack[-1], items)
                elif op == 0x65:  # APPENDS
                    items = self.pop_mark()
                    self.append(stack[-1], items)
                elif op == 0x61:  # APPEND
                    items = [stack.pop()]
                    self.append(stack[-1], items)
                elif op == 0x4E:  # NONE
                    stack.append(None)
                elif op == 0x88:  # NEWTRUE
                    stack.append(True)
                elif op == 0x63:  # GLOBAL
                    module, position = self.line(position)
                    name, position = self.line(position)
                    stack.append(self.find(module, name))
                elif op == 0x93:  # STACK_GLOBAL
                    name, module = stack.pop(), stack.pop()
                    stack.append(self.find(module, name))
                elif op == 0x62:  # BUILD
                    state = stack.pop()
                    stack[-1] = self.build(stack[-1], state)
                elif op == 0x80:  # PROTO
                    if data[position] > 5:
                        raise FormatError(f"pickle protocol {data[position]} is newer than 5, the newest that is known")
                    position += 1
                elif op == 0x95:  # FRAME
                    position += 8
                elif op == 0x2E:  # STOP
                    result = stack.pop()
                    self.charge(cost * _OBJECT)
                    return (Opaque(result.name) if type(result) is Global else result), position
                else:
                    position = self.rare(op, position)
        finally:
            self.position = position

    def rare(self, op: int, position: int) -> int:
        """The opcodes that modern pickles seldom use."""
        data, stack, marks = self.data, self.stack, self.marks
        if op in _COUNTED:  # a length, then that many bytes
            width, decode = _COUNTED[op]
            begin = position + width
            end = begin + int.from_bytes(data[position:begin], "little")
            if end > len(data):
                raise CorruptFileError(f"a value of {end - begin:,} bytes goes past the end of the pickle")
            stack.append(decode(data[begin:end]))
            return end
        if op in _LINES:
            text, position = self.line(position)
            stack.append(_LINES[op](text))
        elif op in (0x67, 0x70):  # GET, PUT
            text, position = self.line(position)
            index = int(text)
            if op == 0x70:
                self.put(index, stack[-1])
            else:
                stack.append(self.memo[index] if 0 <= index < len(self.memo) else self.far_memo[index])
        elif op == 0x50:  # PERSID
            text, position = self.line(position)
            stack.append(self.persistent(text))
        elif op == 0x30:  # POP
            if marks and marks[-1] == len(stack):
                marks.pop()
            else:
                stack.pop()
        elif op == 0x31:  # POP_MARK
            self.pop_mark()
        elif op == 0x32:  # DUP
            stack.append(stack[-1])
        elif op == 0x64:  # DICT
            items = self.pop_mark()
            self.charge(2 * _OBJECT)
            stack.append(StateDict())
            self.set_items(stack[-1], items)
        elif op == 0x6C:  # LIST
            items = self.pop_mark()
            self.charge(_OBJECT)
            stack.append(items)
        elif op == 0x8F:  # EMPTY_SET
            self.charge(2 * _OBJECT)
            stack.append(set())
        elif op == 0x90:  # ADDITEMS
            items = self.pop_mark()
            self.add(stack[-1], items)
        elif op == 0x91:  # FROZENSET
            items = self.pop_mark()
            self.charge(2 * _OBJECT)
            stack.append(frozenset(map(hashable, items)))
        elif op == 0x69:  # INST
            module, position = self.line(position)
            name, position = self.line(position)
            items = self.pop_mark()
            self.charge(_OBJECT)
            stack.append(self.call(self.find(module, name), tuple(items)))
        elif op == 0x6F:  # OBJ
            items = self.pop_mark()
            self.charge(_OBJECT)
            stack.append(self.call(items[0], tuple(items[1:])))
        elif op == 0x92:  # NEWOBJ_EX
            named, args = stack.pop(), stack.pop()
            self.charge(_OBJECT)
            stack[-1] = self.call(stack[-1], (*args, named) if named else args)
        elif op in (0x82, 0x83, 0x84):  # EXT1, EXT2, EXT4
            width = 1 << (op - 0x82)
            stack.append(Global(f"copyreg extension {int.from_bytes(data[position : position + width], 'little')}"))
            position += width
        else:
            raise FormatError(f"opcode {bytes([op])!r} is not one that a file may hold")
        return position

    def pop_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def put(self, index: int, value: Any) -> None:
        memo = self.memo
        if 0 <= index < len(memo):
            memo[index] = value
        elif index == len(memo):
            memo.append(value)
        else:
            if index not in self.far_memo:
                self.charge(_OBJECT)
            self.far_memo[index] = value

    def line(self, position: int) -> tuple[str, int]:
        end = self.data.index(b"\n", position)
        return self.data[position:end].decode(), end + 1

    def find(self, module: Any, name: Any) -> Any:
        full = f"{module} {name}"
        found = self.globals.get(full)
        if found is None:
            if type(module) is not str or type(name) is not str:
                raise CorruptFileError("a global is named by something that is no string")
            found = self.constructors.get(full)
            if found is None:
                self.charge(_OBJECT)
                found = Global(f"{module}.{name}")
            self.globals[full] = found
        return found

    def call(self, function: Any, args: Any) -> Any:
        if type(function) is not Global:
            name = f"{function.name}()" if isinstance(function, Opaque) else f"a call of {type(function).__name__}"
            return Opaque(name[:1000], args)
        if function.build is None or type(args) is not tuple:
            return Opaque(function.name, args)
        if function.bulk:
            for argument in args:
                if isinstance(argument, (str, bytes, bytearray, list, tuple, dict, set, frozenset)):
                    self.charge(8 * len(argument))
        return function.build(*args)

    def persistent(self, identifier: Any) -> Any:
        if self.persistent_load is None:
            return Opaque("persistent object", (identifier,))
        return self.persistent_load(identifier)

    def set_items(self, target: Any, items: list[Any]) -> None:
        if len(items) % 2:
            raise CorruptFileError("a key has no value")
        if type(target) is Opaque:
            if target.entries is None:
                self.charge(2 * _OBJECT)
                target.entries = StateDict()
            target = target.entries
        elif not isinstance(target, dict):
            raise CorruptFileError(f"sets items in a {type(target).__name__}")
        for index in range(0, len(items), 2):
            key, value = items[index], items[index + 1]
            if type(key) is not str:
                key = hashable(key)
            target[key] = Opaque(value.name) if type(value) is Global else value

    def append(self, target: Any, items: list[Any]) -> None:
        if type(target) is Opaque:
            if target.items is None:
                target.items = []
            target = target.items
        elif type(target) is not list:
            raise CorruptFileError(f"appends to a {type(target).__name__}")
        target.extend(Opaque(item.name) if type(item) is Global else item for item in items)

    def add(self, target: Any, items: list[Any]) -> None:
        if type(target) is Opaque:
            self.append(target, items)
        elif type(target) is set:
            target.update(map(hashable, items))
        else:
            raise CorruptFileError(f"adds to a {type(target).__name__}")

    def build(self, target: Any, state: Any) -> Any:
        if type(target) is Opaque:
            target.state = state
        elif isinstance(target, StateDict):
            if isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
                target._metadata = OrderedDict(state["_metadata"])
        elif hasattr(target, "set_state"):
            return target.set_state(state)
        else:
            raise CorruptFileError(f"gives a state to a {type(target).__name__}")
        return target


def hashable(key: Any) -> Any:
    """The key if hashing it costs little, whatever it is."""
    kind = type(key)
    if kind is Global:
        return Opaque(key.name)
    if kind in _SIMPLE_KEYS:
        return key
    if kind is int and -(1 << 63) <= key < 1 << 64:
        return key
    if kind is tuple or kind is frozenset:
        pending, seen = list(key), 0
        while pending:
            item = pending.pop()
            seen += 1
            if type(item) is tuple:
                if len(item) + seen > _MAX_KEY_ITEMS:
                    break
                pending += item
            else:
                hashable(item)
            if seen > _MAX_KEY_ITEMS:
                break
        else:
            return key
    raise LimitError(f"a key is a {kind.__name__}, which could be made to hash for ever")


def _old_text(raw: bytes) -> str | bytes:
    """A string of Python 2: text where it is text."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _quoted(text: str) -> str | bytes:
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        raise CorruptFileError("a string without its quotes")
    import codecs

    return _old_text(codecs.escape_decode(text[1:-1].encode())[0])  # type: ignore[attr-defined]


def _integer(text: str) -> int | bool:
    if text in ("00", "01"):
        return text == "01"
    return int(text.removesuffix("L"))


def _long(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _unicode(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogatepass")


# opcode: width of the length, what the bytes become
_COUNTED: dict[int, tuple[int, Callable[[bytes], Any]]] = {
    0x8A: (1, _long),  # LONG1
    0x8B: (4, _long),  # LONG4
    0x54: (4, _old_text),  # BINSTRING
    0x55: (1, _old_text),  # SHORT_BINSTRING
    0x42: (4, bytes),  # BINBYTES
    0x43: (1, bytes),  # SHORT_BINBYTES
    0x8E: (8, bytes),  # BINBYTES8
    0x96: (8, bytearray),  # BYTEARRAY8
    0x8D: (8, _unicode),  # BINUNICODE8
}
# opcode: what its line of text becomes
_LINES: dict[int, Callable[[str], Any]] = {
    0x49: _integer,  # INT
    0x4C: _integer,  # LONG
    0x46: float,  # FLOAT
    0x53: _quoted,  # STRING
    0x56: lambda text: text.encode().decode("raw-unicode-escape"),  # UNICODE
}
