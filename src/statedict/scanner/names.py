"""The globals that a walk over a pickle finds, and the stack, memo and texts that lead to them."""

from __future__ import annotations

import re
from array import array

from statedict.errors import TruncatedError
from statedict.pickles.opcodes import COUNTED, LINES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Read = Callable[[int, int], bytes]  # offset, length → the bytes, fewer at the end
    Decode = Callable[[bytes], Any]  # bytes of the pickle → the constant
    Nested = Callable[[int, int, Decode | None], None]  # offset, length, decoder of what is not plain bytes

COMPUTED, EXTENSION, OBJECTS, ALTERED, MORE = "computed", "extension", "objects", "altered", "more"
NESTED = "nested"
MAX_NAME = 1000
MAX_DISTINCT = 10_000
UNSET, UNKNOWN = -1, -2  # globals lie below: -3 is the first
FIRST_WINDOW, LAST_WINDOW = 1 << 12, 1 << 20
_FAR = 1 << 16  # no pickler leaves a gap in its memo
_OBJECT_DTYPE = re.compile(r"[|<>=]?O\d*|object_?")
_ARRAYS = ("numpy", "numpy.dtype", "numpy.dtypes")
_MAX_DOUBTS = 8


class GlobalRef:
    """A global that a pickle names.

    Attributes:
        module, name: as the pickle spells them.
        kind: empty; or `computed`, `extension`, `objects` (a dtype of Python objects), `altered` (the pickle stores
            something in it), `more` (all beyond the first 10,000), `nested` (a pickle in a pickle).
        offset: of the first opcode that names it.
        count: opcodes that name it.
        called: opcodes that call it, make an instance of it, or give it a state.
    """

    __slots__ = ("called", "count", "kind", "module", "name", "offset")

    def __init__(self, module: str, name: str, kind: str, offset: int) -> None:
        self.module, self.name, self.kind, self.offset, self.count, self.called = module, name, kind, offset, 0, 0


class Names:
    """The state and the result of a walk."""

    def __init__(self, read: Read, start: int, nested: Nested | None, torch: bool) -> None:
        self.read, self.start, self.nested, self.torch = read, start, nested, torch
        self.end = start  # after the last opcode that it followed
        self.problem, self.truncated = "", False  # why it ended before STOP; whether the bytes ended there
        self.opcodes, self.searched = 0, 0  # that it followed; bytes read to find the ends of lines
        self.doubts: list[str] = []  # where Python's unpicklers differ; the first few
        self.crossed = False  # whether an operation may go past its frame, so that some unpickler goes on elsewhere
        self.cut: GlobalRef | None = None  # the global in the last line, if that has no line feed
        self.globals: list[GlobalRef] = []  # in the order in which the pickle first names them
        self.storages: dict[str, GlobalRef] = {}  # by their keys in PyTorch's persistent ids; only with `torch`
        self.texts = array("q")  # the offsets of all text constants; only with `torch`
        self.known: dict[tuple[str, str, str], int] = {}
        self.cache: dict[int, str | None] = {}
        self.stack, self.memo, self.marks = array("q"), array("q"), array("q")
        self.filled, self.lost = 0, False

    def doubt(self, why: str) -> None:
        """Record where unpicklers differ."""
        if len(self.doubts) < _MAX_DOUBTS:
            self.doubts.append(why)

    def line(self, begin: int, data: bytes = b"", base: int = 0, rest: bool = False) -> int:
        """The offset after the next line feed; `rest` says that the end of the bytes ends a line too.

        `data` are bytes already read, from offset `base` on.
        """
        at, window = data.find(b"\n", begin - base), 1 << 10
        while at < 0:
            base = begin
            data = self.read(base, window)
            self.searched += len(data)
            at = data.find(b"\n")
            begin += len(data)
            if at < 0 and len(data) < window:
                if rest:
                    return begin
                raise TruncatedError("a line goes past the end")
            window = min(4 * window, LAST_WINDOW)
        return base + at + 1

    def get(self, index: int) -> int:
        """A value out of the memo."""
        value = self.memo[index] if 0 <= index < len(self.memo) and not self.lost else UNKNOWN
        return value if value != UNSET else UNKNOWN

    def put(self, index: int, value: int) -> None:
        """Store a value in the memo."""
        memo = self.memo
        if index < 0 or index > self.end - self.start + _FAR:
            self.lost = True  # from here on the memo is unknown, and names out of it are "computed"
            return
        if index >= len(memo):
            memo.extend(array("q", [UNSET]) * (index - len(memo) + 1))
        self.filled += memo[index] == UNSET
        memo[index] = value

    def text(self, offset: int) -> str | None:
        """The text constant whose opcode stands at an offset; None if it is too long or something else."""
        if offset < 0:
            return None
        if offset not in self.cache:
            if len(self.cache) > 4096:
                self.cache.clear()
            self.cache[offset] = self._decode(offset)
        return self.cache[offset]

    def _decode(self, offset: int) -> str | None:
        op = self.read(offset, 1)[0]
        begin = offset + 1
        try:
            if op in LINES:
                row, most, length = LINES[op], 5 * MAX_NAME - 2, self.line(begin) - begin - 1
            else:
                row, most = COUNTED[op], 4 * MAX_NAME
                length = int.from_bytes(self.read(begin, row.width), "little")
                begin += row.width
            value = row.read(self.read(begin, length)) if length < most else None
        except ValueError:  # includes CorruptFileError and UnicodeDecodeError
            return None
        value = value.decode("latin-1") if type(value) is bytes else value
        return value if type(value) is str and len(value) <= MAX_NAME else None

    def add(self, module: str, name: str, kind: str, here: int) -> int:
        """Record a global; the number that stands for it on the stack."""
        module = module or "?"
        key = (module, name, kind)
        index = self.known.get(key)
        if index is None:
            if len(self.globals) >= MAX_DISTINCT and kind != MORE:
                return self.add("?", f"over {MAX_DISTINCT:,} others", MORE, here)
            index = self.known[key] = len(self.globals)
            self.globals.append(GlobalRef(module, name, kind, here))
        self.globals[index].count += 1
        return -3 - index

    def add_from_stack(self, module: int, name: int, here: int) -> int:
        """Record a global that STACK_GLOBAL names."""
        texts = self.text(module), self.text(name)
        kind = COMPUTED if None in texts else ""
        return self.add(texts[0] or "", "?" if texts[1] is None else texts[1], kind, here)

    def add_call(self, function: int, arguments: int, here: int) -> None:
        """Record a call of a global."""
        ref = self.globals[-3 - function]
        ref.called += 1
        if ref.name == "dtype" and ref.module in _ARRAYS and _OBJECT_DTYPE.fullmatch(self.text(arguments) or ""):
            self.add("numpy", f"dtype({self.text(arguments)!r})", OBJECTS, here)

    def add_change(self, target: int, here: int) -> None:
        """Record that the pickle stores something in a global itself, not in an object that a call made."""
        ref = self.globals[-3 - target]
        self.add(ref.module, ref.name, ALTERED, here)

    def add_storage(self, mark: int) -> None:
        """Record the storage that a persistent id of PyTorch describes."""
        kind, key = self.stack[mark + 1], self.text(self.stack[mark + 2])
        if kind < UNKNOWN and key is not None and self.text(self.stack[mark]) == "storage":
            self.storages[key] = self.globals[-3 - kind]
