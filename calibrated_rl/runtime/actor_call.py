"""A pending call to a Ray actor, with the type of its result."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class ActorCall(Generic[T_co]):
    """Wraps the ``ObjectRef`` that ``actor.method.remote()`` returns; may be awaited."""

    reference: Any

    def result(self, timeout_s: float) -> T_co:
        """Wait for the result.

        Raises:
            GetTimeoutError: there was none within ``timeout_s``.
            RayError: the actor died, or its method raised; in that case the error is one of the method's own class,
                too.
        """
        value: T_co = ray.get(self.reference, timeout=timeout_s)
        return value

    def cancel(self) -> None:
        """Cancel the call: its result is no longer needed."""
        ray.cancel(self.reference)

    def __await__(self) -> Generator[Any, None, T_co]:
        awaitable: Generator[Any, None, T_co] = self.reference.__await__()
        return awaitable


def results(calls: Sequence[ActorCall[T]], timeout_s: float) -> list[T]:
    """The results of all calls; raises as ``ActorCall.result``, as soon as one call has failed."""
    values: list[T] = ray.get([call.reference for call in calls], timeout=timeout_s)
    return values
