"""Errors of a vLLM engine as classes that callers know, and calls that notice when the engine dies."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from calibrated_rl.inference.engines.base import Engine

T = TypeVar("T")


class EngineFailure(RuntimeError):
    """vLLM's engine failed or its process died. The message is the class of vLLM's own error; the replica is
    unusable from then on."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn vLLM's errors into classes that callers know without importing vLLM: a refused request is a
    ``ValueError``, everything that is the engine's own fault an ``EngineFailure``."""
    from vllm.exceptions import VLLMClientError, VLLMServerError

    try:
        yield
    except VLLMClientError as error:
        raise ValueError(str(error)) from error
    except VLLMServerError as error:
        raise EngineFailure(type(error).__name__) from error


class EngineControl:
    """Control calls of an engine: all but the sampling itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def call(self, control_call: Awaitable[T], timeout_s: float = 600.0) -> T:
        """Await a control call of the engine, which vLLM never answers if its process dies meanwhile.

        Raises:
            EngineFailure: the engine is dead.
            TimeoutError: it did not answer within ``timeout_s``.
        """
        task = asyncio.ensure_future(control_call)
        try:
            async with asyncio.timeout(timeout_s):
                while not (await asyncio.wait({task}, timeout=1.0))[0]:
                    self.check()
        finally:
            task.cancel()  # of no effect on a call that has been answered
        with plain_errors():
            return task.result()

    def check(self) -> None:
        """Raise ``EngineFailure`` if the engine is dead."""
        if self._engine.dead:
            raise EngineFailure("EngineDeadError")

    async def pause(self, *, clear_cache: bool, timeout_s: float = 600.0) -> None:
        """As ``Engine.pause``."""
        await self.call(self._engine.pause(clear_cache=clear_cache), timeout_s)

    async def resume(self, timeout_s: float = 600.0) -> None:
        """Sample again."""
        await self.call(self._engine.resume(), timeout_s)
