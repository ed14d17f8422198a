"""The actors of the replicas of one role, by index: starts, restarts and ends them (``membership.py`` says which)."""

import itertools
from collections.abc import Callable, Iterable

import ray

from calibrated_rl.inference.handle import ReplicaHandle
from calibrated_rl.inference.placement import PlacedReplica
from calibrated_rl.runtime.capacity import Need

PING_TIMEOUT_S = 1.0
"""A lost replica that does not answer within this time is not back."""


class ReplicaFleet:
    """RLlib's ``FaultTolerantActorManager`` keeps the actors and pings lost ones; turns go to
    the actors directly, because the manager allows few requests in flight."""

    def __init__(self, start: Callable[[int], PlacedReplica], replicas: int, seed: int) -> None:
        """
        Args:
            start: starts a replica with a seed.
            replicas: how many are started at once, under the indices from 0.
            seed: of the first; each further one gets the next.
        """
        from ray.rllib.utils.actor_manager import FaultTolerantActorManager

        self._start, self._seeds = start, itertools.count(seed)
        self.placed = {index: self.start() for index in range(replicas)}
        """All but those that are pending."""
        self._manager = FaultTolerantActorManager([placed.actor for placed in self.placed.values()], init_id=0)

    def start(self) -> PlacedReplica:
        """Start another one, which has no index yet. Returns at once."""
        return self._start(next(self._seeds))

    def needs(self) -> list[Need]:
        """What its replicas need of the cluster."""
        return [placed.need for placed in self.placed.values()]

    def indices(self) -> list[int]:
        """Of all replicas, also of those that leave."""
        return list(self._manager.actor_ids())

    def handle(self, index: int) -> ReplicaHandle:
        """For calls to a replica."""
        return ReplicaHandle(self.placed[index].actor)

    def add(self, index: int, placed: PlacedReplica) -> None:
        """A replica that was started gets its index, the next one that no other ever had."""
        self.placed[index] = placed
        self._manager.add_actors([placed.actor])
        assert max(self._manager.actor_ids()) == index, "RLlib's manager gave the actor another index"

    def restart(self, index: int) -> None:
        """End a replica's process and let Ray start it again, in the same place."""
        self._manager.set_actor_state(index, healthy=False)
        # Also where its process is alive: a dead or stuck engine does not recover.
        ray.kill(self.placed[index].actor, no_restart=False)

    def answering(self, indices: Iterable[int]) -> list[int]:
        """Those of the replicas that answer within ``PING_TIMEOUT_S``."""
        answers = self._manager.foreach_actor(
            lambda actor: actor.ping(),
            remote_actor_ids=sorted(indices),
            healthy_only=False,
            timeout_seconds=PING_TIMEOUT_S,
        )
        return [answer.actor_id for answer in answers.ignore_errors()]

    def mark_healthy(self, index: int) -> None:
        """A replica that was restarted serves again."""
        self._manager.set_actor_state(index, healthy=True)

    def remove(self, index: int) -> None:
        """Forget a replica that has ended."""
        del self.placed[index]
        self._manager.remove_actor(index)
