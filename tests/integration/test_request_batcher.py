"""Turns on their way to a replica and back: exact on the way, none waits for another, none is lost without an error."""

import asyncio
import os
from collections.abc import Coroutine, Generator, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayActorError

from calibrated_rl.inference import recovery
from calibrated_rl.inference.config import EngineConfig, ReshapingConfig
from calibrated_rl.inference.handle import ReplicaHandle
from calibrated_rl.inference.pool import ReplicaPool, RolloutFailure
from calibrated_rl.inference.request_batcher import NO_ANSWERS, Answers, RequestBatcher, TurnServer
from calibrated_rl.inference.turns import (
    Generated,
    GenerateRequest,
    pack_answers,
    pack_requests,
    unpack_answers,
    unpack_requests,
)
from tests.support.paths import ROOT

T = TypeVar("T")
words = st.integers(0, 2**31 - 1)
requests = st.builds(
    GenerateRequest, st.lists(words, max_size=20), words, st.floats(0, 10), words,
    st.lists(words, max_size=5).map(tuple),
    st.builds(
        ReshapingConfig, top_p=st.floats(0.1, 1), top_k=words, min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0.5, 2),
    ),
)  # fmt: skip
tokens = st.tuples(words, st.floats(width=32), words)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 180))


@settings(deadline=None)
@given(st.lists(st.tuples(words, requests), max_size=5))
def test_requests_arrive_as_they_were(batch: list[tuple[int, GenerateRequest]]) -> None:
    assert list(unpack_requests(pack_requests(batch))) == batch


@settings(deadline=None)
@given(st.lists(st.tuples(words, st.lists(tokens, max_size=8), words), max_size=5))
def test_answers_arrive_as_they_were(batch: list[tuple[int, list[tuple[int, float, int]], int]]) -> None:
    sent = [
        (number, Generated([i for i, _, _ in ts], np.array([p for _, p, _ in ts], np.float32),
                           np.array([v for _, _, v in ts], np.int32), cached))
        for number, ts, cached in batch
    ]  # fmt: skip
    came = list(unpack_answers(pack_answers(sent)))
    assert [number for number, _ in came] == [number for number, _ in sent]
    for (_, answer), (_, expected) in zip(came, sent, strict=True):
        assert (answer.ids, answer.cached) == (expected.ids, expected.cached)
        assert answer.logprobs.dtype == np.float32 and answer.versions.dtype == np.int32
        np.testing.assert_array_equal(answer.logprobs, expected.logprobs)
        np.testing.assert_array_equal(answer.versions, expected.versions)


def ask_for(seed: int, first_id: int = 7) -> GenerateRequest:
    return GenerateRequest([first_id, 8], 4, 1.0, seed, (1,))


def said(request: GenerateRequest) -> Generated:
    return Generated([request.seed], np.zeros(1, np.float32), np.zeros(1, np.int32))


def numbers(answers: Answers) -> list[int]:
    return [number for number, _ in unpack_answers(answers[0])]


class ByHand:
    """An engine whose turns end when the test says so."""

    def __init__(self) -> None:
        self.sampling: dict[int, asyncio.Future[Generated]] = {}
        self.server = TurnServer(self.generate)

    async def generate(self, request: GenerateRequest) -> Generated:
        self.sampling[request.seed] = asyncio.get_running_loop().create_future()
        try:
            return await self.sampling[request.seed]
        finally:
            del self.sampling[request.seed]

    def finish(self, *seeds: int) -> None:
        for seed in seeds:
            self.sampling[seed].set_result(said(ask_for(seed)))

    def call(self, *seeds: int, name: str = "a") -> asyncio.Task[Answers]:
        return asyncio.ensure_future(self.server.sample_turns(name, pack_requests((s, ask_for(s)) for s in seeds)))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_call_brings_all_turns_of_a_step_and_waits_for_no_other() -> None:
    async def talk() -> None:
        engine = ByHand()
        first = engine.call(1, 2, 3)
        await settle()
        engine.finish(1, 3)
        assert numbers(await first) == [1, 3]
        second = engine.call(4)
        await settle()
        assert not second.done() and set(engine.sampling) == {2, 4}
        engine.finish(2)
        assert numbers(await second) == [2]
        engine.finish(4)
        await settle()
        assert numbers(await engine.call()) == [4]
        assert await engine.call() == NO_ANSWERS and not engine.server._clients

    run(talk())


def test_further_turns_enter_while_others_are_sampled_and_each_comes_back_once() -> None:
    async def talk() -> None:
        engine = ByHand()
        first = engine.call(1)
        await settle()
        second = engine.call(2)
        await settle()
        assert first.result() == NO_ANSWERS and not second.done() and set(engine.sampling) == {1, 2}
        engine.finish(1)  # in the same step of the loop as the next call
        third = engine.call(3)
        await settle()
        assert sorted(numbers(second.result()) + (numbers(third.result()) if third.done() else [])) == [1]
        engine.finish(2, 3)
        await settle()
        last = engine.call() if third.done() else third
        assert numbers(await last) == [2, 3]

    run(talk())


def test_what_nobody_waits_for_any_more_is_not_sampled_on() -> None:
    async def talk() -> None:
        engine = ByHand()
        gone, other = engine.call(1, 2), engine.call(3, name="b")
        await settle()
        gone.cancel()
        await settle()
        assert set(engine.sampling) == {3} and set(engine.server._clients) == {"b"}
        engine.finish(3)
        assert numbers(await other) == [3]

    run(talk())


class LosesCancellations:
    """A replica whose calls are cancelled while they are on their way: it never hears of the call or its end."""

    class Call:
        def __init__(self, arrives: asyncio.Task[Answers] | None) -> None:
            self._arrives = arrives

        def cancel(self) -> None: ...

        def __await__(self) -> Generator[Any, None, Answers]:
            answers: Answers = yield from (self._arrives or asyncio.get_running_loop().create_future()).__await__()
            return answers

    def __init__(self) -> None:
        self.engine = ByHand()

    def sample_turns(self, client: str, batch: bytes) -> Any:
        if not batch:
            return self.Call(None)
        return self.Call(asyncio.ensure_future(self.engine.server.sample_turns(client, batch)))

    def drop_client(self, client: str) -> None:
        self.engine.server.drop_client(client)


@pytest.mark.parametrize("begun", [True, False])
def test_what_a_loop_leaves_is_not_sampled_on_where_its_call_never_arrived(begun: bool) -> None:
    async def talk() -> None:
        replica = LosesCancellations()
        batcher = RequestBatcher(replica)
        batcher.submit(ask_for(1))
        first = batcher.submit(ask_for(2))
        await settle()
        replica.engine.finish(2)
        await first
        (call,) = batcher._calls  # an empty one, which waits for the first turn
        if begun:
            await settle()
        call.cancel()
        await settle()
        assert not replica.engine.sampling and not replica.engine.server._clients

    run(talk())


class Echo:
    """Answers with the seed after that many milliseconds; the first id decides what else happens."""

    REFUSED, BUG, HANGS, DIES = range(100, 104)

    def __init__(self) -> None:
        self.server = TurnServer(self.generate)
        self.calls = 0
        self.hanging = 0

    async def sample_turns(self, client: str, batch: bytes) -> Answers:
        self.calls += 1
        return await self.server.sample_turns(client, batch)

    async def drop_client(self, client: str) -> None:
        self.server.drop_client(client)

    def counts(self) -> tuple[int, int]:
        return self.calls, self.hanging

    async def generate(self, request: GenerateRequest) -> Generated:
        kind = request.prompt_ids[0]
        if kind == self.REFUSED:
            raise ValueError("too long")
        if kind == self.BUG:
            raise ZeroDivisionError("of the engine")
        if kind == self.DIES:
            os._exit(1)
        if kind == self.HANGS:
            self.hanging += 1
            try:
                await asyncio.sleep(600)
            finally:
                self.hanging -= 1
        await asyncio.sleep(request.seed / 1000)
        return said(request)


class PlacedEcho:
    """Takes the place of ``PlacedReplica`` in a pool."""

    def __init__(self, *_: Any) -> None:
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}  # where the worker finds this module
        actor_class = ray.remote(num_cpus=0, max_concurrency=100, max_restarts=-1, runtime_env=environment)(Echo)
        self.actor = actor_class.remote()

    def end(self) -> None:
        ray.kill(self.actor)


@pytest.fixture
def echo(ray_session: None) -> Iterator[Any]:
    placed = PlacedEcho()
    yield placed.actor
    placed.end()


def test_every_dialogue_gets_its_own_turns_and_calls_are_shared(echo: Any) -> None:
    async def dialogue(batcher: RequestBatcher, number: int) -> None:
        for turn in range(20):
            assert (await batcher.submit(ask_for(number % 7 + turn % 3))).ids == [number % 7 + turn % 3]

    async def talk() -> None:
        batcher = RequestBatcher(ReplicaHandle(echo))
        await asyncio.gather(*(dialogue(batcher, number) for number in range(50)))
        assert not batcher._awaited

    run(talk())
    run(talk())  # from another event loop
    calls, _ = ray.get(echo.counts.remote(), timeout=30)
    assert calls < 2 * 50 * 20 / 2


def test_an_error_of_a_turn_is_that_turns_alone_and_keeps_its_class(echo: Any) -> None:
    async def talk() -> list[Any]:
        batcher = RequestBatcher(ReplicaHandle(echo))
        asked = [batcher.submit(ask_for(5, first)) for first in (7, Echo.REFUSED, Echo.BUG)]
        return await asyncio.gather(*asked, return_exceptions=True)

    right, refused, bug = run(talk())
    assert right.ids == [5]
    assert isinstance(refused, ValueError) and str(refused) == "too long"
    assert isinstance(bug, ZeroDivisionError)


def test_a_replica_that_dies_fails_all_that_it_owes(echo: Any) -> None:
    async def talk() -> list[Any]:
        batcher = RequestBatcher(ReplicaHandle(echo))
        owed = [batcher.submit(ask_for(5, Echo.HANGS)) for _ in range(3)]
        await batcher.submit(ask_for(1))
        return await asyncio.gather(*owed, batcher.submit(ask_for(1, Echo.DIES)), return_exceptions=True)

    errors = run(talk())
    assert len(errors) == 4 and all(isinstance(error, RayActorError) for error in errors)


def test_a_loop_that_ends_leaves_nothing_being_sampled(echo: Any) -> None:
    async def leave() -> None:
        batcher = RequestBatcher(ReplicaHandle(echo))
        hangs = batcher.submit(ask_for(0, Echo.HANGS))
        await batcher.submit(ask_for(1))
        assert await asyncio.to_thread(lambda: ray.get(echo.counts.remote(), timeout=30)[1]) == 1
        assert not hangs.done()

    async def until_none_hangs() -> None:
        while ray.get(echo.counts.remote(), timeout=30)[1]:
            await asyncio.sleep(0.05)

    run(leave())
    run(until_none_hangs())


def test_a_replica_that_hangs_fails_its_own_dialogues_alone(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "PROBE_S", 60.0)  # it is not looked for: it would come back
    config = EngineConfig(max_num_seqs=1000, timeout_seconds=8)
    pool = ReplicaPool("policy", "", None, config, replicas=2, start=PlacedEcho)  # type: ignore[arg-type]

    # Their processes take as long to start as the machine likes; only then the time-out is about their answers.
    ray.get([placed.actor.counts.remote() for placed in pool.fleet.placed.values()], timeout=360)

    async def talk() -> tuple[list[Any], list[Any], Generated]:
        here, there = ([f"{n}-0" for n in range(40) if pool.route(f"{n}-0") == index] for index in (0, 1))
        await asyncio.gather(*(pool.generate(key, ask_for(1)) for key in here + there))
        owed = [asyncio.ensure_future(pool.generate(key, ask_for(0, Echo.HANGS))) for key in here]
        fine = [asyncio.ensure_future(pool.generate(key, ask_for(500))) for key in there]
        failed = await asyncio.gather(*owed, return_exceptions=True)
        return failed, await asyncio.gather(*fine), await pool.generate(here[0], ask_for(3))

    failed, fine, moved = run(talk())
    assert all(isinstance(error, RolloutFailure) for error in failed) and "policy: TimeoutError" in map(str, failed)
    assert len(failed) == len(fine) == 20 and all(answer.ids == [500] for answer in fine)
    assert moved.ids == [3] and pool.counts() == (1, 0, 1)
    pool.close()
