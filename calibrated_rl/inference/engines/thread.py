"""vLLM's engine in a thread of the process that serves it.

With an engine in a process of its own, two processes import vLLM, which is most of what the start of a small model
takes, and what goes in and out is packed and unpacked. On a machine of few cores nothing is gained by that.

The thread alone touches the engine: it takes calls from a queue between two steps, and runs steps while there is
something to sample.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from vllm import AsyncEngineArgs
from vllm.config import VllmConfig
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine

T = TypeVar("T")

SHUTDOWN_TIMEOUT_S = 10.0
"""For the step that runs when the engine is to end."""

logger = logging.getLogger(__name__)


class ThreadEngine:
    """An ``Engine`` that is vLLM's ``LLMEngine``, with its core in this process."""

    def __init__(self, arguments: AsyncEngineArgs) -> None:
        """Raises whatever vLLM does."""
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        """What the thread has to do, and where the result goes; None: end."""
        self._dead = False
        self._ending = threading.Lock()
        """Locked while something enters the queue, so that nothing does after the thread has taken the last call."""
        self._requests: dict[str, Future[Any]] = {}
        """Those that are not finished, by id; of the thread alone."""
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(arguments, started), name="engine", daemon=True)
        self._thread.start()
        started.result()

    @property
    def dead(self) -> bool:
        return self._dead

    @property
    def settings(self) -> VllmConfig:
        return self._llm.vllm_config

    @property
    def unfinished(self) -> int:
        return len(self._requests)

    async def finish(self, prompt: Any, parameters: Any, request_id: str) -> Any:
        finished: Future[Any] = Future()

        def add() -> None:
            self._llm.add_request(request_id, prompt, parameters)
            self._requests[request_id] = finished

        def drop() -> None:
            if self._requests.pop(request_id, None) is not None:
                self._llm.abort_request([request_id])

        added = self._begin(add)
        try:
            await _result(added)
            return await _result(finished)
        except asyncio.CancelledError:
            with suppress(EngineDeadError):
                self._begin(drop)
            raise

    async def call_workers(self, method: str, *arguments: Any, **options: Any) -> None:
        await self._call(lambda: self._core.collective_rpc(method, args=arguments, kwargs=options))

    async def set_weight_version(self, version: str) -> None:
        await self._call(lambda: self._core.set_weight_version(version))

    async def pause(self, *, clear_cache: bool) -> None:
        def pause() -> None:
            self._core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
            while self._has_work():  # batches that have been begun
                self._step()
            self._core.pause_scheduler("keep", clear_cache)

        await self._call(pause)

    async def resume(self) -> None:
        await self._call(lambda: self._core.resume_scheduler())

    def shutdown(self) -> None:
        self._calls.put(None)
        self._thread.join(SHUTDOWN_TIMEOUT_S)

    # ---- any thread ----------------------------------------------------------------------------------

    def _begin(self, function: Callable[[], T]) -> Future[T]:
        """Have the thread call ``function`` between two steps."""
        result: Future[T] = Future()
        with self._ending:
            if self._dead:
                raise EngineDeadError
            self._calls.put((function, result))
        return result

    async def _call(self, function: Callable[[], T]) -> T:
        return await _result(self._begin(function))

    # ---- the engine's thread -------------------------------------------------------------------------

    @property
    def _core(self) -> EngineCore:
        assert isinstance(self._llm.engine_core, InprocClient)
        return self._llm.engine_core.engine_core

    def _run(self, arguments: AsyncEngineArgs, started: Future[None]) -> None:
        try:
            self._llm = LLMEngine.from_engine_args(arguments)
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while self._answer_calls():
                if self._has_work():
                    self._step()
        except Exception:
            logger.exception("vLLM's engine failed")
        self._end()

    def _has_work(self) -> bool:
        return self._core.scheduler.has_requests() or bool(self._core.batch_queue)

    def _step(self) -> None:
        for output in self._llm.step():
            if output.finished and (finished := self._requests.pop(output.request_id, None)) is not None:
                finished.set_result(output)

    def _answer_calls(self) -> bool:
        """Do what has been asked for; wait for something if there is nothing to sample. False: the engine is to end."""
        while not self._calls.empty() or not self._has_work():
            call = self._calls.get()
            if call is None:
                return False
            function, result = call
            try:
                result.set_result(function())
            except Exception as error:
                result.set_exception(error)
        return True

    def _end(self) -> None:
        with self._ending:
            self._dead = True
        self._llm.engine_core.shutdown()
        while not self._calls.empty():
            if (call := self._calls.get()) is not None:
                call[1].set_exception(EngineDeadError())
        for finished in self._requests.values():
            finished.set_exception(EngineDeadError())
        self._requests.clear()


async def _result(future: Future[T]) -> T:
    """That of what a thread does. Who waits may be cancelled; what it waits for is not."""
    return await asyncio.shield(asyncio.wrap_future(future))
