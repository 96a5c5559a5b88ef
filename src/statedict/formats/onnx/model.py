"""ONNX: the tensors of a model, wherever they stand in it.

    ModelProto       ir_version 1, producer_name 2, producer_version 3, graph 7, opset_import 8, metadata_props 14,
                     training_info 20 (initialization 1, algorithm 2), functions 25
    GraphProto       node 1, initializer 5, sparse_initializer 15
    FunctionProto    name 1, node 7, domain 10
    NodeProto        output 2, name 3, op_type 4, attribute 5
    AttributeProto   name 1, t 5, g 6, tensors 10, graphs 11, sparse_tensor 22, sparse_tensors 23

The tree has the initializers of the graph under their names. What else there is stands below `constants`: the tensors
of Constant nodes under the name of their output, those of other attributes under NODE/ATTRIBUTE; below `subgraphs`:
bodies of If, Loop and Scan, each a dict like the tree, under NODE/ATTRIBUTE; below `functions` and `training`: the same
under DOMAIN::NAME and NUMBER/algorithm. A node without a name is called by its first output. A sparse tensor is a dict
of `indices`, `values` and `size`, texts are lists. Properties of the model are the tree's metadata.

Tensors themselves are in tensors.py. The graph is never run or checked.

Source: onnx.proto of onnx 1.23.2. Limits: subgraphs 32 deep; the protobuf of a model has 2 GB at most.
"""

from __future__ import annotations

from statedict.errors import CorruptFileError, LimitError
from statedict.formats.onnx.tensors import Tensors
from statedict.io.protobuf import LENGTH, VARINT, Field, Reader
from statedict.tensor.checks import by_storage
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statedict.io.source import ByteSource
    from statedict.tensor.checks import Found

_DEEPEST = 32
_INITIALIZER, _SPARSE_INITIALIZER = 5, 15
_NODE = {"graph": 1, "function": 7}
_ENTRY, _TREE = 500, 600  # bytes of memory that an entry and a dict take


def read(source: ByteSource) -> StateDict:
    """Read the tree lazily: the nodes and the names, shapes and places of tensors are read."""
    return _Model(source).read()


def list_files(source: ByteSource) -> list[str]:
    """List the files that tensors lie in beside the model's own."""
    model = _Model(source)
    model.read()
    return [*model.tensors.files]


def checks(source: ByteSource) -> Iterator[Found]:
    """List the tensors, those in other files too; an ONNX model has no sums."""
    yield from by_storage(read(source))


class _Model:
    def __init__(self, source: ByteSource) -> None:
        self.file = Reader(source)
        self.tensors = Tensors(self.file)

    def read(self) -> StateDict:
        file, tree, told = self.file, None, dict[str, str]()
        trainings, functions = list[Field](), list[Field]()
        for field in file.fields(0, file.source.size):
            if field.number == 7:
                file.once(tree, "the graph")
                tree = self._graph(file.check(field, LENGTH, "the graph"), 0)
            elif field.number == 1:
                told["ir_version"] = str(file.check(field, VARINT, "ir_version").value)
            elif field.number in (2, 3):
                name = ("producer_name", "producer_version")[field.number - 2]
                told[name] = file.text(field, name)
            elif field.number == 8:
                self._opset(file.check(field, LENGTH, "opset_import"), told)
            elif field.number == 14:
                key, value = self._pair(file.check(field, LENGTH, "metadata_props"))
                told[key] = value
            elif field.number == 20:
                trainings.append(file.check(field, LENGTH, "training_info"))
            elif field.number == 25:
                functions.append(file.check(field, LENGTH, "a function"))
        if tree is None:
            raise CorruptFileError(f"{file.name}: has no graph; it is not an ONNX model, or damaged, fetch it again")
        below = StateDict()
        for number, training in enumerate(trainings):
            for field in file.fields(training.begin, training.end):
                if field.number in (1, 2):
                    name = f"{number}/{('initialization', 'algorithm')[field.number - 1]}"
                    self._put(below, name, self._graph(file.check(field, LENGTH, name), 1))
        self._add_part(tree, "training", below)
        found = StateDict()
        for function in functions:
            name, body = self._function(function)
            self._put(found, name, body)
        self._add_part(tree, "functions", found)
        tree.metadata = told
        return tree

    def _opset(self, field: Field, told: dict[str, str]) -> None:
        domain, version = "", 0
        for one in self.file.fields(field.begin, field.end):
            if one.number == 1:
                domain = self.file.text(one, "the domain of an opset")
            elif one.number == 2:
                version = self.file.check(one, VARINT, "the version of an opset").value
        told[f"opset {domain}".strip()] = str(version)

    def _pair(self, field: Field) -> tuple[str, str]:
        key = value = ""
        for one in self.file.fields(field.begin, field.end):
            if one.number == 1:
                key = self.file.text(one, "a key of metadata_props")
            elif one.number == 2:
                value = self.file.text(one, f"metadata_props {key!r:.80}")
        self.file.spend(_ENTRY)
        return key, value

    def _function(self, field: Field) -> tuple[str, StateDict]:
        name = domain = ""
        for one in self.file.fields(field.begin, field.end):
            if one.number == 1:
                name = self.file.text(one, "the name of a function")
            elif one.number == 10:
                domain = self.file.text(one, "the domain of a function")
        return f"{domain}::{name}", self._graph(field, 1, "function")

    def _graph(self, graph: Field, depth: int, kind: str = "graph") -> StateDict:
        """The tensors in a graph or function."""
        if depth > _DEEPEST:
            raise LimitError(f"{self.file.name}: has subgraphs nested over {_DEEPEST} deep; it is damaged or forged")
        self.file.spend(_TREE)
        tree, constants, subgraphs = StateDict(), StateDict(), StateDict()
        for field in self.file.fields(graph.begin, graph.end):
            if field.number == _NODE[kind]:
                self._node(self.file.check(field, LENGTH, "a node"), depth, constants, subgraphs)
            elif kind == "graph" and field.number == _INITIALIZER:
                self._put(tree, *self.tensors.read(field))
            elif kind == "graph" and field.number == _SPARSE_INITIALIZER:
                self._put(tree, *self.tensors.read_sparse(field))
        self._add_part(tree, "constants", constants)
        self._add_part(tree, "subgraphs", subgraphs)
        return tree

    def _node(self, node: Field, depth: int, constants: StateDict, subgraphs: StateDict) -> None:
        name = output = kind = ""
        attributes: list[Field] = []
        for field in self.file.fields(node.begin, node.end):
            if field.number == 2 and not output:
                output = self.file.text(field, "the output of a node")
            elif field.number == 3:
                name = self.file.text(field, "the name of a node")
            elif field.number == 4:
                kind = self.file.text(field, "the type of a node")
            elif field.number == 5:
                attributes.append(self.file.check(field, LENGTH, "an attribute"))
        for attribute in attributes:
            self._attribute(
                attribute, output if kind == "Constant" else "", name or output, depth, constants, subgraphs
            )

    def _attribute(
        self, attribute: Field, constant: str, node: str, depth: int, constants: StateDict, subgraphs: StateDict
    ) -> None:
        name = ""
        found: list[Field] = []
        for field in self.file.fields(attribute.begin, attribute.end):
            if field.number == 1:
                name = self.file.text(field, "the name of an attribute")
            elif field.number in (5, 6, 10, 11, 22, 23):
                found.append(self.file.check(field, LENGTH, "an attribute's value"))
        several = len(found) > 1
        for number, field in enumerate(found):
            path = f"{node}/{name}" + f".{number}" * several
            if field.number in (6, 11):
                below = self._graph(field, depth + 1)
                if below:
                    self._put(subgraphs, path, below)
            else:
                make = self.tensors.read if field.number in (5, 10) else self.tensors.read_sparse
                self._put(constants, constant or path, make(field)[1])

    def _put(self, tree: StateDict, name: str, value: Any) -> None:
        if name in tree:
            raise self.file.damage(f"two tensors or graphs are called {name!r:.80}")
        self.file.spend(_ENTRY + len(name))
        tree[name] = value

    def _add_part(self, tree: StateDict, name: str, part: StateDict) -> None:
        if part and name in tree:
            raise self.file.damage(f"a tensor is called {name!r}, as a part of the tree is; rename it")
        if part:
            tree[name] = part
