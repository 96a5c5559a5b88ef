"""The elements of an HDF5 dataset: which dtype they have, and whether their bytes are the tensor's."""

from __future__ import annotations

from collections import namedtuple

from statedict.dtypes import BY_CODE, BY_NAME, MAX_NAME, labelled_dtype

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# what a dataset has: dtype (None if its elements are no numbers), shape of one element, whether the other byte order is
# used, whether the bytes in the file are those of the dtype, and what else to call it
Element = namedtuple("Element", "kind inner swapped stored label", defaults=((), False, True, ""))

# sign bit, exponent (first bit, bits), mantissa (first bit, bits), bias → dtype
_FLOATS = {
    (63, 52, 11, 0, 52, 1023): "float64",
    (31, 23, 8, 0, 23, 127): "float32",
    (15, 10, 5, 0, 10, 15): "float16",
    (15, 7, 8, 0, 7, 127): "bfloat16",
    (7, 3, 4, 0, 3, 7): "float8_e4m3fn",
    (7, 2, 5, 0, 2, 15): "float8_e5m2",
}
NATIVE = {kind.name for kind in BY_CODE.values()}
"""The dtypes that HDF5 has types for, as NumPy; others are opaque bytes, whose dtype an attribute names."""
_BOOL = {(b"FALSE", 0), (b"TRUE", 1)}
_MAX_OPAQUE = 1 << 16


def find_element(kind: Any, noted: str = "") -> Element:
    """What the elements of a type of h5py are; `noted` is the dtype that an attribute of the dataset names."""
    from h5py import h5t

    code = kind.get_class()
    if code in (h5t.INTEGER, h5t.BITFIELD):
        return _find_integer(kind, signed=code == h5t.INTEGER and kind.get_sign() == h5t.SGN_2)
    if code == h5t.FLOAT:
        name = _FLOATS.get((*kind.get_fields(), kind.get_ebias()))
        fits = name is not None and BY_NAME[name].itemsize == kind.get_size() and kind.get_norm() == h5t.NORM_IMPLIED
        if name and fits and kind.get_order() in (h5t.ORDER_LE, h5t.ORDER_BE):
            return Element(BY_NAME[name], swapped=kind.get_order() == h5t.ORDER_BE)
        return Element(None, label=f"floats of {8 * kind.get_size()} bits")
    if code == h5t.ENUM:
        members = {(kind.get_member_name(i), kind.get_member_value(i)) for i in range(min(kind.get_nmembers(), 3))}
        base = find_element(kind.get_super())
        if members == _BOOL and kind.get_size() == 1 and base.stored:
            return Element(BY_NAME["bool"])
        return base
    if code == h5t.OPAQUE:
        return _find_opaque(kind, noted)
    if code == h5t.ARRAY:
        base = find_element(kind.get_super(), noted)
        return base._replace(inner=(*map(int, kind.get_array_dims()), *base.inner))
    if code in (h5t.COMPOUND, getattr(h5t, "COMPLEX", -2)):
        return _find_complex(kind, h5t)
    names = {h5t.STRING: "text", h5t.REFERENCE: "references", h5t.TIME: "times", h5t.VLEN: "sequences"}
    return Element(None, label=names.get(code, "elements of an unknown kind"))


def _find_integer(kind: Any, signed: bool) -> Element:
    from h5py import h5t

    size = kind.get_size()
    found = BY_CODE.get(f"{'i' if signed else 'u'}{size}")
    if found is None:
        return Element(None, label=f"integers of {8 * size} bits")
    whole = kind.get_precision() == 8 * size and kind.get_offset() == 0
    return Element(found, swapped=kind.get_order() == h5t.ORDER_BE and whole, stored=whole)


def _find_opaque(kind: Any, noted: str) -> Element:
    size, tag = kind.get_size(), kind.get_tag()
    if tag.startswith(b"NUMPY:"):
        return Element(None, label="dates")
    known = BY_NAME.get(noted)
    if known is not None and known.itemsize == size:
        return Element(known)
    if not 0 < size <= _MAX_OPAQUE:
        return Element(None, label=f"opaque elements of {size:,} bytes")
    named = noted if noted.isidentifier() and len(noted) <= MAX_NAME and noted not in BY_NAME else f"V{size}"
    return Element(labelled_dtype(named, 8 * size))


def _find_complex(kind: Any, h5t: Any) -> Element:
    size, parts = kind.get_size(), list[Element]()
    if kind.get_class() != h5t.COMPOUND:
        parts = [find_element(kind.get_super())] * 2
    elif kind.get_nmembers() == 2:
        layout = [(kind.get_member_name(index), kind.get_member_offset(index)) for index in range(2)]
        if layout == [(b"r", 0), (b"i", size // 2)]:
            parts = [find_element(kind.get_member_type(index)) for index in range(2)]
    base = parts[0] if len(parts) == 2 and parts[0] == parts[1] else Element(None)
    if base.kind is not None and base.kind.name in ("float32", "float64") and 2 * base.kind.itemsize == size:
        return Element(BY_NAME[f"complex{8 * size}"], swapped=base.swapped)
    return Element(None, label="records")
