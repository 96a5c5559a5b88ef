"""A pickle reader that executes nothing.

A pickle is a program for a stack machine, and Python's own reader runs it: it imports what the program names and
calls it. This machine interprets the same opcodes (protocols 0 to 5) over plain data. A global in the caller's table of
constructors builds data; any other becomes an inert `Opaque` with its name and its arguments. Nothing is imported,
called or looked up by a name from the file.

Bounds, for a pickle of n bytes:
    memory   at most 64 MB + 20 n, including the pickle; the caller may grant more for each byte (budget.py).
    time     linear in n. Arguments of constructors are charged by their length, each time they are used.
    keys     of dicts and sets: strings, bytes, numbers of up to 4,096 bits, None, globals, and tuples and frozensets of
             up to 64 of these in all; at most 64 with one hash. A pickle can make hashing of other keys take for ever.
    lengths  of strings and integers are checked against the rest of the pickle before anything is allocated; names of
             globals have up to 1,000 characters, numbers in decimal digits as many as Python allows (4,300).
Nesting is not bounded here, for it costs this machine nothing; walk.MAX_DEPTH bounds it for whoever walks the result.

Source: pickles/opcodes.py. What Python's unpicklers read differently is refused: odd spellings of numbers, and
operations that go past the end of their frame.
"""

from __future__ import annotations

import struct
from mmap import mmap

from statedict.errors import CorruptFileError, FormatError, StateDictError, TruncatedError, is_failure_of_code
from statedict.pickles.budget import DICT, ENTRY, FACTOR, MEMO, OBJECT, TEXT, TUPLE
from statedict.pickles.objects import Builder, Global, name_call
from statedict.pickles.opcodes import OPCODES, TO_MARK
from statedict.tree.state_dict import StateDict
from statedict.values import Opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

_U2, _U4, _U8 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")
_CONSTANTS = {0x29: (), 0x89: False, 0x88: True, 0x4E: None}  # EMPTY_TUPLE, NEWFALSE, NEWTRUE, NONE


class Interlude(Exception):  # noqa: N818  nothing is wrong
    """Raised by what takes a state where bytes that are no pickle follow.

    `follow(data, position)` returns the object that they make, and where the pickle goes on.
    """

    def __init__(self, follow: Callable[[Any, int], tuple[Any, int]]) -> None:
        super().__init__()
        self.follow = follow


def load(
    data: bytes | bytearray | mmap,
    constructors: Mapping[str, Any],
    persistent_load: Callable[[Any], Any] | None = None,
    where: str = "pickle",
    start: int = 0,
    factor: int = FACTOR,
) -> tuple[Any, int]:
    """Read one pickle; the object, and the offset after its STOP.

    Args:
        data: bytes with the pickle in them, or a file that is mapped.
        constructors: `"module name"` → a `Global`, or the value that the name stands for.
        persistent_load: returns the object of a persistent id.
        where: names the pickle in messages.
        start: its offset in `data`.
        factor: bytes of memory for each byte of the pickle.

    Raises:
        TruncatedError: it ends early; the message names the byte.
        CorruptFileError: it makes no sense; the message names the byte.
        LimitError: it exceeds the bounds above.

    >>> import pickle, os
    >>> load(pickle.dumps({"epoch": 3, "run": os.system}), {})[0]
    {'epoch': 3, 'run': Opaque('posix.system')}
    """
    memory: Any = data if isinstance(data, mmap) else bytes(data)
    machine = _Machine(memory, constructors, persistent_load, start, factor)
    try:
        while True:
            try:
                return machine.run()
            except Interlude as pause:
                machine.resume(pause)
    except StateDictError as error:
        kind = type(error)
        raise kind(f"{where}: at byte {machine.position:,} of {len(data):,}: {error}") from error
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        if is_failure_of_code(error):
            raise
        ended = machine.position >= len(data) or isinstance(error, struct.error)
        kind = TruncatedError if ended else CorruptFileError
        what = "the pickle ends here" if ended else f"malformed pickle ({type(error).__name__}: {str(error)[:200]})"
        raise kind(
            f"{where}: at byte {machine.position:,} of {len(data):,}: {what}; the file looks truncated or damaged"
        ) from error


class _Machine(Builder):
    spent = 0  # bytes that were made since the last look

    def resume(self, pause: Interlude) -> None:
        """Take what stands between two parts of the pickle."""
        self.charge(self.spent)
        value, self.position = pause.follow(self.data, self.position)
        self.replace(self.stack[-1], value)
        self.stack[-1] = value

    def run(self) -> tuple[Any, int]:  # one branch an opcode, the frequent ones first
        data, memo, far_memo, stack, marks = self.data, self.memo, self.far_memo, self.stack, self.marks
        position, size, u4 = self.position, len(data), _U4.unpack_from
        cost, look_at, look = 0, position, self.budget.look  # bytes that were made since the last look
        frame, checkpoint = 0, position  # where the frame ends, if there is one; where to stop for either
        items: Any
        try:
            while True:
                if position > checkpoint:
                    if frame and position >= frame:
                        if position != frame:
                            raise CorruptFileError(f"an operation goes past the end of its frame at byte {frame:,}")
                        frame = 0
                    if position > look_at:
                        look_at, cost = look(cost, position, stack, memo, marks), 0
                    checkpoint = min(look_at, frame - 1) if frame else look_at
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
                    stack.append(memo[index] if index < len(memo) else far_memo[index])
                elif op == 0x4B:  # BININT1
                    stack.append(data[position])
                    position += 1
                elif op == 0x28:  # MARK
                    marks.append(len(stack))
                elif op == 0x74:  # TUPLE
                    mark = marks.pop()
                    items = tuple(stack[mark:])
                    cost += TUPLE + 8 * len(items)
                    del stack[mark:]
                    stack.append(items)
                elif op == 0x85:  # TUPLE1
                    cost += TUPLE
                    stack[-1] = (stack[-1],)
                elif op == 0x58:  # BINUNICODE
                    (length,) = u4(data, position)
                    position += 4
                    if position + length > size:
                        raise TruncatedError(f"a string of {length:,} bytes goes past the end of the pickle")
                    text = str(data[position : position + length], "utf-8", "surrogatepass")
                    stack.append(text)
                    cost += TEXT + (length if len(text) == length else 4 * length)
                    position += length
                elif op == 0x52 or op == 0x81:  # REDUCE, NEWOBJ
                    cost += OBJECT
                    args = stack.pop()
                    function = stack[-1]
                    build = function.build if type(function) is Global and type(args) is tuple else None
                    if build is not None and len(args) < function.bulk:
                        stack[-1] = build(*args)
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
                    stack.append(memo[index] if index < len(memo) else far_memo[index])
                elif op in _CONSTANTS:
                    stack.append(_CONSTANTS[op])
                elif op == 0x51:  # BINPERSID
                    cost += 2 * OBJECT
                    stack[-1] = self.persistent(stack[-1])
                elif op == 0x86:  # TUPLE2
                    cost += TUPLE
                    stack[-2:] = ((stack[-2], stack[-1]),)
                elif op == 0x4D:  # BININT2
                    stack.append(_U2.unpack_from(data, position)[0])
                    cost += 32
                    position += 2
                elif op == 0x4A:  # BININT
                    stack.append(_I4.unpack_from(data, position)[0])
                    cost += 32
                    position += 4
                elif op == 0x94:  # MEMOIZE
                    if far_memo:
                        raise CorruptFileError("a memo filled in two ways at once")
                    memo.append(stack[-1])
                elif op == 0x8C:  # SHORT_BINUNICODE
                    end = position + 1 + data[position]
                    if end > size:
                        raise TruncatedError(f"a string of {data[position]:,} bytes goes past the end of the pickle")
                    stack.append(str(data[position + 1 : end], "utf-8", "surrogatepass"))
                    cost += TEXT + 4 * (end - position)
                    position = end
                elif op == 0x87:  # TUPLE3
                    cost += TUPLE
                    stack[-3:] = ((stack[-3], stack[-2], stack[-1]),)
                elif op == 0x47:  # BINFLOAT
                    stack.append(_F8.unpack_from(data, position)[0])
                    cost += 32
                    position += 8
                elif op == 0x7D:  # EMPTYDICT
                    cost += DICT
                    stack.append(StateDict())
                elif op == 0x5D:  # EMPTY_LIST
                    cost += OBJECT
                    stack.append([])
                elif op == 0x75:  # SETITEMS
                    items = self.pop_mark()
                    cost += ENTRY * len(items)
                    self.set_items(stack[-1], items)
                elif op == 0x73:  # SETITEM
                    cost += 2 * ENTRY
                    items = stack[-2:]
                    del stack[-2:]
                    self.set_items(stack[-1], items)
                elif op == 0x65:  # APPENDS
                    items = self.pop_mark()
                    cost += MEMO * len(items)
                    self.append(stack[-1], items)
                elif op == 0x61:  # APPEND
                    items = [stack.pop()]
                    cost += MEMO
                    self.append(stack[-1], items)
                elif op == 0x63:  # GLOBAL
                    found, position = self.read_global(op, position)
                    stack.append(found)
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
                    frame = self.enter_frame(frame, position)
                    position += 8
                    checkpoint = min(look_at, frame - 1)
                elif op == 0x2E:  # STOP
                    result = stack.pop()
                    if frame and position != frame:
                        raise CorruptFileError("the pickle stops before the end of its frame")
                    look(cost, position, stack, memo, marks)
                    self.budget.close(position)  # nothing stays of a pickle that ends otherwise
                    return result, position
                else:
                    position = self.rare(op, position)
        finally:
            self.position, self.spent = position, cost

    def rare(self, op: int, position: int) -> int:
        """The opcodes that modern pickles seldom use; the offset after it."""
        row = OPCODES.get(op)
        if row is None:
            raise FormatError(f"opcode {bytes([op])!r} is not allowed in a file")
        width: int = row.width
        if row.layout == "counted":
            begin = position + width
            end = begin + int.from_bytes(self.data[position:begin], "little")
            if end > len(self.data):
                raise TruncatedError(f"a value of {end - begin:,} bytes goes past the end of the pickle")
            self.budget.reach(end)
            self.charge(TEXT + 4 * (end - begin))
            self.stack.append(row.read(self.data[begin:end]))
            return end
        if row.layout == "line":
            raw, position = self.line(position)
            self.charge(TEXT + 4 * len(raw))
            value = row.read(raw)
            if op == 0x70:  # PUT
                self.put(value, self.stack[-1])
                return position
            if op == 0x67:  # GET
                value = self.memo[value] if value < len(self.memo) else self.far_memo[value]
            elif op == 0x50:  # PERSID
                self.charge(2 * OBJECT)
                value = self.persistent(value)
            self.stack.append(value)
            return position
        if op == 0x69:  # INST
            function, position = self.read_global(op, position)
            items = self.pop_mark()
            self.charge(OBJECT + TUPLE + 8 * len(items))
            self.stack.append(self.call(function, tuple(items)))
        elif row.layout == "fixed":  # EXT1, EXT2, EXT4
            code = row.read(self.data[position : position + width])
            self.stack.append(self.find("copyreg", f"extension {code}"))
        else:
            self.rearrange(op, row.takes)
        return position + width

    def rearrange(self, op: int, takes: int) -> None:
        """The same of opcodes without an argument."""
        stack, marks, items = self.stack, self.marks, self.pop_mark() if takes == TO_MARK else []
        if op == 0x64:  # DICT
            self.charge(DICT + ENTRY * len(items))
            stack.append(StateDict())
            self.set_items(stack[-1], items)
        elif op == 0x6C:  # LIST
            self.charge(OBJECT + MEMO * len(items))
            stack.append(items)
        elif op == 0x90:  # ADDITEMS
            self.add(stack[-1], items)
        elif op == 0x91:  # FROZENSET
            self.charge(DICT + 2 * ENTRY * len(items))
            stack.append(frozenset(map(self.key, items)))
        elif op == 0x6F:  # OBJ
            self.charge(OBJECT + TUPLE + 16 * len(items))
            stack.append(self.call(items[0], tuple(items[1:])))
        elif op == 0x30:  # POP
            if marks and marks[-1] == len(stack):
                marks.pop()
            else:
                self.drop(stack.pop())
        elif op == 0x32:  # DUP
            stack.append(stack[-1])
        elif op == 0x8F:  # EMPTY_SET
            self.charge(DICT)
            stack.append(set())
        elif op == 0x92:  # NEWOBJ_EX
            named, args = stack.pop(), stack.pop()
            self.charge(2 * OBJECT)
            if not isinstance(named, dict) or not isinstance(args, tuple):
                raise CorruptFileError("a call whose arguments are not a tuple and a dict")
            stack[-1] = Opaque(name_call(stack[-1]), (args, named)) if named else self.call(stack[-1], args)
        elif takes != TO_MARK:
            raise FormatError(f"opcode {bytes([op])!r} is not allowed in a file")

    def pop_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def line(self, position: int) -> tuple[bytes, int]:
        end = self.data.find(b"\n", position)
        if end < 0:
            raise TruncatedError("a line goes past the end of the pickle; the file looks truncated or damaged")
        return self.data[position:end], end + 1

    def enter_frame(self, frame: int, position: int) -> int:
        (length,) = _U8.unpack_from(self.data, position)
        if frame:
            raise CorruptFileError("a frame begins before the end of another")
        if length > len(self.data) - position - 8:
            raise TruncatedError(f"a frame of {length:,} bytes goes past the end of the pickle")
        return position + 8 + int(length)

    def read_global(self, op: int, position: int) -> tuple[Any, int]:
        """The global whose module and name are two lines."""
        module, position = self.line(position)
        name, position = self.line(position)
        read = OPCODES[op].read
        return self.find(read(module), read(name)), position
