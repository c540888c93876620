"""``simenv doctor``: what a bug report needs - versions, devices, extras, data. It changes nothing."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

import simenv
from simenv.datasets.command import overview
from simenv.errors import DataError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argparse.ArgumentParser(prog="simenv doctor", description=__doc__).parse_args(arguments)
    for title, lines in (("versions", _versions()), ("devices", _devices()), ("extras", _extras()), ("data", _data())):
        print(title)
        for line in lines:
            print(f"  {line}")
    return 0


def _versions() -> Iterator[str]:
    yield f"simenv {_version('simenv') or 'not installed'}, imported from {Path(simenv.__file__).parent}"
    yield f"Python {platform.python_version()}, {sys.executable}"
    yield platform.platform()
    for requirement in _requirements(None):
        yield _judged(requirement)


def _devices() -> Iterator[str]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"{usable} processors; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"
    if find_spec("torch") is None:
        yield "no torch, so no GPU is used"
        return
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            yield f"cuda:{number} {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        yield f"torch {torch.__version__}: no GPU"


def _extras() -> Iterator[str]:
    try:
        names = metadata("simenv").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        yield "unknown: simenv is not installed; `pip install -e .` in the checkout"
        return
    for extra in names:
        wanted = [requirement for requirement in _requirements(extra) if requirement.name != "simenv"]
        missing = [_judged(requirement) for requirement in wanted if not _fits(requirement)]
        if wanted:
            yield f"{extra}: {'; '.join(missing) if missing else 'complete'}"


def _data() -> Iterator[str]:
    try:
        yield from overview()
    except DataError as error:
        yield str(error)


def _requirements(extra: str | None) -> list[Requirement]:
    """What the distribution asks for: always, or by this extra alone."""
    try:
        every = [Requirement(line) for line in metadata("simenv").get_all("Requires-Dist") or []]
    except PackageNotFoundError:
        return []
    always = [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]
    if extra is None:
        return always
    return [one for one in every if one not in always and one.marker and one.marker.evaluate({"extra": extra})]


def _fits(requirement: Requirement) -> bool:
    installed = _version(requirement.name)
    return installed is not None and requirement.specifier.contains(installed, prereleases=True)


def _judged(requirement: Requirement) -> str:
    wanted = "" if _fits(requirement) else f", expected {requirement.name}{requirement.specifier}"
    return f"{requirement.name} {_version(requirement.name) or 'missing'}{wanted}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
