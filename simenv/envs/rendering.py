"""A page drawn as text or as an image. Pillow loads when an image is first drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Dataset
from simenv.envs.sessions import Parts, Sessions, Who

WIDTH, ROW, TOP = 640, 30, 54
_INK, _PALE, _PAPER, _GREEN = (33, 37, 41), (134, 142, 150), (255, 255, 255), (211, 249, 216)


def page_lines(dataset: Dataset, sessions: Sessions, row: int, slate: NDArray[Any] | None) -> tuple[str, list[str]]:
    """Heading and one line per slot: rank, a mark where clicked, title, genres, rating."""
    user = dataset.user_ids[int(sessions.who[row, Who.USER])]
    if slate is None:
        return f"user {user}: no page yet", []
    catalog, lines = dataset.catalog, []
    for rank, item in enumerate(slate.tolist()):
        genres = "|".join(name for name, on in zip(catalog.genre_names, catalog.genres[item], strict=True) if on)
        rating = float(sessions.ratings[row, rank])
        given = "" if np.isnan(rating) else f"  rated {rating:g}"
        mark = "x" if sessions.clicked[row, rank] else " "
        lines.append(f"{rank + 1:2d}. [{mark}] {catalog.titles[item]} ({genres or 'no genre'}){given}")
    state = "leaves" if sessions.parts[row, Parts.LEFT] > 0 else "stays"
    return f"user {user}, page {int(sessions.who[row, Who.PAGE])}, {state}", lines


def page_text(dataset: Dataset, sessions: Sessions, row: int, slate: NDArray[Any] | None) -> str:
    """The page as lines of text."""
    heading, lines = page_lines(dataset, sessions, row, slate)
    return "\n".join([heading, *lines]) + "\n"


def page_image(dataset: Dataset, sessions: Sessions, row: int, slate: NDArray[Any] | None) -> NDArray[np.uint8]:
    """The page as an image, (54 + 30 * slate_size, 640, 3) uint8; clicked slots are green."""
    from PIL import Image, ImageDraw, ImageFont

    heading, lines = page_lines(dataset, sessions, row, slate)
    image = Image.new("RGB", (WIDTH, TOP + ROW * sessions.slate_size), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    draw.text((16, 16), heading, fill=_INK, font=ImageFont.load_default(size=18))
    for rank, line in enumerate(lines):
        top = TOP + ROW * rank
        if sessions.clicked[row, rank]:
            draw.rectangle((8, top, WIDTH - 8, top + ROW - 4), fill=_GREEN)
        draw.text((16, top + 4), line, fill=_INK if sessions.clicked[row, rank] else _PALE, font=font)
    return np.asarray(image, dtype=np.uint8).copy()
