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

import re
import struct
from array import array

from statedict.errors import CorruptFileError, LimitError, TruncatedError
from statedict.pickles.opcodes import COUNTED, LINES, OPCODES, TO_MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Read = Callable[[int, int], bytes]  # offset, length → the bytes, fewer at the end
    Decode = Callable[[bytes], Any]  # what the bytes in the pickle become
    Nested = Callable[[int, int, Decode | None], None]  # offset, length, how it is read if not as it stands

COMPUTED, EXTENSION, OBJECTS, ALTERED, MORE = "computed", "extension", "objects", "altered", "more"
MAX_DISTINCT = 10_000
_MAX_NAME = 1000
_LONGEST = 1 << 14  # of the two lines of a global, what is looked at
_UNSET, _UNKNOWN = -1, -2  # globals lie below: -3 is the first
_MARGIN = 16
_FIRST_WINDOW, _LAST_WINDOW = 1 << 12, 1 << 20
_FAR = 1 << 16  # no pickler leaves a gap in its memo
_EMPTY = "takes a value from an empty stack"
_OBJECT_DTYPE = re.compile(r"[|<>=]?O\d*|object_?")
_ARRAYS = ("numpy", "numpy.dtype", "numpy.dtypes")

_SPECIAL = b"ab(st.02R\x81\x92\x93ghjpqr\x94\x95\x80\x82\x83\x84\x85\x86\x87"
# opcodes of no interest: how many bytes follow, how many values they take, how many they leave
_TABLE = [
    (row.width, row.takes, row.leaves)
    if row is not None and row.layout in ("none", "fixed") and row.takes != TO_MARK and code not in _SPECIAL
    else None
    for code, row in ((code, OPCODES.get(code)) for code in range(256))
]
_WIDTHS = {code: row.width for code, row in COUNTED.items()}
_NUMBERS = {code for code, row in COUNTED.items() if row.name.startswith("LONG")}
_TEXTS = {code for code, row in COUNTED.items() if row.name.endswith(("UNICODE", "UNICODE8", "STRING"))}
_TUPLES = {code: row.takes for code, row in OPCODES.items() if re.fullmatch("TUPLE[123]", row.name)}
_TO_MARK = {
    code: row.leaves for code, row in OPCODES.items() if row.takes == TO_MARK and row.name not in ("INST", "OBJ")
}
_ADDS_TO_MARK = {code for code in _TO_MARK if OPCODES[code].name in ("APPENDS", "SETITEMS", "ADDITEMS")}
_GETS, _PUTS = {0x68: "<B", 0x6A: "<I"}, {0x71: "<B", 0x72: "<I"}
_LONG_LINE = 1 << 12
_ZIP_TAIL = 2 * (22 + 0xFFFF)  # an archive's last record with its comment; in a text a byte takes up to two
_MAX_DOUBTS = 8
_UTF8 = (0x58, 0x8C, 0x8D)
_BEGINNINGS = re.compile(  # of what may hide in a constant: pickles, archives, arrays, compressed files
    rb"\x80[\x00-\x05]|\xc2\x80[\x00-\x05]|PK\x03\x04|\x93NUMPY|\xc2\x93NUMPY|\x1f\x8b\x08|\xfd7zXZ|BZh"
    rb"|x[\x01\x5e\x9c\xda]|[ci][^\n]{0,100}\n|[(\]})][\x00-\xff]{0,100}?\n|[(\]})]?.?.?.?\x8c[^\n]{2,60}\x93"
)
_LINE_BEGINNINGS = re.compile(  # the same, escaped
    rb"['\"]?(?:\x80|\\x80|\\u0080|PK\\|\x93NUMPY|\\x93NUMPY|[ci(\]})][\x00-\xff]{0,100}?(?:\\n|\\u000a))"
)


def _decoded(name: bytes) -> str:
    name = name[:_MAX_NAME]
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def _utf8(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogatepass")


class Named:
    """A global in one pickle.

    Attributes:
        module, name: as the pickle spells them.
        kind: empty; or `computed`, `extension`, `objects` (a dtype of Python objects), `altered` (something is stored
            in it), `more` (over 10,000).
        offset: of the opcode that names it first.
        count: how many opcodes name it.
        called: how many opcodes call it, make an instance of it, or give it a state.
    """

    __slots__ = ("called", "count", "kind", "module", "name", "offset")

    def __init__(self, module: str, name: str, kind: str, offset: int) -> None:
        self.module, self.name, self.kind, self.offset, self.count, self.called = module, name, kind, offset, 0, 0


class Walk:
    """What a walk has found.

    Attributes:
        start: offset of its first opcode.
        end: offset after the last one that it followed.
        problem: why it ended before STOP, empty if it did not.
        truncated: whether that is the end of the bytes.
        doubts: what Python's readers read differently, the first few.
        cut: what the last line names, if it ends without a line feed.
        crossed: whether an operation goes, or may go, past the end of its frame, so that some reader goes on elsewhere.
        opcodes: how many it followed.
        searched: bytes through which it looked for the ends of lines.
        globals: in the order in which they are first named.
        storages: key → its type, of PyTorch's persistent ids; only with `torch`.
        texts: the offsets of all text constants; only with `torch`.
    """

    def __init__(self, read: Read, start: int, nested: Nested | None, torch: bool) -> None:
        self.read, self.start, self.nested, self.torch = read, start, nested, torch
        self.end, self.problem, self.truncated, self.opcodes = start, "", False, 0
        self.searched = 0
        self.doubts: list[str] = []
        self.crossed = False
        self.cut: Named | None = None
        self.globals: list[Named] = []
        self.storages: dict[str, Named] = {}
        self.texts = array("q")
        self.known: dict[tuple[str, str, str], int] = {}
        self.cache: dict[int, str | None] = {}
        self.stack, self.memo, self.marks = array("q"), array("q"), array("q")
        self.filled, self.lost = 0, False

    def _run(self, fuel: int, patience: int) -> None:  # one branch an opcode, the frequent ones first
        read, stack, memo, marks, table = self.read, self.stack, self.memo, self.marks, _TABLE
        data, base, at, limit, window = b"", self.start, 0, -1, _FIRST_WINDOW
        opcodes, frame, filled = 0, 0, -1  # where the frame ends, if there is one; up to where the window is filled
        try:
            while True:
                if at > limit:
                    if frame and base + at >= frame:
                        if base + at > frame:
                            self.crossed = True
                            self._doubt(f"the operation at byte {self.end:,} goes past the end of its frame")
                        frame = 0
                    if at > filled:
                        base, at = base + at, 0
                        data = read(base, window)
                        filled = len(data) - (_MARGIN if len(data) == window else 1)
                        window = min(4 * window, _LAST_WINDOW)
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
                        stack.append(_UNKNOWN)
                elif op in _WIDTHS:
                    width = _WIDTHS[op]
                    length = int.from_bytes(data[at : at + width], "little")
                    at += width
                    stack.append(here if op in _TEXTS else _UNKNOWN)
                    if length > 7 and op not in _NUMBERS and self.nested is not None:
                        most = min(160, length)
                        head = data[at : at + most] if at + most <= len(data) else read(base + at, most)
                        if _BEGINNINGS.match(head) or (
                            length >= 22
                            and (length > 512 or data.find(b"PK\5\6", at, at + length) >= 0)
                            and self._archived(base + at, length)
                        ):
                            self.nested(base + at, length, _utf8 if op in _UTF8 else None)
                    if self.torch and op in _TEXTS:
                        self.texts.append(here)
                    at += length
                    if at > len(data) and not read(base + at - 1, 1):
                        raise TruncatedError(f"a value of {length:,} bytes goes past the end")
                elif op in _GETS:
                    (index,) = struct.unpack_from(_GETS[op], data, at)
                    at += 1 if op == 0x68 else 4
                    stack.append(self._get(index))
                elif op in _PUTS:
                    (index,) = struct.unpack_from(_PUTS[op], data, at)
                    at += 1 if op == 0x71 else 4
                    self._put(index, stack[-1])
                elif op == 0x80:  # PROTO
                    if data[at : at + 1] > b"\5":
                        raise CorruptFileError(f"there is no protocol {data[at]}")
                    at += 1
                elif op == 0x94:  # MEMOIZE
                    if self.filled == len(memo):
                        memo.append(stack[-1])
                        self.filled += 1
                    else:
                        self._put(self.filled, stack[-1])
                elif op == 0x28:  # MARK
                    marks.append(len(stack))
                elif op in _TUPLES:
                    count = _TUPLES[op]
                    if len(stack) - count < (marks[-1] if marks else 0):
                        raise CorruptFileError(_EMPTY)
                    first = stack[-count]
                    del stack[-count:]
                    stack.append(first if first >= 0 else _UNKNOWN)
                elif op in _TO_MARK:
                    mark = marks.pop()
                    first = stack[mark] if op == 0x74 and mark < len(stack) else _UNKNOWN
                    if self.torch and first >= 0 and len(stack) - mark >= 5:
                        self._storage(mark)
                    del stack[mark:]
                    if _TO_MARK[op]:
                        stack.append(first if first >= 0 else _UNKNOWN)
                    elif op in _ADDS_TO_MARK and stack and stack[-1] < _UNKNOWN:
                        self._alter(stack[-1], here)
                elif op in (0x52, 0x81, 0x62, 0x92):  # REDUCE, NEWOBJ, BUILD, NEWOBJ_EX
                    takes = 2 if op == 0x92 else 1
                    if len(stack) - takes <= (marks[-1] if marks else 0):
                        raise CorruptFileError(_EMPTY)
                    arguments = stack[-takes]
                    del stack[-takes:]
                    if stack[-1] < _UNKNOWN:
                        self._call(stack[-1], arguments, here)
                        if op == 0x62:
                            self._alter(stack[-1], here)
                    if op != 0x62:
                        stack[-1] = _UNKNOWN
                elif op == 0x93:  # STACK_GLOBAL
                    if len(stack) - 2 < (marks[-1] if marks else 0):
                        raise CorruptFileError(_EMPTY)
                    name, module = stack.pop(), stack.pop()
                    stack.append(self._named(self.text(module), self.text(name), here))
                elif op in (0x61, 0x73):  # APPEND, SETITEM
                    takes = OPCODES[op].takes - 1
                    if len(stack) - takes <= (marks[-1] if marks else 0):
                        raise CorruptFileError(_EMPTY)
                    del stack[-takes:]
                    if stack[-1] < _UNKNOWN:
                        self._alter(stack[-1], here)
                elif op in (0x63, 0x69):  # GLOBAL, INST
                    begin = base + at
                    middle = data.find(b"\n", at) + 1 + base
                    middle = middle if middle > base else self._line_or_rest(begin)
                    finish = data.find(b"\n", middle - base) + 1 + base if middle < base + len(data) else 0
                    finish = finish if finish > middle else self._line_or_rest(middle)
                    at = finish - base
                    kind = COMPUTED if finish - begin > _MAX_NAME else ""
                    length = min(finish - begin, _LONGEST)
                    lines = data[begin - base : begin - base + length] if at <= len(data) else read(begin, length)
                    of = middle - begin
                    ends = lines[of:].endswith(b"\n") or length == _LONGEST
                    if of == 1 or finish == middle + 1:
                        self._doubt("a global without a name")
                    value = self._add(_decoded(lines[: of - 1]), _decoded(lines[of:-1]), kind, here)
                    if not ends:
                        self.cut = self.globals[-3 - value]
                        raise TruncatedError("a line goes past the end")
                    if op == 0x69:
                        if not marks:
                            self.end = finish
                            raise CorruptFileError("INST without a mark, which Python imports all the same")
                        self._call(value, _UNKNOWN, here)
                        del stack[marks.pop() :]
                        value = _UNKNOWN
                    stack.append(value)
                elif op == 0x2E:  # STOP
                    self.end = base + at
                    if not stack:
                        raise CorruptFileError("ends without a value")
                    if frame and self.end != frame:
                        self._doubt("it stops before the end of its frame")
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
                    if function < _UNKNOWN:
                        self._call(function, _UNKNOWN, here)
                    stack.append(_UNKNOWN)
                elif op == 0x95:  # FRAME
                    if frame:
                        self.crossed = True
                        self._doubt("a frame begins before the end of another")
                    (length,) = struct.unpack_from("<Q", data, at)
                    at += 8
                    frame = base + at + length
                    if length and not read(frame - 1, 1):
                        self._doubt(f"a frame of {length:,} bytes goes past the end")
                    limit = min(filled, frame - 1 - base)
                elif op in (0x82, 0x83, 0x84):  # EXT1, EXT2, EXT4
                    row = OPCODES[op]
                    code = row.read(data[at : at + row.width])
                    at += row.width
                    stack.append(self._add("copyreg", f"extension {code}", EXTENSION, here))
                elif op in LINES:
                    begin = base + at
                    finish = data.find(b"\n", at) + 1 + base
                    finish = finish if finish > base else self.line(begin)
                    at = finish - base
                    inside = finish <= base + len(data) and finish - begin <= _LONG_LINE
                    raw = data[begin - base : at - 1] if inside else read(begin, min(finish - 1 - begin, _LONG_LINE))
                    told = self._line(op, begin, finish - 1, raw)
                    if op == 0x67:  # GET
                        stack.append(self._get(told))
                    elif op == 0x70:  # PUT
                        self._put(told, stack[-1])
                    else:
                        stack.append(here if op in (0x53, 0x56) else _UNKNOWN)
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
            while length := len(self.read(end, _LAST_WINDOW)):
                end += length
                self.searched += length
            return end

    def _archived(self, begin: int, length: int) -> bool:
        """Whether a constant holds a tar archive, or one of zip, which readers look for from its end."""
        if self.read(begin + 257, min(5, max(0, length - 257))) == b"ustar":
            return True
        tail = min(length, _ZIP_TAIL)
        return b"PK\5\6" in self.read(begin + length - tail, tail)

    def _doubt(self, why: str) -> None:
        if len(self.doubts) < _MAX_DOUBTS:
            self.doubts.append(why)

    def _line(self, op: int, begin: int, end: int, raw: bytes) -> int:
        """Look at an argument that ends with a line feed; for GET and PUT the index, -1 if it cannot be told."""
        if raw.isdigit() and len(raw) < 10 and (raw[0] != 0x30 or len(raw) == 1):
            return int(raw)  # the usual ones, fast
        text, index, row = op in (0x53, 0x56), op in (0x67, 0x70), LINES[op]
        if text and self.nested is not None and end - begin > 7:
            escaped = end - begin >= 22 and (end - begin > _LONG_LINE or b"\\" in raw)
            if escaped or _LINE_BEGINNINGS.match(raw[:160]) or self._archived(begin, end - begin):
                self.nested(begin, end - begin, row.read)
        if end - begin > _LONG_LINE:
            if not text:
                self._doubt(f"{row.name} of {end - begin:,} characters")
            return -1
        try:
            value = row.read(raw)
        except CorruptFileError as error:
            self._doubt(str(error))
        except ValueError as error:
            self._doubt(f"malformed ({error})"[:200])
        else:
            return int(value) if index else -1
        if not index:
            return -1
        # the C unpickler ends it at a NUL, both skip space, and older ones take as many zeros as there are
        digits = raw.split(b"\0")[0].strip().removeprefix(b"+").replace(b"_", b"").lstrip(b"0") or b"0"
        return int(digits) if len(digits) <= 10 and digits.isdigit() else -1

    def line(self, begin: int) -> int:
        """The offset after the next line feed."""
        window = 1 << 10
        while True:
            data = self.read(begin, window)
            self.searched += len(data)
            found = data.find(b"\n")
            if found >= 0:
                return begin + found + 1
            if len(data) < window:
                raise TruncatedError("a line goes past the end")
            begin += window
            window = min(4 * window, _LAST_WINDOW)

    def _get(self, index: int) -> int:
        if self.lost or not 0 <= index < len(self.memo):
            return _UNKNOWN
        return self.memo[index] if self.memo[index] != _UNSET else _UNKNOWN

    def _put(self, index: int, value: int) -> None:
        memo = self.memo
        if index < 0 or index > self.end - self.start + _FAR:
            self.lost = True  # what the memo holds from here on cannot be told; names out of it are "computed"
            return
        if index >= len(memo):
            memo.extend(array("q", [_UNSET]) * (index - len(memo) + 1))
        self.filled += memo[index] == _UNSET
        memo[index] = value

    def text(self, offset: int) -> str | None:
        """The text constant whose opcode stands at an offset; None for anything else and for what is too long."""
        if offset < 0:
            return None
        if offset not in self.cache:
            if len(self.cache) > 4096:
                self.cache.clear()
            self.cache[offset] = self._decoded(offset)
        return self.cache[offset]

    def _decoded(self, offset: int) -> str | None:
        op = self.read(offset, 1)[0]
        try:
            if op in LINES:
                end = self.line(offset + 1)
                value = (
                    LINES[op].read(self.read(offset + 1, end - offset - 2)) if end - offset < 5 * _MAX_NAME else None
                )
            else:
                width = _WIDTHS[op]
                length = int.from_bytes(self.read(offset + 1, width), "little")
                value = COUNTED[op].read(self.read(offset + 1 + width, length)) if length < 4 * _MAX_NAME else None
        except ValueError:  # includes CorruptFileError and UnicodeDecodeError
            return None
        value = value.decode("latin-1") if type(value) is bytes else value
        return value if type(value) is str and len(value) <= _MAX_NAME else None

    def _named(self, module: str | None, name: str | None, here: int) -> int:
        kind = "" if module is not None and name is not None else COMPUTED
        return self._add(module or "", "?" if name is None else name, kind, here)

    def _add(self, module: str, name: str, kind: str, here: int) -> int:
        module = module or "?"
        key = (module, name, kind)
        index = self.known.get(key)
        if index is None:
            if len(self.globals) >= MAX_DISTINCT and kind != MORE:
                return self._add("?", f"over {MAX_DISTINCT:,} others", MORE, here)
            index = self.known[key] = len(self.globals)
            self.globals.append(Named(module, name, kind, here))
        self.globals[index].count += 1
        return -3 - index

    def _call(self, function: int, arguments: int, here: int) -> None:
        named = self.globals[-3 - function]
        named.called += 1
        if named.name == "dtype" and named.module in _ARRAYS and _OBJECT_DTYPE.fullmatch(self.text(arguments) or ""):
            self._add("numpy", f"dtype({self.text(arguments)!r})", OBJECTS, here)

    def _alter(self, target: int, here: int) -> None:
        """Note that something is stored in a global itself, not in an object that a call made."""
        named = self.globals[-3 - target]
        self._add(named.module, named.name, ALTERED, here)

    def _storage(self, mark: int) -> None:
        """Note what a persistent id of PyTorch's says of a storage."""
        kind, key = self.stack[mark + 1], self.text(self.stack[mark + 2])
        if kind < _UNKNOWN and key is not None and self.text(self.stack[mark]) == "storage":
            self.storages[key] = self.globals[-3 - kind]


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
