"""The package's modules import each other in one direction, and no file is long."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ar_fast"
# From the lowest to the highest; a module imports from its own level and from those below.
LEVELS = (
    {"_library", "_integers", "_philox", "_progress", "_structure", "_version", "_vocabulary", "reference"},
    {"_fallback", "_info", "freezing", "functional", "heads", "masks", "nn", "orderings"},
    {"conditioners", "export", "networks"},
    {"interop", "flows", "models", "dependence"},
    {"compression", "tasks", "training"},
    {"cli", "demo", "__main__"},
)
MOST_LINES = 600
# Files that may be longer, and why.
LONG: dict[str, str] = {}


def modules():
    """The package's modules by name, without the package's own __init__, which imports them all."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        if name != "__init__":
            found[name] = path
    return found


def statements(node):
    """All import statements, those within functions too, except those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from statements(child)


def imports(name, path, known):
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for statement in statements(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names if alias.name.split(".")[0] == "ar_fast"]
            assert not names, f"{path}: the package imports itself by relative names, got {names}"
            continue
        assert (statement.module or "").split(".")[0] != "ar_fast" or statement.level, f"{path}: relative names only"
        if statement.level == 0:
            continue
        base = package[: len(package) - statement.level + 1] + (statement.module.split(".") if statement.module else [])
        for alias in statement.names:
            target = ".".join([*base, alias.name])
            target = target if target in known else ".".join(base)
            if target in known and target != name:
                yield target


def graph():
    known = modules()
    return {name: set(imports(name, path, known)) for name, path in known.items()}


def level(name):
    top = name.split(".")[0]
    found = [number for number, names in enumerate(LEVELS) if top in names]
    assert len(found) == 1, f"ar_fast.{name} must stand in one of the levels of this test"
    return found[0]


def test_imports_point_one_way():
    upward = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        if level(target) > level(name)
    ]
    assert upward == []


def test_no_imports_go_in_a_circle():
    edges = graph()
    # The walk sees what it should.
    assert "functional" in edges["nn"] and "interop.sequential" in edges["models.made"]
    tuple(graphlib.TopologicalSorter(edges).static_order())


@pytest.mark.parametrize("folder", ["ar_fast", "bench", "csrc", "examples", "tests"])
def test_no_file_is_long(folder):
    endings = {".py", ".cpp", ".cu", ".h"}
    lines = {
        str(path.relative_to(ROOT)): path.read_text().count("\n")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in endings
    }
    assert lines and sorted(name for name, count in lines.items() if count > MOST_LINES) == sorted(
        name for name in LONG if name.startswith(folder)
    )
