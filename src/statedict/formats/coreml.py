"""Core ML: the weights of a program, in a package (.mlpackage) or its .mlmodel.

    Manifest.json             {"itemInfoEntries": {ID: {"path": PATH}}, "rootModelIdentifier": ID}
    Data/PATH                 the model, a message of protobuf: com.apple.CoreML/model.mlmodel
    Data/…/weights/weight.bin   64 bytes, then at multiples of 64 a description of each blob, and its bytes

    Model          mlProgram 502: Program      functions 2: NAME → Function
    Function       block_specializations 3: OPSET → Block       Block          operations 3
    Operation      type 1, inputs 2: NAME → Argument (arguments 1: value 2), outputs 3 (name 1), blocks 4,
                   attributes 5: NAME → Value
    Value          type 2 (tensorType 1: dataType 1, dimensions 3 (constant 1: size 1)), immediateValue 3 (tensor 1:
                   floats 1 or bytes 7: values 1), blobFileValue 5 (fileName 1, offset 2)
    a blob         u32 0xDEADBEEF, u32 type, u64 bytes, u64 where they begin, u64 bits of padding

The tree has the tensors of `const` operations under the name of their output, those of others under OUTPUT/ATTRIBUTE;
of a program with several functions, each is a dict of its own. Tensors with blobs are there, and floats that have
dimensions. Numbers of fewer than 8 bits are decoded when they are read (tensor/packed.py). Weights that are compressed
stand as their parts, such as indices and a table.

Source: Model.proto and MIL.proto of coremltools 9.0, mlmodel/src/MILBlob. Limits: no neural networks of before ML
programs (2021), whose weights are in their layers; blocks nested 16 deep.
"""

from __future__ import annotations

from math import prod

from statedict.dtypes import BY_NAME
from statedict.errors import CorruptFileError, LimitError, UnsupportedError
from statedict.formats import places
from statedict.io.json import parse, read_document
from statedict.io.protobuf import LENGTH, VARINT, Field, Reader
from statedict.tensor.arrays import find_shape_fault
from statedict.tensor.blocks import BlockTensor
from statedict.tensor.checks import by_storage
from statedict.tensor.lazy import LazyTensor, Storage
from statedict.tensor.packed import PACKED
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_PROGRAM = 502
_KINDS = {300: "GLM", 303: "neural network", 403: "neural network", 500: "neural network", 200: "pipeline"}
_DEEPEST = 16
_ENTRY = 600  # bytes of memory that a tensor takes
_FOLDER = "@model_path/"
_SENTINEL, _ALIGNMENT, _DESCRIPTION = 0xDEADBEEF, 64, 32
# the dataType of a Value → our dtype or kind of packed numbers, and the type of its blob
_TYPES = {
    1: ("bool", 0), 10: ("float16", 1), 11: ("float32", 2), 12: ("float64", 0), 13: ("bfloat16", 5), 21: ("int8", 4),
    22: ("int16", 6), 23: ("int32", 14), 24: ("int64", 0), 25: ("int4", 8), 31: ("uint8", 3), 32: ("uint16", 7),
    33: ("uint32", 15), 34: ("uint64", 0), 35: ("uint4", 11), 36: ("uint2", 10), 37: ("uint1", 9), 38: ("uint6", 13),
    39: ("uint3", 12), 40: ("float8_e4m3fn", 16), 41: ("float8_e5m2", 17),
}  # fmt: skip


def read(source: ByteSource) -> StateDict:
    """Read the tree lazily: the operations are read, no tensor is."""
    return _Model(source).read()


def list_files(source: ByteSource) -> list[str]:
    """List the files of a package."""
    model = _Model(source)
    model.read()
    return [*([model.path] if model.path else []), *(model.below + name for name in model.files)]


def checks(source: ByteSource) -> Iterator[Found]:
    """List the tensors; Core ML has no sums."""
    yield from by_storage(read(source))


class _Model:
    """A model: `path` is where a package has it, `below` the folder there, `files` those of the weights."""

    def __init__(self, source: ByteSource) -> None:
        self.path = self.below = ""
        if bytes(source.read(0, min(source.size, 64))).lstrip()[:1] == b"{":
            folder = places.get_folder(source)
            self.path = _find_model(source)
            self.below = self.path.rpartition("/")[0] + "/"
            source = places.open_file(places.resolve_inside(folder, self.path))
        self.file = Reader(source)
        self.files: dict[str, ByteSource] = {}
        self.storages: dict[tuple[str, int], Storage] = {}

    def read(self) -> StateDict:
        file, program, others = self.file, None, set[str]()
        for field in file.fields(0, file.source.size):
            if field.number == _PROGRAM:
                file.once(program, "the program")
                program = file.check(field, LENGTH, "the program")
            elif field.number in _KINDS:
                others.add(_KINDS[field.number])
        if program is None:
            kind = others.pop() if others else "model of another kind"
            raise UnsupportedError(
                f"{file.name}: is a {kind} and not an ML program, the only kind of Core ML that is read; convert its "
                'source again with coremltools and convert_to="mlprogram"'
            )
        functions = StateDict()
        for field in file.fields(program.begin, program.end):
            if field.number == 2:
                name, function = self._entry(field, "a function")
                functions[name] = StateDict()
                for one in file.fields(function.begin, function.end):
                    if one.number == 3:
                        self._block(self._entry(one, "a block")[1], functions[name], 0)
        return next(iter(functions.values())) if len(functions) == 1 else functions

    def _entry(self, field: Field, what: str) -> tuple[str, Field]:
        """The key and the value of an entry of a map."""
        key, value = "", None
        for one in self.file.fields(self.file.check(field, LENGTH, what).begin, field.end):
            if one.number == 1:
                key = self.file.text(one, what)
            elif one.number == 2:
                value = self.file.check(one, LENGTH, what)
        if value is None:
            raise self.file.damage(f"{what} {key!r:.80} has no value")
        return key, value

    def _block(self, block: Field, tree: StateDict, depth: int) -> None:
        if depth > _DEEPEST:
            raise LimitError(f"{self.file.name}: has blocks nested over {_DEEPEST} deep; it is damaged or forged")
        for field in self.file.fields(block.begin, block.end):
            if field.number == 3:
                self._operation(self.file.check(field, LENGTH, "an operation"), tree, depth)

    def _operation(self, operation: Field, tree: StateDict, depth: int) -> None:
        kind = output = ""
        values = list[tuple[str, Field]]()
        for field in self.file.fields(operation.begin, operation.end):
            if field.number == 1:
                kind = self.file.text(field, "the type of an operation")
            elif field.number == 2:
                name, argument = self._entry(field, "an input")
                values += [(name, value) for value in self._below(argument, 1, 2)]
            elif field.number == 3 and not output:
                for one in self._below(operation, 3, 1):
                    output = output or self.file.text(one, "the name of an output")
            elif field.number == 4:
                self._block(self.file.check(field, LENGTH, "a block"), tree, depth + 1)
            elif field.number == 5:
                values.append(self._entry(field, "an attribute"))
        for name, value in values:
            path = output if kind == "const" and name == "val" else f"{output}/{name}"
            if (tensor := self._value(value, path)) is not None:
                if path in tree and tree[path].region != tensor.region:
                    raise self.file.damage(f"two tensors are called {path!r:.80}")
                self.file.spend(_ENTRY + len(path))
                tree[path] = tensor

    def _below(self, field: Field, *path: int) -> list[Field]:
        """The fields at a path of numbers in a message."""
        found = [self.file.check(field, LENGTH, "a message")]
        for number in path:
            found = [
                one
                for each in found
                for one in self.file.fields(self.file.check(each, LENGTH, "a message").begin, each.end)
                if one.number == number
            ]
        return found

    def _value(self, value: Field, path: str) -> LazyTensor | None:
        """The tensor of a Value; None for a plain one."""
        blobs, immediates = self._below(value, 5), self._below(value, 3, 1)
        if not blobs and not immediates:
            return None
        where = f"{self.file.name}: tensor {path!r:.80}"
        code, shape = self._type(value, where)
        if code not in _TYPES:
            if not blobs:
                return None
            raise UnsupportedError(f"{where} has the type {code}, which coremltools 9 does not have")
        name, blob_type = _TYPES[code]
        packed = PACKED.get(name)
        bits = 8 * packed.nbytes // packed.elements if packed else BY_NAME[name].bits
        nbytes = -(-prod(shape) * bits // 8)
        if blobs:
            storage = self._open(blobs[0], nbytes, blob_type, where)
        else:
            data = [one for number in (1, 7) for one in self._below(immediates[0], number, 1)]
            if not shape or BY_NAME.get(name, BY_NAME["bool"]).kind != "float" or len(data) != 1:
                return None
            if data[0].end - data[0].begin != nbytes:
                raise CorruptFileError(f"{where} has {data[0].end - data[0].begin:,} bytes, expected {nbytes:,}")
            storage = Storage(self.file.source, data[0].begin, nbytes)
        if packed:
            return BlockTensor.make(packed, shape, storage.source, storage.offset, where)
        return LazyTensor(BY_NAME[name], shape, storage)

    def _type(self, value: Field, where: str) -> tuple[int, tuple[int, ...]]:
        code, shape = 0, list[int]()
        for kind in self._below(value, 2, 1):
            for field in self.file.fields(kind.begin, kind.end):
                if field.number == 1:
                    code = self.file.check(field, VARINT, where).value
                elif field.number == 3:
                    sizes = self._below(field, 1, 1)
                    shape.append(self.file.check(sizes[0], VARINT, where).value if sizes else -1)
        if -1 in shape or find_shape_fault(tuple(shape), 8):
            raise CorruptFileError(f"{where} has the shape {shape!s:.80}, which no tensor has; the file is damaged")
        return code, tuple(shape)

    def _open(self, blob: Field, nbytes: int, kind: int, where: str) -> Storage:
        """Where the bytes of a blob are."""
        name, at = "", 0
        for field in self.file.fields(blob.begin, blob.end):
            if field.number == 1:
                name = self.file.text(field, "the name of a file")
            elif field.number == 2:
                at = self.file.check(field, VARINT, "an offset").value
        if (name, at) in self.storages and self.storages[name, at].nbytes == nbytes:
            return self.storages[name, at]
        inner = name.removeprefix(_FOLDER)
        if inner not in self.files:
            folder = places.get_folder(self.file.source)
            self.files[inner] = places.open_file(places.resolve_inside(folder, inner))
        source = self.files[inner]
        if at % _ALIGNMENT or at + _DESCRIPTION > source.size:
            raise CorruptFileError(f"{where}: a blob at byte {at:,} does not fit into {source.name}; fetch it again")
        data = bytes(source.read(at, _DESCRIPTION))
        sentinel, found = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
        size, begin = int.from_bytes(data[8:16], "little"), int.from_bytes(data[16:24], "little")
        if sentinel != _SENTINEL or found != kind or size != nbytes or begin + size > source.size:
            raise CorruptFileError(
                f"{where}: {source.name} has no blob of {nbytes:,} bytes of type {kind} at byte {at:,}; it is damaged "
                "or of another model, fetch both again"
            )
        return self.storages.setdefault((name, at), Storage(source, begin, size))


def _find_model(source: ByteSource) -> str:
    """Where the model of a package is in it."""
    manifest = parse(read_document(source), source.name)
    try:
        path = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        if type(path) is not str:
            raise TypeError("its path is no text")
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"{source.name}: names no model ({error}); the file is damaged") from error
    return f"Data/{path}"
