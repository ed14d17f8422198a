"""The learner on a tiny random Llama: exact against plain transformers, whatever the layout."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.errors import UserError
from calibrated_rl.learner.attention import side_by_side
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.losses.base import LossInputs, LossOutput
from calibrated_rl.learner.losses.dpo import DPO
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.metrics import Sums
from calibrated_rl.learner.packing import pack
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.learner.sample import Sample
from calibrated_rl.weight_sync.base import WeightUpdate
from calibrated_rl.weight_sync.object_store import FullUpdate
from calibrated_rl.weight_sync.shared_memory import SharedMemoryReader, SharedUpdate
from tests.support.made_up_learners import (
    ADAM,
    GRPO_TERMS,
    assert_same,
    big_epsilon,
    learner,
    plain_log_probs,
    samples,
    save_model,
    sequences,
)
from tests.support.made_up_models import VOCABULARY, make_gemma, make_hybrid, make_model

FIELDS = ("ids", "mask", "logprobs", "versions", "turns")
pytestmark = pytest.mark.usefixtures("ranks_in_this_process")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_log_probs_equal_plain_transformers(folder: Path, temperature: float) -> None:
    batch = SampleBatch.of_sequences(sequences())
    found, entropies = learner(folder).score("policy", batch, temperature)
    for values, tokens in zip(batch.split(found), sequences(), strict=True):
        np.testing.assert_allclose(values, plain_log_probs(folder, tokens, temperature), atol=1e-5)
    assert np.nanmin(entropies) > 0 and np.nanmax(entropies) <= math.log(VOCABULARY) + 1e-5


def test_a_packed_neighbour_is_not_seen(folder: Path) -> None:
    first, second = sequences(2)
    other = sequences(3, seed=9)[2]
    made = learner(folder)
    together = [SampleBatch.of_sequences([first, neighbour]) for neighbour in (second, other)]
    values = [batch.split(made.score("policy", batch)[0])[0] for batch in together]
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)


def dialogues_of_groups(openings: int) -> list[Sample]:
    """Three groups of four that begin alike, one sequence that holds another, and one twice.

    Args:
        openings: the beginning of a group is so many sequences long.
    """
    made = []
    for group in range(3):
        first = [sequences(1, seed=20 + group + 1000 * part)[0] for part in range(openings)]
        opening = TokenSequence(**{name: np.concatenate([getattr(each, name) for each in first]) for name in FIELDS})
        for place in range(4):
            rest = sequences(1, seed=100 + 10 * group + place)[0]
            parts = {name: np.concatenate([getattr(opening, name), getattr(rest, name)]) for name in FIELDS}
            made.append(Sample(tokens=TokenSequence(**parts), advantage=float(place) - 1.2 * group))
        made.append(Sample(tokens=opening, advantage=0.5))
    return [*made, made[0]]


@pytest.mark.parametrize("openings", [1, 8])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_shared_beginnings_change_neither_log_probs_nor_gradients(tmp_path: Path, kind: str, openings: int) -> None:
    """Together in one micro-batch, or each by itself in plain transformers; Gemma has windows of 8 tokens. After long
    openings, branches ask for attention by themselves."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / kind
    (make_model() if kind == "llama" else make_gemma()).save_pretrained(folder)
    given_samples = dialogues_of_groups(openings)
    made = learner(folder)
    made.load("policy", folder, trainable=False)
    (packed,) = pack(given_samples, 2000)
    assert any(batch.distance is not None for batch in side_by_side(packed).batches) == (openings == 8)
    whole = sum(len(s.tokens) for s in given_samples)
    assert len(packed.input_ids) < 0.8 * whole
    module = made.models["policy"].module.requires_grad_(True)
    logprobs, _ = made.models["policy"](packed, temperature=1.0)
    weights = torch.from_numpy(np.asarray([s.advantage for s in given_samples], np.float32)[packed.sequence])
    (weights * logprobs).sum().backward()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    batch, loss = SampleBatch.of(given_samples), torch.zeros(())
    found = torch.full((len(batch.ids),), torch.nan)
    found[torch.from_numpy(packed.source)] = logprobs.detach()
    for values, sample in zip(batch.split(found.numpy()), given_samples, strict=True):
        ids, scored = torch.from_numpy(sample.tokens.ids).long(), torch.from_numpy(sample.tokens.mask)[1:]
        logs = torch.log_softmax(plain(ids[None]).logits[0, :-1], -1).gather(-1, ids[1:, None])[:, 0]
        np.testing.assert_allclose(values[1:][scored], logs.detach()[scored], atol=1e-5)
        loss = loss + sample.advantage * logs[scored].sum()
    loss.backward()
    largest = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    for (name, one), (_, other) in zip(plain.named_parameters(), module.model.named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-5 * max(largest, 1.0), rtol=1e-5, msg=name)


@pytest.mark.parametrize("loss", [GRPO_TERMS, SFT(SFT.Config()), DPO(DPO.Config())])
def test_micro_batches_do_not_change_the_step(folder: Path, loss: Any) -> None:
    batch = SampleBatch.of(samples(weighted=isinstance(loss, SFT)))
    results = []
    for tokens in (2048, 64):
        made = learner(folder, big_epsilon(max_grad_norm=0.0), micro_batch_tokens=tokens)
        metrics = made.step("policy", batch, loss)
        assert metrics.pop("micro_batch_tokens") == tokens
        results.append((metrics, made.weights("policy")))
    assert results[0][0]["grad_norm"] > 1e-3
    assert_same(*results)


def test_one_step_of_sft_equals_plain_torch(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    made = learner(folder, big_epsilon(max_grad_norm=0.1))
    metrics = made.step("policy", SampleBatch.of(samples(weighted=True)), SFT(SFT.Config()))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-2, weight_decay=0.0)
    total, tokens = torch.zeros(()), 0
    for sample in samples(weighted=True):
        ids = torch.from_numpy(sample.tokens.ids).long()
        scored = torch.from_numpy(sample.tokens.mask)[1:]
        logs = torch.log_softmax(model(ids[None]).logits[0, :-1], -1).gather(-1, ids[1:, None])[:, 0]
        total = total - sample.weight * logs[scored].sum()
        tokens += int(scored.sum())
    loss = total / tokens
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    expected = dict(model.named_parameters())
    for name, value in made.weights("policy").items():
        torch.testing.assert_close(value, expected[name].detach(), atol=2e-6, rtol=0, msg=name)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_agree(folder: Path, stage: int) -> None:
    batch = SampleBatch.of(samples())
    results = []
    for zero_stage in (0, stage):
        made = learner(folder, big_epsilon(max_grad_norm=0.1), zero_stage=zero_stage)
        made.step("policy", batch, GRPO_TERMS)
        results.append((made.step("policy", batch, GRPO_TERMS), made.weights("policy")))
    assert_same(*results, metric_tolerance=1e-4)


def test_bfloat16_steps_and_improves(folder: Path) -> None:
    made = learner(folder, OptimizerConfig(learning_rate=3e-3), dtype="bfloat16")
    batch = SampleBatch.of(samples())
    losses = [made.step("policy", batch, SFT(SFT.Config()))["loss"] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.05
    assert all(value.dtype == torch.bfloat16 for value in made.weights("policy").values())


def test_same_inputs_same_bits(folder: Path) -> None:
    batch = SampleBatch.of(samples())
    results = []
    for _ in range(2):
        made = learner(folder)
        metrics = made.step("policy", batch, GRPO_TERMS, minibatches=3, epochs=2)
        results.append((metrics, made.weights("policy")))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])
    assert results[0][0]["optimizer_steps"] == 6


def test_loading_again_starts_afresh(folder: Path) -> None:
    batch = SampleBatch.of(samples())
    made = learner(folder)
    first = [made.step("policy", batch, SFT(SFT.Config()))["loss"] for _ in range(3)]
    made.load("policy", folder, optimizer=ADAM)
    assert [made.step("policy", batch, SFT(SFT.Config()))["loss"] for _ in range(3)] == first


def test_warm_up_and_learning_rate_of_a_call(folder: Path) -> None:
    made = learner(folder, OptimizerConfig(learning_rate=1e-3, warmup_steps=4))
    batch = SampleBatch.of(samples(4))
    rates = [made.step("policy", batch, SFT(SFT.Config()))["learning_rate"] for _ in range(5)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])
    assert made.step("policy", batch, SFT(SFT.Config()), learning_rate=0.0)["learning_rate"] == 0.0


def test_rejected_tokens_leave_the_mask_and_the_denominator(folder: Path) -> None:
    """Rejecting tokens must equal never having marked them."""
    made = learner(folder)
    base = sequences()
    own = SampleBatch.of_sequences(base)
    values = own.split(made.score("policy", own)[0])
    far = [np.where(np.arange(len(v)) % 3 == 0, v - 3.0, v).astype(np.float32) for v in values]
    loss = ("calibrated_rl.learner.losses.grpo:GRPO", {"correction": {"mode": "mask"}})
    rng = np.random.default_rng(3)
    credit = rng.normal(size=len(base))
    marked, unmarked = [], []
    for tokens, logs, own_logs, advantage in zip(base, far, values, credit, strict=True):
        seen = TokenSequence(
            ids=tokens.ids, mask=tokens.mask, logprobs=logs, versions=tokens.versions, turns=tokens.turns
        )
        marked.append(Sample(tokens=seen, advantage=float(advantage)))
        keep = tokens.mask & (np.abs(logs - own_logs) < 1)
        unmarked.append(Sample(tokens=seen.with_mask(keep), advantage=float(advantage)))
    results = []
    for given_samples in (marked, unmarked):
        made.load("policy", folder, optimizer=big_epsilon())
        metrics = made.step("policy", SampleBatch.of(given_samples), loss)
        results.append((metrics, made.weights("policy")))
    assert results[0][0].pop("masked_share") > 0.2 and results[1][0].pop("masked_share") == 0.0
    assert_same(*results)


def test_users_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    made = learner(folder)
    with pytest.raises(UserError, match="no config.json"):
        made.load("policy", tmp_path)
    made.load("policy", folder)
    with pytest.raises(UserError, match="no model 'critic'; loaded: policy"):
        made.score("critic", SampleBatch.of(samples()))
    made.unload("policy")
    make_hybrid().save_pretrained(tmp_path / "hybrid")
    with pytest.raises(UserError, match="layers of type conv are not supported"):
        made.load("policy", tmp_path / "hybrid")
    made.load("policy", folder)
    bare = [Sample(tokens=tokens) for tokens in sequences(3)]
    with pytest.raises(UserError, match="reference_logprobs"):
        made.step("policy", SampleBatch.of(bare), DPO(DPO.Config()))
    with pytest.raises(UserError, match="units of 2"):
        made.step("policy", SampleBatch.of(samples(3)), DPO(DPO.Config()))
    with pytest.raises(UserError, match="zero_stage"):
        LearnerConfig(zero_stage=4)
    with pytest.raises(UserError, match="learner.compile does not go with learner.zero_stage 3"):
        LearnerConfig(zero_stage=3, compile=True)


def test_nothing_scored_means_no_step(folder: Path) -> None:
    made = learner(folder)
    silent = [Sample(tokens=t.with_mask(np.zeros_like(t.mask))) for t in sequences(3)]
    before = made.weights("policy")
    metrics = made.step("policy", SampleBatch.of(silent), SFT(SFT.Config()))
    assert metrics["optimizer_steps"] == 0 and metrics["tokens"] == 0
    assert all(torch.equal(before[name], value) for name, value in made.weights("policy").items())


def test_no_scores_at_temperature_0(folder: Path) -> None:
    made, batch = learner(folder), SampleBatch.of(samples())
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="must be above 0"):
            made.score("policy", batch, temperature)
        with pytest.raises(UserError, match="must be above 0"):
            made.step("policy", batch, GRPO_TERMS, temperature=temperature)


def test_weights_that_a_loss_does_not_use_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="GRPO does not use the weights"):
        learner(folder).step("policy", SampleBatch.of(samples(weighted=True)), GRPO_TERMS)


def received(update: WeightUpdate) -> dict[str, torch.Tensor]:
    """What an engine would get, copied."""
    import ray

    if isinstance(update, SharedUpdate):
        return {name: tensor.clone() for name, tensor in SharedMemoryReader().tensors(update.weights)}
    assert isinstance(update, FullUpdate)
    return {name: tensor.clone() for name, tensor in ray.get(update.weights, timeout=180).items()}


@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks_equal_one(
    ray_session: None, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: int
) -> None:
    """Through Ray; micro-batches of a few sequences each."""
    from calibrated_rl.learner.group import LearnerGroup

    given_samples = samples(10)
    alone = learner(folder, big_epsilon(), micro_batch_tokens=40)
    expected = [alone.step("policy", SampleBatch.of(given_samples), GRPO_TERMS) for _ in range(2)]
    config = LearnerConfig(
        ranks=2, zero_stage=stage, micro_batch_tokens=40, threads=1, cpus=0.1, timeout_seconds=120,
        share_weights=stage == 3, max_skipped_steps=1,
    )  # fmt: skip
    group = LearnerGroup(config, skipped_data_folder=tmp_path / "not_finite")
    try:
        group.load("policy", folder, optimizer=big_epsilon())
        found = [group.step("policy", given_samples, GRPO_TERMS) for _ in range(2)]
        for one, two in zip(expected, found, strict=True):
            assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
        weights = received(group.weight_update("policy", 1))
        assert_same((found[0], weights), (found[0], alone.weights("policy")))
        # Infinite for the rank alone that has the sample: no rank takes the step.
        reference = np.where(given_samples[4].tokens.mask, 1e30, np.nan).astype(np.float32)
        impossible = list(given_samples)
        impossible[4] = replace(given_samples[4], name="the odd one", reference_logprobs=reference)
        skipped = group.step("policy", impossible, GRPO_TERMS)
        assert (skipped["skipped_steps"], skipped["optimizer_steps"]) == (1, 0)
        again = received(group.weight_update("policy", 1))
        assert all(torch.equal(weights[name], value) for name, value in again.items())
        file = tmp_path / "not_finite" / "0001-policy.jsonl"
        told = rf"the loss not finite in .*the odd one.*; its data: {file} \(1 of at most 1\)"
        assert re.search(told, caplog.messages[-1])
        with pytest.raises(UserError, match="learner.max_skipped_steps is 1: look at these dialogues"):
            group.step("policy", impossible, GRPO_TERMS)
        tokens = [sample.tokens for sample in given_samples]
        group.save("policy", tmp_path / "saved")
        for values, one in zip(group.log_probs("policy", tokens), tokens, strict=True):
            np.testing.assert_allclose(values, plain_log_probs(tmp_path / "saved", one), atol=1e-5)
        evaluated = group.evaluate("policy", given_samples)
        flat = np.concatenate([v[1:] for v in group.log_probs("policy", tokens)])
        assert evaluated["nll"] == pytest.approx(-np.nanmean(flat), rel=1e-5)
        with pytest.raises(UserError, match="no model 'critic'"):
            group.weight_update("critic", 1)
        # What two ranks wrote one resumes from at another stage, and the other way round.
        with pytest.raises(UserError, match="no model 'critic'"):
            group.snapshot(["critic"])
        group.snapshot(["policy"])
        expected_step = group.step("policy", given_samples, GRPO_TERMS)  # after the snapshot, so it is not in it
        group.write_snapshot(tmp_path / "of_two")
        expected_weights = received(group.weight_update("policy", 1))
        alone = LearnerRank(LearnerConfig(micro_batch_tokens=40, zero_stage=2))
        alone.restore(tmp_path / "of_two")
        snapshot = alone.snapshot()
        assert snapshot is not None and snapshot.index["ranks"] == 1
        snapshot.write(tmp_path / "of_one")
        assert_same(
            (alone.step("policy", SampleBatch.of(given_samples), GRPO_TERMS), alone.weights("policy")),
            (expected_step, expected_weights), metric_tolerance=1e-4,
        )  # fmt: skip
        group.restore(tmp_path / "of_one")
        group.snapshot(["policy"])
        (tmp_path / "no_folder").touch()
        with pytest.raises(OSError, match="no_folder"):
            group.write_snapshot(tmp_path / "no_folder")
        again = group.step("policy", given_samples, GRPO_TERMS)
        assert again == expected_step
        weights = received(group.weight_update("policy", 1))
        assert all(torch.equal(weights[name], value) for name, value in expected_weights.items())
    finally:
        group.close()


class LogLikelihood(SFT):
    """A sum over tokens, whatever else is in the step."""

    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=-inputs.logprobs.sum() / 512)


def gradients(made: LearnerRank, batch: SampleBatch) -> torch.Tensor:
    """What the next optimizer step would go along, [P] in float32."""
    from deepspeed.utils import safe_get_full_grad

    model, loss, chosen = made.models["policy"], LogLikelihood(SFT.Config()), np.arange(len(batch.advantages))
    made._accumulate(model, batch, loss, chosen, batch.scored, None, 1.0, Sums(), [])
    parameters = model.parameters().values()
    parts = [safe_get_full_grad(p) if made.config.zero_stage else p.grad for p in parameters]
    return torch.cat([part.detach().float().flatten() for part in parts])


@pytest.fixture(scope="module")
def float32_sum(folder: Path) -> torch.Tensor:
    """Of the gradients of 48 samples, each computed by itself in bfloat16."""
    made = learner(folder, dtype="bfloat16")
    parts = []
    for sample in samples(48):
        parts.append(gradients(made, SampleBatch.of([sample])))
        made.models["policy"].drop_gradients()
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_gradients_add_up_in_float32(folder: Path, float32_sum: torch.Tensor, stage: int) -> None:
    """Over 48 micro-batches: rounded once, at most."""
    made = learner(folder, dtype="bfloat16", zero_stage=stage, micro_batch_tokens=1)
    error = gradients(made, SampleBatch.of(samples(48))) - float32_sum
    assert float(error.norm() / float32_sum.norm()) < 2e-3
