"""The shape of the source: no circle of imports, short files and functions, documents that name what is there.

Each list of exceptions may only shrink: what has become small enough leaves it, and nothing joins it.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import statedict

ROOT = Path(__file__).parents[1]
PACKAGE = Path(str(statedict.__file__)).parent

MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
LONG_FUNCTIONS = {
    "pickles/machine.py run": 161,  # the loop over opcodes, whose speed is that of opening a file
    "scanner/globals.py _run": 191,  # the same of the scan
}
MOST_COMPLEX = 25
COMPLEX_FUNCTIONS = {"pickles/machine.py run": 47, "scanner/globals.py _run": 60}

MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}


def run_code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one, without what stands there for type checkers or names a logger."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and ast.unparse(child.func).endswith("getLogger"):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from run_code(ast.Module(child.orelse, []))
        else:
            yield child
            yield from run_code(child)


def imports(code: str) -> set[str]:
    """The modules of ours that code imports when it is imported or run; those in strings are rows of a table."""
    found: set[str] = set()
    for node in run_code(ast.parse(code)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}": str(node.module) for alias in node.names}
            found.update(name if name in MODULES else module for name, module in whole.items())
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found & (MODULES.keys() - {"statedict"})  # the public face, which test_layers.py is about


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import one another, by Tarjan's algorithm."""
    low: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> int:
        mine = low[name] = len(low)
        path.append(name)
        for other in graph[name]:
            if other not in low:
                low[name] = min(low[name], visit(other))
            elif other in path:
                low[name] = min(low[name], low[other])
        if low[name] == mine:
            begin = path.index(name)
            if len(path) > begin + 1:
                found.append(sorted(path[begin:]))
            del path[begin:]
        return low.get(name, mine)

    for name in graph:
        if name not in low:
            visit(name)
    return found


GRAPH = {name: imports(path.read_text()) - {name} for name, path in MODULES.items()}


def test_no_module_imports_one_that_imports_it() -> None:
    assert circles(GRAPH) == []


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_imports_is_there(name: str) -> None:
    for node in run_code(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "statedict":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_circles_are_found_and_imports_for_type_checkers_are_none() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert imports("if TYPE_CHECKING:\n    import statedict.errors\nelse:\n    import statedict.dtypes") == {
        "statedict.dtypes"
    }
    assert imports("def f():\n    from statedict.io import zip") == {"statedict.io.zip"}
    assert imports("ROW = ['statedict.errors']; getLogger('statedict.runs')") == {"statedict.errors"}


def over(sizes: dict[str, int], most: int, exceptions: dict[str, int]) -> list[str]:
    """What is larger than it may be, and exceptions that are none any more."""
    large = {name: size for name, size in sizes.items() if size > exceptions.get(name, most)}
    small = {name: size for name in exceptions if (size := sizes.get(name, 0)) <= most}
    return [f"{name}: {size}, over {most}" for name, size in large.items()] + [
        f"{name}: take it out of the exceptions" for name in small
    ]


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{path.relative_to(PACKAGE)} {node.name}", node


def complexity(function: ast.AST) -> int:
    """McCabe's: the ways that fork, and one."""
    forks = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
    return 1 + sum(isinstance(node, forks) for node in ast.walk(function))


def test_a_file_has_at_most_400_lines() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".js", ".css", ".html")]
    sizes = {str(path.relative_to(PACKAGE)): path.read_text().count("\n") for path in files}
    assert over(sizes, MOST_LINES, {}) == []


def test_a_function_has_at_most_60_lines() -> None:
    sizes: dict[str, int] = {}
    for name, node in functions():
        sizes[name] = max(sizes.get(name, 0), (node.end_lineno or 0) - node.lineno + 1)
    assert over(sizes, MOST_LINES_OF_A_FUNCTION, LONG_FUNCTIONS) == []


def test_a_function_forks_at_most_25_times() -> None:
    sizes: dict[str, int] = {}
    for name, node in functions():
        sizes[name] = max(sizes.get(name, 0), complexity(node))
    assert over(sizes, MOST_COMPLEX, COMPLEX_FUNCTIONS) == []


def test_an_exception_that_is_needed_no_more_is_named() -> None:
    assert over({"a": 5, "b": 12}, 10, {"b": 12}) == []
    assert over({"a": 11, "b": 13}, 10, {"b": 12}) == ["a: 11, over 10", "b: 13, over 10"]
    assert over({"b": 10}, 10, {"b": 12}) == ["b: take it out of the exceptions"]


CLOCKS = re.compile(r"\b(process_time|perf_counter|thread_time|monotonic|ru_utime|ru_stime|timeit)(_ns)?\b *\(?\)?")


def test_no_test_asks_the_clock_how_long_something_took() -> None:
    asked = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (ROOT / "tests").rglob("*.py")
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if CLOCKS.search(line.replace("timeit timeit", ""))
    ]
    assert asked == [], "count work instead, by tests/work.py"


# what documents name

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs/decisions/0001-house.md", *ROOT.glob("docs/*.md")]
FOLDERS = {path.name for path in (*ROOT.iterdir(), *PACKAGE.iterdir()) if path.is_dir()} - {"torch"}  # PyTorch's own
ELSEWHERE = {"train.py", "eval.py", "fuzz/crashes/"}  # what users have and tools make
KEYS = {"statedict.coding", "statedict.digests", "statedict.json"}  # of files


def quoted(text: str) -> Iterator[str]:
    """What stands in backticks outside of blocks of code."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from (found.replace("\n", " ") for found in re.findall(r"`([^`]+)`", prose))


def newest(changelog: str) -> str:
    """The changelog's newest section."""
    return changelog.split("\n## ")[1]


def is_there(name: str) -> bool:
    """Whether a path is there: in the repository, in the package, in `tests/`, or anywhere if it is a bare name."""
    places = [ROOT, PACKAGE, PACKAGE.parent, ROOT / "tests", ROOT / "docs"]
    if any(next(place.glob(name.rstrip("/")), None) for place in places):
        return True
    return "/" not in name and any(next((ROOT / top).rglob(name), None) for top in ("src", "tests", "examples"))


def unknown(text: str) -> list[str]:
    """The paths and dotted names in a text that lead nowhere."""
    wrong = []
    for found in quoted(text):
        for name in re.findall(r"(?<![\w./*:@-])[\w.-]+(?:/[\w.*-]+)+/?|(?<![\w./*-])\w+\.py(?![\w/])", found):
            top = name.split("/")[0]
            ours = (top in FOLDERS and not top.startswith(".venv")) if "/" in name else True  # make fills .venv
            if ours and "NAME" not in name and name not in ELSEWHERE and not is_there(name):
                wrong.append(name)
        if re.fullmatch(r"statedict(\.[A-Za-z_]\w*)+(\(.*)?", found) and not resolves(found.partition("(")[0]):
            wrong += [found] if found not in KEYS else []
        owner, dot, name = re.sub(r"\W*\(.*", "", found).partition(".")
        if dot and owner in statedict.__all__ and isinstance(kind := getattr(statedict, owner), type):
            wrong += [] if hasattr(kind, name) or name in kind.__annotations__ else [found]
    return wrong


def resolves(name: str) -> bool:
    """Whether a dotted name is a module or stands in one."""
    parts = name.split(".")
    size = max(size for size in range(1, len(parts) + 1) if ".".join(parts[:size]) in MODULES)
    module = ".".join(parts[:size])
    if module.startswith("statedict.integrations."):  # not to import their libraries
        return not parts[size:] or re.search(rf"(def|class) {parts[size]}\b", MODULES[module].read_text()) is not None
    value: object = importlib.import_module(module)
    for part in parts[size:]:
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_is_there(page: Path) -> None:
    assert unknown(page.read_text()) == []


def test_the_newest_section_of_the_changelog_names_only_what_is_there() -> None:
    assert unknown(newest((ROOT / "CHANGELOG.md").read_text())) == []


def test_names_that_lead_nowhere_are_found() -> None:
    assert unknown("`src/statedict/nowhere.py` `tests/nothing/` `gone.py` `statedict.nothing` `io/zips.py`") == [
        "src/statedict/nowhere.py",
        "tests/nothing/",
        "gone.py",
        "statedict.nothing",
        "io/zips.py",
    ]
    assert unknown("`LazyTensor.regions` `LazyTensor.region` `StateDict.at()` `RunError`") == ["LazyTensor.regions"]
    assert unknown("`io/zip.py` `tests/io/` `errors.py` `statedict.LazyTensor.torch()` `s3://tests/a` `a/b.py`") == []
