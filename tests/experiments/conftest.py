"""Runs played by these tests draw their figures and do not paint them, which would take longer than playing.

Painting is looked at by tests/simenv/figures and tests/simenv/report, and by the runs that are played as a command.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_PAINT = Figure.savefig


def _one_pixel(figure: Figure, file: Any, **options: Any) -> None:
    """An empty picture of the figure's kind; whatever else is asked for is painted."""
    if options.get("format") != "png" or not isinstance(file, BytesIO):
        return _PAINT(figure, file, **options)
    blank = Figure(figsize=(0.02, 0.02), dpi=100)
    FigureCanvasAgg(blank)
    return _PAINT(blank, file, **options)


@pytest.fixture(autouse=True, scope="module")
def unpainted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _one_pixel)
        yield
