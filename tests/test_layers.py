"""Imports run downwards only. Those inside functions and those for type checkers count too."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import statedict

ROOT = Path(str(statedict.__file__)).parent

# from the ground up; what stands in one line are neighbours that never import one another
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "shown", "collector", "torch_private"),
    ("dtypes",),
    ("io",),
    ("values",),
    ("tensor",),
    ("tree",),
    ("pickles",),
    ("reports",),
    ("scanner",),
    ("formats", "ops", "adapters"),
    ("api", "alter"),
    ("delta", "lora"),
    ("render",),
    ("runs",),
    ("view",),
    ("cli", "torch"),
    ("integrations", "plugins"),
    ("testing",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def layer(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, layer) of each import of ours; imports by `importlib` are found by their string."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "statedict" else [module]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("statedict."):
            names = [node.value]  # a row of a table, such as that of the formats
        for name in names:
            top, _, rest = name.partition(".")
            if top == "statedict" and rest.split(".")[0] in LEVEL:
                yield node.lineno, rest.split(".")[0]


def test_every_module_has_a_layer_and_every_layer_a_module() -> None:
    assert {layer(path) for path in MODULES} - {"__main__"} == set(LEVEL)


@pytest.mark.parametrize("path", [p for p in MODULES if layer(p) in LEVEL], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_what_lies_below_it_or_in_its_own_room(path: Path) -> None:
    here = layer(path)
    for line, other in imported(path):
        assert other == here or LEVEL[other] < LEVEL[here], f"{path}:{line}: {here} imports {other}"


def test_the_public_face_is_imported_by_the_command_line_and_the_suites_alone() -> None:
    for path in MODULES:
        if layer(path) not in ("cli", "testing"):
            for node in ast.walk(ast.parse(path.read_text())):
                faces = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert "statedict" not in faces, f"{path}:{getattr(node, 'lineno', 0)}: imports the whole of statedict"


def test_the_reader_of_imports_sees_every_kind() -> None:
    def seen(code: str, tmp: Path = Path("x")) -> list[str]:
        class Fake:
            def read_text(self) -> str:
                return code

        return [name for _, name in imported(Fake())]  # type: ignore[arg-type]

    assert seen("import statedict.api") == ["api"]
    assert seen("from statedict import formats, load") == ["formats"]
    assert seen("def f():\n    from statedict.cli.look import x") == ["cli"]
    assert seen("ROW = ('statedict.formats.torch.archive',)") == ["formats"]
    assert seen("if TYPE_CHECKING:\n    from statedict.tree.state_dict import StateDict") == ["tree"]
    assert not seen("import json, statedictionary.api")


def aligns_columns(node: ast.AST) -> bool:
    """Whether code pads a text to a width that it computed."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("ljust", "rjust"):
        return not all(isinstance(argument, ast.Constant) for argument in node.args)
    spec = node.format_spec if isinstance(node, ast.FormattedValue) else None
    return isinstance(spec, ast.JoinedStr) and any(isinstance(part, ast.FormattedValue) for part in spec.values)


def adds_an_s(node: ast.AST) -> bool:
    """Whether code appends the s of a plural."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return any(isinstance(side, ast.Constant) and side.value == "s" for side in (node.left, node.right))
    sides = (node.body, node.orelse) if isinstance(node, ast.IfExp) else ()
    values = {side.value for side in sides if isinstance(side, ast.Constant)}
    return values in ({"s", ""}, {"y", "ies"}, {"x", "ces"})


def places(found: Callable[[ast.AST], bool]) -> set[str]:
    """The modules with such code."""
    return {
        str(path.relative_to(ROOT))
        for path in MODULES
        if any(found(node) for node in ast.walk(ast.parse(path.read_text())))
    }


def test_aligned_columns_occur_only_in_render() -> None:
    assert {place for place in places(aligns_columns) if not place.startswith("render/")} == set()


def test_plurals_are_counted_in_one_place() -> None:
    assert places(adds_an_s) == set()


@pytest.mark.parametrize("code", ["x.ljust(width)", "x.rjust(max(a))", "f'{x:{width}}'", "f'{x:<{width}}'"])
def test_the_reader_of_columns_sees_every_kind(code: str) -> None:
    assert any(map(aligns_columns, ast.walk(ast.parse(code))))
    assert not any(map(aligns_columns, ast.walk(ast.parse("x.ljust(8); f'{x:<8} {y}'"))))


@pytest.mark.parametrize("code", ["'s' * (n != 1)", "'s' if n > 1 else ''", "'y' if n == 1 else 'ies'"])
def test_the_reader_of_plurals_sees_every_kind(code: str) -> None:
    assert any(map(adds_an_s, ast.walk(ast.parse(code))))
    assert not any(map(adds_an_s, ast.walk(ast.parse("'differs' if n == 1 else 'differ'"))))
