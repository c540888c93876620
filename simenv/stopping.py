"""Whether whoever runs this process wants it to stop: asked between the steps of what takes minutes.

The module knows neither signals nor processes: `stopping` says how to find out, `leave_if_asked` is called where it is
safe to leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """Work was left where it was asked to; what is not kept will be done again."""


def _never() -> bool:
    return False


_asked: Callable[[], bool] = _never


@contextmanager
def stopping(asked: Callable[[], bool]) -> Iterator[None]:
    """Within the block, `leave_if_asked` asks this."""
    global _asked
    before, _asked = _asked, asked
    try:
        yield
    finally:
        _asked = before


def leave_if_asked() -> None:
    """Raise `Stopped` where this process is wanted to stop."""
    if _asked():
        raise Stopped
