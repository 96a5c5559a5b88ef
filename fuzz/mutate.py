"""What is done to valid files: bytes anywhere, and the things that a format is made of.

An input is a checkpoint's files by name. `apart` takes one file apart into what it holds (pickles, JSON, records) and
says how to put it together again, so that a changed pickle stands in a sound archive and reaches the reader behind it.
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import tarfile
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

from fuzz import documents
from fuzz.seeds import pack

Files = dict[str, bytes]
Parts = dict[str, bytes]

NUMBERS = sorted(
    {sign * ((1 << bits) + off) for bits in (0, 7, 8, 15, 16, 31, 32, 40, 53, 59, 60, 62, 63, 64, 70)
     for off in (-1, 0, 1) for sign in (1, -1)} | {2, 3, 10, 100, 1000, 100_000}
)  # fmt: skip
NAMES = (
    "..", "../x", "a/../../x", "/etc/passwd", "", "\0", "link", "input", "a" * 300, "\ud800", "é", "$tensor", ".",
    "odd", "cuda:300", "cuda:-1", "meta", "cpu:", "torch.sparse_coo", "torch.sparse_bsc",
)  # fmt: skip
GLOBALS = tuple("c{}\n{}\n".format(*name.split()).encode() for name in (
    "posix system", "builtins eval", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_qtensor",
    "torch._utils _rebuild_sparse_tensor", "torch._tensor _rebuild_from_type_v2", "torch Size",
    "torch._utils _rebuild_parameter_with_state", "torch._utils _rebuild_nested_tensor", "torch device",
    "torch._utils _rebuild_wrapper_subclass", "torch._utils _rebuild_tensor_v3", "torch FloatStorage",
    "collections OrderedDict", "collections Counter", "collections defaultdict", "__builtin__ set",
    "_codecs encode", "numpy dtype", "numpy.core.multiarray _reconstruct", "builtins bytearray",
    "numpy.core.multiarray scalar", "numpy.core.numeric _frombuffer", "builtins complex", "torch float16",
    "torch._utils _rebuild_device_tensor_from_cpu_tensor", "torch.nested._internal.nested_tensor _rebuild_njt",
    "torch.serialization _get_layout", "torch FloatTensor", "torch per_channel_affine", "torch int64",
    "torch._utils _rebuild_meta_tensor_no_storage", "torch.storage UntypedStorage", "numpy ndarray",
))  # fmt: skip
SNIPPETS = (
    b"R", b"b", b"t", b")", b"]", b"}", b"(", b"u", b"s", b"e", b"a", b"0", b"1", b"2", b"Q", b"\x81", b"\x85",
    b"\x86", b"\x87", b"\x88", b"\x89", b"\x8f", b"\x90", b"\x91", b"\x92", b"\x94", b"N", b"h\0", b"h\1", b"q\0",
    b".", b"l", b"d", b"r\xff\xff\xff\xff", b"j\0\0\0\0", b"I-1\n", b"L99999999999999999999L\n", b"Finf\n", b"Vx\n",
    b"Pid\n", b"g0\n", b"p0\n", b"S'a\\x41'\n", b"i__main__\nA\n", b"(c__main__\nA\no", b"\x82\1",
    b"\x95\0\0\0\0\0\0\0\0", b"G\x7f\xf8\0\0\0\0\0\0", b"C\4\xff\xff\xff\xff", b"\x96\2\0\0\0\0\0\0\0ab",
    b"\x8a\x09\0\0\0\0\0\0\0\0\1", b"X\1\0\0\0a", b"K\1", b"J\xff\xff\xff\xff",
)  # fmt: skip


def mutated(files: Files, other: Files, random: Random) -> Files:
    """One change of one of the files; `other` is what splices take from."""
    if "input" not in files:
        return documents.changed(files, random)
    name = random.choice(sorted(files)) if random.random() < 0.4 else "input"
    if name.endswith(".json") or (files[name][:1] == b"{" and random.random() < 0.3):
        return {**files, name: documents.garbled(files[name], random)}
    data, theirs = files[name], other[random.choice(sorted(other))]
    if random.random() < 0.65:
        try:
            return {**files, name: _inside(data, theirs, random)}
        except Exception:  # too damaged by now for the writers that put it together: bytes will do
            pass
    return {**files, name: change_bytes(data, theirs, random)}


def _inside(data: bytes, other: bytes, random: Random) -> bytes:
    """A change of one of the parts, or of which there are."""
    parts, together = apart(data)
    theirs = apart(other)[0]
    if random.random() < 0.1:
        _members(parts, theirs, random)
    else:
        held = random.choice(sorted(parts))
        parts[held] = _part(parts[held], theirs.get(held) or random.choice(list(theirs.values())), random)
    return together(parts)


def apart(data: bytes) -> tuple[Parts, Callable[[Parts], bytes]]:
    """A file's parts, and what makes a file of parts."""
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            packed = any(info.compress_type for info in archive.infolist())
            found = {name: archive.read(name) for name in archive.namelist()}
        return found, lambda parts: _zip(parts, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    if data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return {info.name: tar.extractfile(info).read() for info in tar}, _tar  # type: ignore[union-attr]
    if data[:1] == b"\x80":
        return _pickles(data), lambda parts: b"".join(parts.values())
    if data[:4] == b"GGUF":
        cut = sorted(at for at in (24, data.rfind(b"\3\0\0\0f32"), data.find(b"Q1_0") + 40) if 0 < at < len(data))
        parts = [data[a:b] for a, b in zip((0, *cut), (*cut, len(data)), strict=True)]
        return {f"part {at}": part for at, part in enumerate(parts)}, lambda parts: b"".join(parts.values())
    if data[:6] == b"\x93NUMPY":
        end = 10 + int.from_bytes(data[8:10], "little")
        return {"magic": data[:10], "header": data[10:end], "data": data[end:]}, lambda parts: b"".join(parts.values())
    if data[8:9] == b"{":
        length = int.from_bytes(data[:8], "little")
        return {"header": data[8 : 8 + length], "data": data[8 + length :]}, _safetensors
    return {"text": data}, lambda parts: b"".join(parts.values())


def _safetensors(parts: Parts) -> bytes:
    header, *data = parts.values()
    return len(header).to_bytes(8, "little") + header + b"".join(data)


def _zip(parts: Parts, compression: int) -> bytes:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pack({name.replace("\0", "") or "x": data for name, data in parts.items()}, compression)


def _tar(parts: Parts) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.GNU_FORMAT) as archive:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue().replace(b"ustar  \0", b"ustar\00000")


def _pickles(data: bytes) -> Parts:
    """The pickles at the beginning of a stream, and the rest."""
    parts: Parts = {}
    at = 0
    while data[at : at + 1] == b"\x80" and len(parts) < 8:
        end = at + max(position for _, _, position in pickletools.genops(data[at:])) + 1
        parts[f"pickle {len(parts)}"] = data[at:end]
        at = end
    return parts | {"rest": data[at:]}


def _members(parts: Parts, theirs: Parts, random: Random) -> None:
    """Take a part out, rename one, or put a foreign one in."""
    name = random.choice(sorted(parts))
    data = parts.pop(name)
    match random.randrange(3):
        case 0:
            parts[random.choice((*NAMES, name + "x", *sorted(theirs)))] = data
        case 1:
            parts |= {name: data, random.choice(sorted(theirs)): random.choice(list(theirs.values()))}


def _part(data: bytes, other: bytes, random: Random) -> bytes:
    if random.random() < 0.8:
        try:
            if data[:1] == b"\x80":
                return _pickle(data, other, random)
            if data[:1] == b"{":
                return _json(data, random)
        except Exception:  # damaged before: bytes will do
            pass
    return change_bytes(data, other, random)


def _pickle(data: bytes, other: bytes, random: Random) -> bytes:
    """Change, move or repeat operations of a pickle."""
    ops = _operations(data)
    at = random.randrange(len(ops))
    match random.randrange(9):
        case 0:
            ops[at] = _argument(ops[at], random)
        case 1:
            to = random.randrange(len(ops))
            ops[at], ops[to] = ops[to], ops[at]
        case 2:
            del ops[at : at + random.choice((1, 1, 2, 8))]
        case 3:
            ops[at:at] = ops[at : at + random.choice((1, 2, 8, 32))] * random.choice((1, 2, 50))
        case 4:
            ops.insert(at, random.choice(SNIPPETS))
        case 5:
            named = [i for i, op in enumerate(ops) if op[:1] == b"c"] or [at]
            ops[random.choice(named)] = random.choice(GLOBALS)
        case 6:
            ops[at:at] = [random.choice(GLOBALS), *random.choices(SNIPPETS, k=random.randrange(4)), b"R"]
        case 7:
            theirs = _operations(other)
            begin = random.randrange(len(theirs))
            ops[at:at] = theirs[begin : begin + random.choice((1, 4, 16))]
        case 8:
            numbers = [i for i, op in enumerate(ops) if op[:1] in b"KMJIL\x8ahjqrX\x8cC"] or [at]
            chosen = random.choice(numbers)
            ops[chosen] = _argument(ops[chosen], random)
    return b"".join(ops)


def _operations(data: bytes) -> list[bytes]:
    places = [position for _, _, position in pickletools.genops(data)]
    return [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]


def _argument(op: bytes, random: Random) -> bytes:
    code = op[:1]
    if code in b"KMJIL\x8a":  # an integer becomes another one, whatever its width
        number = random.choice(NUMBERS)
        raw = number.to_bytes(10, "little", signed=True)
        return random.choice((b"\x8a\x0a" + raw, b"I%d\n" % number, b"J" + raw[:4], b"K" + raw[:1]))
    if code in b"hq":
        return random.choice(b"hq").to_bytes() + bytes([random.choice((0, 1, 2, 255, random.randrange(256)))])
    if code in b"jr":
        return random.choice(b"jr").to_bytes() + struct.pack("<I", random.choice((0, 1, 300, (1 << 32) - 1)))
    if code in b"X\x8c":
        text = random.choice(NAMES).encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(text)) + text
    return code + change_bytes(op[1:], b"", random)


def _json(data: bytes, random: Random) -> bytes:
    """Change, remove, repeat or rename something in JSON."""
    tree = json.loads(data)
    places: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, (dict, list)):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            places += [(node, key) for key in keys]
            pending += [node[key] for key in keys]
    node, key = random.choice(places)
    value = node[key]
    match random.randrange(6):
        case 0 | 1:
            node[key] = random.choice((*NUMBERS, *NAMES, None, True, [], {}, 1.5, 1e308, [value], {"$tuple": [value]}))
        case 2:
            del node[key]
        case 3:
            node[key] = random.choice(random.choice(places)[:1])
        case 4 if isinstance(node, dict):
            node[random.choice((*NAMES, "__metadata__", "statedict", "dtype", "shape", "$dict", "$opaque"))] = value
        case 5 if isinstance(value, str) and value[:1] == "{":  # the skeleton within the metadata
            node[key] = _json(value.encode(), random).decode()
        case _:
            node[key] = change_bytes(str(value).encode(), b"", random).decode("latin-1")
    return json.dumps(tree).encode()


def change_bytes(data: bytes, other: bytes, random: Random) -> bytes:
    """Change bytes, wherever and whatever they are."""
    out = bytearray(data)
    at = random.randrange(len(out) + 1)
    length = random.choice((1, 2, 4, 8, 30, 100, 1000))
    zips = [i for i in range(len(out) - 4) if out[i : i + 2] == b"PK"] if out[:2] == b"PK" else []
    match random.randrange(10 if zips else 8):
        case 0 | 1 if out:
            out[at % len(out)] ^= 1 << random.randrange(8)
        case 2:
            out[at : at + length] = random.randbytes(length)
        case 3:
            del out[at : at + length]
        case 4:
            out[at:at] = out[at : at + length] * random.choice((1, 1, 2, 50))
        case 5:
            width = random.choice((1, 2, 4, 8))
            number = random.choice((*NUMBERS, len(out), len(out) - at)) % (1 << 8 * width)
            out[at : at + width] = number.to_bytes(width, "little")
        case 6:
            from_ = random.randrange(len(other) + 1)
            out[at:] = other[from_:] if random.random() < 0.5 else other[from_ : from_ + length] + out[at:]
        case 7:
            del out[random.choice((0, at, -length)) if random.random() < 0.3 else at :]
        case 8 | 9:  # a field of a header of the archive, or of its end
            field = random.choice(zips) + 4 + 2 * random.randrange(22)
            width = random.choice((2, 2, 4, 8))
            number = random.choice(
                (*NUMBERS, len(out), random.choice(zips), out[field] if field < len(out) else 0, 9, 12)
            )
            out[field : field + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(out)
