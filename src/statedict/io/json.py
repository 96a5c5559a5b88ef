"""How much memory the JSON in a file may take: 64 MB + 20 n for n bytes, as for a pickle.

Python's own reader makes some fifty bytes of two, so what it would make is counted in the text before it reads.
"""

from __future__ import annotations

from statedict.errors import LimitError

_RESERVE = 48 << 20
_FACTOR = 17
# what each of these characters stands for takes at most, in bytes: containers, numbers, keys and values, strings
_COSTS = (("[", 72), ("{", 72), (",", 41), (":", 100), ('"', 30))


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
