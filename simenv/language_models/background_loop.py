"""run: lets synchronous code wait for coroutines on one background event loop per process.

What lives on that loop - connections, files - is given back there too: `when_dropped`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
CLOSING_TIME = 2.0  # seconds that a process which ends waits for each connection to close

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner = 0


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, run on the background loop of this process.

    An interrupt (Ctrl-C) cancels the work, waits until it has unwound - answers that arrived are stored by then - and
    is raised again. Must not be called from the loop itself.
    """
    future = asyncio.run_coroutine_threadsafe(work, _background_loop())
    try:
        return future.result()
    except BaseException:
        if not future.done():
            future.cancel()
            settled = asyncio.run_coroutine_threadsafe(_unwound(), _background_loop())
            settled.result()
        raise


def when_dropped(owner: object, close: Callable[[], Any], *, at_exit: bool = False) -> weakref.finalize[..., Any]:
    """Call `close` on the background loop once nobody refers to `owner` any more.

    Args:
        owner: its life is watched; `close` must not refer to it.
        close: a function, or a coroutine function.
        at_exit: also when the process ends, which by itself gives everything back: for what complains.

    Returns:
        A handle; its `detach()` calls the appointment off.
    """
    finalizer = weakref.finalize(owner, _close_on_loop, close, os.getpid())
    finalizer.atexit = False
    if at_exit:
        atexit.register(_close_at_exit, finalizer)
    return finalizer


def _close_at_exit(finalizer: weakref.finalize[..., Any]) -> None:
    if (open_ := finalizer.detach()) is not None and (closing := _close_on_loop(*open_[2])) is not None:
        with contextlib.suppress(TimeoutError):
            closing.result(CLOSING_TIME)


def _close_on_loop(close: Callable[[], Any], owner: int) -> Future[None] | None:
    if _loop is None or owner != os.getpid():
        return None

    async def closing() -> None:
        waiting = close()
        if inspect.isawaitable(waiting):
            await waiting

    return asyncio.run_coroutine_threadsafe(closing(), _loop)


async def _unwound() -> None:
    """Return once no other task of the loop is being cancelled."""
    while any(task.cancelling() for task in asyncio.all_tasks() if task is not asyncio.current_task()):
        await asyncio.sleep(0.01)


def _background_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process; a forked child starts its own."""
    global _loop, _owner
    with _lock:
        if _loop is None or _owner != os.getpid():
            _loop, _owner = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=_loop.run_forever, name="language-model", daemon=True).start()
        return _loop
