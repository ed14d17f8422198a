"""Optimizer steps that are not finite are not taken, named, and their data is kept."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.losses.base import LossInputs, LossOutput
from calibrated_rl.learner.losses.correction import Correction
from calibrated_rl.learner.losses.grpo import GRPO
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.not_finite import SkippedStep, describe, keep_data
from calibrated_rl.learner.sample import Sample
from tests.support.made_up_learners import GRPO_TERMS, learner, samples, save_model

pytestmark = pytest.mark.usefixtures("ranks_in_this_process")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


class NotFinite(SFT):
    """A loss that is not finite."""

    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=inputs.logprobs.sum() * 0 + math.inf)


class NoGradient(SFT):
    """A finite loss whose gradient is not."""

    def __call__(self, inputs: LossInputs) -> LossOutput:
        change = inputs.logprobs - inputs.logprobs.detach()
        return LossOutput(loss=change.abs().sum().sqrt())


def with_credit(credit: float, place: int = 3) -> list[Sample]:
    given_samples = [replace(sample, name=f"dialogue {i}") for i, sample in enumerate(samples())]
    given_samples[place] = replace(given_samples[place], advantage=credit)
    return given_samples


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_that_is_not_finite_is_not_taken(folder: Path, stage: int, dtype: str) -> None:
    """Neither weights nor optimizer know of it: the next step is that of a learner that was never asked."""
    settings: dict[str, Any] = {"zero_stage": stage, "dtype": dtype, "micro_batch_tokens": 64}
    made, other = learner(folder, **settings), learner(folder, **settings)
    batch = SampleBatch.of(samples())
    for each in (made, other):
        each.step("policy", batch, GRPO_TERMS)
    before = made.weights("policy")
    everybody = tuple(range(len(batch.advantages)))
    for loss, given_batch, reason, blamed in (
        (GRPO_TERMS, SampleBatch.of(with_credit(math.nan)), "the advantage", (3,)),
        (NotFinite(SFT.Config()), batch, "the loss", everybody),
        (NoGradient(SFT.Config()), batch, "the gradient", everybody),
    ):
        metrics = made.step("policy", given_batch, loss)
        assert (metrics["skipped_steps"], metrics["optimizer_steps"]) == (1, 0)
        (skipped,) = made.skipped()
        assert (skipped.reason, skipped.sequences, skipped.step) == (reason, blamed, everybody)
        assert all(torch.equal(before[name], value) for name, value in made.weights("policy").items())
    found, expected = ((each.step("policy", batch, GRPO_TERMS), each.weights("policy")) for each in (made, other))
    assert found[0] == expected[0] and found[0]["skipped_steps"] == 0
    assert all(torch.equal(expected[1][name], value) for name, value in found[1].items())


def test_other_minibatches_of_an_update_are_taken(folder: Path) -> None:
    made = learner(folder)
    metrics = made.step("policy", SampleBatch.of(with_credit(math.inf)), GRPO_TERMS, minibatches=4)
    assert (metrics["skipped_steps"], metrics["optimizer_steps"]) == (1, 3)
    assert made.skipped()[0].sequences == (3,) and math.isfinite(metrics["loss"])


def test_what_comes_in_must_be_finite(folder: Path) -> None:
    made = learner(folder)
    for field, value, reason in (
        ("logprobs", math.nan, "log-probs of the sampling engine"),
        ("logprobs", -math.inf, "log-probs of the sampling engine"),
        ("reference_logprobs", math.nan, "log-probs of the reference"),
    ):
        given_samples = with_credit(0.5)
        sample = given_samples[5]
        scored = int(np.flatnonzero(sample.tokens.mask)[-1])
        if field == "logprobs":
            values = sample.tokens.logprobs.copy()
            values[scored] = value
            given_samples[5] = replace(sample, tokens=replace(sample.tokens, logprobs=values))
        else:
            assert sample.reference_logprobs is not None
            values = sample.reference_logprobs.copy()
            values[scored] = value
            given_samples[5] = replace(sample, reference_logprobs=values)
        made.step("policy", SampleBatch.of(given_samples), GRPO_TERMS)
        (skipped,) = made.skipped()
        assert (skipped.reason, skipped.sequences) == (reason, (5,))
        assert describe(skipped, given_samples) == f"{reason} not finite in dialogue 5"
    broken = made.models["policy"].parameters()["model.norm.weight"]
    broken.data.fill_(math.nan)
    masking = GRPO(GRPO.Config(correction=Correction.Config(mode="mask")))
    made.step("policy", SampleBatch.of(samples()), masking)  # what is not a number is out of all bounds
    assert made.skipped()[0].reason == "log-probs before the update"


def test_what_a_step_was_to_be_taken_on_is_kept(tmp_path: Path) -> None:
    given_samples = with_credit(-math.inf, place=1)[:3]
    skipped = SkippedStep(reason="the advantage", sequences=(1,), step=(0, 1))
    files = [
        keep_data(tmp_path / "kept", skipped, given_samples, {"model": "policy", "temperature": 1.0}) for _ in range(2)
    ]
    assert [file.name for file in files] == ["0001-policy.jsonl", "0002-policy.jsonl"]
    head, first, second = (json.loads(line) for line in files[0].read_text().splitlines())
    assert head == {"model": "policy", "temperature": 1.0, "reason": "the advantage", "samples": 2}
    assert (first["blamed"], second["blamed"], second["advantage"]) == (False, True, "-Infinity")
    tokens = given_samples[1].tokens
    assert (second["dialogue"], second["ids"]) == ("dialogue 1", tokens.ids.tolist())
    assert [value is None for value in second["sampler_logprobs"]] == (~tokens.mask).tolist()
