"""Typed calls to a served model's replicas."""

from collections.abc import AsyncIterator
from typing import Any

from ray.serve.handle import DeploymentHandle
from ray.serve.llm.openai_api_models import CompletionRequest


class ModelHandle:
    """Each method calls the method of ``ModelServer`` that has the same name, on a replica that Serve chooses.

    Raises (every method):
        RayError: the replica died, or its method raised.
        RayServeException: there is no replica.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        """``handle``: as Serve gives it to those that are bound to the deployment, or by the deployment's name."""
        self._handle = handle

    def completions(self, request: CompletionRequest) -> AsyncIterator[Any]:
        """The engine's answers, which ``answers.py`` reads: one whole completion, or the lines of a stream."""
        answers: AsyncIterator[Any] = aiter(self._handle.options(stream=True).completions.remote(request, None))
        return answers

    async def weights(self) -> str:
        """Which weights the replica has."""
        return str(await self._handle.weights.remote())

    def weights_within(self, timeout_s: float) -> str:
        """The same for callers that are no coroutines.

        Raises:
            TimeoutError: there was no answer in time.
        """
        return str(self._handle.weights.remote().result(timeout_s=timeout_s))
