"""The replicas of one role: sticky routing, weight updates to all, restart of what dies, more or fewer while it runs.

RLlib's ``FaultTolerantActorManager`` watches and restores the actors; dialogues call the replicas directly,
because the manager allows few requests in flight. Two ways to send a turn:

- at once (``lockstep=None``): real continuous batching, nothing waits for anything. Where a dialogue goes is decided by
  who has room (``routing.py``); turns share the calls that carry them (``request_batcher.py``);
- in lockstep (``lockstep.py``, deterministic mode): turns are kept until every running dialogue waits for one, then
  enter the engines together in the order of their keys, so that batches are the same in every run.

A replica that is added starts beside the others and gets the current weights before its first dialogue. One that is
removed gets no further turn. Those in flight on it finish; the next turns of their dialogues go to the others, which
have to read the dialogue anew but speak under the same weights.

One that is lost is brought back beside training, with the weights that are current by then: as long as another serves,
nothing waits for it, neither a weight update nor a dialogue. In lockstep everything does, see ``recovery.py``.
"""

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.errors import PartLost, RolloutFailure, UserError, first_line
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.engine_health import EngineFailure
from calibrated_rl.inference.load import LoadMeter
from calibrated_rl.inference.lockstep import LockstepScheduler
from calibrated_rl.inference.placement import PlacedReplica
from calibrated_rl.inference.recovery import Recovery
from calibrated_rl.inference.request_batcher import RequestBatcher
from calibrated_rl.inference.routing import Router, preferred
from calibrated_rl.inference.turns import Generated, GenerateRequest, pack_requests, unpack_answers
from calibrated_rl.runtime.capacity import Need
from calibrated_rl.weight_sync.base import WeightUpdate

T = TypeVar("T")

FAILURES = (RayActorError, EngineFailure, TimeoutError)
"""What a call raises whose replica is of no more use: the actor died, its engine did, or there was no answer."""

UPDATE_FAILURES = (RayError, TimeoutError)
"""What a weight update raises: after any error in it, a replica may hold weights of two versions."""

LOOK_S = 1.0
"""A lost replica that does not answer for so long is not back."""

FEW_MORE = 32
"""A replica may have this part of a batch more dialogues than another, where they share a prefix. A batch that is so
much fuller takes hardly longer."""

DRAIN_PROBE_S = 0.05
"""Pause between looks whether a replica that leaves has finished its turns; a turn takes from a tenth of a second."""

CLOSE_TIMEOUT_S = 10.0
"""For what waits for a replica to see that the replica has ended."""


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
        say: Callable[[str], None] = lambda line: None,
        start: Callable[[str, EngineConfig, str, int], PlacedReplica] = PlacedReplica,
    ) -> None:
        """
        Args:
            lockstep: turns go in batches of fixed order; see the module's docstring.
            say: is told, in a line, which replica died and when it is back.
            start: starts a replica of a model, with its config, role and seed.
        """
        from ray.rllib.utils.actor_manager import FaultTolerantActorManager

        self.role = role
        self.tokens = tokens
        self.max_model_len = config.max_model_len
        self.version = 0
        self.lockstep = lockstep
        self._say = say
        self._timeout_s = config.timeout_seconds
        self._start_timeout_s = config.start_timeout_seconds
        self._update: WeightUpdate | None = None
        """What was published last."""
        self._last_failure = ""
        """Why the last replica failed that did."""
        self._batch = config.max_num_seqs
        self._cache_mib = config.kv_cache_mib
        self.load = LoadMeter()
        """What is in flight, by replica."""
        self._new = partial(start, model, config, role)
        self._seeds = itertools.count(seed)
        self._placed = {i: self._new(next(self._seeds)) for i in range(replicas)}
        """All replicas but those that serve nobody yet, by their number in the manager."""
        self._manager = FaultTolerantActorManager([placed.actor for placed in self._placed.values()], init_id=0)
        self._members = tuple(self._placed)
        """Replicas that dialogues may be sent to, if they are healthy: all but those that leave."""
        self._lives = dict.fromkeys(self._members, 0)
        """How often each was restarted: a late error of a former life says nothing about the present one."""
        self._serving = self._members
        """Members that are healthy."""
        self._router = Router(max(1, config.max_num_seqs // FEW_MORE))
        self._router.serve(self._serving)
        self._batchers: dict[tuple[int, asyncio.AbstractEventLoop], tuple[int, RequestBatcher]] = {}
        """How turns reach each replica from each event loop, with the life of the replica that it belongs to."""
        self._newcomers: list[PlacedReplica] = []
        """Replicas that were started and serve nobody yet."""
        self._threads: list[threading.Thread] = []
        """Each waits for a replica to come or to finish."""
        self._closed = threading.Event()
        self._changing = threading.Condition(threading.RLock())
        """Held for moments, where it is decided who is a member and who serves; told when that has changed."""
        self._recovery = Recovery(
            self._unhealthy, self._look_for, self._start_timeout_s, self._say_given_up, self._changing, self._closed
        )

    def needs(self) -> list[Need]:
        """What its replicas need of the cluster."""
        return [placed.need for placed in self._placed.values()]

    def wait_until_ready(self) -> None:
        """Return when every replica has loaded its model.

        Raises:
            PartLost: one died meanwhile, or did not within the time-out.
        """
        try:
            started = [placed.actor.start.remote() for placed in self._placed.values()]
            for cache_mib in ray.get(started, timeout=self._start_timeout_s):
                self._say_if_small(cache_mib)
        except GetTimeoutError as error:
            raise PartLost(f"a {self.role} replica did not start within {self._start_timeout_s:g} s") from error
        except FAILURES as error:
            raise PartLost(f"a {self.role} replica died while it started: {cause_of(error)}") from error

    def _say_if_small(self, cache_mib: int) -> None:
        if cache_mib < self._cache_mib:
            self._say(
                f"a {self.role} replica did not start with a KV cache of {self._cache_mib} MiB and has {cache_mib} MiB"
            )

    def route(self, key: str) -> int:
        """Replica of a dialogue: the same for all its turns, so that its prefix cache is there."""
        with self._changing:
            # In lockstep by the key alone, so that batches are the same in every run.
            if self.lockstep is not None or not self._serving:
                return preferred(key, self._serving or self._members)
            return self._router.route(key)

    def leave(self, key: str) -> None:
        """The dialogue ``key`` is over: its replica has room for another."""
        with self._changing:
            self._router.leave(key)

    def _look_who_serves(self) -> None:
        with self._changing:
            self._serving = tuple(i for i in self._members if self._manager.is_actor_healthy(i))
            self._router.serve(self._serving)
            self._changing.notify_all()

    async def generate(self, key: str, request: GenerateRequest) -> Generated:
        """Sample one turn of the dialogue ``key``.

        Raises:
            RolloutFailure: the replica died or did not answer in time; it is being restarted.
            ValueError: the prompt does not fit into the context.
        """
        if self.lockstep is not None:
            return await self.lockstep.generate(self, key, request)
        return await self._call(key, 1, lambda index, life: self._batcher(index, life).submit(request))

    async def generate_lockstep(self, key: str, requests: list[GenerateRequest]) -> list[Generated]:
        packed = pack_requests(enumerate(requests))
        answers = await self._call(
            key, len(requests), lambda i, _: self._placed[i].actor.sample_lockstep.remote(packed)
        )
        return [answer for _, answer in unpack_answers(answers)]

    async def _call(self, key: str, size: int, send: Callable[[int, int], Awaitable[T]]) -> T:
        """Send ``size`` turns to the replica of the dialogue ``key``, in its present life."""
        if not self._serving:
            await self.recover()
        with self._changing:  # a replica that leaves waits for this turn, or does not get it
            index = self.route(key)
            life = self._lives[index]
            self.load.add(index, size)
        try:
            # Turns wait in the engine for their place in the batch; that is no sign of a dead one.
            timeout_s = self._timeout_s * (1 + self.load.in_flight() / self._batch)
            return await asyncio.wait_for(send(index, life), timeout_s)
        except FAILURES as error:
            self._retire(index, life, cause_of(error))
            raise RolloutFailure(f"{self.role}: {cause_of(error)}") from error
        finally:
            self.load.add(index, -size)

    def _batcher(self, index: int, life: int) -> RequestBatcher:
        """The batcher of requests to a replica in its present life, from the running event loop."""
        loop = asyncio.get_running_loop()
        with self._changing:
            known, batcher = self._batchers.get((index, loop), (life, None))
            if batcher is None or known != life:
                self._batchers = {at: each for at, each in self._batchers.items() if not at[1].is_closed()}
                batcher = RequestBatcher(self._placed[index].actor)
                self._batchers[index, loop] = life, batcher
            return batcher

    def _retire(self, index: int, life: int, cause: str) -> None:
        """Take a replica out of service and let Ray restart it, unless another call has done so since ``life``."""
        with self._changing:
            if index not in self._members or self._lives[index] != life or self._closed.is_set():
                return
            self._lives[index] += 1
            self._last_failure = cause
            self._recovery.mark(index)
            self._say(f"{self.role} replica {index} failed ({cause}): it is started again, its dialogues are held anew")
            self._manager.set_actor_state(index, healthy=False)
            self._look_who_serves()
            # Also where its process is alive: a dead or stuck engine does not mend.
            ray.kill(self._placed[index].actor, no_restart=False)
            if self.lockstep is None:
                self._recovery.begin()

    def publish(self, update: WeightUpdate) -> None:
        """Send new weights to all replicas that serve; they go on speaking meanwhile.

        A lost replica gets them when it is back. In lockstep, or where none serves, ``restore`` comes first.

        Raises:
            PartLost: no replica could be updated in time, or the weights are gone.
            UserError: a replica cannot reach memory that the learner shares.
        """
        with self._changing:
            self._update, self.version, self._recovery.unable = update, update.version, None
        if self.lockstep is not None or not self._serving:
            self.restore()
        with self._changing:
            lives = {i: self._lives[i] for i in self._serving}
            references = {i: self._placed[i].actor.update_weights.remote(update) for i in lives}
        for index, reference in references.items():
            try:
                ray.get(reference, timeout=self._timeout_s)
            except UPDATE_FAILURES as error:
                if isinstance(error, UserError):
                    raise UserError(f"{self.role}: {getattr(error, 'cause', error)}") from error
                self._refuse_lost_weights(error)
                self._retire(index, lives[index], cause_of(error))
        if not self._serving:
            self.restore()

    def restore(self) -> None:
        """Wait until a replica serves; in lockstep, until all do, or after a time-out at least one.

        Raises:
            PartLost: none does after the time-out, or the weights that a lost one should get are gone.
        """
        if self.lockstep is not None:
            self._recovery.until_all_are_back()
        else:
            with self._changing:
                self._recovery.begin()
                recovering, closed = self._recovery, self._closed
                self._changing.wait_for(
                    lambda: self._serving or recovering.unable or recovering.has_given_up_all() or closed.is_set(),
                    self._start_timeout_s,
                )
                if recovering.unable is not None and not self._serving:
                    raise recovering.unable
        if not self._serving:
            cause = f" (the last failed with {self._last_failure})" if self._last_failure else ""
            raise PartLost(f"no {self.role} replica came back within {self._start_timeout_s:g} s{cause}")

    def _look_for(self, lost: set[int]) -> None:
        """Put those of the ``lost`` replicas into service again that answer."""
        answers = self._manager.foreach_actor(
            lambda actor: actor.ping(), remote_actor_ids=sorted(lost), healthy_only=False, timeout_seconds=LOOK_S
        )
        for answer in answers.ignore_errors():
            self._take_back(answer.actor_id)

    def _take_back(self, index: int) -> None:
        """Put a restarted replica, which has the weights it was first started with, into service again."""
        actor, life = self._placed[index].actor, self._lives[index]
        try:
            self._say_if_small(ray.get(actor.start.remote(), timeout=self._timeout_s))
            self._bring_up_to_date(actor, lambda has: self._serve_again(index, life, has))
        except UPDATE_FAILURES as error:
            self._refuse_lost_weights(error)
            self._retire(index, life, cause_of(error))

    def _bring_up_to_date(self, actor: Any, settle: Callable[[WeightUpdate | None], bool]) -> None:
        """Give a replica the current weights, and again those that were published meanwhile, until ``settle`` says that
        what it has will do."""
        has: WeightUpdate | None = None
        while not settle(has):
            has = self._update
            if has is not None:
                ray.get(actor.update_weights.remote(has), timeout=self._timeout_s)

    def _is_current(self, has: WeightUpdate | None) -> bool:
        """Whether a replica that has loaded the update ``has`` (None: it serves what it was started with) is up to
        date."""
        return has is self._update

    def _serve_again(self, index: int, life: int, has: WeightUpdate | None) -> bool:
        """Put a lost replica into service if the weights that it ``has`` are current; whether that is settled."""
        with self._changing:
            if index not in self._members or self._lives[index] != life:
                return True
            if not self._is_current(has):
                return False
            took, version = self._recovery.lost_for(index), self.version
            self._manager.set_actor_state(index, healthy=True)
            self._recovery.forget(index)
            self._look_who_serves()
        self._say(f"{self.role} replica {index} is back after {took:.0f} s, with weights of version {version}")
        return True

    def _say_given_up(self, index: int) -> None:
        self._say(
            f"{self.role} replica {index} has not come back within {self._start_timeout_s:g} s and is given up: nobody "
            "waits for it, and it will serve if it comes"
        )

    def _refuse_lost_weights(self, error: Exception) -> None:
        """What was lost with the machine that it lay on is no fault of the replica that should get it."""
        if isinstance(error, ObjectLostError):
            raise PartLost(f"the weights of {self.role} are lost: {first_line(error)}") from error

    async def recover(self) -> None:
        """``restore``, off the event loop, if dialogues have to wait for a lost replica."""
        if self._unhealthy() if self.lockstep is not None else not self._serving:
            await asyncio.get_running_loop().run_in_executor(None, self.restore)

    def _unhealthy(self) -> set[int]:
        return set(self._members) - set(self._serving)

    def score(self, ids: list[int]) -> Any:
        """Log-probs of a sequence under the oldest replica that serves, for parity checks.

        Raises:
            PartLost: it died, or did not answer in time.
        """
        oldest = (self._serving or self._members)[0]
        try:
            return ray.get(self._placed[oldest].actor.score.remote(ids), timeout=self._timeout_s)
        except FAILURES as error:
            raise PartLost(f"a {self.role} replica was lost while it scored: {cause_of(error)}") from error

    # ---- more or fewer -------------------------------------------------------------------------------

    def counts(self) -> tuple[int, int, int]:
        """Replicas in service, starting, and lost (being started again)."""
        with self._changing:
            return len(self._serving), len(self._newcomers), len(self._unhealthy())

    def grow(self, count: int) -> None:
        """Start ``count`` further replicas; they join when they have loaded their model and have the current weights.

        Returns at once. One that has not loaded within ``start_timeout_seconds``, its machine included, or that fails
        meanwhile, is given up.
        """
        for _ in range(count):
            newcomer = self._new(next(self._seeds))
            with self._changing:
                self._newcomers.append(newcomer)
            self._beside(self._welcome, newcomer)

    def shrink(self, count: int) -> None:
        """Remove ``count`` replicas, but for the last: those that are starting or lost first, then the youngest.

        Returns at once. What is in flight on them finishes, for ``timeout_seconds`` at most; then their processes end
        and what was reserved for them is free, so that Ray can give the machine back.
        """
        for _ in range(count):
            with self._changing:
                if self._newcomers:
                    self._newcomers.pop().end()  # its thread sees it die
                elif len(self._members) > 1:
                    index = max(self._unhealthy() or self._members)
                    self._members = tuple(i for i in self._members if i != index)
                    self._look_who_serves()
                    self._beside(self._drain, index)

    def _beside(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _welcome(self, newcomer: PlacedReplica) -> None:
        began = time.monotonic()
        try:
            self._say_if_small(ray.get(newcomer.actor.start.remote(), timeout=self._start_timeout_s))
            self._bring_up_to_date(newcomer.actor, lambda has: self._join(newcomer, has, began))
        except UPDATE_FAILURES as error:
            with self._changing:
                if newcomer not in self._newcomers:
                    return
                self._newcomers.remove(newcomer)
            newcomer.end()
            self._say(
                f"a further {self.role} replica is given up after {time.monotonic() - began:.0f} s: {cause_of(error)}"
            )

    def _join(self, newcomer: PlacedReplica, has: WeightUpdate | None, began: float) -> bool:
        """Make a newcomer a member if the weights that it ``has`` are the current ones; whether it is settled."""
        with self._changing:
            if newcomer not in self._newcomers:
                return True
            if not self._is_current(has):
                return False
            self._newcomers.remove(newcomer)
            self._manager.add_actors([newcomer.actor])
            index = max(self._manager.actor_ids())
            self._placed[index], self._lives[index] = newcomer, 0
            self._members += (index,)
            version = self.version
            self._look_who_serves()
        self._say(
            f"{self.role} replica {index} has joined after {time.monotonic() - began:.0f} s, "
            f"with weights of version {version}"
        )
        return True

    def _drain(self, index: int) -> None:
        """End a replica that is no member any more, once nothing is in flight on it."""
        deadline = time.monotonic() + self._timeout_s
        while self.load.in_flight(index) and time.monotonic() < deadline:
            if self._closed.wait(DRAIN_PROBE_S):
                return
        cut_off = self.load.in_flight(index)
        self._placed[index].end()
        with self._recovery.looking, self._changing:
            del self._placed[index], self._lives[index]
            self._batchers = {at: each for at, each in self._batchers.items() if at[0] != index}
            self._manager.remove_actor(index)
            self._recovery.forget(index)
        self._say(f"{self.role} replica {index} has left" + (f"; {cut_off} turns were cut off" if cut_off else ""))

    def close(self) -> None:
        """Stop all replicas and free what was reserved for them."""
        self._closed.set()
        with self._changing:
            ending = [*self._placed.values(), *self._newcomers]
            self._newcomers.clear()
            self._update = None
            self._changing.notify_all()
        for placed in ending:
            placed.end()
        for thread in self._threads:
            thread.join(timeout=CLOSE_TIMEOUT_S)
        self._recovery.join(CLOSE_TIMEOUT_S)


def cause_of(error: Exception) -> str:
    """A word for why a call failed, as it is counted."""
    if isinstance(error, EngineFailure | UserError):  # the latter: it does not reach memory that the learner shares
        return str(getattr(error, "cause", error))  # Ray wraps what an actor raised
    return type(error).__name__
