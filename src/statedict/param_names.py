"""The names of an optimizer's parameters, where its state has none: inferred from order and shapes.

A state of plain PyTorch numbers the parameters in the order of its groups. In each group that is the model's order at
the time of saving, unless somebody built it otherwise; the model's entries in the same checkpoint tell that order.
Where more than one assignment would fit, there is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]
Sizes = Sequence[Sequence[Shape | None]]
"""For each saved group, for each of its parameters the shape of what is kept for it, None where nothing is."""


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
    if all(size is None for group in sizes for size in group):  # nothing is kept, so nothing can go astray
        return [[*names] for names in live] if [*map(len, sizes)] == [*map(len, live)] else None
    places = {name: place for place, name in enumerate(now)}
    by_model = all([*names] == sorted(names, key=lambda name: places.get(name, -1)) for names in live)
    found = _by_shape(sizes, then, by_model)
    if found is None and [*then] == [*now]:
        found = _by_place(sizes, live, then)
    return found or (_in_order(sizes, then) if by_model else None)


def _by_place(sizes: Sizes, live: Sequence[Sequence[str]], then: Mapping[str, Shape]) -> list[list[str]] | None:
    """The model is as it was, and so are the sizes of the groups and all shapes: then so are the groups."""
    if [*map(len, sizes)] != [*map(len, live)]:
        return None
    pairs = (pair for group, names in zip(sizes, live, strict=True) for pair in zip(group, names, strict=True))
    return [[*names] for names in live] if all(size in (None, then[name]) for size, name in pairs) else None


def _by_shape(sizes: Sizes, then: Mapping[str, Shape], by_model: bool) -> list[list[str]] | None:
    """Each shape belongs to one parameter, or to several that were all in one group; there they have their order."""
    names: dict[Shape | None, list[str]] = {}
    for name, shape in then.items():
        names.setdefault(shape, []).append(name)
    groups: dict[Shape | None, list[int]] = {}  # shape → the group of each parameter that has it
    for number, group in enumerate(sizes):
        for size in group:
            groups.setdefault(size, []).append(number)
    for size, where in groups.items():
        alike = len(names.get(size, ()))
        if size is None or alike != len(where) or (alike > 1 and (len(set(where)) > 1 or not by_model)):
            return None
    left = {shape: iter(some) for shape, some in names.items()}
    found = [[next(left[size]) for size in group] for group in sizes]
    before = {name: place for place, name in enumerate(then)}
    for chosen, shapes in zip(found, sizes, strict=True):
        several = any(count > 1 for count in Counter(shapes).values())
        if several and chosen != sorted(chosen, key=before.__getitem__):
            return None  # the group was not built in the model's order
    return found


def _in_order(sizes: Sizes, then: Mapping[str, Shape]) -> list[list[str]] | None:
    """One group with all or some of the model's parameters, if they can be only those."""
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
