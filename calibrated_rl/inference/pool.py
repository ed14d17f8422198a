"""The replicas of one role, as dialogues, the learner and scaling use them; each concern is a file of its own:

- who belongs to the pool and who serves: ``membership.py``, a state machine, which ``replica_group.py`` applies to the
  actors in ``fleet.py``;
- where a dialogue goes: ``routing.py``, to the replica that has capacity and the dialogue's prefix cache;
- how turns get there: ``request_batcher.py``, many in one call, with no barrier between turns: real continuous
  batching;
- weights: ``publishing.py``, to all that serve, while they continue to sample;
- lost replicas: ``recovery.py`` waits for them, ``admission.py`` brings them back with the newest weights. While
  another one serves, neither a weight update nor a dialogue waits for that;
- more or fewer replicas: ``resizing.py``. One that is added serves once it has the newest weights. One that is removed
  finishes the turns that are in flight on it; the next turns of their dialogues go to others, which have to prefill the
  dialogue once more but sample under the same weights.

In deterministic mode turns go in lockstep instead (``lockstep.py``): each is kept back until every running dialogue
waits for one, then they enter the engines together in the order of their keys, so that batches are the same in every
run. The replica of a dialogue then depends on which ones serve, so that everything waits for a lost one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.errors import PartLost, RolloutFailure, UserError
from calibrated_rl.inference.admission import Admission
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.fleet import ReplicaFleet
from calibrated_rl.inference.handle import CALL_FAILURES, cause_of
from calibrated_rl.inference.lockstep import LockstepScheduler
from calibrated_rl.inference.placement import PlacedReplica
from calibrated_rl.inference.publishing import WeightPublisher
from calibrated_rl.inference.recovery import Recovery
from calibrated_rl.inference.replica_group import ReplicaGroup
from calibrated_rl.inference.resizing import Resizing
from calibrated_rl.inference.turns import Generated, GenerateRequest, pack_requests, unpack_answers
from calibrated_rl.runtime.actor_call import results
from calibrated_rl.runtime.capacity import Need
from calibrated_rl.weight_sync.base import WeightUpdate

T = TypeVar("T")

FEW_MORE = 32
"""To share a prefix, a replica may have 1 / FEW_MORE of a batch more dialogues than another. A batch that is larger by
that takes hardly longer."""

CLOSE_TIMEOUT_S = 10.0
"""For threads that wait for a replica to notice that it has ended."""


class ReplicaPool:
    """All replicas of one role (``policy`` or ``simulator``)."""

    def __init__(
        self,
        role: str,
        model: str,
        tokens: ChatTokens,
        config: EngineConfig,
        *,
        replicas: int = 1,
        seed: int = 0,
        lockstep: LockstepScheduler | None = None,
        start: Callable[[str, EngineConfig, str, int], PlacedReplica] = PlacedReplica,
    ) -> None:
        """
        Args:
            lockstep: turns go in batches of fixed order; see the module's docstring.
            start: starts a replica of a model, with its config, role and seed.
        """
        self.role = role
        self.tokens = tokens
        self.max_model_len = config.max_model_len
        self.version = 0
        """Of the newest weights."""
        self.lockstep = lockstep
        self._timeout_s, self._start_timeout_s = config.timeout_seconds, config.start_timeout_seconds
        self._batch = config.max_num_seqs
        self.fleet = ReplicaFleet(partial(start, model, config, role), replicas, seed)
        slack = max(1, config.max_num_seqs // FEW_MORE)
        self.group = ReplicaGroup(role, self.fleet, slack, self._recover_in_background)
        self.load = self.group.load
        """What is in flight, by replica."""
        self._membership = self.group.membership
        self._publisher = WeightPublisher(self.group, self._timeout_s)
        self._admission = Admission(
            self.group, self._publisher, timeout_s=self._timeout_s, start_timeout_s=self._start_timeout_s,
            cache_mib=config.kv_cache_mib,
        )  # fmt: skip
        self._recovery = Recovery(
            self._membership, self._admission.readmit, self.group.give_up, self._start_timeout_s,
            self.group.changed, self.group.closed,
        )  # fmt: skip
        self._resizing = Resizing(self.group, self._admission, self._recovery.probing, self._timeout_s)

    def needs(self) -> list[Need]:
        """What its replicas need of the cluster."""
        return self.fleet.needs()

    def wait_until_ready(self) -> None:
        """Return when every replica has loaded its model.

        Raises:
            PartLost: one died meanwhile, or did not within the time-out.
            UserError: vLLM does not take what ``engine.args`` says.
        """
        try:
            starting = [self.fleet.handle(index).start() for index in self._membership.members]
            for cache_mib in results(starting, self._start_timeout_s):
                self._admission.warn_if_small(cache_mib)
        except UserError as error:
            raise UserError(f"{self.role}: {cause_of(error)}") from error
        except GetTimeoutError as error:
            raise PartLost(f"a {self.role} replica did not start within {self._start_timeout_s:g} s") from error
        except CALL_FAILURES as error:
            raise PartLost(f"a {self.role} replica died while it started: {cause_of(error)}") from error

    # ---- turns ---------------------------------------------------------------------------------------

    def route(self, key: str) -> int:
        """Replica of a dialogue: the same for all its turns, so that its prefix cache is reused."""
        return self.group.route(key, by_load=self.lockstep is None)

    def leave(self, key: str) -> None:
        """The dialogue ``key`` is over: its replica has capacity for another."""
        self.group.leave(key)

    async def generate(self, key: str, request: GenerateRequest) -> Generated:
        """Sample one turn of the dialogue ``key``.

        Raises:
            RolloutFailure: the replica died or did not answer in time; it is being restarted.
            ValueError: the prompt does not fit into the context.
        """
        if self.lockstep is not None:
            return await self.lockstep.generate(self, key, request)
        return await self._send(
            key, 1, lambda index, incarnation: self.group.batcher(index, incarnation).submit(request)
        )

    async def generate_lockstep(self, key: str, requests: list[GenerateRequest]) -> list[Generated]:
        """Sample turns that enter the engine of the dialogue ``key`` together, in their order; raises as above."""
        batch = pack_requests(enumerate(requests))
        answers = await self._send(key, len(requests), lambda index, _: self.fleet.handle(index).sample_lockstep(batch))
        return [answer for _, answer in unpack_answers(answers)]

    async def _send(self, key: str, turns: int, send: Callable[[int, int], Awaitable[T]]) -> T:
        """Send so many turns to the replica of the dialogue ``key``, in its present incarnation."""
        if not self._membership.serving:
            await self.recover()
        index, incarnation = self.group.begin_turns(key, turns, by_load=self.lockstep is None)
        try:
            # Turns wait in the engine for their place in the batch; that is no sign of a dead one.
            timeout_s = self._timeout_s * (1 + self.load.in_flight() / self._batch)
            return await asyncio.wait_for(send(index, incarnation), timeout_s)
        except CALL_FAILURES as error:
            self.group.mark_unavailable(index, incarnation, cause_of(error))
            raise RolloutFailure(f"{self.role}: {cause_of(error)}") from error
        finally:
            self.group.end_turns(index, turns)

    def score(self, ids: list[int]) -> NDArray[np.float32]:
        """Log-probs of a sequence under the oldest replica that serves, shape [T - 1].

        Raises:
            PartLost: it died, or did not answer in time.
        """
        return self.score_all([ids])[0]

    def score_all(
        self, sequences: Sequence[list[int]], ticks: Callable[[], None] = lambda: None
    ) -> list[NDArray[np.float32]]:
        """As ``score`` for each of ``sequences``, a batch of the engine at a time; ``ticks`` is called for each."""
        handle = self.fleet.handle((self._membership.serving or self._membership.members)[0])
        scores: list[NDArray[np.float32]] = []
        try:
            for start in range(0, len(sequences), self._batch):
                calls = [handle.score(ids) for ids in sequences[start : start + self._batch]]
                for score in results(calls, self._timeout_s):
                    scores.append(score)
                    ticks()
        except CALL_FAILURES as error:
            raise PartLost(f"a {self.role} replica was lost while it scored: {cause_of(error)}") from error
        return scores

    # ---- weights -------------------------------------------------------------------------------------

    def publish(self, update: WeightUpdate) -> None:
        """Send new weights to all replicas that serve; they continue to sample meanwhile.

        A lost replica gets them when it is back. In lockstep, or where none serves, ``restore`` comes first.

        Raises:
            PartLost: no replica could be updated in time, or the weights are gone.
            UserError: a replica cannot reach memory that the learner shares.
        """
        with self.group.changed:
            self._publisher.announce(update)
            self.version, self._recovery.unable = update.version, None
        if self.lockstep is not None or not self._membership.serving:
            self.restore()
        self._publisher.send()
        if not self._membership.serving:
            self.restore()

    # ---- lost replicas -------------------------------------------------------------------------------

    def _recover_in_background(self) -> None:
        if self.lockstep is None:
            self._recovery.begin()

    def restore(self) -> None:
        """Wait until a replica serves; in lockstep, until all do, or after a time-out at least one.

        Raises:
            PartLost: none does after the time-out, or the weights that a lost one should get are gone.
        """
        if self.lockstep is not None:
            self._recovery.until_all_are_back()
        else:
            self._recovery.until_one_serves()
        if not self._membership.serving:
            cause = f" (the last failed with {self.group.last_failure})" if self.group.last_failure else ""
            raise PartLost(f"no {self.role} replica came back within {self._start_timeout_s:g} s{cause}")

    async def recover(self) -> None:
        """``restore``, off the event loop, if dialogues have to wait for a lost replica."""
        if self._membership.unavailable if self.lockstep is not None else not self._membership.serving:
            await asyncio.get_running_loop().run_in_executor(None, self.restore)

    # ---- more or fewer -------------------------------------------------------------------------------

    def counts(self) -> tuple[int, int, int]:
        """Replicas in service, pending, and unavailable (being started again)."""
        with self.group.changed:
            membership = self._membership
            return len(membership.serving), len(membership.pending), len(membership.unavailable)

    def grow(self, count: int) -> None:
        """Start ``count`` further replicas; they join when they have loaded their model and have the newest weights.

        Returns at once. One that has not loaded within ``start_timeout_seconds``, its machine included, or that fails
        meanwhile, is abandoned.
        """
        self._resizing.grow(count)

    def shrink(self, count: int) -> None:
        """Remove ``count`` replicas, but for the last: those that are pending or unavailable first, then the youngest.

        Returns at once. What is in flight on them finishes, for ``timeout_seconds`` at most; then their processes end
        and what was reserved for them is free, so that Ray can give the machine back.
        """
        self._resizing.shrink(count)

    def close(self) -> None:
        """Stop all replicas and free what was reserved for them."""
        self.group.closed.set()
        with self.group.changed:
            ending = [*self.fleet.placed.values(), *self._resizing.pending()]
            self._membership.close()
            self._publisher.close()
            self.group.changed.notify_all()
        for placed in ending:
            placed.end()
        self._resizing.join(CLOSE_TIMEOUT_S)
        self._recovery.join(CLOSE_TIMEOUT_S)
