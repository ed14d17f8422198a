"""What a replica calls of vLLM's engine, wherever that runs."""

from typing import Any, Protocol


class Engine(Protocol):
    """One running vLLM engine; its coroutines run in one event loop.

    All but ``shutdown`` raise vLLM's own errors: ``VLLMClientError`` for a request that it refuses, ``EngineDeadError``
    once it is dead.
    """

    @property
    def dead(self) -> bool:
        """It failed, or its process ended; it samples nothing any more."""
        ...

    @property
    def settings(self) -> Any:
        """What vLLM has made of its arguments, its ``VllmConfig``."""
        ...

    @property
    def unfinished(self) -> int:
        """Requests that it has and that are not finished."""
        ...

    async def finish(self, prompt: dict[str, Any], parameters: Any, request_id: str) -> Any:
        """Sample one request to its end: vLLM's ``RequestOutput``. Cancelled, the engine drops the request.

        Args:
            prompt: of type ``token``.
            parameters: vLLM's ``SamplingParams``.
            request_id: of no other request.
        """
        ...

    async def call_workers(self, method: str, *arguments: Any, **options: Any) -> None:
        """Call a method of the process or processes that have the weights, and wait for it."""
        ...

    async def set_weight_version(self, version: str) -> None:
        """What tokens are said to be sampled from, from here on."""
        ...

    async def pause(self, *, clear_cache: bool) -> None:
        """Stop sampling and keep what is in flight; ``clear_cache``: drop the prefix cache."""
        ...

    async def resume(self) -> None:
        """Sample again."""
        ...

    def shutdown(self) -> None:
        """End it and free its memory."""
        ...
