"""Typed calls to a replica's actor, and what they raise."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayError

from calibrated_rl.errors import UserError
from calibrated_rl.inference.engine_health import EngineFailure
from calibrated_rl.inference.request_batcher import Answers
from calibrated_rl.runtime.actor_call import ActorCall
from calibrated_rl.weight_sync.base import WeightUpdate

T = TypeVar("T")

CALL_FAILURES = (RayActorError, EngineFailure, TimeoutError)
"""What a call raises whose replica is lost: the actor died, its engine died, or there was no answer in time."""

UPDATE_FAILURES = (RayError, TimeoutError)
"""What a weight update raises: after any error in it, a replica may have weights of two versions."""


class ReplicaHandle:
    """Each method begins a call to the method of ``ReplicaActor`` that has the same name."""

    def __init__(self, actor: Any) -> None:
        """``actor``: the handle that Ray returned when it started the actor."""
        self._actor = actor

    def start(self) -> ActorCall[int]:
        """MiB of the KV cache, once the model is loaded."""
        return ActorCall(self._actor.start.remote())

    def sample_turns(self, client: str, batch: bytes) -> ActorCall[Answers]:
        """Begin to sample a batch (``pack_requests``; may be empty); what has been sampled for ``client`` by then."""
        return ActorCall(self._actor.sample_turns.remote(client, batch))

    def drop_client(self, client: str) -> ActorCall[None]:
        """Stop to sample what ``client`` does not wait for any more."""
        return ActorCall(self._actor.drop_client.remote(client))

    def sample_lockstep(self, batch: bytes) -> ActorCall[bytes]:
        """Sample a batch (``pack_requests``) whose turns enter the engine together; all of them (``pack_answers``)."""
        return ActorCall(self._actor.sample_lockstep.remote(batch))

    def update_weights(self, update: WeightUpdate) -> ActorCall[None]:
        """Replace the weights; what is in flight continues under the new ones."""
        return ActorCall(self._actor.update_weights.remote(update))

    def score(self, ids: Sequence[int]) -> ActorCall[NDArray[np.float32]]:
        """Log-probs of ``ids[1:]``, shape [T - 1]."""
        return ActorCall(self._actor.score.remote(ids))

    def apply(self, function: Callable[[Any], T]) -> ActorCall[T]:
        """What ``function`` returns for the ``ReplicaActor``, in its process."""
        return ActorCall(self._actor.apply.remote(function))


def cause_of(error: Exception) -> str:
    """A word for why a call failed, under which the failure is counted."""
    if isinstance(error, EngineFailure | UserError):  # the latter: it does not reach memory that the learner shares
        return str(getattr(error, "cause", error))  # Ray wraps what an actor raised
    return type(error).__name__
