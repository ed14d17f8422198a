"""Ranks of the learner with a tiny model, what they learn from, and how their steps are compared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.losses.grpo import GRPO
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.learner.sample import Sample
from tests.support.made_up_models import VOCABULARY, make_model

ADAM = OptimizerConfig(learning_rate=1e-3)
GRPO_TERMS = GRPO(GRPO.Config(kl_coefficient=0.05, entropy_coefficient=0.01))


def save_model(folder: Path) -> Path:
    """A tiny model, and a file of a tokenizer beside it."""
    make_model().save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"note": "kept"}')
    return folder


def sequences(count: int = 12, seed: int = 0) -> list[TokenSequence]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(rng.integers(4, 40))
        mask = rng.random(length) < 0.6
        mask[-1] = True
        made.append(
            TokenSequence(
                ids=rng.integers(0, VOCABULARY, length).astype(np.int32),
                mask=mask,
                logprobs=np.where(mask, rng.normal(-4.5, 0.3, length), np.nan).astype(np.float32),
                versions=np.where(mask, 0, -1).astype(np.int32),
                turns=np.zeros(length, np.int32),
            )
        )
    return made


def samples(count: int = 12, *, weighted: bool = False) -> list[Sample]:
    rng = np.random.default_rng(1)
    made = [
        Sample(
            tokens=tokens,
            advantage=float(rng.normal()),
            weight=float(rng.random()),
            reference_logprobs=np.where(tokens.mask, -4.5, np.nan).astype(np.float32),
        )
        for tokens in sequences(count)
    ]
    return made if weighted else [replace(sample, weight=1.0) for sample in made]


def learner(folder: Path, optimizer: OptimizerConfig = ADAM, **config: Any) -> LearnerRank:
    made = LearnerRank(LearnerConfig(**({"micro_batch_tokens": 128} | config)))
    made.load("policy", folder, optimizer=optimizer)
    return made


def plain_log_probs(folder: Path, tokens: TokenSequence, temperature: float = 1.0) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.from_numpy(tokens.ids).long()
    with torch.no_grad():
        logs = torch.log_softmax(model(ids[None]).logits[0] / temperature, -1)
    full = np.full(len(ids), np.nan, np.float32)
    full[1:] = logs[:-1].gather(-1, ids[1:, None])[:, 0].numpy()
    full[~tokens.mask] = np.nan
    return full


def assert_same(first: Any, second: Any, metric_tolerance: float = 1e-5, tolerance: float = 2e-6) -> None:
    # Log-probs of about 5 are rounded to 5e-7 each, a little differently by each kind of processor.
    assert first[0] == pytest.approx(second[0], rel=metric_tolerance, abs=5e-6)
    assert list(first[1]) == list(second[1])
    for name in first[1]:
        torch.testing.assert_close(first[1][name], second[1][name], atol=tolerance, rtol=0, msg=name)


def big_epsilon(max_grad_norm: float = 1.0) -> OptimizerConfig:
    """Adam's first step is ±learning rate however small the gradient; a large epsilon shows its size."""
    return OptimizerConfig(learning_rate=1e-2, epsilon=1e-2, max_grad_norm=max_grad_norm)


class LocalLearner:
    """What fits call of the ``LearnerGroup``, by a rank in this process."""

    def __init__(self, rank: LearnerRank) -> None:
        self.rank = rank
        self.micro_batch_tokens = float(rank.config.micro_batch_tokens)

    def load(self, name: str, path: Path, **options: Any) -> None:
        self.rank.load(name, path, **options)

    def unload(self, name: str) -> None:
        self.rank.unload(name)

    def save(self, name: str, folder: Path) -> None:
        self.rank.save(name, folder)

    def step(self, name: str, samples: list[Sample], loss: Any, **options: Any) -> dict[str, float]:
        return self.rank.step(name, SampleBatch.of(samples), loss, **options)

    def values(self, name: str, sequences: list[TokenSequence]) -> list[np.ndarray]:
        if not sequences:
            return []
        batch = SampleBatch.of_sequences(sequences)
        return batch.split(self.rank.score(name, batch)[0])
