"""The real vLLM engine behind a replica pool: weights in flight, parity with transformers, lockstep; and a simulator
that is aligned by what it samples there."""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.errors import RolloutFailure, UserError
from calibrated_rl.inference.config import EngineConfig, ReshapingConfig
from calibrated_rl.inference.lockstep import LockstepScheduler
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.inference.turns import Generated, GenerateRequest
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.slots import POLICY, SIMULATOR, SIMULATOR_REFERENCE
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.rollout.parity import check_parity
from calibrated_rl.weight_sync.base import WeightUpdate
from calibrated_rl.weight_sync.lora import LoRABase, LoRAUpdate, LoRAWeights, with_adapters_merged
from calibrated_rl.weight_sync.object_store import FullUpdate
from calibrated_rl.weight_sync.shared_memory import SharedUpdate, SharedWeightsWriter
from calibrated_rl.weight_sync.tensors import Weights
from tests.support.made_up_alignment import AlignedRun

IDS = [int(i) for i in np.random.default_rng(0).integers(5, 250, 60)]


@pytest.fixture(scope="session", params=["tied", "untied"])
def tiny_models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models that differ in their random weights, with tied or with untied embeddings."""
    folder = tmp_path_factory.mktemp(request.param)
    for seed, name in enumerate("ab"):
        texts = ["which day ?", "booked friday seven two"] * 20
        make_tiny(folder / name, texts, seed, tied=request.param == "tied")
        stored = load_file(folder / name / "model.safetensors")
        assert ("lm_head.weight" in stored) == (request.param == "untied")
    return folder / "a", folder / "b"


@pytest.fixture(scope="session")
def pool(ray_session: None, tiny_models: tuple[Path, Path]) -> Iterator[ReplicaPool]:
    tokens = ChatTokens(AutoTokenizer.from_pretrained(tiny_models[0]))
    # Such small buckets cut between the tensors of one layer of the engine.
    in_thread = "lm_head.weight" in load_file(tiny_models[0] / "model.safetensors")
    engine = EngineConfig(kv_cache_mib=64, weight_bucket_mib=1, own_process=not in_thread)
    started = ReplicaPool("policy", str(tiny_models[0]), tokens, engine)
    started.wait_until_ready()
    yield started
    started.close()


def reference(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = model(torch.tensor([IDS])).logits[0].log_softmax(-1)
    return logprobs[torch.arange(len(IDS) - 1), torch.tensor(IDS[1:])].numpy()


def request(seed: int, tokens: int) -> GenerateRequest:
    return GenerateRequest(IDS, tokens, 1.0, seed, (1,))


def sampled_meanwhile(pool: ReplicaPool, update: WeightUpdate) -> list[Generated]:
    """Requests back to back until ``update`` is through: however fast the engine is, some are in flight."""

    async def sample() -> list[Generated]:
        published = asyncio.Event()

        async def talk(seed: int) -> list[Generated]:
            results = []
            while not published.is_set():
                results.append(await pool.generate("dialogue", request(seed, 400)))
                seed += 4
            return results

        talking = [asyncio.ensure_future(talk(seed)) for seed in range(4)]
        await asyncio.sleep(0.4)
        await asyncio.get_running_loop().run_in_executor(None, pool.publish, update)
        published.set()
        return [result for results in await asyncio.gather(*talking) for result in results]

    return asyncio.run(asyncio.wait_for(sample(), 360))


def test_weights_arrive_while_a_request_is_in_flight(pool: ReplicaPool, tiny_models: tuple[Path, Path]) -> None:
    pool.publish(FullUpdate.of_tensors(load_file(tiny_models[0] / "model.safetensors"), 0))
    np.testing.assert_allclose(pool.score(IDS), reference(tiny_models[0]), atol=3e-5)

    update = FullUpdate.of_tensors(load_file(tiny_models[1] / "model.safetensors"), 1)
    generated = sampled_meanwhile(pool, update)
    assert any(sorted(set(result.versions.tolist())) == [0, 1] for result in generated)
    assert all((np.diff(result.versions) >= 0).all() for result in generated)
    # A stale LM head (tied or not) or prefix cache would keep the old figures, which are far away.
    now = pool.score(IDS)
    np.testing.assert_allclose(now, reference(tiny_models[1]), atol=3e-5)
    assert np.abs(now - reference(tiny_models[0])).max() > 0.1


def test_lockstep_batches_are_reproducible(pool: ReplicaPool) -> None:
    async def batch(first_seed: int) -> list[list[int]]:
        results = await pool.generate_lockstep("key", [request(first_seed + i, 8) for i in range(48)])
        return [result.ids for result in results]

    first = asyncio.run(batch(0))
    assert first == asyncio.run(batch(0))
    assert first != asyncio.run(batch(100))


def test_an_engine_whose_step_fails_takes_its_replica_with_it(
    pool: ReplicaPool, tiny_models: tuple[Path, Path]
) -> None:
    """Where the engine is a thread, no process ends by itself."""

    def break_step(replica: Any) -> tuple[int, bool]:
        def fail() -> None:
            raise MemoryError("no room for a step")

        in_thread: bool = replica.config.in_thread
        if in_thread:
            replica.engine._llm.step = fail
        return os.getpid(), in_thread

    actor = pool.fleet.placed[0].actor
    pool.publish(FullUpdate.of_tensors(load_file(tiny_models[1] / "model.safetensors"), 2))
    before, in_thread = ray.get(actor.apply.remote(break_step), timeout=30)
    if not in_thread:
        pytest.skip("tests of faults have the engine that is a process")

    async def sample() -> None:
        running = [asyncio.ensure_future(pool.generate("dialogue", request(seed, 16))) for seed in range(4)]
        for failed in await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 180):
            assert isinstance(failed, RolloutFailure) and "EngineDeadError" in str(failed)

    asyncio.run(sample())
    pool.restore()
    assert ray.get(pool.fleet.placed[0].actor.apply.remote(lambda replica: os.getpid()), timeout=30) != before
    np.testing.assert_allclose(pool.score(IDS), reference(tiny_models[1]), atol=3e-5)


def test_sampled_log_probs_are_those_of_the_model(pool: ReplicaPool, tiny_models: tuple[Path, Path]) -> None:
    pool.publish(FullUpdate.of_tensors(load_file(tiny_models[0] / "model.safetensors"), 2))
    generated = asyncio.run(pool.generate("key", request(3, 20)))
    model = AutoModelForCausalLM.from_pretrained(tiny_models[0], dtype=torch.float32)
    ids = torch.tensor([IDS + generated.ids])
    with torch.no_grad():
        logprobs = model(ids).logits[0].log_softmax(-1)
    expected = [float(logprobs[len(IDS) - 1 + i, token]) for i, token in enumerate(generated.ids)]
    np.testing.assert_allclose(generated.logprobs, expected, atol=3e-5)


@pytest.mark.parametrize("shape", [
    {"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.4}, {"repetition_penalty": 1.5},
    {"top_p": 0.6, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.2},
], ids=lambda shape: "+".join(shape))  # fmt: skip
def test_what_is_cut_off_is_not_said_and_the_log_probs_are_of_the_rest(
    pool: ReplicaPool, tiny_models: tuple[Path, Path], shape: dict[str, Any]
) -> None:
    """Each token against the distribution that transformers makes, in vLLM's order: penalty, min_p, top_k, top_p."""
    pool.publish(FullUpdate.of_tensors(load_file(tiny_models[0] / "model.safetensors"), 3))
    asked = replace(request(3, 24), reshaping=ReshapingConfig(**shape))
    generated = asyncio.run(pool.generate("key", asked))
    model = AutoModelForCausalLM.from_pretrained(tiny_models[0], dtype=torch.float32)
    ids = torch.tensor([IDS + generated.ids])
    makers: dict[str, Callable[[Any], LogitsProcessor]] = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor, "min_p": MinPLogitsWarper,
        "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper,
    }  # fmt: skip
    processors = LogitsProcessorList([make(shape[name]) for name, make in makers.items() if name in shape])
    with torch.no_grad():
        logits = model(ids).logits[0]
    ends = range(len(IDS), len(IDS) + len(generated.ids))
    reshaped = torch.cat([processors(ids[:, :end], logits[end - 1 : end]) for end in ends]).log_softmax(-1)
    expected = [float(reshaped[i, token]) for i, token in enumerate(generated.ids)]
    assert len(expected) > 10 and np.isfinite(expected).all()
    np.testing.assert_allclose(generated.logprobs, expected, atol=3e-5)
    plain = logits[len(IDS) - 1 : -1].log_softmax(-1)[range(len(expected)), generated.ids].numpy()
    assert np.abs(np.array(expected) - plain).max() > 0.01


def test_adapters_arrive_alone_and_serve_like_what_they_make(pool: ReplicaPool, tiny_models: tuple[Path, Path]) -> None:
    base = load_file(tiny_models[0] / "model.safetensors")
    random = torch.Generator().manual_seed(0)

    def drawn() -> dict[str, torch.Tensor]:
        """Adapters of some maps only: the engine holds q_proj in one matrix with k_proj and v_proj."""
        factors = {}
        for name, weight in base.items():
            if name.endswith(("q_proj.weight", "down_proj.weight")):
                factors[name.replace(".weight", ".lora_A")] = torch.randn(4, weight.shape[1], generator=random) * 0.1
                factors[name.replace(".weight", ".lora_B")] = torch.randn(weight.shape[0], 4, generator=random) * 0.1
        return factors

    def expected(weights: Mapping[str, torch.Tensor], factors: dict[str, torch.Tensor]) -> np.ndarray:
        model = AutoModelForCausalLM.from_pretrained(tiny_models[0], dtype=torch.float32)
        model.load_state_dict(with_adapters_merged(weights, factors, 2.0), strict=False)
        with torch.no_grad():
            logprobs = model(torch.tensor([IDS])).logits[0].log_softmax(-1)
        return logprobs[torch.arange(len(IDS) - 1), torch.tensor(IDS[1:])].numpy()

    def publish(weights: Mapping[str, torch.Tensor], name: str, factors: dict[str, torch.Tensor], version: int) -> None:
        lora = ray.put(LoRAWeights(Weights(factors), 2.0))
        pool.publish(LoRAUpdate(version=version, base=LoRABase(name, ray.put(Weights(weights))), lora=lora))

    first, second = drawn(), drawn()
    publish(base, "base-0", first, 10)
    np.testing.assert_allclose(pool.score(IDS), expected(base, first), atol=3e-5)
    # Were more than the adapters' modules sent, the altered embeddings would arrive.
    altered = base | {"model.embed_tokens.weight": base["model.embed_tokens.weight"].flip(0)}
    publish(altered, "base-0", second, 11)
    np.testing.assert_allclose(pool.score(IDS), expected(base, second), atol=3e-5)
    assert np.abs(expected(base, first) - expected(base, second)).max() > 0.01
    publish(altered, "base-1", second, 12)
    np.testing.assert_allclose(pool.score(IDS), expected(altered, second), atol=3e-5)
    pool.publish(FullUpdate.of_tensors(base, 13))
    np.testing.assert_allclose(pool.score(IDS), reference(tiny_models[0]), atol=3e-5)


def test_weights_are_read_out_of_the_learners_memory(pool: ReplicaPool, tiny_models: tuple[Path, Path]) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in tiny_models)
    shapes = {name: tuple(each.shape) for name, each in first.items()}
    memory = SharedWeightsWriter("float32", shapes, torch.device("cpu"))
    sent = memory.write(first.items())
    pool.publish(SharedUpdate(version=20, weights=sent))
    np.testing.assert_allclose(pool.score(IDS), reference(tiny_models[0]), atol=3e-5)
    with pytest.raises(UserError, match="policy: a replica on .* cannot read the weights .* on elsewhere"):
        pool.publish(SharedUpdate(version=21, weights=replace(sent, location="elsewhere")))
    np.testing.assert_allclose(pool.score(IDS), reference(tiny_models[0]), atol=3e-5)
    memory.write(first.items())
    now = memory.write(second.items())
    actor = pool.fleet.placed[0].actor
    with pytest.raises(Exception, match="were replaced by 3"):
        ray.get(actor.update_weights.remote(SharedUpdate(version=21, weights=sent)), timeout=180)
    with pytest.raises(Exception, match="HalfUpdatedWeights"):
        ray.get(actor.ping.remote(), timeout=180)
    pool.publish(SharedUpdate(version=22, weights=now))
    np.testing.assert_allclose(pool.score(IDS), reference(tiny_models[1]), atol=3e-5)
    memory.close()


# --- aligned simulators ------------------------------------------------------------------------------------------

ONE_KIND = pytest.mark.parametrize("tiny_models", ["tied"], indirect=True)
STUBBORN = "tests.support.made_up_alignment:Stubborn"
ROUNDS = {
    "start": STUBBORN, "rounds": 2, "histories": 120, "monitored": 80, "nll_tolerance": 0.5, "learning_rate": 1e-3,
    "warmup_steps": 0, "discriminator": {"width": 8, "epochs": 4, "batch": 16, "learning_rate": 0.02},
}  # fmt: skip
ADVERSARIAL = (
    "calibrated_rl.calibration.adversarial:Adversarial",
    ROUNDS | {"batch_pairs": 16, "hard_share": 0.8, "epochs": 3},
)
TURING = (
    "calibrated_rl.calibration.turing:Turing", ROUNDS | {"steps": 8, "batch_histories": 24, "group_size": 8}
)  # fmt: skip
Align = Callable[..., AlignedRun]


@pytest.fixture(scope="module")
def alone(ray_session: None) -> Iterator[LearnerGroup]:
    group = LearnerGroup(LearnerConfig(threads=1, cpus=0.1, timeout_seconds=120))
    yield group
    group.close()


@pytest.fixture
def align(pool: ReplicaPool, alone: LearnerGroup, tiny_models: tuple[Path, Path], tmp_path: Path) -> Iterator[Align]:
    """Aligns by a method, as before the training of an arm, in lockstep."""
    alone.load(POLICY, tiny_models[1])
    pool.lockstep = LockstepScheduler()

    def aligned(method: str, settings: dict[str, Any]) -> AlignedRun:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        run = AlignedRun(folder, method, settings, pool, alone, tiny_models[0])
        run.calibration.before_training()
        return run

    yield aligned
    pool.lockstep = None


def figures(run: AlignedRun) -> dict[str, float]:
    return {name: value for name, value in run.metrics.items() if "seconds" not in name}


@ONE_KIND
def test_preferring_what_humans_say_brings_a_simulator_nearer(align: Align, alone: LearnerGroup) -> None:
    before = align(STUBBORN, {}).probability("seven")
    run = align(*ADVERSARIAL)
    told = run.metrics
    assert told["calibration_rounds_kept"] >= 1
    assert told["calibration_discriminator_accuracy"] < told["calibration_round_0_discriminator_accuracy"]
    assert told["calibration_round_1_preference_margin_last"] > 0.3  # 0 against itself as it was when the round began
    after = run.probability("seven")
    assert before < 0.3 < after < 0.7  # humans say it half the time
    # The policy's slot is as it was, the replicas serve what was kept, and an arm that resumes finds it.
    assert np.array_equal(alone.log_probs(POLICY, run.views)[0], run.policy_before[0], equal_nan=True)
    pool = run.simulator.pool
    pool.role = "simulator"
    parity = check_parity(alone, pool, run.views[:4], model="tiny", dtypes=("float32", "float32"))
    pool.role = "policy"
    assert parity is not None and parity.max < 1e-4 and pool.version == run.version_before + 1
    assert run.simulator.path_in_run == "models/calibrated"
    alone.unload(SIMULATOR)
    run.calibration.before_training()
    assert run.probability("seven") == after
    assert figures(align(*ADVERSARIAL)) == figures(run)  # the same seeds, the same digits


@ONE_KIND
def test_reinforcement_by_a_discriminator_brings_a_simulator_nearer(align: Align, alone: LearnerGroup) -> None:
    before = align(STUBBORN, {}).probability("seven")
    run = align(*TURING)
    told = run.metrics
    assert told["calibration_rounds_kept"] >= 1
    assert 0 <= told["calibration_round_1_kl_first"] < told["calibration_round_1_kl_last"] < 1
    assert told["calibration_round_1_reward_last"] > told["calibration_round_1_reward_first"]
    assert before < 0.3 < run.probability("seven") < 0.8
    assert np.array_equal(alone.log_probs(POLICY, run.views)[0], run.policy_before[0], equal_nan=True)
    with pytest.raises(UserError, match=f"no model '{SIMULATOR_REFERENCE}'"):
        alone.log_probs(SIMULATOR_REFERENCE, run.views)
