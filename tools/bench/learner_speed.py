"""The learner's model FLOPs utilisation (MFU), over whole optimizer steps."""

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.learner.sample import Sample
from calibrated_rl.settings.fields import NotNegative, Positive, Range
from tools.bench.base import Row, at_least, require_device
from tools.bench.made_model import MadeModel

CORRECTION = ("calibrated_rl.learner.losses.grpo:GRPO", {"correction": {"mode": "truncate"}})


class LearnerSpeed:
    """GRPO steps of one rank on a Qwen2-shaped model with random weights and sequences that share nothing."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(MadeModel):
        device: Literal["cpu", "cuda"] = "cpu"
        """``cpu`` or ``cuda``."""
        learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(micro_batch_tokens=2048))
        sequences: Positive = 64
        shortest: Positive = 256
        longest: Positive = 1024
        """Lengths in tokens, drawn uniformly; half of the tokens, in turns of 32, are the policy's."""
        warm_up: NotNegative = 1
        steps: Positive = 3
        """Their median is reported."""
        peak_tflops: Annotated[float, Range(above=0)] | None = None
        """Peak of the device, from its data sheet; none: its rate in a large product of matrices is measured."""
        goal: Annotated[float, Range(above=0)] = 0.5

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        config = self.config
        require_device(config.device)
        random = np.random.default_rng(0)
        lengths = random.integers(config.shortest, config.longest + 1, config.sequences)
        batch = SampleBatch.of(
            [
                Sample(tokens=_sequence(int(n), config.vocabulary, random), advantage=float(random.normal()))
                for n in lengths
            ]
        )
        rank = LearnerRank(config.learner)
        with tempfile.TemporaryDirectory() as folder:
            config.save_model(Path(folder), config.learner.dtype)
            rank.load("policy", folder)
        for _ in range(config.warm_up):
            rank.step("policy", batch, CORRECTION)
        seconds = []
        for _ in range(config.steps):
            self._wait()
            began = time.perf_counter()
            rank.step("policy", batch, CORRECTION)
            self._wait()
            seconds.append(time.perf_counter() - began)
        step_seconds = statistics.median(seconds)
        if config.peak_tflops is None:
            limit, limit_words = self._matmul_rate(rank), "this machine's rate in products of matrices, same dtype"
        else:
            limit, limit_words = config.peak_tflops, "the device's peak by its data sheet"
        operations = self.operations(lengths, int(batch.scored.sum())) / 1e12
        return at_least(
            operations / step_seconds, limit, config.goal,
            f"TFLOP/s of whole optimizer steps ({step_seconds:.2f} s; {len(batch.ids)} tokens in {config.sequences} "
            f"sequences of {config.shortest} to {config.longest}, {config.learner.dtype}, {config.layers} layers of "
            f"{config.hidden}, {config.vocabulary} words) against {limit_words}. Counted is what the model needs: "
            "6 operations a weight and token, causal attention, the vocabulary for scored tokens alone, nothing that "
            f"is computed again. {self._goal_words()}",
        )  # fmt: skip

    def _goal_words(self) -> str:
        return "" if self.config.peak_tflops else f"The goal of {self.config.goal:g} is this project's own choice"

    def operations(self, lengths: np.ndarray, scored: int) -> float:
        """Floating-point operations of a forward and a backward pass, none counted twice.

        A product with a weight takes 2 a token forward and 4 backward. Attention over a sequence of ``n`` tokens, with
        heads of size ``H`` together, takes ``2 · n² · H`` forward for each of its two products, of which a causal
        model needs half, and twice that backward.
        """
        config = self.config
        keys = config.hidden // config.heads * config.key_heads
        layer = 2 * config.hidden * (config.hidden + keys) + 3 * config.hidden * config.intermediate
        tokens_read = lengths.astype(np.float64) - 1
        products = 6 * config.layers * layer * tokens_read.sum()
        attention = 6 * config.layers * config.hidden * (tokens_read**2).sum()
        return float(products + attention + 6 * config.hidden * config.vocabulary * scored)

    def _wait(self) -> None:
        if self.config.device == "cuda":
            torch.cuda.synchronize()

    def _matmul_rate(self, rank: LearnerRank) -> float:
        """TFLOP/s of a product of two square matrices of 2,048 rows, the best of ten."""
        rates, size = [], 2048
        a, b = torch.randn(2, size, size, device=rank.world.device).to(getattr(torch, self.config.learner.dtype))
        for _ in range(10):
            self._wait()
            began = time.perf_counter()
            a @ b
            self._wait()
            rates.append(2 * size**3 / (time.perf_counter() - began) / 1e12)
        return max(rates)


def _sequence(length: int, vocabulary: int, random: np.random.Generator) -> TokenSequence:
    mask = np.arange(length) // 32 % 2 == 1
    mask[-1] = True
    return TokenSequence(
        ids=random.integers(0, vocabulary, length).astype(np.int32), mask=mask,
        logprobs=np.where(mask, -np.log(vocabulary), np.nan).astype(np.float32),
        versions=np.where(mask, 0, -1).astype(np.int32), turns=np.zeros(length, np.int32),
    )  # fmt: skip
