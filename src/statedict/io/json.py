"""The one reader of JSON in files: checkpoints' headers, skeletons and indexes, and the documents of a run.

What two readers could read differently is refused: a key that stands twice, however its characters are escaped, half of
a surrogate pair, bytes that are no UTF-8, numbers that JSON does not have. Memory is bounded by 64 MB + 20 n for n
bytes, as for a pickle; Python's own reader makes some fifty bytes of two, so the text is counted before it is read.
"""

from __future__ import annotations

from collections import Counter

from statedict.errors import CorruptFileError, LimitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from statedict.io.source import ByteSource

_MOST = 256 << 20  # bytes of a document; a larger one is something else
_RESERVE = 48 << 20
_FACTOR = 17
# what each of these characters stands for takes at most, in bytes: containers, numbers, keys and values, strings
_COSTS = (("[", 72), ("{", 72), (",", 41), (":", 100), ('"', 30))
_PAIRS = 0.5  # how much more the pairs of an object take beside it


def read_document(source: ByteSource) -> bytes:
    """All of a file that should be a document; raise LimitError if it is too large for one."""
    if source.size > _MOST:
        raise LimitError(f"{source.name}: {source.size:,} bytes, and no document of a checkpoint has over {_MOST:,}")
    return bytes(source.read(0, source.size))


def parse(
    data: str | bytes,
    where: str,
    *,
    weight: float = 1.0,
    keys: Callable[[Any], tuple[int, int]] | None = None,
    constants: bool = False,
    surrogates: bool = False,
) -> Any:
    r"""Parse a JSON text.

    Args:
        data: the text.
        where: names it in messages.
        weight: how often the caller makes the result anew.
        keys: a fast way to count the keys of all objects in the result, and colons in its texts. It may count too many
            keys only in what the caller refuses, and too few colons.
        constants: allow NaN, Infinity and -Infinity, which Python writes.
        surrogates: allow halves of surrogate pairs, which Python's texts may hold.

    >>> parse('{"a": 1, "\\u0061": 2}', "x.json")
    Traceback (most recent call last):
        ...
    statedict.errors.CorruptFileError: x.json is not JSON (key 'a' stands twice); the file is damaged
    """
    check(data, where, weight)
    try:
        text = data if isinstance(data, str) else data.decode("utf-8", "surrogatepass" if surrogates else "strict")
        escapes = "\\u" in text
        if keys:
            found = _decoder(constants).decode(text)
            count, colons = keys(found)
        else:
            (found, count), colons = _read_and_count(text, constants), 0
        # a colon that is written as it is stands behind a key, or in a text
        if text.count(":") - colons * (not escapes) != count and _count_keys(text) != count:
            del found  # a key may stand twice
            check(data, where, weight + _PAIRS)
            found = _decoder(constants, object_pairs_hook=_unique).decode(text)
        if escapes and not surrogates:
            for string in _strings(found):
                if not string.isascii():
                    string.encode()
    except LimitError:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{where} is not JSON ({_explain(error)}); the file is damaged") from error
    return found


def check(text: str | bytes, where: str, weight: float = 1.0) -> None:
    """Raise LimitError for JSON that would take more memory than its size justifies; arguments as for `parse`."""
    if isinstance(text, str):
        cost = sum(text.count(character) * nbytes for character, nbytes in _COSTS)
    else:
        cost = sum(text.count(character.encode()) * nbytes for character, nbytes in _COSTS)
    allowed = _RESERVE + _FACTOR * len(text)
    if cost * weight > allowed:
        raise LimitError(
            f"{where}: JSON of {len(text):,} bytes that may take {int(cost * weight) >> 20:,} MiB of memory, "
            f"more than the {allowed >> 20:,} that it should; it is damaged or hostile"
        )


def _read_and_count(text: str, constants: bool) -> tuple[Any, int]:
    """The value, where the last of equal keys counts, and how many keys are in it."""
    keys = 0

    def count(node: dict[str, Any]) -> dict[str, Any]:
        nonlocal keys
        keys += len(node)
        return node

    return _decoder(constants, object_hook=count).decode(text), keys


def _decoder(constants: bool, **hooks: Any) -> Any:
    from json import JSONDecoder

    return JSONDecoder(parse_constant=None if constants else _refuse, **hooks)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    node = dict(pairs)
    if len(node) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice[:80]!r} stands twice")
    return node


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _count_keys(text: str) -> int:
    """Count the keys of a text, or more: colons behind a quote or behind white space."""
    text = text.rstrip()
    found = sum(text.count(f"{space}:") for space in " \t\n\r" if space in text) + text.count('":')
    if "\\" in text:  # a quote that is escaped ends no key, unless the backslash is
        found += text.count('\\\\":') - text.count('\\":')
    return found


def _strings(tree: Any) -> Iterator[str]:
    pending = [tree]
    while pending:
        node = pending.pop()
        if type(node) is str:
            yield node
        elif type(node) is dict:
            yield from node
            pending += node.values()
        elif type(node) is list:
            pending += node


def _explain(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:80]!r} has half of a surrogate pair, which is not text"
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)
