"""The one reader of JSON in files: checkpoints' headers, skeletons and indexes, and the documents of a run.

What two readers could read differently is refused: a key that stands twice, however its characters are escaped, half of
a surrogate pair, bytes that are no UTF-8, numbers that JSON does not have. Memory is bounded by 64 MB + 20 n for n
bytes, as for a pickle; Python's own reader makes some fifty bytes of two, so the text is counted before it is read.
"""

from __future__ import annotations

from statedict.errors import CorruptFileError, LimitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from statedict.io.source import ByteSource

MOST = 256 << 20
"""Bytes of a document; a larger one is something else."""

_RESERVE = 48 << 20
_FACTOR = 17
# what each of these characters stands for takes at most, in bytes: containers, numbers, keys and values, strings
_COSTS = (("[", 72), ("{", 72), (",", 41), (":", 100), ('"', 30))
_PAIRS = 0.5  # how much more the pairs of an object take beside it


def read_document(source: ByteSource) -> bytes:
    """All of a file that should be a document.

    Raises:
        LimitError: it is larger than any.
    """
    if source.size > MOST:
        raise LimitError(f"{source.name}: {source.size:,} bytes, and no document of a checkpoint has over {MOST:,}")
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
    r"""What a JSON text says.

    Args:
        data: the text.
        where: names it in messages.
        weight: how often what is read from it is made anew.
        keys: counts the keys of all objects in what was read, and colons in its texts, if the caller knows a fast way.
            It may count too many keys only in what the caller refuses, and too few colons.
        constants: whether NaN, Infinity and -Infinity are let through, which Python writes.
        surrogates: whether halves of surrogate pairs are let through, which Python's texts may hold.

    Raises:
        CorruptFileError: it is no JSON, or readers would differ about what it says.
        LimitError: it would take more memory than its size justifies.

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
            for one in _texts(found):
                if not one.isascii():
                    one.encode()
    except LimitError:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{where} is not JSON ({_explain(error)}); the file is damaged") from error
    return found


def check(text: str | bytes, where: str, weight: float = 1.0) -> None:
    """Refuse JSON that would take more memory than its size justifies.

    Args:
        text: the JSON.
        where: names it in the message.
        weight: how often what is read from it is made anew.

    Raises:
        LimitError: it holds too many values for its size.
    """
    if isinstance(text, str):
        made = sum(text.count(character) * cost for character, cost in _COSTS)
    else:
        made = sum(text.count(character.encode()) * cost for character, cost in _COSTS)
    allowed = _RESERVE + _FACTOR * len(text)
    if made * weight > allowed:
        raise LimitError(
            f"{where}: JSON of {len(text):,} bytes that may take {int(made * weight) >> 20:,} MiB of memory, "
            f"more than the {allowed >> 20:,} that it should; it is damaged or hostile"
        )


def _read_and_count(text: str, constants: bool) -> tuple[Any, int]:
    """What a text says where the last of equal keys counts, and how many keys there are in that."""
    keys = 0

    def count(made: dict[str, Any]) -> dict[str, Any]:
        nonlocal keys
        keys += len(made)
        return made

    return _decoder(constants, object_hook=count).decode(text), keys


def _decoder(constants: bool, **hooks: Any) -> Any:
    from json import JSONDecoder

    return JSONDecoder(parse_constant=None if constants else _refuse, **hooks)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} stands twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _count_keys(text: str) -> int:
    """How many keys a text has, or more: colons behind a quote or behind white space."""
    text = text.rstrip()
    found = sum(text.count(f"{space}:") for space in " \t\n\r" if space in text) + text.count('":')
    if "\\" in text:  # a quote that is escaped ends no key, unless the backslash is
        found += text.count('\\\\":') - text.count('\\":')
    return found


def _containers(tree: Any) -> Iterator[Any]:
    pending = [tree] if type(tree) in (dict, list) else []
    while pending:
        node = pending.pop()
        yield node
        pending += [one for one in (node.values() if type(node) is dict else node) if type(one) in (dict, list)]


def _texts(tree: Any) -> Iterator[str]:
    """All keys and strings."""
    if type(tree) is str:
        yield tree
    for node in _containers(tree):
        if type(node) is dict:
            yield from node
        yield from (one for one in (node.values() if type(node) is dict else node) if type(one) is str)


def _explain(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:80]!r} has half of a surrogate pair, which is no text"
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)
