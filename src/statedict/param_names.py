"""The names of an optimizer's parameters, where its state has none: inferred from order and shapes.

A state of plain PyTorch numbers the parameters in the order of its groups. In each group that is the model's order at
the time of saving, unless somebody built it otherwise; the model's entries in the same checkpoint tell that order.
Where more than one assignment would fit, there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]
Sizes = Sequence[Sequence[Shape | None]]
"""For each saved group, for each of its parameters the shape of what is kept for it, None where that is unknown."""


def inferred(
    sizes: Sizes, live: Sequence[Sequence[str]], then: Mapping[str, Shape], now: Sequence[str]
) -> list[list[str]] | None:
    """The names of the parameters of saved groups.

    Args:
        sizes: what is known of the saved parameters.
        live: the names of the parameters of the live groups.
        then: the model's parameters when it was saved: name → shape, in their order.
        now: the names of the live model's parameters, in their order.

    Returns:
        Names group by group, None where they cannot be told.

    >>> inferred([[(3,), (2, 3)]], [["w", "b"]], {"b": (3,), "w": (2, 3)}, ["w", "b"])
    [['b', 'w']]
    """
    places = {name: place for place, name in enumerate(now)}
    by_model = [sorted(names, key=lambda name: places.get(name, -1)) for names in live]
    was = _as_live(sizes, live, then)
    if by_model == [[*names] for names in live]:
        attempts = [was, _by_shape(sizes, then), _as_subsequence(sizes, then)]
    else:  # built in an order of its own, which is known only if the model has kept its order since
        attempts = [[[*names] for names in live]] if was == by_model else []
    return next((names for names in attempts if names is not None and _agree(names, sizes, then)), None)


def _agree(found: Sequence[Sequence[str]], sizes: Sizes, then: Mapping[str, Shape]) -> bool:
    return all(
        shape is None or then.get(name) == shape
        for names, shapes in zip(found, sizes, strict=True)
        for name, shape in zip(names, shapes, strict=True)
    )


def _as_live(sizes: Sizes, live: Sequence[Sequence[str]], then: Mapping[str, Shape]) -> list[list[str]] | None:
    """Groups of the same parameters as the live ones, in the order that the model had."""
    if [len(group) for group in sizes] != [len(group) for group in live]:
        return None
    before = {name: place for place, name in enumerate(then)}
    if any(name not in before for names in live for name in names):
        return None
    return [sorted(names, key=before.__getitem__) for names in live]


def _by_shape(sizes: Sizes, then: Mapping[str, Shape]) -> list[list[str]] | None:
    """All parameters of a shape were in one group."""
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
    found = [[next(left[size]) for size in group if size is not None] for group in sizes]
    before = {name: place for place, name in enumerate(then)}
    return found if all(group == sorted(group, key=before.__getitem__) for group in found) else None


def _as_subsequence(sizes: Sizes, then: Mapping[str, Shape]) -> list[list[str]] | None:
    """One group with some of the model's parameters, if they can be only those."""
    if len(sizes) != 1 or not sizes[0]:
        return None
    first = _embedded(sizes[0], list(then.items()))
    last = _embedded(sizes[0][::-1], list(then.items())[::-1])
    return [first] if first is not None and last is not None and first == last[::-1] else None


def _embedded(shapes: Sequence[Shape | None], parameters: Sequence[tuple[str, Shape]]) -> list[str] | None:
    """The earliest parameters in order that have these shapes."""
    found: list[str] = []
    for name, shape in parameters:
        if len(found) < len(shapes) and shapes[len(found)] in (None, shape):
            found.append(name)
    return found if len(found) == len(shapes) else None
