"""The public face: pinned, documented, and the same for people, for type checkers and at run time."""

from __future__ import annotations

import ast
import builtins
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import statedict
from statedict import errors

VALUES = [
    "CheckpointManager", "DType", "Device", "LazyTensor", "Opaque", "Page", "ResumableLoader", "Size", "StateDict",
    "StateDictError", "Storage", "__version__", "average", "capture", "convert", "diff", "dtype", "edit", "inspect",
    "load", "merge", "renamed_in", "report", "restore", "rng", "save", "scan", "stats", "unflatten", "verify",
]  # fmt: skip
MODULES = ["alter", "delta", "errors", "lora", "reports", "runs"]
PUBLIC = VALUES + MODULES
IN_MODULES = {
    "alter": [
        "cast", "dequantize", "drop", "fuse", "map_names", "pad", "prefix", "quantize", "rename",
        "reshape", "select", "set", "slice", "split", "strip", "tie", "transpose", "untie",
    ],
    "delta": ["apply", "make"],
    "lora": ["apply", "extract", "show"],
    "reports": [
        "CombineReport", "DeltaReport", "Diff", "EditReport", "LoraApplied", "LoraExtracted", "LoraReport",
        "RestoreReport", "ScanReport", "StatsReport", "Summary", "TensorStats", "VerifyReport",
    ],
}  # fmt: skip
POLICIES = ["AnyPolicy", "BestN", "CustomSteps", "EveryNSeconds", "EveryNSteps", "LatestN"]
EXCEPTIONS = [
    value
    for value in vars(errors).values()
    if getattr(value, "__module__", "") == errors.__name__ and isinstance(value, type)
]


def test_the_public_names_are_these() -> None:
    assert sorted(statedict.__all__) == sorted(PUBLIC)
    assert dir(statedict) == statedict.__all__ == sorted(statedict.__all__)


def test_the_names_of_the_modules_are_these() -> None:
    for module, names in IN_MODULES.items():
        assert getattr(statedict, module).__all__ == names
    assert set(POLICIES) < set(dir(statedict.runs))
    assert {kind.__name__ for kind in EXCEPTIONS} < set(dir(statedict.errors))


def test_no_name_of_the_root_is_that_of_a_module_of_ours() -> None:
    root = Path(str(statedict.__file__)).parent
    assert not {path.stem for path in root.iterdir()} & {*VALUES}


def test_the_modules_are_there_without_importing_them() -> None:
    code = "import statedict; print(statedict.alter.cast, statedict.errors.FileError, statedict.reports.Diff, "
    code += "statedict.runs.LatestN)"
    subprocess.run([sys.executable, "-c", code], check=True)


DOCUMENTED = [("", name) for name in PUBLIC if not name.startswith("_")] + [
    (module, name) for module, names in (IN_MODULES | {"runs": POLICIES}).items() for name in names
]


@pytest.mark.parametrize(("module", "name"), DOCUMENTED)
def test_every_public_name_and_its_public_methods_are_documented(module: str, name: str) -> None:
    value = getattr(getattr(statedict, module) if module else statedict, name)
    assert value.__doc__
    summary = value.__doc__.strip().split("\n\n")[0].strip()
    assert summary.endswith((".", ":", "?")), summary
    if isinstance(value, type) and not issubclass(value, Exception):
        for method, member in vars(value).items():
            if not method.startswith("_") and (callable(member) or isinstance(member, property | staticmethod)):
                assert inspect.getdoc(member), f"{name}.{method}"


def test_type_checkers_and_the_runtime_see_the_same_names() -> None:
    tree = ast.parse(Path(str(statedict.__file__)).read_text())
    checked = {
        alias.asname: (str(node.module).removeprefix("statedict."), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("statedict.")
        for alias in node.names
    }
    assert checked == {name: (module, name) for name, module in statedict._EXPORTS.items()}


def test_a_public_name_lives_where_it_is_exported_from() -> None:
    for name, module in statedict._EXPORTS.items():
        assert getattr(statedict, name).__module__ == f"statedict.{module}"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'statedict' has no attribute 'nonsense'"):
        _ = statedict.nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_an_exception_is_ours_and_the_builtin_that_fits(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.StateDictError)
    if kind is not errors.StateDictError:
        fitting = [
            base
            for base in kind.__mro__
            if not base.__module__.startswith("statedict") and base not in (Exception, BaseException, object)
        ]
        assert fitting
        assert all(getattr(builtins, base.__name__, getattr(pickle, base.__name__, None)) is base for base in fitting)


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_a_message_is_printed_as_it_was_written(kind: type[Exception]) -> None:
    assert str(kind("model.pth: 'w': it's short")) == "model.pth: 'w': it's short"


def test_the_tree_of_exceptions_in_the_docstring_is_the_real_one() -> None:
    drawn: dict[str, str] = {}
    parents = {0: "StateDictError"}
    for line in str(errors.__doc__).splitlines():
        if "──" in line:
            depth = (line.index("─") - 5) // 4 + 1
            words = line.split("─ ")[1].split()
            parents[depth] = words[0]
            drawn[words[0]] = parents[depth - 1]
            if words[1].startswith("("):
                assert words[1].strip("()") in {base.__name__ for base in getattr(errors, words[0]).__mro__}
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in EXCEPTIONS if kind is not errors.StateDictError}
    assert drawn == real


def test_what_the_operating_system_says_becomes_the_error_that_fits() -> None:
    for number, kind in ((2, errors.MissingFileError), (17, errors.ExistingFileError), (13, errors.FileError)):
        made = errors.file_error("a.pth", "cannot open", OSError(number, "said no"))
        assert type(made) is kind
        assert (str(made), made.errno, made.filename) == ("a.pth: cannot open: said no", number, "a.pth")
