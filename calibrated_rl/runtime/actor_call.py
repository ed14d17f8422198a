"""A call to a Ray actor that is under way, with the type of its answer."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ActorCall(Generic[T]):
    """Wraps the ``ObjectRef`` that ``actor.method.remote()`` returns; may be awaited."""

    reference: Any

    def result(self, timeout_s: float) -> T:
        """Wait for the answer.

        Raises:
            GetTimeoutError: there was none within ``timeout_s``.
            RayError: the actor died, or its method raised; in that case the error is one of the method's own class,
                too.
        """
        answer: T = ray.get(self.reference, timeout=timeout_s)
        return answer

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        ray.cancel(self.reference)

    def __await__(self) -> Generator[Any, None, T]:
        answer: Generator[Any, None, T] = self.reference.__await__()
        return answer


def results(calls: Sequence[ActorCall[T]], timeout_s: float) -> list[T]:
    """The answers of all; raises what ``ActorCall.result`` does, as soon as one call has failed."""
    answers: list[T] = ray.get([call.reference for call in calls], timeout=timeout_s)
    return answers
