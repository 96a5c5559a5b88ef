"""What loading a Keras model would run: the objects that its configuration names, in JSON or in an HDF5 file.

A Lambda layer holds marshalled code of Python, as `{"class_name": "__lambda__", "config": {"code": …}}`, or in Keras 2
as a list of texts. Any other object is named by a module and a class, which some versions of Keras import.

Source: keras 3.15.1, saving/serialization_lib.py.
"""

from __future__ import annotations

import re

from statedict.scanner.names import GlobalRef

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.scanner.containers import Part
    from statedict.scanner.scan import Scan

MARK = re.compile(rb'"class_name"\s*:')
HDF5 = b"\x89HDF\r\n\x1a\n"
_LAMBDA = "Lambda"
_NAMES = {
    "__lambda__": ("marshal", "loads"),
    _LAMBDA: ("keras.src.layers.core.lambda_layer", _LAMBDA),
}
_OWN = ("keras", "keras_hub", "keras_cv", "keras_nlp")
_OBJECT = re.compile(rb'(?:"module"\s*:\s*"([\w.]{1,200})"\s*,\s*)?"class_name"\s*:\s*"(\w{1,200})"')
_STEP, _OVERLAP = 1 << 20, 1 << 10


def find_objects(scan: Scan, label: str, config: Any) -> None:
    """Record the objects of a configuration that was read from JSON, as lists of pairs."""
    pending = [config]
    while pending:
        node = pending.pop()
        if type(node) is list:
            pending += node
        elif isinstance(node, list):  # an object, of which a key may stand twice
            pending += [value for _, value in node]
            names = [value for key, value in node if key == "class_name" and type(value) is str]
            modules = [value for key, value in node if key == "module" and type(value) is str]
            functions = [value for key, value in node if key == "config" and type(value) is str]
            for name in names:
                for module in modules or [""]:
                    _add(scan, label, module, (functions or [name])[-1] if name == "function" else name, 0)


def _add(scan: Scan, label: str, module: str, name: str, offset: int) -> None:
    if name in _NAMES:
        scan.add(label, GlobalRef(*_NAMES[name], "", offset))
    elif module and module.partition(".")[0] not in _OWN:
        scan.add(label, GlobalRef(module, name, "", offset))


def search_hdf5(scan: Scan, part: Part) -> None:
    """Record the objects of configurations in an HDF5 file, where they are texts among the data."""
    size = part.size
    scan.budget.spend(size)
    for begin in range(0, size, _STEP):
        data = part.read(begin, _STEP + _OVERLAP)
        for match in _OBJECT.finditer(data):
            if match.start() < _STEP:
                module = (match[1] or b"").decode("ascii", "replace")
                _add(scan, part.label, module, match[2].decode("ascii", "replace"), begin + match.start())
