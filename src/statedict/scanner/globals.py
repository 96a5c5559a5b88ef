"""Finds every global that a pickle names, without building anything.

A walk over the opcodes (protocols 0 to 5) with an abstract stack and memo. An entry is one number: the offset of a text
constant, a global, or something else. So a name is found whichever way it reaches STACK_GLOBAL (texts of any opcode,
the memo, DUP, POP), and a name that is not a constant has a kind of its own, "computed". A tuple stands for its first
item if that is a text, which identifies `numpy.dtype("O8")`.

Where Python's unpicklers differ or fail, the walk goes on if it can: it may name more than they would import, never
less. It records a doubt where one unpickler goes on and another does not, or reads something else: a number in an odd
spelling, a frame that ends within an operation, a frame within a frame, INST without a mark. It stops where all of them
stop: at an unknown opcode, an empty stack, a missing mark, the end.

Bounds, for a pickle of n bytes: 16 n bytes and 16 MB of memory (the bytes are read through a window; texts and numbers
are skipped), time linear in n. The first 10,000 globals are listed, the rest are counted under one name.

Source: pickles/opcodes.py, and CPython's Modules/_pickle.c for the rest.
"""

from __future__ import annotations

import re
import struct

from statedict.errors import CorruptFileError, LimitError, TruncatedError
from statedict.pickles.opcodes import COUNTED, LINES, OPCODES, TO_MARK, as_text
from statedict.scanner.names import COMPUTED, EXTENSION, FIRST_WINDOW, LAST_WINDOW, MAX_NAME, UNKNOWN, Names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.scanner.names import Nested, Read

# the tables of the loop, by opcode
_SPECIAL = b"ab(st.02R\x81\x92\x93ghjpqr\x94\x95\x80\x82\x83\x84\x85\x86\x87"
_PLAIN = [  # the others, of fixed width: how many bytes follow, how many values they take and leave
    (row.width, row.takes, row.leaves)
    if row is not None and row.layout in ("none", "fixed") and row.takes != TO_MARK and code not in _SPECIAL
    else None
    for code, row in ((code, OPCODES.get(code)) for code in range(256))
]
_WIDTHS = {code: row.width for code, row in COUNTED.items()}
_NUMBERS = {code for code, row in COUNTED.items() if row.name.startswith("LONG")}
_TEXTS = {code for code, row in COUNTED.items() if row.name.endswith(("UNICODE", "UNICODE8", "STRING"))}
_UTF8 = (0x58, 0x8C, 0x8D)
_TUPLES = {code: OPCODES[code].takes for code in b"\x85\x86\x87"}
_MARKED = {
    code: row.leaves for code, row in OPCODES.items() if row.takes == TO_MARK and row.name not in ("INST", "OBJ")
}
_TARGETED = {code: OPCODES[code].takes - 1 for code in b"\x52\x81\x92\x62\x61\x73\x93"}  # how many stand above it
_CALLS, _MAKES = b"\x52\x81\x92\x62", b"\x52\x81\x92"  # REDUCE, NEWOBJ, NEWOBJ_EX; BUILD calls but makes nothing
_CHANGES = b"\x62\x61\x73\x65\x75\x90"  # BUILD, APPEND, SETITEM, APPENDS, SETITEMS, ADDITEMS
_GETS, _PUTS = {0x68: "<B", 0x6A: "<I"}, {0x71: "<B", 0x72: "<I"}

_BEGINNINGS = re.compile(  # of what may hide in a constant: pickles, archives, arrays, compressed files
    rb"\x80[\x00-\x05]|\xc2\x80[\x00-\x05]|PK\x03\x04|\x93NUMPY|\xc2\x93NUMPY|\x1f\x8b\x08|\xfd7zXZ|BZh"
    rb"|x[\x01\x5e\x9c\xda]|[ci][^\n]{0,100}\n|[(\]})][\x00-\xff]{0,100}?\n|[(\]})]?.?.?.?\x8c[^\n]{2,60}\x93"
)
_LINE_BEGINNINGS = re.compile(  # the same, escaped
    rb"['\"]?(?:\x80|\\x80|\\u0080|PK\\|\x93NUMPY|\\x93NUMPY|[ci(\]})][\x00-\xff]{0,100}?(?:\\n|\\u000a))"
)
_LONGEST = 1 << 14  # bytes of the two lines of a global that are read
_LONG_LINE = 1 << 12
_MARGIN = 16
_EMPTY = "takes a value from an empty stack"
_ZIP_TAIL = 2 * (22 + 0xFFFF)  # an archive's last record with its comment; in a text a byte takes up to two


class Walk(Names):
    """A walk over one pickle, and its result."""

    def _run(self, fuel: int, patience: int) -> None:  # one branch an opcode, the frequent ones first
        read, stack, memo, marks, table = self.read, self.stack, self.memo, self.marks, _PLAIN
        data, base, at, limit, window = b"", self.start, 0, -1, FIRST_WINDOW
        opcodes, frame, filled = 0, 0, -1  # where the frame ends, if there is one; up to where the window is filled
        try:
            while True:
                if at > limit:
                    if frame and base + at >= frame:
                        if base + at > frame:
                            self.crossed = True
                            self.doubt(f"the operation at byte {self.end:,} goes past the end of its frame")
                        frame = 0
                    if at > filled:
                        base, at = base + at, 0
                        data = read(base, window)
                        filled = len(data) - (_MARGIN if len(data) == window else 1)
                        window = min(4 * window, LAST_WINDOW)
                        if not data:
                            raise TruncatedError("ends early")
                        if opcodes > fuel or (opcodes > patience and not self.globals):
                            raise CorruptFileError("goes on for longer than a file of this size may")
                    limit = min(filled, frame - 1 - base) if frame else filled
                op = data[at]
                self.end = here = base + at
                at += 1
                opcodes += 1
                plain = table[op]
                if plain is not None:
                    width, takes, leaves = plain
                    at += width
                    if takes:
                        if len(stack) - takes < (marks[-1] if marks else 0):
                            raise CorruptFileError(_EMPTY)
                        del stack[-takes:]
                    if leaves:
                        stack.append(UNKNOWN)
                elif op in _WIDTHS:
                    width = _WIDTHS[op]
                    length = int.from_bytes(data[at : at + width], "little")
                    at += width
                    stack.append(here if op in _TEXTS else UNKNOWN)
                    if length > 7 and op not in _NUMBERS and self.nested is not None:
                        most = min(160, length)
                        head = data[at : at + most] if at + most <= len(data) else read(base + at, most)
                        if _BEGINNINGS.match(head) or (
                            length >= 22
                            and (length > 512 or data.find(b"PK\5\6", at, at + length) >= 0)
                            and self._is_archive(base + at, length)
                        ):
                            self.nested(base + at, length, COUNTED[op].read if op in _UTF8 else None)
                    if self.torch and op in _TEXTS:
                        self.texts.append(here)
                    at += length
                    if at > len(data) and not read(base + at - 1, 1):
                        raise TruncatedError(f"a value of {length:,} bytes goes past the end")
                elif op in _GETS:
                    (index,) = struct.unpack_from(_GETS[op], data, at)
                    at += 1 if op == 0x68 else 4
                    stack.append(self.get(index))
                elif op in _PUTS:
                    (index,) = struct.unpack_from(_PUTS[op], data, at)
                    at += 1 if op == 0x71 else 4
                    self.put(index, stack[-1])
                elif op == 0x80:  # PROTO
                    if data[at : at + 1] > b"\5":
                        raise CorruptFileError(f"protocol {data[at]} does not exist")
                    at += 1
                elif op == 0x94:  # MEMOIZE
                    if self.filled == len(memo):
                        memo.append(stack[-1])
                        self.filled += 1
                    else:
                        self.put(self.filled, stack[-1])
                elif op == 0x28:  # MARK
                    marks.append(len(stack))
                elif op in _TUPLES:
                    count = _TUPLES[op]
                    if len(stack) - count < (marks[-1] if marks else 0):
                        raise CorruptFileError(_EMPTY)
                    first = stack[-count]
                    del stack[-count:]
                    stack.append(first if first >= 0 else UNKNOWN)
                elif op in _MARKED:
                    mark = marks.pop()
                    first = stack[mark] if op == 0x74 and mark < len(stack) else UNKNOWN
                    if self.torch and first >= 0 and len(stack) - mark >= 5:
                        self.add_storage(mark)
                    del stack[mark:]
                    if _MARKED[op]:
                        stack.append(first if first >= 0 else UNKNOWN)
                    elif op in _CHANGES and stack and stack[-1] < UNKNOWN:
                        self.add_change(stack[-1], here)
                elif op in _TARGETED:
                    takes = _TARGETED[op]
                    if len(stack) - takes <= (marks[-1] if marks else 0):
                        raise CorruptFileError(_EMPTY)
                    argument = stack[-takes]
                    del stack[-takes:]
                    target = stack[-1]
                    if op == 0x93:  # STACK_GLOBAL
                        stack[-1] = self.add_from_stack(target, argument, here)
                        continue
                    if target < UNKNOWN:
                        if op in _CALLS:
                            self.add_call(target, argument, here)
                        if op in _CHANGES:
                            self.add_change(target, here)
                    if op in _MAKES:
                        stack[-1] = UNKNOWN
                elif op in (0x63, 0x69):  # GLOBAL, INST
                    begin = base + at
                    middle = self.line(begin, data, base, rest=True)
                    finish = self.line(middle, data, base, rest=True)
                    at = finish - base
                    length = min(finish - begin, _LONGEST)
                    lines = data[begin - base : begin - base + length] if at <= len(data) else read(begin, length)
                    value = self._read_global(lines, middle - begin, finish - begin, here)
                    if op == 0x69:
                        if not marks:
                            self.end = finish
                            raise CorruptFileError("INST without a mark, which Python imports all the same")
                        self.add_call(value, UNKNOWN, here)
                        del stack[marks.pop() :]
                        value = UNKNOWN
                    stack.append(value)
                elif op == 0x2E:  # STOP
                    self.end = base + at
                    if not stack:
                        raise CorruptFileError("ends without a value")
                    if frame and self.end != frame:
                        self.doubt("it stops before the end of its frame")
                    return
                elif op == 0x30:  # POP
                    if marks and marks[-1] == len(stack):
                        marks.pop()
                    else:
                        stack.pop()
                elif op == 0x32:  # DUP
                    stack.append(stack[-1])
                elif op == 0x6F:  # OBJ
                    if not marks:
                        self.end = base + at
                        raise CorruptFileError("OBJ without a mark")
                    mark = marks.pop()
                    function = stack[mark]
                    del stack[mark:]
                    if function < UNKNOWN:
                        self.add_call(function, UNKNOWN, here)
                    stack.append(UNKNOWN)
                elif op == 0x95:  # FRAME
                    if frame:
                        self.crossed = True
                        self.doubt("a frame begins before the end of another")
                    (length,) = struct.unpack_from("<Q", data, at)
                    at += 8
                    frame = base + at + length
                    if length and not read(frame - 1, 1):
                        self.doubt(f"a frame of {length:,} bytes goes past the end")
                    limit = min(filled, frame - 1 - base)
                elif op in (0x82, 0x83, 0x84):  # EXT1, EXT2, EXT4
                    row = OPCODES[op]
                    code = row.read(data[at : at + row.width])
                    at += row.width
                    stack.append(self.add("copyreg", f"extension {code}", EXTENSION, here))
                elif op in LINES:
                    begin = base + at
                    finish = self.line(begin, data, base)
                    at = finish - base
                    inside = finish <= base + len(data) and finish - begin <= _LONG_LINE
                    raw = data[begin - base : at - 1] if inside else read(begin, min(finish - 1 - begin, _LONG_LINE))
                    index = self._read_line(op, begin, finish - 1, raw)
                    if op == 0x67:  # GET
                        stack.append(self.get(index))
                    elif op == 0x70:  # PUT
                        self.put(index, stack[-1])
                    else:
                        stack.append(here if op in (0x53, 0x56) else UNKNOWN)
                else:
                    raise CorruptFileError(f"{bytes([op])!r} is not an opcode")
        except (CorruptFileError, LimitError) as error:
            self.problem = str(error)
            self.truncated = isinstance(error, TruncatedError)
        except struct.error:
            self.problem, self.truncated = "ends early", True
        except IndexError:
            self.problem = _EMPTY
        except ValueError as error:
            self.problem = f"malformed ({error})"[:200]
        finally:
            self.opcodes = opcodes
            self.crossed = self.crossed or (frame > 0 and self.problem != "")

    def _read_global(self, lines: bytes, middle: int, length: int, here: int) -> int:
        """Record the global of two lines: the module before `middle`, and the name; `lines` is cut at _LONGEST."""
        if middle == 1 or length == middle + 1:
            self.doubt("a global without a name")
        kind = COMPUTED if length > MAX_NAME else ""
        value = self.add(_decode_name(lines[: middle - 1]), _decode_name(lines[middle:-1]), kind, here)
        if not lines[middle:].endswith(b"\n") and length < _LONGEST:
            self.cut = self.globals[-3 - value]
            raise TruncatedError("a line goes past the end")
        return value

    def _is_archive(self, begin: int, length: int) -> bool:
        """Whether a constant holds a tar archive, or a zip archive, which readers look for from the end."""
        if self.read(begin + 257, min(5, max(0, length - 257))) == b"ustar":
            return True
        tail = min(length, _ZIP_TAIL)
        return b"PK\5\6" in self.read(begin + length - tail, tail)

    def _read_line(self, op: int, begin: int, end: int, raw: bytes) -> int:
        """Check an argument that ends with a line feed; the index of GET and PUT, -1 if it is ambiguous."""
        if raw.isdigit() and len(raw) < 10 and (raw[0] != 0x30 or len(raw) == 1):
            return int(raw)  # the usual spelling, fast
        text, index, row = op in (0x53, 0x56), op in (0x67, 0x70), LINES[op]
        if text and self.nested is not None and end - begin > 7:
            escaped = end - begin >= 22 and (end - begin > _LONG_LINE or b"\\" in raw)
            if escaped or _LINE_BEGINNINGS.match(raw[:160]) or self._is_archive(begin, end - begin):
                self.nested(begin, end - begin, row.read)
        if end - begin > _LONG_LINE:
            if not text:
                self.doubt(f"{row.name} of {end - begin:,} characters")
            return -1
        try:
            value = row.read(raw)
        except CorruptFileError as error:
            self.doubt(str(error))
        except ValueError as error:
            self.doubt(f"malformed ({error})"[:200])
        else:
            return int(value) if index else -1
        if not index:
            return -1
        # the C unpickler stops at a NUL, both skip spaces, older ones take any number of zeros
        digits = raw.split(b"\0")[0].strip().removeprefix(b"+").replace(b"_", b"").lstrip(b"0") or b"0"
        return int(digits) if len(digits) <= 10 and digits.isdigit() else -1


def _decode_name(name: bytes) -> str:
    text = as_text(name[:MAX_NAME])
    return text if type(text) is str else name[:MAX_NAME].decode("latin-1")


def walk(
    read: Read,
    start: int = 0,
    nested: Nested | None = None,
    *,
    torch: bool = False,
    fuel: int = 1 << 62,
    patience: int = 1 << 62,
) -> Walk:
    """List the globals of the pickle at `start`.

    Args:
        read: returns the bytes at an offset, fewer at the end.
        start: an offset.
        nested: called for each constant that may hold a file or a pickle, with its offset, its length and, for a text,
            its decoder (each character then stands for a byte).
        torch: also record the storages that persistent ids describe, and all text constants.
        fuel: give up after about so many opcodes.
        patience: give up after about so many opcodes that name no global.

    >>> import pickle, os
    >>> data = pickle.dumps([os.system])
    >>> [(found.module, found.name, found.called) for found in walk(lambda at, n: data[at : at + n]).globals]
    [('posix', 'system', 0)]
    """
    result = Walk(read, start, nested, torch)
    result._run(fuel, patience)
    return result
