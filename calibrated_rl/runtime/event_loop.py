"""Runs coroutines to their end, also where an event loop is running already."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` for coroutines that return dialogues.

    In the main thread ``asyncio.run`` ends with putting the handler of Ctrl-C back, and ``signal`` calls the
    old one's ``repr``, which contains that of the main task and so of its result. For an update's dialogues that takes
    a quarter of a second; so the main task returns nothing.
    """
    results: list[T] = []

    async def main() -> None:
        results.append(await coroutine)

    if _a_loop_runs_here():  # in a notebook; a second loop must have a thread of its own
        _run_in_a_thread(main())
    else:
        asyncio.run(main())
    return results[0]


def _a_loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_in_a_thread(coroutine: Coroutine[Any, Any, None]) -> None:
    """``asyncio.run`` beside the loop of this thread, which waits; Ctrl-C here cancels it there."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()

    async def cancellable() -> None:
        task = asyncio.ensure_future(coroutine)
        started.set_result((asyncio.get_running_loop(), task))
        await task

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, cancellable())
        try:
            running.result()
        except BaseException:
            if not running.done():
                loop, task = started.result()
                loop.call_soon_threadsafe(task.cancel)
            raise
