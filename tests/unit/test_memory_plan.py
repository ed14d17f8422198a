"""How learner and engines share a device, by hand; and that measuring the peak leaves the learner as it was."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from calibrated_rl.calibration.sft import SFTConfig
from calibrated_rl.config.load import check
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import CalibrationConfig, ModelConfig
from calibrated_rl.errors import UserError
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.engine_arguments import cache_sizes
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.device_memory import DeviceMemory
from calibrated_rl.learner.lora import LoRAConfig
from calibrated_rl.learner.micro_batch import full_micro_batch
from calibrated_rl.learner.packing import pack
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.models.shape import ModelShape, shape_of
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.run.memory import ENGINE_PROCESSES, GIB, RANK_OF_AN_ENGINE, adapters_only, dialogue_bytes, with_cache
from calibrated_rl.run.memory_plan import GPU_ENGINE, MIB, RESERVED_SHARE, Demand, describe, plan_caches, with_caches
from tests.support.made_up_models import make_model

SHAPE = ModelShape(
    parameters=GIB // 4, layers=8, hidden=8, intermediate=16, heads=8, key_heads=8, keys=512, vocabulary=50
)
"""1 GiB of float32 weights; a token's keys and values are 2 * 8 * 512 * 4 bytes, so 32 tokens are a MiB."""


def demand(replicas: int = 1, **settings: Any) -> Demand:
    engine = EngineConfig(**({"kv_cache_mib": 0, "max_model_len": 1024, "max_num_seqs": 64} | settings))
    return Demand(engine=engine, model=SHAPE, replicas=replicas)


def machine(free: int) -> DeviceMemory:
    return DeviceMemory(name="it", total=100 * GIB, free=free, learner=3 * GIB)


ENGINE = GIB + ENGINE_PROCESSES + 2 * 128 * MIB
"""Of a replica without its KV cache: weights, processes, two buckets for new weights."""
FIXED = int(RESERVED_SHARE * 100 * GIB)
"""What nobody gets."""


def test_each_gets_what_it_can_use_where_there_is_plenty() -> None:
    sides = {"policy": demand(), "simulator": demand(max_num_seqs=16)}
    assert plan_caches(machine(90 * GIB), sides) == {"policy": 64 * 32, "simulator": 16 * 32}


def test_what_is_left_is_shared_by_what_each_can_use() -> None:
    sides = {"policy": demand(replicas=2), "simulator": demand(max_num_seqs=32), "proxy": demand(kv_cache_mib=100)}
    needed = FIXED + 4 * ENGINE + 100 * MIB
    # Two caches of 2048 MiB and one of 1024 are wanted; a quarter of that is there.
    assert plan_caches(machine(needed + 1280 * MIB), sides) == {"policy": 512, "simulator": 256, "proxy": 100}
    said = describe(machine(needed + 1280 * MIB), sides, {"policy": 512, "simulator": 256, "proxy": 100})
    assert "learner 3.00, measured; 2 x policy engine 2.50 + KV cache 0.50 (16 longest dialogues)" in said


def test_others_get_theirs_first() -> None:
    needed = FIXED + ENGINE + 5 * GIB
    assert plan_caches(machine(needed + 64 * MIB), {"policy": demand()}, other_bytes=5 * GIB) == {"policy": 64}


def test_each_rank_of_a_replica_has_its_part_of_the_cache() -> None:
    # Two ranks: half the keys each, so 2048 MiB for 64 dialogues in two parts; one process more.
    needed = FIXED + ENGINE + 2 * RANK_OF_AN_ENGINE
    spread = demand(tensor_parallel=2)
    assert plan_caches(machine(90 * GIB), {"policy": spread}) == {"policy": 64 * 16}
    assert plan_caches(machine(needed + 200 * MIB), {"policy": spread}) == {"policy": 100}
    assert "KV cache 2 x 0.10 (6 longest" in describe(machine(needed + 200 * MIB), {"policy": spread}, {"policy": 100})


def test_engines_that_are_not_started_get_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "calibrated_rl")
    make_model().save_pretrained(tmp_path)
    side = ModelConfig(engine=EngineConfig(kv_cache_mib=0, max_num_seqs=64))
    config = with_caches(RunConfig(policy=side, simulator=side), {"policy": tmp_path})
    # A token: keys and values of 2 layers, 16 float32 each, 256 bytes; 64 dialogues of 512 tokens: 8 MiB.
    assert (config.policy.engine.kv_cache_mib, config.simulator.engine.kv_cache_mib) == (8, 0)
    assert config.policy.engine.least_kv_cache_mib == 2
    assert cache_sizes(config.policy.engine) == [8, 4, 2]
    (line,) = caplog.messages
    assert "policy engine" in line and "simulator" not in line
    assert with_caches(config, {"policy": tmp_path}) is config and len(caplog.messages) == 1


def test_a_cache_is_halved_only_where_that_is_asked_for() -> None:
    assert cache_sizes(EngineConfig(kv_cache_mib=100)) == [100]
    assert cache_sizes(EngineConfig(kv_cache_mib=100, least_kv_cache_mib=26)) == [100, 50]
    assert cache_sizes(EngineConfig(kv_cache_mib=100, least_kv_cache_mib=25)) == [100, 50, 25]
    with pytest.raises(UserError, match="engine.least_kv_cache_mib is more than engine.kv_cache_mib, 100"):
        EngineConfig(kv_cache_mib=100, least_kv_cache_mib=101)


def test_where_not_one_dialogue_has_room_that_is_said() -> None:
    needed = FIXED + ENGINE
    assert plan_caches(machine(needed + 32 * MIB), {"policy": demand()}) == {"policy": 32}
    for left in (31 * MIB, -GIB):
        with pytest.raises(UserError, match=r"it has 100.0 GiB, .* which took 3.0: nothing is left for .* of policy"):
            plan_caches(machine(needed + left), {"policy": demand()})


def test_a_gpu_holds_no_driver() -> None:
    gpu = demand(dtype="bfloat16", num_gpus=0.25)
    needed = int(RESERVED_SHARE * 100 * GIB) + GIB // 2 + GPU_ENGINE
    # bfloat16: 64 dialogues of 16 MiB are wanted, half of that is there.
    assert plan_caches(machine(needed + 512 * MIB), {"policy": gpu}) == {"policy": 512}


@pytest.mark.parametrize(("tokens", "length"), [(16384, 1536), (1024, 1536), (4096, 512), (100, 101), (60, 25)])
def test_the_micro_batch_that_is_measured_is_full(tokens: int, length: int) -> None:
    batch = full_micro_batch(tokens, length, 10**6, np.random.default_rng(0))
    (packed,) = pack(batch, tokens)
    assert len(packed.input_ids) == max(tokens, length - 1)
    assert max(batch.lengths) == length


@pytest.mark.slow
@pytest.mark.usefixtures("ranks_in_this_process")
def test_measuring_the_peak_changes_no_weights(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    learner = LearnerRank(LearnerConfig(micro_batch_tokens=100_000))
    learner.load("policy", tmp_path)
    before, now = learner.weights("policy"), psutil.Process().memory_info().rss
    seen = learner.measure_peak_memory({"policy": 200})
    assert all(torch.equal(before[name], value) for name, value in learner.weights("policy").items())
    # 100,000 tokens of 2 layers, ten vectors of 32 and five of 64 float32 each: 512 MB.
    assert seen.learner > now + 400e6
    available = psutil.virtual_memory().available
    assert seen.free < available and seen.total == psutil.virtual_memory().total


def test_models_that_a_fit_trains_as_a_whole_are_measured_so() -> None:
    lora = LearnerConfig(lora={"policy": LoRAConfig(), "simulator": LoRAConfig()})
    assert adapters_only(RunConfig(learner=lora)) == {"policy", "simulator"}
    whole = ModelConfig(warm_start=SFTConfig(adapters=False))
    assert adapters_only(RunConfig(learner=lora, policy=whole)) == {"simulator"}
    unfitted = ModelConfig(warm_start=SFTConfig(adapters=False, epochs=0))
    assert adapters_only(RunConfig(learner=lora, policy=unfitted)) == {
        "policy", "simulator"
    }  # fmt: skip
    calibration = CalibrationConfig(sft=SFTConfig(adapters=False))
    assert adapters_only(RunConfig(learner=lora, calibration=calibration)) == {"policy"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"deterministic": True}, "`deterministic` is true"),
        ({"learner": LearnerConfig(ranks=2)}, "only for a device that learner and engines share"),
        ({"simulator": ModelConfig(engine=EngineConfig(num_gpus=0.3))}, "only for a device that learner and engines"),
    ],
)
def test_where_nothing_can_be_planned_a_size_is_asked_for(change: dict[str, Any], said: str) -> None:
    side = ModelConfig(engine=EngineConfig(kv_cache_mib=0))
    human = "calibrated_rl.examples.front_desk:FrontDeskHuman"
    check(RunConfig(policy=side, human=human), "here")
    with pytest.raises(UserError, match=f"here: policy.engine.kv_cache_mib is 0.*{said}"):
        check(RunConfig(policy=side, human=human, **change), "here")


def test_a_cache_outside_of_training_has_room_for_the_dialogues_that_are_said(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny", ["two at seven"] * 4, 0)
    open_size = ModelConfig(engine=EngineConfig(kv_cache_mib=0, max_model_len=512))
    one = dialogue_bytes(open_size.engine, shape_of(folder))
    assert one == 2 * 2 * 192 * 4 * 512  # keys and values, layers, width, float32, tokens
    assert with_cache(open_size, folder).engine.kv_cache_mib == 64  # never less
    assert with_cache(open_size, folder, 100).engine.kv_cache_mib == 1 + 100 * one // 2**20
    assert with_cache(open_size, folder, 10**6).engine.kv_cache_mib == 1 + 1024
    settled = ModelConfig(engine=EngineConfig(kv_cache_mib=77))
    assert with_cache(settled, folder, 100) is settled
