"""The report of a run: figures and a self-contained page (``python -m simenv.report DIR``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simenv.faces import lazy

if TYPE_CHECKING:
    from simenv.report.page import build, build_folder, compare

__all__ = ["build", "build_folder", "compare"]

__getattr__ = lazy(
    __name__,
    {
        "build": "simenv.report.page",
        "build_folder": "simenv.report.page",
        "compare": "simenv.report.page",
    },
)
