"""The wheel holds all that the tree does, and runs where no checkout is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("simenv", "agents", "recommenders", "experiments")
NOT_SHIPPED = {".pyc", ".nbi", ".nbc"}


def shipped() -> set[str]:
    """What the tree holds, by its name in the wheel."""
    ours = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    names = {str(path.relative_to(ROOT)) for path in ours if path.suffix not in NOT_SHIPPED}
    return names | {f"experiments/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tree by what is installed here."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    stale = source / "build" / "lib" / "agents" / "moved_away.py"  # what an older build leaves
    stale.parent.mkdir(parents=True)
    stale.touch()
    make = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", make, built], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(built.glob("*.whl"))


def test_the_wheel_is_the_tree(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name and not name.endswith("/")}
    assert held == shipped()


def test_a_module_of_each_folder_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    heavy = ("recommenders.p5", "agents.user_lm")  # torch: seconds, and nothing that the list of files does not say
    folders = {str(Path(name).parent) for name in shipped() if name.endswith(".py")}
    modules = []
    for folder in sorted(folders):
        inside = sorted(path.stem for path in (tmp_path / folder).glob("*.py") if not path.stem.startswith("__"))
        dotted = folder.replace("/", ".")
        modules.append(dotted if dotted.startswith(heavy) or not inside else f"{dotted}.{inside[0]}")
    script = (
        f"import sys, importlib; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"for name in {modules!r}: assert importlib.import_module(name).__file__.startswith({str(tmp_path)!r}), name\n"
        "from experiments.running.design import CONF; assert (CONF / 'config.yaml').is_file()\n"
        f"assert str(CONF).startswith({str(tmp_path)!r})"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["NUMBA_DISABLE_JIT"] = "1"  # a fresh copy has no compiled kernels
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


INSTALLED = """
import gymnasium as gym
env = gym.make("simenv:simenv/Slate-v0")
env.reset(seed=0)
import simenv
assert "site-packages" in simenv.__file__
env = gym.make("simenv/Slate-v0")
observation, info = env.reset(seed=0)
env.step(env.action_space.sample())
envs = gym.make_vec("simenv/Slate-v0", num_envs=4, vectorization_mode="vector_entry_point")
envs.reset(seed=0)
envs.step(envs.action_space.sample())
"""


@pytest.mark.slow
def test_an_installed_copy_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """In a bare environment with the pinned dependencies, from the package index; no torch, no checkout."""

    def run(*command: str | Path) -> str:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home")}
        for name in ("PIP_INDEX_URL", "PIP_CONFIG_FILE", "HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE"):
            if name in os.environ:
                environment[name] = os.environ[name]
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    empty = tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    binaries = tmp_path / "venv" / "bin"
    run(binaries / "python", "-m", "pip", "install", "-qq", "-c", ROOT / "constraints.txt", wheel)
    run(binaries / "python", "-c", INSTALLED)
    lines = run(binaries / "simenv", "run", "+experiment=bias_loop_smoke", "progress=false").splitlines()
    folder = Path(lines[-2])
    assert lines[-1] == (empty / folder / "report.html").as_uri()
    page = (empty / folder / "report.html").read_bytes()
    (empty / folder / "report.html").unlink()
    run(binaries / "simenv", "report", folder)
    assert (empty / folder / "report.html").read_bytes() == page
    assert "simenv" in run(binaries / "python", "-m", "simenv", "doctor")
