"""The names of an optimizer's parameters, where its state has none: inferred from order and shapes.

A state of plain PyTorch numbers the parameters in the order of its groups. That order is the model's at the time of
saving, group by group, unless somebody built it otherwise. The model's own entries in the same checkpoint tell the
order at that time. Where more than one assignment would fit, there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]
Sizes = Sequence[Sequence[Shape | None]]
"""For each saved group, for each of its parameters the shape of what is kept for it, None where that is unknown."""


def inferred(
    sizes: Sizes, live: Sequence[Sequence[str]], then: Mapping[str, Shape], now: Sequence[str]
) -> list[list[str]] | str:
    """The names of the parameters of saved groups.

    Args:
        sizes: what is known of the saved parameters.
        live: the names of the parameters of the live groups.
        then: the model's parameters when it was saved: name → shape, in their order.
        now: the names of the live model's parameters, in their order.

    Returns:
        Names group by group, or why they cannot be told.

    >>> inferred([[(3,), (2, 3)]], [["w", "b"]], {"b": (3,), "w": (2, 3)}, ["w", "b"])
    [['b', 'w']]
    """
    for attempt in (_as_live, _by_shape, _as_subsequence):
        found = attempt(sizes, live, then, now)
        if found is not None and _agree(found, sizes, then):
            return found
    counts = [len(group) for group in sizes]
    return (
        f"the state has groups of {counts} parameters without names, and neither their order nor their shapes tell "
        "which is which"
    )


def _agree(found: Sequence[Sequence[str]], sizes: Sizes, then: Mapping[str, Shape]) -> bool:
    return all(
        shape is None or then.get(name) == shape
        for names, shapes in zip(found, sizes, strict=True)
        for name, shape in zip(names, shapes, strict=True)
    )


def _as_live(
    sizes: Sizes, live: Sequence[Sequence[str]], then: Mapping[str, Shape], now: Sequence[str]
) -> list[list[str]] | None:
    """Groups like the live ones, each in the order that the model had."""
    if [len(group) for group in sizes] != [len(group) for group in live]:
        return None
    before, after = ({name: at for at, name in enumerate(names)} for names in (then, now))
    result = []
    for names in live:
        if any(name not in before for name in names):
            return None
        was, is_now = sorted(names, key=before.__getitem__), sorted(names, key=lambda name: after.get(name, -1))
        if list(names) != is_now and was != is_now:
            return None  # built in an order of its own from a model that has another order today
        result.append(list(names) if was == is_now else was)
    return result


def _by_shape(
    sizes: Sizes, live: Sequence[Sequence[str]], then: Mapping[str, Shape], now: Sequence[str]
) -> list[list[str]] | None:
    """All parameters of a shape were in one group: there they have the model's order."""
    names: dict[Shape, list[str]] = {}
    for name, shape in then.items():
        names.setdefault(shape, []).append(name)
    places: dict[Shape | None, list[int]] = {}  # shape → the group of each parameter that has it
    for number, group in enumerate(sizes):
        for size in group:
            places.setdefault(size, []).append(number)
    for size, groups in places.items():
        if size is None or len(set(groups)) > 1 or len(groups) != len(names.get(size, ())):
            return None
    left = {shape: iter(some) for shape, some in names.items()}
    return [[next(left[size]) for size in group if size is not None] for group in sizes]


def _as_subsequence(
    sizes: Sizes, live: Sequence[Sequence[str]], then: Mapping[str, Shape], now: Sequence[str]
) -> list[list[str]] | None:
    """One group with some of the model's parameters, in its order, if they can be only those."""
    if len(sizes) != 1 or not sizes[0]:
        return None
    first = _embedded(list(sizes[0]), list(then.items()))
    last = _embedded(sizes[0][::-1], list(then.items())[::-1])
    if first is None or last is None or first != last[::-1]:
        return None
    return [first]


def _embedded(shapes: Sequence[Shape | None], parameters: Sequence[tuple[str, Shape]]) -> list[str] | None:
    """The earliest parameters in order that have these shapes."""
    found: list[str] = []
    for name, shape in parameters:
        if len(found) < len(shapes) and shapes[len(found)] in (None, shape):
            found.append(name)
    return found if len(found) == len(shapes) else None
