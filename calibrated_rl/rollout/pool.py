"""The replicas of one role: sticky routing, weight updates to all, restart of what dies.

RLlib's ``FaultTolerantActorManager`` watches and restores the actors; dialogues call the replicas directly,
because the manager allows few requests in flight. Two ways to send a turn:

- at once (``wave=False``): real continuous batching, nothing waits for anything;
- in waves (``wave=True``, deterministic mode): turns are held until every running dialogue waits for one,
  then enter the engines together in the order of their keys, so that batches are the same in every run.
"""

import asyncio
import zlib
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError

from calibrated_rl.rollout.engine import EngineConfig, Generated, GenerateRequest, start_replica
from calibrated_rl.tokens import ChatTokens


class RolloutFailure(RuntimeError):
    """A replica failed or did not answer: the dialogue is dropped and counted, never scored."""


@dataclass
class WaveGate:
    """Holds turns back until all running dialogues have one; shared by the pools of both sides."""

    running: int = 0
    waiting: list[tuple["ReplicaPool", str, GenerateRequest, asyncio.Future[Generated]]] = field(
        default_factory=list
    )

    def enter(self) -> None:
        self.running += 1

    def leave(self) -> None:
        self.running -= 1
        self._look_again()

    def _look_again(self) -> None:
        """Look once the tasks that are about to run have entered or asked: two turns of the event loop."""
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._maybe_send)

    async def generate(self, pool: "ReplicaPool", key: str, request: GenerateRequest) -> Generated:
        future: asyncio.Future[Generated] = asyncio.get_running_loop().create_future()
        self.waiting.append((pool, key, request, future))
        self._look_again()
        return await future

    def _maybe_send(self) -> None:
        if not self.waiting or len(self.waiting) < self.running:
            return
        wave, self.waiting = sorted(self.waiting, key=lambda item: item[1]), []
        by_replica: dict[tuple[int, int], list[int]] = {}
        for index, (pool, key, _, _) in enumerate(wave):
            by_replica.setdefault((id(pool), pool.route(key)), []).append(index)
        for indices in by_replica.values():
            asyncio.ensure_future(self._send([wave[i] for i in indices]))

    async def _send(
        self, items: list[tuple["ReplicaPool", str, GenerateRequest, asyncio.Future[Generated]]]
    ) -> None:
        pool, key = items[0][0], items[0][1]
        try:
            results = await pool.generate_wave(key, [request for _, _, request, _ in items])
        except RolloutFailure as error:
            for _, _, _, future in items:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, _, _, future), result in zip(items, results, strict=True):
            if not future.done():
                future.set_result(result)


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
        gate: WaveGate | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        from ray.rllib.utils.actor_manager import FaultTolerantActorManager

        self.role = role
        self.tokens = tokens
        self.max_model_len = config.max_model_len
        self.version = 0
        self.gate = gate
        self._timeout_s = timeout_s
        self._weights: Any = None
        self._actors = [start_replica(model, config, f"{role}-{i}", seed + i) for i in range(replicas)]
        self._manager = FaultTolerantActorManager(self._actors, init_id=0)

    def wait_until_ready(self) -> None:
        """Return when every replica has loaded its model.

        Raises:
            TimeoutError: one did not within the time-out.
        """
        try:
            ray.get([actor.start.remote() for actor in self._actors], timeout=self._timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(f"a {self.role} replica did not start within {self._timeout_s} s") from error

    def route(self, key: str) -> int:
        """Replica of a dialogue: the same for all its turns, so that its prefix cache is there."""
        healthy = self._manager.healthy_actor_ids() or list(range(len(self._actors)))
        return int(healthy[zlib.crc32(key.encode()) % len(healthy)])

    async def generate(self, key: str, request: GenerateRequest) -> Generated:
        """Sample one turn of the dialogue ``key``.

        Raises:
            RolloutFailure: the replica died or did not answer in time; it is being restarted.
        """
        if self.gate is not None:
            return await self.gate.generate(self, key, request)
        return await self._call(self.route(key), "generate", request)  # type: ignore[no-any-return]

    async def generate_wave(self, key: str, requests: list[GenerateRequest]) -> list[Generated]:
        return await self._call(self.route(key), "generate_wave", requests)  # type: ignore[no-any-return]

    async def _call(self, index: int, method: str, argument: Any) -> Any:
        try:
            reference = getattr(self._actors[index], method).remote(argument)
            return await asyncio.wait_for(reference, self._timeout_s)
        except (RayActorError, TimeoutError) as error:
            self._manager.set_actor_state(index, healthy=False)
            raise RolloutFailure(f"{self.role} replica {index}: {type(error).__name__}") from error

    def publish(self, weights: Any, version: int) -> None:
        """Send ``weights`` (an ObjectRef of the learner) to all replicas; they go on speaking meanwhile.

        Raises:
            TimeoutError: no replica could be updated in time.
        """
        self._weights, self.version = weights, version
        self.restore()
        references = {
            i: self._actors[i].update_weights.remote(weights, version)
            for i in self._manager.healthy_actor_ids()
        }
        for index, reference in references.items():
            try:
                ray.get(reference, timeout=self._timeout_s)
            except (RayActorError, ray.exceptions.GetTimeoutError):
                self._manager.set_actor_state(index, healthy=False)
        if not self._manager.healthy_actor_ids():
            raise TimeoutError(f"no {self.role} replica took version {version}")

    def restore(self) -> list[int]:
        """Bring restarted replicas back, with the current weights before their first dialogue."""
        restored: list[int] = self._manager.probe_unhealthy_actors(
            timeout_seconds=self._timeout_s, mark_healthy=False
        )
        for index in restored:
            ray.get(self._actors[index].start.remote(), timeout=self._timeout_s)
            if self._weights is not None:
                ray.get(
                    self._actors[index].update_weights.remote(self._weights, self.version),
                    timeout=self._timeout_s,
                )
            self._manager.set_actor_state(index, healthy=True)
        return restored

    def unhealthy(self) -> int:
        return len(self._actors) - len(self._manager.healthy_actor_ids())

    def score(self, ids: list[int]) -> Any:
        """Log-probs of a sequence under replica 0, for parity checks."""
        return ray.get(self._actors[0].score.remote(ids), timeout=self._timeout_s)

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
