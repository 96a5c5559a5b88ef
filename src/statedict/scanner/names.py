"""What a walk over a pickle has found, and the memo and the names that it goes by."""

from __future__ import annotations

import re
from array import array

from statedict.errors import TruncatedError
from statedict.pickles.opcodes import COUNTED, LINES
from statedict.scanner.effects import ALTERED, COMPUTED, MAX_NAME, MORE, OBJECTS, WIDTHS, Named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Read = Callable[[int, int], bytes]  # offset, length → the bytes, fewer at the end
    Decode = Callable[[bytes], Any]  # what the bytes in the pickle become
    Nested = Callable[[int, int, Decode | None], None]  # offset, length, how it is read if not as it stands

MAX_DISTINCT = 10_000
UNSET, UNKNOWN = -1, -2  # globals lie below: -3 is the first
FIRST_WINDOW, LAST_WINDOW = 1 << 12, 1 << 20
_FAR = 1 << 16  # no pickler leaves a gap in its memo
_OBJECT_DTYPE = re.compile(r"[|<>=]?O\d*|object_?")
_ARRAYS = ("numpy", "numpy.dtype", "numpy.dtypes")
_MAX_DOUBTS = 8


class Names:
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

    def doubt(self, why: str) -> None:
        """Note what Python's readers read differently."""
        if len(self.doubts) < _MAX_DOUBTS:
            self.doubts.append(why)

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
            window = min(4 * window, LAST_WINDOW)

    def get(self, index: int) -> int:
        """What the memo holds."""
        if self.lost or not 0 <= index < len(self.memo):
            return UNKNOWN
        return self.memo[index] if self.memo[index] != UNSET else UNKNOWN

    def put(self, index: int, value: int) -> None:
        """Keep a value in the memo."""
        memo = self.memo
        if index < 0 or index > self.end - self.start + _FAR:
            self.lost = True  # what the memo holds from here on cannot be told; names out of it are "computed"
            return
        if index >= len(memo):
            memo.extend(array("q", [UNSET]) * (index - len(memo) + 1))
        self.filled += memo[index] == UNSET
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
                value = LINES[op].read(self.read(offset + 1, end - offset - 2)) if end - offset < 5 * MAX_NAME else None
            else:
                width = WIDTHS[op]
                length = int.from_bytes(self.read(offset + 1, width), "little")
                value = COUNTED[op].read(self.read(offset + 1 + width, length)) if length < 4 * MAX_NAME else None
        except ValueError:  # includes CorruptFileError and UnicodeDecodeError
            return None
        value = value.decode("latin-1") if type(value) is bytes else value
        return value if type(value) is str and len(value) <= MAX_NAME else None

    def name(self, module: str | None, name: str | None, here: int) -> int:
        """Note a global whose names come from the stack."""
        kind = "" if module is not None and name is not None else COMPUTED
        return self.add(module or "", "?" if name is None else name, kind, here)

    def add(self, module: str, name: str, kind: str, here: int) -> int:
        """Note a global; the number that stands for it on the stack."""
        module = module or "?"
        key = (module, name, kind)
        index = self.known.get(key)
        if index is None:
            if len(self.globals) >= MAX_DISTINCT and kind != MORE:
                return self.add("?", f"over {MAX_DISTINCT:,} others", MORE, here)
            index = self.known[key] = len(self.globals)
            self.globals.append(Named(module, name, kind, here))
        self.globals[index].count += 1
        return -3 - index

    def note_call(self, function: int, arguments: int, here: int) -> None:
        """Note that a global is called."""
        named = self.globals[-3 - function]
        named.called += 1
        if named.name == "dtype" and named.module in _ARRAYS and _OBJECT_DTYPE.fullmatch(self.text(arguments) or ""):
            self.add("numpy", f"dtype({self.text(arguments)!r})", OBJECTS, here)

    def note_change(self, target: int, here: int) -> None:
        """Note that something is stored in a global itself, not in an object that a call made."""
        named = self.globals[-3 - target]
        self.add(named.module, named.name, ALTERED, here)

    def note_storage(self, mark: int) -> None:
        """Note what a persistent id of PyTorch's says of a storage."""
        kind, key = self.stack[mark + 1], self.text(self.stack[mark + 2])
        if kind < UNKNOWN and key is not None and self.text(self.stack[mark]) == "storage":
            self.storages[key] = self.globals[-3 - kind]
