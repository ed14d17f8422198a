"""A lost replica holds up nobody while another serves, and comes back with the weights that are current by then."""

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayActorError

from calibrated_rl.errors import PartLost
from calibrated_rl.inference import fleet, recovery
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.handle import ReplicaHandle
from calibrated_rl.inference.lockstep import LockstepScheduler
from calibrated_rl.inference.membership import Admit, Membership
from calibrated_rl.inference.pool import ReplicaPool, RolloutFailure
from calibrated_rl.inference.recovery import Recovery
from calibrated_rl.inference.request_batcher import Answers, TurnServer
from calibrated_rl.inference.turns import Generated, GenerateRequest, pack_answers, unpack_requests
from calibrated_rl.weight_sync.base import WeightUpdate
from calibrated_rl.weight_sync.object_store import FullUpdate

DIES = 100
"""A prompt that begins with this ends the replica's process."""


class Stub:
    """A replica without an engine: its turns are one token long, the version of its weights. It does not start while
    there is a file ``start`` in its folder, nor take weights of version N while there is one ``update-N``."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed, self._version = folder, seed, 0
        self._asked: list[int] = []
        self._turns = TurnServer(self.generate)
        while (folder / "start").exists() and seed:
            time.sleep(0.02)

    async def start(self) -> int:
        return 512

    async def ping(self) -> str:
        return "pong"

    async def apply(self, func: Callable[[Any], Any]) -> Any:
        return await func(self)

    async def asked(self) -> list[int]:
        """Versions of the weights that it was to take since its process was started."""
        return self._asked

    async def update_weights(self, update: WeightUpdate) -> None:
        assert isinstance(update, FullUpdate)
        await update.weights
        version = update.version
        self._asked.append(version)
        while (self._folder / f"update-{version}").exists() and self._seed:
            await asyncio.sleep(0.02)
        self._version = version

    async def sample_turns(self, client: str, batch: bytes) -> Answers:
        return await self._turns.sample_turns(client, batch)

    async def drop_client(self, client: str) -> None:
        self._turns.drop_client(client)

    async def sample_lockstep(self, batch: bytes) -> bytes:
        return pack_answers([(number, await self.generate(request)) for number, request in unpack_requests(batch)])

    async def generate(self, request: GenerateRequest) -> Generated:
        if request.prompt_ids[0] == DIES:
            os._exit(1)
        return Generated([self._version], np.zeros(1, np.float32), np.zeros(1, np.int32))


class PlacedStub:
    """Takes the place of ``PlacedReplica`` in a pool; only the first of a pool (seed 0) is never held up."""

    def __init__(self, folder: Path, model: str, config: EngineConfig, role: str, seed: int) -> None:
        actor_class = ray.remote(num_cpus=0, max_concurrency=100, max_restarts=-1)(Stub)
        self.actor = actor_class.remote(folder, seed)

    def end(self) -> None:
        ray.kill(self.actor)


def pool_of(
    folder: Path, *, replicas: int, start_timeout: float = 60, seed: int = 0,
    lockstep: LockstepScheduler | None = None,
) -> ReplicaPool:  # fmt: skip
    config = EngineConfig(timeout_seconds=60, start_timeout_seconds=start_timeout)
    pool = ReplicaPool(
        "policy", "", None, config,  # type: ignore[arg-type]
        replicas=replicas, seed=seed, start=partial(PlacedStub, folder), lockstep=lockstep,
    )  # fmt: skip
    ray.get([placed.actor.start.remote() for placed in pool.fleet.placed.values()], timeout=180)
    return pool


def test_a_smaller_cache_than_was_planned_is_said(
    ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "calibrated_rl")
    for planned in (512, 1024):  # the stub says 512
        pool = ReplicaPool(
            "policy", "", None, EngineConfig(kv_cache_mib=planned, start_timeout_seconds=60),  # type: ignore[arg-type]
            start=partial(PlacedStub, tmp_path),
        )  # fmt: skip
        pool.wait_until_ready()
        pool.close()
    assert caplog.messages == ["a policy replica started with a KV cache of 512 MiB instead of 1024 MiB"]


async def turn(pool: ReplicaPool, key: str, first: int = 7) -> int:
    if pool.lockstep is not None:
        pool.lockstep.enter()
    try:
        answer = await asyncio.wait_for(pool.generate(key, GenerateRequest([first], 1, 1.0, 0, (1,))), 180)
    finally:
        if pool.lockstep is not None:
            pool.lockstep.leave()
    return answer.ids[0]


def key_of(pool: ReplicaPool, index: int) -> str:
    return next(key for number in range(100) if pool.route(key := f"{number}-0") == index)


def lose(pool: ReplicaPool, index: int) -> str:
    """The process of a replica ends while it samples a turn of the dialogue that is returned."""
    key = key_of(pool, index)
    with pytest.raises(RolloutFailure):
        asyncio.run(turn(pool, key, DIES))
    return key


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def asked(pool: ReplicaPool, index: int) -> list[int]:
    try:
        versions: list[int] = ray.get(pool.fleet.placed[index].actor.asked.remote(), timeout=180)
    except RayActorError:  # its process is being started again
        return []
    return versions


def recovery_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "recovery"]


@pytest.fixture(autouse=True)
def looked_for_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "PROBE_S", 0.1)
    monkeypatch.setattr(fleet, "PING_TIMEOUT_S", 0.1)


@pytest.mark.timeout(600)
def test_a_lost_replica_holds_up_nobody_and_comes_back_with_the_newest_weights(
    ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "calibrated_rl")
    pool, weights = pool_of(tmp_path, replicas=2, start_timeout=1), FullUpdate.of_tensors({}, 0)
    pool.publish(replace(weights, version=1))
    (tmp_path / "start").touch()
    (tmp_path / "update-3").touch()
    key = lose(pool, 1)
    asyncio.run(asyncio.wait_for(pool.recover(), 180))
    assert asyncio.run(turn(pool, key)) == 1 and pool.counts() == (1, 0, 1)
    for version in (2, 3):
        pool.publish(replace(weights, version=version))
        assert asyncio.run(turn(pool, key)) == version and pool.counts() == (1, 0, 1)
    wait_for(lambda: len(caplog.messages) == 2)
    (tmp_path / "start").unlink()
    wait_for(lambda: asked(pool, 1) == [3])
    pool.publish(replace(weights, version=4))
    (tmp_path / "update-3").unlink()
    wait_for(lambda: pool.counts() == (2, 0, 0) and not recovery_threads())
    assert asked(pool, 1) == [3, 4] and asyncio.run(turn(pool, key_of(pool, 1))) == 4
    assert [line.partition(" after ")[0].partition(": Actor")[0] for line in caplog.messages] == [
        "policy replica 1 marked unavailable",
        "policy replica 1 did not recover within 1 s: nothing waits for it any longer; it rejoins if it recovers",
        "policy replica 1 recovered",
    ] and caplog.messages[2].endswith("version 4")
    pool.close()


@pytest.mark.timeout(600)
def test_where_none_serves_everybody_waits_until_the_time_out(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "calibrated_rl")
    pool, weights = pool_of(tmp_path, replicas=1, start_timeout=2, seed=1), FullUpdate.of_tensors({}, 0)
    (tmp_path / "start").touch()
    key = lose(pool, 0)
    with pytest.raises(PartLost, match=r"no policy replica came back within 2 s \(the last failed with Actor"):
        pool.publish(replace(weights, version=1))
    wait_for(lambda: "did not recover" in caplog.messages[-1])
    monkeypatch.setattr(pool._recovery, "_patience_s", 1000.0)
    with pytest.raises(PartLost):  # one that was given up is not waited for again
        asyncio.run(turn(pool, key))
    (tmp_path / "start").unlink()
    wait_for(lambda: pool.counts() == (1, 0, 0) and not recovery_threads())
    assert asyncio.run(turn(pool, key)) == 1
    pool.publish(replace(weights, version=2))
    (tmp_path / "start").touch()
    lose(pool, 0)
    threading.Timer(0.5, (tmp_path / "start").unlink).start()
    pool.publish(replace(weights, version=3))
    assert asyncio.run(turn(pool, key)) == 3
    (tmp_path / "start").touch()
    wait_for(lambda: not recovery_threads())
    lose(pool, 0)
    lines = len(caplog.messages)
    assert recovery_threads()
    pool.close()
    wait_for(lambda: not recovery_threads())
    assert len(caplog.messages) == lines and caplog.messages[-1].startswith("policy replica 0 marked unavailable")


class Owner:
    """Puts weights into Ray's store, which forgets them when this process ends."""

    def offer(self) -> FullUpdate:
        return FullUpdate.of_tensors({"large": torch.zeros(1_000_000)}, 7)


def test_weights_that_are_lost_are_no_fault_of_the_replica(
    ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "calibrated_rl")
    pool, owner = pool_of(tmp_path, replicas=1), ray.remote(num_cpus=0)(Owner).remote()
    update = ray.get(owner.offer.remote(), timeout=180)
    pool.publish(update)
    ray.kill(owner)

    def is_lost() -> bool:
        try:
            pool.publish(replace(update, version=8))
        except PartLost as error:
            assert str(error).startswith("the weights of policy are lost")
            return True
        return False

    wait_for(is_lost)
    assert pool.counts() == (1, 0, 0) and not caplog.messages
    pool.close()


@pytest.mark.timeout(600)
def test_in_lockstep_everything_waits_for_a_lost_replica(ray_session: None, tmp_path: Path) -> None:
    """Which dialogue goes where depends on who serves: it must not depend on when somebody came back."""
    pool, weights = pool_of(tmp_path, replicas=2, lockstep=LockstepScheduler()), FullUpdate.of_tensors({}, 0)
    pool.publish(replace(weights, version=1))
    (tmp_path / "start").touch()
    lose(pool, 1)
    assert not recovery_threads()
    publishing = threading.Thread(target=pool.publish, args=(replace(weights, version=2),), daemon=True)
    publishing.start()
    publishing.join(0.5)
    assert publishing.is_alive() and pool.counts() == (1, 0, 1)
    (tmp_path / "start").unlink()
    publishing.join(60)
    assert not publishing.is_alive() and pool.counts() == (2, 0, 0)
    assert [asyncio.run(turn(pool, key_of(pool, index))) for index in (0, 1)] == [2, 2]
    pool.close()


@settings(deadline=None, max_examples=50)
@given(looks=st.dictionaries(st.integers(0, 5), st.integers(1, 6)), patient=st.booleans())
def test_all_come_back_or_are_given_up_once(looks: dict[int, int], patient: bool) -> None:
    """Each replica is back with its n-th look. The patient wait for all; the impatient look once and give up the rest,
    which nobody waits for again, though it comes."""
    left, given_up, taken, membership = dict(looks), [], [], Membership(6)
    for index in looks:
        membership.lost(index, 0, at=0.0)

    def look(lost: frozenset[int]) -> None:
        taken.append(lost)
        for index in lost:
            left[index] -= 1
            if not left[index]:
                del left[index]
                assert membership.back(index, 1, 0) == Admit(index)

    def give_up(indices: frozenset[int], after_s: float) -> None:
        given_up.extend(membership.give_up(indices))

    changed, patience = threading.Condition(threading.RLock()), math.inf if patient else 0.0
    recovering = Recovery(membership, look, give_up, patience, changed, threading.Event())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recovery, "PROBE_S", 0.0)
        for call in range(1, 8):
            recovering.until_all_are_back()
            late = {index for index, count in looks.items() if count > 1}
            assert given_up == ([] if patient else sorted(late))
            assert set(left) == (set() if patient else {index for index, count in looks.items() if count > call})
    assert len(taken) == max(looks.values(), default=0)


def test_one_thread_looks_until_all_are_back_and_says_why_it_cannot() -> None:
    """As long as the weights are gone nobody can be brought back; those who wait hear of it, and it is tried again."""
    changed, membership, looks = threading.Condition(threading.RLock()), Membership(2), []

    def look(missing: frozenset[int]) -> None:
        looks.append(threading.current_thread())
        if len(looks) < 3:
            raise PartLost("the weights are gone")
        with changed:
            assert [membership.back(index, 1, 0) for index in sorted(missing)] == [Admit(0), Admit(1)]

    recovering = Recovery(membership, look, lambda indices, after_s: None, math.inf, changed, threading.Event())
    with changed:
        membership.lost(0, 0, at=0.0)
        membership.lost(1, 0, at=0.0)
        recovering.begin()
        recovering.begin()
        assert changed.wait_for(lambda: recovering.unable, 60) and str(recovering.unable) == "the weights are gone"
    wait_for(lambda: not recovery_threads())
    assert recovering.unable is None and len(looks) == 3 and len(set(looks)) == 1


@pytest.mark.parametrize("error", [RayActorError(), ray.exceptions.GetTimeoutError(), TimeoutError()])
def test_a_replica_that_is_lost_while_it_scores_starts_the_run_again(error: Exception, monkeypatch: Any) -> None:
    """The parity check asks it when a run begins or goes on: no reason for a run to end."""

    def lost(reference: object, timeout: float) -> None:
        raise error

    monkeypatch.setattr(ray, "get", lost)
    actor = SimpleNamespace(score=SimpleNamespace(remote=lambda ids: None))
    pool: Any = SimpleNamespace(
        role="policy", _timeout_s=1.0, _batch=8, _membership=Membership(1),
        fleet=SimpleNamespace(handle=lambda index: ReplicaHandle(actor)),
    )  # fmt: skip
    with pytest.raises(PartLost, match="a policy replica was lost while it scored"):
        ReplicaPool.score_all(pool, [[1, 2]])
