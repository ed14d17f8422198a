"""Tokens that the learner computes against those that carry loss or context: the overhead of packing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.learner.attention import side_by_side
from calibrated_rl.learner.packing import EMPTY, pack
from calibrated_rl.learner.sample import Sample
from calibrated_rl.settings.fields import Positive
from tools.bench.base import Row, at_most


class LearnerPadding:
    """Packs one update's worth of sequences as the learner does, for several mixes of lengths; the worst one counts."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        sequences: Positive = 256
        longest: Positive = 4096
        """The long tail is cut here, in tokens."""
        micro_batch_tokens: Positive = 4096
        """As in ``learner.micro_batch_tokens``."""
        ranks: Positive = 2
        """A rank that has fewer micro-batches than the other computes an empty one."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        sizes_by_mix = {name: self._measure(lengths) for name, lengths in self._mixes().items()}
        worst = max(sizes_by_mix, key=lambda name: sizes_by_mix[name][0] / sizes_by_mix[name][1])
        computed_tokens, needed_tokens, slots = sizes_by_mix[worst]
        return at_most(
            computed_tokens, needed_tokens, 1.05,
            f"tokens in the micro-batches of {self.config.ranks} ranks against tokens of {self.config.sequences} "
            f"sequences up to the last scored one, nothing shared; the worst of {', '.join(sizes_by_mix)}: {worst}. "
            f"Attention that works on sequences side by side (CPU, float32) pads by "
            f"{slots / needed_tokens - 1:.0%} more",
        )  # fmt: skip

    def _mixes(self) -> dict[str, NDArray[np.int64]]:
        """Lengths of the sequences, in tokens."""
        random, count, longest = np.random.default_rng(0), self.config.sequences, self.config.longest
        tail = np.exp(random.normal(5.0, 1.0, count)).clip(4, longest).astype(np.int64)
        return {
            "20 to 500": random.integers(20, 501, count),
            "dialogues of the booking world (mean 49, deviation 17)": random.normal(49, 17, count)
            .clip(19, 93).astype(np.int64),
            "negotiations (CaSiNo, mean 617, deviation 111)": random.normal(617, 111, count)
            .clip(444, 900).astype(np.int64),
            "a long tail (log-normal, median 148)": tail,
            "half of a micro-batch and a little": np.full(count, self.config.micro_batch_tokens // 2 + 1),
            "one long among short ones": np.append(np.full(count - 1, 12), longest),
        }  # fmt: skip

    def _measure(self, lengths: NDArray[np.int64]) -> tuple[int, float, int]:
        """Tokens computed, tokens that carry loss or context, and slots in attention."""
        random = np.random.default_rng(1)
        samples = [Sample(tokens=_sequence(int(length), random), advantage=1.0) for length in lengths]
        packs = pack(samples, self.config.micro_batch_tokens, ranks=self.config.ranks)
        packs += [EMPTY] * (-len(packs) % self.config.ranks)
        slots = sum(batch.keys.numel() for packed in packs for batch in side_by_side(packed).batches)
        return sum(len(packed.input_ids) for packed in packs), float(lengths.sum()), slots


def _sequence(length: int, random: np.random.Generator) -> TokenSequence:
    mask = np.ones(length, np.bool_)
    mask[0] = False
    return TokenSequence(
        ids=random.integers(0, 2**31 - 1, length).astype(np.int32), mask=mask,
        logprobs=np.where(mask, -1.0, np.nan).astype(np.float32),
        versions=np.where(mask, 0, -1).astype(np.int32), turns=np.zeros(length, np.int32),
    )  # fmt: skip
