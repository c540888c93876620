"""Imports point inwards, importing is light, and every yaml makes what it says."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "simenv": {"simenv"},
    "agents": {"simenv", "agents"},
    "recommenders": {"simenv", "recommenders"},
    "experiments": {"simenv", "agents", "recommenders", "experiments"},
}
HEAVY = ("torch", "transformers", "mesa", "polars", "pyarrow", "matplotlib", "implicit", "openai", "hydra")


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_inwards(package: str) -> None:
    ours = set(ALLOWED)
    for path in (ROOT / package).rglob("*.py"):
        wrong = (imports_of(path) & ours) - ALLOWED[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_only_experiments_import_hydra() -> None:
    for package in ("simenv", "agents", "recommenders"):
        for path in (ROOT / package).rglob("*.py"):
            assert not imports_of(path) & {"hydra", "omegaconf"}, path


def test_importing_the_packages_is_light() -> None:
    """Nothing heavy comes with the packages themselves; it loads when first used."""
    script = "import sys, simenv, agents, recommenders, experiments; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & set(HEAVY)


def test_p5_imports_without_hydra_gymnasium_and_mesa() -> None:
    script = (
        "import sys\nfor name in ('hydra', 'gymnasium', 'mesa', 'omegaconf'): sys.modules[name] = None\n"
        "import recommenders.p5"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)


FOREIGN_PRIVATES = {
    "os._exit",  # the documented way out of a thread
    "Agent._ids",  # Mesa counts agents by model there, and lets go of none
}
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}  # public by its documentation


def foreign_privates(tree: ast.AST) -> list[str]:
    """Uses of a private name of something else than the class one stands in: ``x._y``, and ``from x import _y``.

    A class may use its own through ``self``, ``cls``, ``super()``, ``type(self)``, its name, and a copy called
    ``other``: that must be a name the class has itself.
    """
    found: list[str] = []

    def visit(node: ast.AST, own: ast.ClassDef | None) -> None:
        if isinstance(node, ast.ClassDef):
            own = node
        elif isinstance(node, ast.ImportFrom):
            found.extend(f"{node.lineno}: import {one.name}" for one in node.names if is_private(one.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and not belongs(node, own):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        for child in ast.iter_child_nodes(node):
            visit(child, own)

    def belongs(node: ast.Attribute, own: ast.ClassDef | None) -> bool:
        holder = ast.unparse(node.value)
        if ast.unparse(node) in FOREIGN_PRIVATES or node.attr in NAMED_TUPLE:
            return True
        if own is None:
            return False
        if holder == "other":
            return node.attr in names_of(own)
        return holder in ("self", "cls", "super()", "type(self)", own.name)

    visit(tree, None)
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def names_of(own: ast.ClassDef) -> set[str]:
    """The attributes that a class uses as its own."""
    return {
        node.attr for node in ast.walk(own) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
    }


def test_private_names_stay_private() -> None:
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            found = foreign_privates(ast.parse(path.read_text()))
            assert not found, f"{path.relative_to(ROOT)}:{found[0]} is private to another class or module"


@pytest.mark.parametrize(
    ("code", "uses"),
    [
        ("thing._x", 1),
        ("from a import _x", 1),
        ("from __future__ import annotations", 0),
        ("class A:\n    def f(self, other): return other._x", 1),
        ("class A:\n    def f(self, other): return other._x + self._x", 0),
        ("class A:\n    def f(self, part): return part._x + self._x", 1),
        ("class A:\n    def f(self): return type(self)._x is A._x", 0),
        ("class A:\n    def f(self): return B._x", 1),
        ("row._asdict()", 0),
    ],
)
def test_uses_of_foreign_privates_are_found(code: str, uses: int) -> None:
    assert len(foreign_privates(ast.parse(code))) == uses


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below this one but what type checkers alone read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from executed(child)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count; those for type checkers do not."""
    files = {
        path: path.relative_to(ROOT).with_suffix("").parts for name in ALLOWED for path in (ROOT / name).rglob("*.py")
    }
    modules = {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in files.items()}
    needs: dict[str, set[str]] = {}
    for module, path in modules.items():
        needs[module] = set()
        for node in executed(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                needs[module] |= {one.name for one in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = [(f"{node.module}.{one.name}", node.module) for one in node.names]
                needs[module] |= {inner if inner in modules else outer for inner, outer in named}
        needs[module] &= modules.keys() - {module}
    assert sum(map(len, needs.values())) > len(modules)
    graphlib.TopologicalSorter(needs).prepare()  # CycleError names the modules


def test_functions_have_at_most_ten_parameters() -> None:
    """Kernels take arrays one by one; everything else takes a record of what belongs together."""
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    continue
                if any("njit" in ast.unparse(each) for each in node.decorator_list):
                    continue
                given = node.args
                names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")]) + bool(given.kwarg)
                assert count <= 10, f"{path.relative_to(ROOT)}: {node.name} has {count} parameters"


def test_what_packages_promise_is_there() -> None:
    """Every name in an `__all__`, lazy ones too."""
    for package in ALLOWED:
        for path in (ROOT / package).rglob("__init__.py"):
            face = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
            for name in getattr(face, "__all__", ()):
                assert getattr(face, name) is not None, f"{face.__name__}.{name}"
