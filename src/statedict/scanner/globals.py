"""Every global that a pickle names, found without building anything.

A walk over the opcodes (protocols 0 to 5) with an abstract stack and memo. Their entries are one number each: where in
the pickle a text constant stands, which global it is, or that it is something else. So a name is found whichever way
it reaches STACK_GLOBAL (texts of any opcode, the memo, DUP, POP), and a name that is no constant is one of its own
kind, "computed". A tuple stands for its first item where that is a text, which tells `numpy.dtype("O8")`.

Where Python's readers differ from one another, or fail, the walk goes on if it can: it may name more than they would
import, never less. It notes a doubt where one reader goes on and another does not, or reads something else: a number in
an odd spelling, a frame that ends within an operation, a frame within a frame, INST without a mark. It stops where none
of them goes on: at an unknown opcode, an empty stack, a missing mark, the end.

Bounds, for a pickle of n bytes: 16 n bytes and 16 MB of memory (the bytes are read through a window, texts and numbers
are skipped), time linear in n. Of the globals 10,000 are listed, the rest are counted under one name.

Source: pickles/opcodes.py, and CPython's Modules/_pickle.c for what that leaves open.
"""

from __future__ import annotations

import struct

from statedict.errors import CorruptFileError, LimitError, TruncatedError
from statedict.pickles.opcodes import LINES, OPCODES
from statedict.scanner.effects import (
    ADDS,
    BEGINNINGS,
    COMPUTED,
    EXTENSION,
    LINE_BEGINNINGS,
    MARKED,
    MAX_NAME,
    NUMBERS,
    PLAIN,
    TEXTS,
    TUPLES,
    WIDTHS,
    decode_name,
)
from statedict.scanner.names import FIRST_WINDOW, LAST_WINDOW, UNKNOWN, Names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from statedict.scanner.names import Nested, Read

_LONGEST = 1 << 14  # of the two lines of a global, what is looked at
_MARGIN = 16
_EMPTY = "takes a value from an empty stack"
_ZIP_TAIL = 2 * (22 + 0xFFFF)  # an archive's last record with its comment; in a text a byte takes up to two
_UTF8 = (0x58, 0x8C, 0x8D)
_GETS, _PUTS = {0x68: "<B", 0x6A: "<I"}, {0x71: "<B", 0x72: "<I"}
_LONG_LINE = 1 << 12


def _utf8(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogatepass")


class Walk(Names):
    """A walk over one pickle, with what it has found."""

    def _run(self, fuel: int, patience: int) -> None:  # one branch an opcode, the frequent ones first
        read, stack, memo, marks, table = self.read, self.stack, self.memo, self.marks, PLAIN
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
                elif op in WIDTHS:
                    width = WIDTHS[op]
                    length = int.from_bytes(data[at : at + width], "little")
                    at += width
                    stack.append(here if op in TEXTS else UNKNOWN)
                    if length > 7 and op not in NUMBERS and self.nested is not None:
                        most = min(160, length)
                        head = data[at : at + most] if at + most <= len(data) else read(base + at, most)
                        if BEGINNINGS.match(head) or (
                            length >= 22
                            and (length > 512 or data.find(b"PK\5\6", at, at + length) >= 0)
                            and self._archived(base + at, length)
                        ):
                            self.nested(base + at, length, _utf8 if op in _UTF8 else None)
                    if self.torch and op in TEXTS:
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
                        raise CorruptFileError(f"there is no protocol {data[at]}")
                    at += 1
                elif op == 0x94:  # MEMOIZE
                    if self.filled == len(memo):
                        memo.append(stack[-1])
                        self.filled += 1
                    else:
                        self.put(self.filled, stack[-1])
                elif op == 0x28:  # MARK
                    marks.append(len(stack))
                elif op in TUPLES:
                    count = TUPLES[op]
                    if len(stack) - count < (marks[-1] if marks else 0):
                        raise CorruptFileError(_EMPTY)
                    first = stack[-count]
                    del stack[-count:]
                    stack.append(first if first >= 0 else UNKNOWN)
                elif op in MARKED:
                    mark = marks.pop()
                    first = stack[mark] if op == 0x74 and mark < len(stack) else UNKNOWN
                    if self.torch and first >= 0 and len(stack) - mark >= 5:
                        self.note_storage(mark)
                    del stack[mark:]
                    if MARKED[op]:
                        stack.append(first if first >= 0 else UNKNOWN)
                    elif op in ADDS and stack and stack[-1] < UNKNOWN:
                        self.note_change(stack[-1], here)
                elif op in (0x52, 0x81, 0x62, 0x92):  # REDUCE, NEWOBJ, BUILD, NEWOBJ_EX
                    takes = 2 if op == 0x92 else 1
                    if len(stack) - takes <= (marks[-1] if marks else 0):
                        raise CorruptFileError(_EMPTY)
                    arguments = stack[-takes]
                    del stack[-takes:]
                    if stack[-1] < UNKNOWN:
                        self.note_call(stack[-1], arguments, here)
                        if op == 0x62:
                            self.note_change(stack[-1], here)
                    if op != 0x62:
                        stack[-1] = UNKNOWN
                elif op == 0x93:  # STACK_GLOBAL
                    if len(stack) - 2 < (marks[-1] if marks else 0):
                        raise CorruptFileError(_EMPTY)
                    name, module = stack.pop(), stack.pop()
                    stack.append(self.name(self.text(module), self.text(name), here))
                elif op in (0x61, 0x73):  # APPEND, SETITEM
                    takes = OPCODES[op].takes - 1
                    if len(stack) - takes <= (marks[-1] if marks else 0):
                        raise CorruptFileError(_EMPTY)
                    del stack[-takes:]
                    if stack[-1] < UNKNOWN:
                        self.note_change(stack[-1], here)
                elif op in (0x63, 0x69):  # GLOBAL, INST
                    begin = base + at
                    middle = data.find(b"\n", at) + 1 + base
                    middle = middle if middle > base else self._line_or_rest(begin)
                    finish = data.find(b"\n", middle - base) + 1 + base if middle < base + len(data) else 0
                    finish = finish if finish > middle else self._line_or_rest(middle)
                    at = finish - base
                    kind = COMPUTED if finish - begin > MAX_NAME else ""
                    length = min(finish - begin, _LONGEST)
                    lines = data[begin - base : begin - base + length] if at <= len(data) else read(begin, length)
                    of = middle - begin
                    ends = lines[of:].endswith(b"\n") or length == _LONGEST
                    if of == 1 or finish == middle + 1:
                        self.doubt("a global without a name")
                    value = self.add(decode_name(lines[: of - 1]), decode_name(lines[of:-1]), kind, here)
                    if not ends:
                        self.cut = self.globals[-3 - value]
                        raise TruncatedError("a line goes past the end")
                    if op == 0x69:
                        if not marks:
                            self.end = finish
                            raise CorruptFileError("INST without a mark, which Python imports all the same")
                        self.note_call(value, UNKNOWN, here)
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
                        self.note_call(function, UNKNOWN, here)
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
                    finish = data.find(b"\n", at) + 1 + base
                    finish = finish if finish > base else self.line(begin)
                    at = finish - base
                    inside = finish <= base + len(data) and finish - begin <= _LONG_LINE
                    raw = data[begin - base : at - 1] if inside else read(begin, min(finish - 1 - begin, _LONG_LINE))
                    told = self._line(op, begin, finish - 1, raw)
                    if op == 0x67:  # GET
                        stack.append(self.get(told))
                    elif op == 0x70:  # PUT
                        self.put(told, stack[-1])
                    else:
                        stack.append(here if op in (0x53, 0x56) else UNKNOWN)
                else:
                    raise CorruptFileError(f"{bytes([op])!r} is no opcode")
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

    def _line_or_rest(self, begin: int) -> int:
        """The offset after the next line feed, or the end: the Python unpickler takes the rest but for a byte."""
        try:
            return self.line(begin)
        except TruncatedError:
            end = begin
            while length := len(self.read(end, LAST_WINDOW)):
                end += length
                self.searched += length
            return end

    def _archived(self, begin: int, length: int) -> bool:
        """Whether a constant holds a tar archive, or one of zip, which readers look for from its end."""
        if self.read(begin + 257, min(5, max(0, length - 257))) == b"ustar":
            return True
        tail = min(length, _ZIP_TAIL)
        return b"PK\5\6" in self.read(begin + length - tail, tail)

    def _line(self, op: int, begin: int, end: int, raw: bytes) -> int:
        """Look at an argument that ends with a line feed; for GET and PUT the index, -1 if it cannot be told."""
        if raw.isdigit() and len(raw) < 10 and (raw[0] != 0x30 or len(raw) == 1):
            return int(raw)  # the usual ones, fast
        text, index, row = op in (0x53, 0x56), op in (0x67, 0x70), LINES[op]
        if text and self.nested is not None and end - begin > 7:
            escaped = end - begin >= 22 and (end - begin > _LONG_LINE or b"\\" in raw)
            if escaped or LINE_BEGINNINGS.match(raw[:160]) or self._archived(begin, end - begin):
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
        # the C unpickler ends it at a NUL, both skip space, and older ones take as many zeros as there are
        digits = raw.split(b"\0")[0].strip().removeprefix(b"+").replace(b"_", b"").lstrip(b"0") or b"0"
        return int(digits) if len(digits) <= 10 and digits.isdigit() else -1


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
        read: gives the bytes at an offset, fewer than asked for at the end.
        start: where the pickle begins.
        nested: called for each constant that may hold a file or a pickle, with its offset, its length, and what makes
            a text of it, if it is one (each of its characters then stands for a byte).
        torch: also note the storages that persistent ids describe, and all text constants.
        fuel: give up after about so many opcodes.
        patience: give up after about so many opcodes that name no global.

    >>> import pickle, os
    >>> data = pickle.dumps([os.system])
    >>> [(found.module, found.name, found.called) for found in walk(lambda at, n: data[at : at + n]).globals]
    [('posix', 'system', 0)]
    """
    found = Walk(read, start, nested, torch)
    found._run(fuel, patience)
    return found
