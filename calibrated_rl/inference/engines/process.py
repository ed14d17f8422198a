"""vLLM's engine in a process of its own, beside the one that serves it, as vLLM runs it: what takes and gives requests
never waits for the interpreter that prepares a batch, so that a GPU is kept busy."""

from typing import Any

from vllm import AsyncEngineArgs
from vllm.config import VllmConfig
from vllm.v1.engine.async_llm import AsyncLLM


class ProcessEngine:
    """An ``Engine`` that is vLLM's ``AsyncLLM``."""

    def __init__(self, arguments: AsyncEngineArgs) -> None:
        """Raises RuntimeError if the engine's process ends while it starts; vLLM leaves the reason in its log."""
        self._llm = AsyncLLM.from_engine_args(arguments)

    @property
    def dead(self) -> bool:
        return self._llm.errored

    @property
    def settings(self) -> VllmConfig:
        return self._llm.vllm_config

    @property
    def unfinished(self) -> int:
        return self._llm.output_processor.get_num_unfinished_requests()

    async def finish(self, prompt: Any, parameters: Any, request_id: str) -> Any:
        final = None
        async for output in self._llm.generate(prompt, parameters, request_id=request_id):
            final = output
        assert final is not None, "the engine ended a request without output"
        return final

    async def call_workers(self, method: str, *arguments: Any, **options: Any) -> None:
        await self._llm.collective_rpc(method, args=arguments, kwargs=options)

    async def set_weight_version(self, version: str) -> None:
        await self._llm.update_weight_version(version)

    async def pause(self, *, clear_cache: bool) -> None:
        # vLLM's own ``pause_generation`` does this and then sleeps for 20 ms, so that finished requests reach their
        # callers first; nobody here waits for that.
        await self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=clear_cache)

    async def resume(self) -> None:
        await self._llm.resume_generation()

    def shutdown(self) -> None:
        self._llm.shutdown()
