"""The replicas of one role: sticky routing, weight updates to all, restart of what dies.

RLlib's ``FaultTolerantActorManager`` watches and restores the actors; dialogues call the replicas directly,
because the manager allows few requests in flight. Two ways to send a turn:

- at once (``wave=False``): real continuous batching, nothing waits for anything;
- in waves (``wave=True``, deterministic mode): turns are held until every running dialogue waits for one,
  then enter the engines together in the order of their keys, so that batches are the same in every run.
"""

import asyncio
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError

from calibrated_rl.errors import PartLost, first_line
from calibrated_rl.rollout.engine import EngineConfig, EngineFailure, PlacedReplica
from calibrated_rl.rollout.exchange import Exchange
from calibrated_rl.rollout.routing import Router
from calibrated_rl.rollout.turns import Generated, GenerateRequest
from calibrated_rl.tokens import ChatTokens

FAILURES = (RayActorError, EngineFailure, TimeoutError)
"""What a call raises whose replica is of no more use: the actor died, its engine did, or there was no answer."""

UPDATE_FAILURES = (RayError, TimeoutError)
"""What a weight update raises: after any error in it, a replica may hold weights of two versions."""

FEW_MORE = 32
"""A replica may have this part of a batch more dialogues than another, where they share a prefix. A batch that is so
much fuller takes hardly longer."""

PROBE_S = 1.0
"""Pause between looks whether a replica is back; it takes tens of seconds to load its model."""


class RolloutFailure(RuntimeError):
    """A replica failed or did not answer: the dialogue is dropped and counted, never scored."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """Role and cause, as they are counted: ``policy: EngineDeadError``."""


@dataclass
class WaveGate:
    """Holds turns back until all running dialogues have one; shared by the pools of both sides."""

    running: int = 0
    waiting: list[tuple["ReplicaPool", str, GenerateRequest, asyncio.Future[Generated]]] = field(
        default_factory=list
    )
    _sending: set[asyncio.Task[list[Generated]]] = field(default_factory=set)
    """Keeps running tasks from being collected; the event loop holds them weakly."""

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
            self._send([wave[i] for i in indices])

    def _send(
        self, items: list[tuple["ReplicaPool", str, GenerateRequest, asyncio.Future[Generated]]]
    ) -> None:
        pool, key = items[0][0], items[0][1]
        task = asyncio.ensure_future(pool.generate_wave(key, [request for _, _, request, _ in items]))
        self._sending.add(task)

        def deliver(done: asyncio.Task[list[Generated]]) -> None:
            """Every dialogue of the wave gets its turn, or the error, of whatever kind it is."""
            self._sending.discard(done)
            error = asyncio.CancelledError() if done.cancelled() else done.exception()
            for index, (_, _, _, future) in enumerate(items):
                if future.done():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(done.result()[index])

        task.add_done_callback(deliver)


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
        say: Callable[[str], None] = lambda line: None,
        start: Callable[[str, EngineConfig, str, int], PlacedReplica] = PlacedReplica,
    ) -> None:
        """
        Args:
            gate: turns go in waves of fixed order; see the module's docstring.
            say: is told, in a line, which replica died and when it is back.
            start: starts a replica of a model, with its config, role and seed.
        """
        from ray.rllib.utils.actor_manager import FaultTolerantActorManager

        self.role = role
        self.tokens = tokens
        self.max_model_len = config.max_model_len
        self.version = 0
        self.gate = gate
        self._say = say
        self._timeout_s = config.timeout_seconds
        self._start_timeout_s = config.start_timeout_seconds
        self._weights: Any = None
        self._last_failure = ""
        """Why the last replica failed that did."""
        self._lost_at: dict[int, float] = {}
        self._batch, self._in_flight = config.max_num_seqs, 0
        self._placed = [start(model, config, role, seed + i) for i in range(replicas)]
        self._actors = [placed.actor for placed in self._placed]
        self._manager = FaultTolerantActorManager(self._actors, init_id=0)
        self._serving: tuple[int, ...] = tuple(range(replicas))
        """Replicas that dialogues are sent to."""
        self._router, self._routing = Router(max(1, config.max_num_seqs // FEW_MORE)), threading.Lock()
        self._router.serve(self._serving)
        self._exchanges: dict[int, tuple[int, Exchange]] = {}
        """How turns reach each replica, with the life of the replica that it belongs to."""
        self._restoring = threading.Lock()
        self._given_up: set[int] = set()
        """Replicas that did not come back in time: nobody waits for them, and they may still come."""
        self._lives = [0] * replicas
        """How often each was restarted: a late error of a former life says nothing about the present one."""

    def wait_until_ready(self) -> None:
        """Return when every replica has loaded its model.

        Raises:
            PartLost: one died meanwhile, or did not within the time-out.
        """
        try:
            ray.get([actor.start.remote() for actor in self._actors], timeout=self._start_timeout_s)
        except GetTimeoutError as error:
            raise PartLost(f"a {self.role} replica did not start within {self._start_timeout_s:g} s") from error
        except FAILURES as error:
            raise PartLost(f"a {self.role} replica died while it started: {cause_of(error)}") from error

    def route(self, key: str) -> int:
        """Replica of a dialogue: the same for all its turns, so that its prefix cache is there."""
        if self.gate is not None or not self._serving:  # depends on the key alone, so that waves are the same
            serving = self._serving or tuple(range(len(self._actors)))
            return serving[zlib.crc32(key.encode()) % len(serving)]
        with self._routing:
            return self._router.route(key)

    def leave(self, key: str) -> None:
        """The dialogue ``key`` is over: its replica has room for another."""
        with self._routing:
            self._router.leave(key)

    def _set_serving(self, index: int, serves: bool) -> None:
        self._manager.set_actor_state(index, healthy=serves)
        with self._routing:
            others = {i for i in self._serving if i != index}
            self._serving = tuple(sorted(others | {index} if serves else others))
            self._router.serve(self._serving)

    async def generate(self, key: str, request: GenerateRequest) -> Generated:
        """Sample one turn of the dialogue ``key``.

        Raises:
            RolloutFailure: the replica died or did not answer in time; it is being restarted.
            ValueError: the prompt does not fit into the context.
        """
        if self.gate is not None:
            return await self.gate.generate(self, key, request)
        return await self._call(key, "generate", request)  # type: ignore[no-any-return]

    async def generate_wave(self, key: str, requests: list[GenerateRequest]) -> list[Generated]:
        return await self._call(key, "generate_wave", requests)  # type: ignore[no-any-return]

    async def _call(self, key: str, method: str, argument: Any) -> Any:
        if not self._serving:
            await self.recover()
        index = self.route(key)
        life, size = self._lives[index], len(argument) if isinstance(argument, list) else 1
        self._in_flight += size
        try:
            answer = (
                self._exchange(index, life).ask(argument)
                if method == "generate"
                else getattr(self._actors[index], method).remote(argument)
            )
            # Turns wait in the engine for their place in the batch; that is no sign of a dead one.
            return await asyncio.wait_for(answer, self._timeout_s * (1 + self._in_flight / self._batch))
        except FAILURES as error:
            self._retire(index, life, cause_of(error))
            raise RolloutFailure(f"{self.role}: {cause_of(error)}") from error
        finally:
            self._in_flight -= size

    def _exchange(self, index: int, life: int) -> Exchange:
        """The exchange with a replica in its present life, from the running event loop."""
        known, exchange = self._exchanges.get(index, (life, None))
        if exchange is None or known != life or exchange.loop is not asyncio.get_running_loop():
            exchange = Exchange(self._actors[index])
            self._exchanges[index] = life, exchange
        return exchange

    def _retire(self, index: int, life: int, cause: str) -> None:
        """Take a replica out of service and let Ray restart it, unless another call has done so since ``life``."""
        if self._lives[index] == life:
            self._lives[index] += 1
            self._last_failure, self._lost_at[index] = cause, time.monotonic()
            self._say(f"{self.role} replica {index} failed ({cause}): it is started again, its dialogues are held anew")
            self._set_serving(index, False)
            # Also where its process is alive: a dead or stuck engine does not mend.
            ray.kill(self._actors[index], no_restart=False)

    def publish(self, weights: Any, version: int) -> None:
        """Send ``weights`` (an ObjectRef of the learner) to all replicas; they go on speaking meanwhile.

        Raises:
            PartLost: no replica could be updated in time, or the weights are gone.
        """
        self._weights, self.version = weights, version
        self.restore()
        lives = {i: self._lives[i] for i in self._manager.healthy_actor_ids()}
        references = {i: self._actors[i].update_weights.remote(weights, version) for i in lives}
        for index, reference in references.items():
            try:
                ray.get(reference, timeout=self._timeout_s)
            except UPDATE_FAILURES as error:
                self._refuse_lost_weights(error)
                self._retire(index, lives[index], cause_of(error))
        if not self._manager.healthy_actor_ids():
            self.restore()

    def restore(self) -> None:
        """Bring failed replicas back, with the current weights before their first dialogue.

        Returns when all are back, or after a time-out at least one is; those that are not are left out.

        Raises:
            PartLost: none is left, or the weights that they should get are gone.
        """
        with self._restoring:
            deadline = time.monotonic() + self._start_timeout_s
            while unhealthy := self._unhealthy():
                answered = self._manager.probe_unhealthy_actors(timeout_seconds=self._timeout_s)
                for index in unhealthy & set(answered):
                    self._take_back(index)
                waiting = self._unhealthy() - self._given_up
                if time.monotonic() > deadline:
                    self._given_up |= waiting
                elif waiting:
                    time.sleep(PROBE_S)
                    continue
                break
            if not self._manager.healthy_actor_ids():
                cause = f" (the last failed with {self._last_failure})" if self._last_failure else ""
                raise PartLost(f"no {self.role} replica came back within {self._start_timeout_s:g} s{cause}")

    def _take_back(self, index: int) -> None:
        """Put a restarted replica, which has the weights it was first started with, into service again."""
        actor, life = self._actors[index], self._lives[index]
        try:
            ray.get(actor.start.remote(), timeout=self._timeout_s)
            if self._weights is not None:
                ray.get(actor.update_weights.remote(self._weights, self.version), timeout=self._timeout_s)
        except UPDATE_FAILURES as error:
            self._refuse_lost_weights(error)
            self._retire(index, life, cause_of(error))
        else:
            self._say(
                f"{self.role} replica {index} is back after {time.monotonic() - self._lost_at[index]:.0f} s, "
                f"with weights of version {self.version}"
            )
            self._set_serving(index, True)
            self._given_up.discard(index)

    def _refuse_lost_weights(self, error: Exception) -> None:
        """What was lost with the machine that it lay on is no fault of the replica that should get it."""
        if isinstance(error, ObjectLostError):
            raise PartLost(f"the weights of {self.role} are lost: {first_line(error)}") from error

    async def recover(self) -> None:
        """``restore``, off the event loop, if there is anything to bring back."""
        if self._unhealthy():
            await asyncio.get_running_loop().run_in_executor(None, self.restore)

    def _unhealthy(self) -> set[int]:
        return {i for i in range(len(self._actors)) if not self._manager.is_actor_healthy(i)}

    def score(self, ids: list[int]) -> Any:
        """Log-probs of a sequence under replica 0, for parity checks."""
        return ray.get(self._actors[0].score.remote(ids), timeout=self._timeout_s)

    def close(self) -> None:
        """Stop all replicas and free what was reserved for them."""
        for placed in self._placed:
            placed.end()


def cause_of(error: Exception) -> str:
    """A word for why a call failed, as it is counted."""
    if isinstance(error, EngineFailure):
        return str(getattr(error, "cause", error))  # Ray wraps what an actor raised
    return type(error).__name__
