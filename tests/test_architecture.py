"""Imports point inwards, importing is light, and every yaml makes what it says."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
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
