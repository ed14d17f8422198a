"""Errors of vLLM as this package knows them."""

from collections.abc import Iterator
from contextlib import contextmanager


class EngineFailure(RuntimeError):
    """vLLM's engine failed or its process died. The message is the class of vLLM's own error; the replica is
    of no more use."""


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
