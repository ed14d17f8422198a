"""What breaks while dialogues run is dropped, counted and run again; a failed replica comes back as it was."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.data.dialogue import Dialogue, Split
from calibrated_rl.errors import PartLost
from calibrated_rl.examples.front_desk.human import FrontDeskHuman
from calibrated_rl.examples.front_desk.task import FrontDesk
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.lockstep import LockstepScheduler
from calibrated_rl.inference.placement import PlacedReplica
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.inference.turns import Generated, GenerateRequest
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.replay.actor import ReplayService, start_store
from calibrated_rl.replay.client import StoreClient
from calibrated_rl.replay.config import ReplayConfig
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.rollout.conversation import SamplingConfig
from calibrated_rl.rollout.stream import EndedGroup, GroupStream
from calibrated_rl.weight_sync.lora import LoRABase, LoRAUpdate, LoRAWeights
from calibrated_rl.weight_sync.object_store import FullUpdate
from calibrated_rl.weight_sync.shared_memory import SharedUpdate, SharedWeightsWriter
from calibrated_rl.weight_sync.tensors import Weights

IDS = list(range(5, 25))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    for seed, name in enumerate("ab"):
        make_tiny(folder / name, ["friday seven two please", "booked friday seven two"] * 20, seed)
    return folder


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "b" / "model.safetensors")


@pytest.fixture(scope="module")
def pool(ray_session: None, folder: Path, weights: dict[str, torch.Tensor]) -> Iterator[ReplicaPool]:
    """One replica that was started with other weights than those of version 3, which it serves."""
    tokens = ChatTokens(AutoTokenizer.from_pretrained(folder / "a"))
    started = ReplicaPool("policy", str(folder / "a"), tokens, EngineConfig(kv_cache_mib=64, start_timeout_seconds=200))
    started.wait_until_ready()
    started.publish(FullUpdate.of_tensors(weights, 3))
    yield started
    started.close()


def published(pool: ReplicaPool) -> FullUpdate:
    """What the pool serves: all weights."""
    assert isinstance(pool._publisher.update, FullUpdate)
    return pool._publisher.update


def processes(pool: ReplicaPool) -> tuple[int, int]:
    """Ids of the replica's actor and of its engine's process."""

    def ids(replica: object) -> tuple[int, int]:
        children = psutil.Process().children(recursive=True)
        return os.getpid(), next(child.pid for child in children if "EngineCore" in child.name())

    found: tuple[int, int] = ray.get(pool.fleet.placed[0].actor.apply.remote(ids), timeout=30)
    return found


def collect_with_fault(pool: ReplicaPool, fault: Callable[[], None]) -> tuple[Collector, list[list[Dialogue]]]:
    """Eight groups of four dialogues with scripted people; ``fault`` happens when the first dialogue is done."""
    task = FrontDesk(FrontDesk.Config())
    sampling = SamplingConfig(max_turn_tokens=16)
    collector, done = Collector(task, pool, sampling, sampling), []

    def on_dialogue() -> None:
        done.append(1)
        if len(done) == 1:
            fault()

    scenarios = task.scenarios(Split.CALIBRATION, 8)
    human = FrontDeskHuman(FrontDeskHuman.Config(), task=task)
    groups = collector.collect(scenarios, human, group_size=4, arm="faults", update=0, seed=0, on_dialogue=on_dialogue)
    return collector, groups


def is_whole(groups: list[list[Dialogue]]) -> bool:
    """All groups are there, every sampled token under the current weights."""
    versions = {int(v) for g in groups for d in g if d.policy_tokens for v in d.policy_tokens.versions if v >= 0}
    return [len(group) for group in groups] == [4] * 8 and versions == {3}


@pytest.mark.timeout(1200)
def test_a_dead_engine_is_replaced_with_the_current_weights(
    pool: ReplicaPool, weights: dict[str, torch.Tensor]
) -> None:
    """Which it finds in memory that the learner shares."""
    shapes = {name: tuple(each.shape) for name, each in weights.items()}
    memory = SharedWeightsWriter("float32", shapes, torch.device("cpu"))
    pool.publish(SharedUpdate(version=3, weights=memory.write(weights.items())))
    before, expected = processes(pool), pool.score(IDS)
    collector, groups = collect_with_fault(pool, lambda: os.kill(before[1], signal.SIGKILL))
    assert is_whole(groups)
    flawed = [t.flaw for g in groups for m, d in enumerate(g) for t in d.turns[2 if m else 0 :] if t.flaw]
    assert flawed and collector.statistics.flaws.total() == len(flawed)  # random weights speak badly
    assert collector.statistics.dropped["policy: EngineDeadError"] > 0
    assert sum(collector.statistics.endings.values()) == 32
    # Version 3 in truth, and not in name only.
    np.testing.assert_allclose(pool.score(IDS), expected, atol=1e-6)
    assert set(processes(pool)).isdisjoint(before) and not any(map(psutil.pid_exists, before))


@pytest.mark.timeout(1200)
def test_a_silent_engine_is_given_up_after_the_time_out(
    pool: ReplicaPool, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In lockstep, where all wait for the one that does not get its turn. Its successor gets base and adapters."""
    plain, random = pool.score(IDS), torch.Generator().manual_seed(0)
    factors = {}
    for name in [name for name in weights if name.endswith("q_proj.weight")]:
        factors[name.replace(".weight", ".lora_A")] = torch.randn(4, weights[name].shape[1], generator=random)
        factors[name.replace(".weight", ".lora_B")] = torch.randn(weights[name].shape[0], 4, generator=random)
    lora = ray.put(LoRAWeights(Weights(factors), 0.5))
    pool.publish(LoRAUpdate(version=3, base=LoRABase("base", ray.put(Weights(weights))), lora=lora))
    expected = pool.score(IDS)
    assert np.abs(expected - plain).max() > 1e-3
    monkeypatch.setattr(pool, "lockstep", LockstepScheduler())
    monkeypatch.setattr(pool, "_timeout_s", 10.0)
    before = processes(pool)
    collector, groups = collect_with_fault(pool, lambda: os.kill(before[1], signal.SIGSTOP))
    assert is_whole(groups)
    assert collector.statistics.dropped["policy: TimeoutError"] > 0
    assert not any(map(psutil.pid_exists, before))
    np.testing.assert_allclose(pool.score(IDS), expected, atol=1e-6)
    pool.publish(FullUpdate.of_tensors(weights, 3))


@pytest.mark.parametrize("lockstep", [None, LockstepScheduler()])
def test_a_refused_prompt_is_no_failure_of_the_replica(
    pool: ReplicaPool, monkeypatch: pytest.MonkeyPatch, lockstep: LockstepScheduler | None
) -> None:
    monkeypatch.setattr(pool, "lockstep", lockstep)
    too_long = GenerateRequest([7] * 600, 16, 1.0, 0, (1,))

    async def ask() -> None:
        if lockstep is not None:
            lockstep.enter()
        await asyncio.wait_for(pool.generate("key", too_long), 180)

    before = processes(pool)
    with pytest.raises(ValueError, match="600"):
        asyncio.run(ask())
    assert processes(pool) == before


@pytest.mark.timeout(1200)
def test_a_weight_update_that_fails_half_way_leaves_no_mixed_weights(pool: ReplicaPool) -> None:
    """The tensors have arrived when it fails, but their layers are not put together again."""

    def break_off(replica: Any) -> None:
        call = replica.engine.call_workers

        async def fail(method: str, *arguments: Any, **options: Any) -> None:
            if method == "finish_weight_update":
                raise ConnectionResetError("half way")
            await call(method, *arguments, **options)

        replica.engine.call_workers = fail

    before, expected = processes(pool), pool.score(IDS)
    ray.get(pool.fleet.placed[0].actor.apply.remote(break_off), timeout=30)
    update = published(pool)
    pool.publish(replace(update, version=4))
    assert pool.group.last_failure == "RayTaskError(ConnectionResetError)"
    assert set(processes(pool)).isdisjoint(before)
    np.testing.assert_allclose(pool.score(IDS), expected, atol=1e-6)
    pool.publish(update)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def placements() -> list[str]:
    """States of all placement groups that were ever made."""
    return [group["state"] for group in ray.util.placement_group_table().values()]


@pytest.mark.timeout(1200)
def test_a_replica_joins_with_the_current_weights_and_leaves_when_its_turns_are_done(
    pool: ReplicaPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """New weights are published at the worst moment: after it got the old ones, before it joins."""
    caplog.set_level(logging.INFO, "calibrated_rl")
    join, update = pool._admission.join, published(pool)
    newer = FullUpdate.of_tensors({name: tensor * 1.1 for name, tensor in ray.get(update.weights).items()}, 4)

    def join_late(pending: int, placed: Any, loaded: Any) -> Any:
        if loaded is not None and loaded.version == 3:
            pool.publish(newer)
        return join(pending, placed, loaded)

    monkeypatch.setattr(pool._admission, "join", join_late)
    reserved = placements().count("CREATED")
    pool.grow(1)
    assert pool.counts() == (1, 1, 0)
    wait_for(lambda: pool.counts()[0] == 2)
    old, new = pool._membership.members
    scores = [ray.get(pool.fleet.placed[i].actor.score.remote(IDS), timeout=180) for i in (old, new)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-6)
    assert "with weights of version 4" in caplog.messages[-1]

    async def remove_in_flight() -> Generated:
        key = next(str(i) for i in range(100) if pool.route(str(i)) == new)
        turn = asyncio.ensure_future(pool.generate(key, GenerateRequest(IDS, 400, 1.0, 0, ())))
        await asyncio.sleep(0.1)
        pool.shrink(1)
        assert not turn.done() and pool.route(key) == old and pool.counts() == (1, 0, 0)
        return await turn

    generated = asyncio.run(asyncio.wait_for(remove_in_flight(), 180))
    assert len(generated.ids) == 400 and set(generated.versions.tolist()) == {4}
    wait_for(lambda: caplog.messages[-1] == f"policy replica {new} left")
    assert pool.fleet.indices() == [old] and placements().count("CREATED") == reserved
    pool.shrink(1)  # the last one stays
    pool.publish(update)
    assert pool.counts() == (1, 0, 0)


def test_a_replica_without_a_machine_holds_up_nobody_and_is_given_up(
    pool: ReplicaPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "calibrated_rl")
    too_large = partial(PlacedReplica, "nowhere", EngineConfig(num_cpus=10_000), "policy")
    monkeypatch.setattr(pool.fleet, "_start", too_large)
    monkeypatch.setattr(pool._admission, "_start_timeout_s", 2.0)
    pool.grow(2)
    assert pool.counts() == (1, 2, 0)
    pool.shrink(1)
    pool.publish(published(pool))
    wait_for(lambda: pool.counts() == (1, 0, 0))
    wait_for(lambda: "PENDING" not in placements())
    wait_for(lambda: not any(thread.is_alive() for thread in pool._resizing.threads))
    assert caplog.messages == ["abandoned a pending policy replica after 2 s: GetTimeoutError"]


def complete(ended: list[EndedGroup]) -> list[list[Dialogue]]:
    """Dialogues of groups of which none was dropped."""
    assert all(group.dialogues is not None for group in ended)
    return [group.dialogues for group in ended if group.dialogues is not None]


@pytest.mark.timeout(900)
def test_groups_that_run_ahead_live_through_weight_updates(pool: ReplicaPool) -> None:
    """Weights are published again and again while dialogues are held, and others are held from another loop."""
    task, sampling = FrontDesk(FrontDesk.Config()), SamplingConfig(max_turn_tokens=16)
    collector, human = Collector(task, pool, sampling, sampling), FrontDeskHuman(FrontDeskHuman.Config(), task=task)
    stream = GroupStream(collector, human, group_size=4, arm="ahead", seed=0)
    scenarios, update, version = task.scenarios(Split.CALIBRATION, 12), published(pool), 3
    found: list[list[Dialogue]] = []
    try:
        for number in range(3):
            stream.admit(number, list(enumerate(scenarios)))
        while stream.in_flight:
            version += 1
            pool.publish(replace(update, version=version))
            beside = collector.collect(scenarios[:2], human, group_size=1, arm="beside", update=version, seed=0)
            assert len(beside) == 2
            found += complete(stream.take(1, 60))
        if len(found) < 36:
            found += complete(stream.take(36 - len(found), 60))
    finally:
        stream.close()
        pool.publish(update)
    expected = sorted(f"ahead-0-{u}-{number}-{member}" for u in range(3) for number in range(12) for member in range(4))
    assert sorted(d.id for group in found for d in group) == expected
    versions = [d.policy_tokens.versions[d.policy_tokens.mask] for g in found for d in g if d.policy_tokens is not None]
    assert all((np.diff(each) >= 0).all() for each in versions), "weights only become newer within a dialogue"
    seen = {int(each) for own in versions for each in own}
    assert len(seen) > 1 and seen <= set(range(3, version + 1))
    assert not collector.statistics.dropped


def test_a_store_that_is_gone_is_told_apart_from_one_that_refuses(ray_session: None, tmp_path: Path) -> None:
    """With the former the run starts its parts again and resumes; the latter is a mistake."""
    handle, _ = start_store(ReplayConfig())
    store = StoreClient(handle, tmp_path)
    store.open("arm-0")
    with pytest.raises(FileNotFoundError):
        store._call(ReplayService.export_parquet, str(tmp_path / "no" / "folder.parquet"))
    assert store.sample(1, arm="arm", update=0, max_staleness=0) == []
    ray.kill(handle)
    with pytest.raises(PartLost, match="the replay store is gone"):
        store.sample(1, arm="arm", update=0, max_staleness=0)
