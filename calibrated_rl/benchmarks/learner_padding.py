"""Tokens that the learner computes against those that carry loss or context: what packing wastes."""

from dataclasses import dataclass

import numpy as np

from calibrated_rl.benchmarks.base import Row, at_most
from calibrated_rl.dialogue import TokenSequence
from calibrated_rl.learner.packing import pack
from calibrated_rl.learner.sample import Sample


class LearnerPadding:
    """Packs one update's worth of sequences as the learner does."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        sequences: int = 256
        shortest: int = 20
        longest: int = 500
        """Lengths in tokens, drawn uniformly: far from equal, as dialogues are."""
        row_tokens: int = 1024
        max_rows: int = 8
        """As in ``learner.row_tokens`` and ``learner.max_rows``."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        config, random = self.config, np.random.default_rng(0)
        lengths = random.integers(config.shortest, config.longest + 1, config.sequences)
        samples = [Sample(tokens=_sequence(int(length)), advantage=1.0) for length in lengths]
        packs = pack(samples, config.row_tokens, config.max_rows)
        computed = sum(packed.input_ids.size for packed in packs)
        return at_most(
            computed, float(lengths.sum()), 1.05,
            f"tokens in the learner's micro-batches against tokens of the {config.sequences} sequences "
            f"({config.shortest} to {config.longest} tokens) packed in them, rows of {config.row_tokens}",
        )  # fmt: skip


def _sequence(length: int) -> TokenSequence:
    mask = np.ones(length, np.bool_)
    mask[0] = False
    return TokenSequence(
        ids=np.ones(length, np.int32), mask=mask, logprobs=np.where(mask, -1.0, np.nan).astype(np.float32),
        versions=np.where(mask, 0, -1).astype(np.int32), turns=np.zeros(length, np.int32),
    )  # fmt: skip
