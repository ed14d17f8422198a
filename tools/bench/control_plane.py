"""Dialogues over many replicas that only wait: the cost of routing, batching of requests and the conversation loop.

A stub replica is an asyncio object that answers a turn after a random time, as many at once as an engine's batch takes.
A process of its own for each of a thousand needs more memory than a small machine has, so a few Ray actors host them;
each stub is a member of the pool with its own request batcher and its own calls.

With a perfect scheduler no turn waits: a dialogue takes as long as its turns, and all take as long as the longest.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import ray

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.inference.request_batcher import Answers, TurnServer
from calibrated_rl.inference.turns import Generated, GenerateRequest
from calibrated_rl.runtime.garbage import freeze_loaded_objects
from calibrated_rl.settings.fields import Positive, Range
from tools.bench.base import Row, at_least
from tools.bench.talk import TalkConfig, collector_of, model_of, start_ray

MAY_GROW = 1.25
"""The cost of a turn counts as flat up to here: more than noise, far less than anything that grows with the pool."""


class StubReplica:
    """Answers each turn after a time between half of and one and a half times ``mean_s``, ``places`` turns at once."""

    def __init__(self, mean_s: float, places: int, ids: Sequence[int]) -> None:
        """``ids``: the token ids of each answer."""
        self._mean_s, self._places, self._ids = mean_s, asyncio.Semaphore(places), list(ids)
        self.turns = TurnServer(self._generate)

    async def _generate(self, request: GenerateRequest) -> Generated:
        seconds = self._mean_s * (0.5 + (request.seed % 10_007) / 10_007)
        async with self._places:
            await asyncio.sleep(seconds)
        # The log-probs carry the duration of the turn, for ``seconds_of``.
        share = np.full(len(self._ids), -seconds / len(self._ids), np.float32)
        return Generated(self._ids, share, np.zeros(len(self._ids), np.int32))


class StubHost:
    """The actor that hosts many stub replicas."""

    def __init__(self, mean_s: float, places: int, ids: Sequence[int]) -> None:
        self._new: Callable[[], StubReplica] = lambda: StubReplica(mean_s, places, ids)
        self._stubs: dict[int, StubReplica] = {}

    async def sample_turns(self, number: int, client: str, batch: bytes) -> Answers:
        if number not in self._stubs:
            self._stubs[number] = self._new()
        return await self._stubs[number].turns.sample_turns(client, batch)

    async def drop_client(self, number: int, client: str) -> None:
        if number in self._stubs:
            self._stubs[number].turns.drop_client(client)


class _Method:
    def __init__(self, method: Any, number: int) -> None:
        self._method, self._number = method, number

    def remote(self, *arguments: Any) -> Any:
        return self._method.remote(self._number, *arguments)


class StubHandle:
    """Stands in for the actor handle of a replica."""

    def __init__(self, host: Any, number: int) -> None:
        self.sample_turns = _Method(host.sample_turns, number)
        self.drop_client = _Method(host.drop_client, number)


class PlacedStub:
    """Replaces ``PlacedReplica``."""

    def __init__(self, host: Any, number: int) -> None:
        self.actor = StubHandle(host, number)

    def end(self) -> None:
        """Does nothing: its host continues."""


def seconds_of(dialogue: Dialogue) -> float:
    """Duration of its turns, without waiting."""
    sequences = [dialogue.tokens(side) for side in Side]
    return -sum(float(np.nansum(sequence.logprobs)) for sequence in sequences if sequence is not None)


@dataclass(slots=True)
class _Totals:
    turns: int = 0
    seconds: float = 0.0
    ideal: float = 0.0
    cpu: float = 0.0
    """CPU seconds of this process: all work outside the replicas."""


class ControlPlane:
    """Runs dialogues over more and more stub replicas, at the same number of turns a second."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        replicas: tuple[Annotated[int, Range(at_least=2)], ...] = (10, 100, 1000)
        """Half of them policies, half simulators; there are as many dialogues."""
        turns_per_second: Annotated[float, Range(above=0)] = 250.0
        """Determines the mean time of a turn: a dialogue for each replica, and one turn of each at a time."""
        places: Positive = 4
        """Turns that a replica samples at once."""
        policy_turns: Positive = 4
        group_size: Positive = 5
        """Divides the numbers of replicas: there are as many dialogues a replica with few as with many."""
        hosts: Positive = 4
        """Ray actors that host the stubs."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        config, talk = self.config, TalkConfig(model="tiny", policy_turns=self.config.policy_turns)
        with model_of(talk) as (_, tokens):
            start_ray(num_cpus=4)
            self._run_dialogues(talk, tokens, min(config.replicas), 1)  # warm-up: the first call loads libraries
            freeze_loaded_objects()
            # A run over few replicas is short: as many more of them, so that each size has the same number of turns.
            largest = max(config.replicas)
            totals_by_size = {
                count: self._run_dialogues(talk, tokens, count, largest // count) for count in config.replicas
            }
            ray.shutdown()
        cost = {
            count: 1000 * largest_totals.cpu / largest_totals.turns for count, largest_totals in totals_by_size.items()
        }
        grows = cost[largest] / cost[min(config.replicas)]
        largest_totals = totals_by_size[largest]
        sizes = ", ".join(f"{cost[count]:.2f} ms at {count}" for count in config.replicas)
        return at_least(
            largest_totals.turns / largest_totals.seconds, largest_totals.turns / largest_totals.ideal, 0.9,
            f"turns a second over {largest} stub replicas ({largest // 2} policies, {largest // 2} simulators, carried "
            f"by {config.hosts} Ray actors) that answer after 0.5 to 1.5 times {self._mean_s(largest):.1f} s, "
            f"{config.places} turns at once, in {largest} dialogues of {config.policy_turns} policy turns; limit: no "
            f"turn ever waits. CPU time of the driver a turn: {sizes} (flat: at most {MAY_GROW} times; here "
            f"{grows:.2f})",
            also=grows <= MAY_GROW,
        )  # fmt: skip

    def _mean_s(self, replicas: int) -> float:
        return replicas / self.config.turns_per_second

    def _run_dialogues(self, talk: TalkConfig, tokens: ChatTokens, replicas: int, repeats: int) -> _Totals:
        config = self.config
        ids = [*tokens.encode_text("that is a fine answer"), tokens.end_of_turn]
        host = ray.remote(num_cpus=0, max_concurrency=100_000)(StubHost)
        hosts = [host.remote(self._mean_s(replicas), config.places, ids) for _ in range(config.hosts)]
        numbers = itertools.count()
        engine = EngineConfig(max_model_len=4096, max_num_seqs=config.places)

        def start(model: str, engine: EngineConfig, role: str, seed: int) -> Any:
            number = next(numbers)
            return PlacedStub(hosts[number % len(hosts)], number)

        policy, simulator = (
            ReplicaPool(role, "stub", tokens, engine, replicas=replicas // 2, start=start)
            for role in ("policy", "simulator")
        )
        collector = collector_of(talk, policy)
        n_groups = max(1, replicas // config.group_size)
        scenarios = collector.task.scenarios(Split.CALIBRATION, n_groups)

        totals = _Totals()
        for update in range(repeats):
            began, cpu = time.perf_counter(), time.process_time()
            groups = collector.collect(
                scenarios, simulator, group_size=config.group_size, arm="benchmark", update=update, seed=0
            )
            totals.seconds += time.perf_counter() - began
            totals.cpu += time.process_time() - cpu
            dialogues = [dialogue for group in groups for dialogue in group]
            totals.ideal += max(map(seconds_of, dialogues))
            # The first user turn is shared by the group and counts once.
            totals.turns += sum(len(dialogue.turns) - 2 for dialogue in dialogues) + len(groups)
        for host in hosts:
            ray.kill(host)
        return totals
