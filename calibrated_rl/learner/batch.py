"""Samples as a few long arrays, for the object store and for packing.

Shipping thousands of small Python objects takes longer than a tiny model needs to train on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.learner.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleBatch:
    """``S`` sequences laid end to end, ``L`` tokens in all."""

    ids: NDArray[np.int32]
    """[L]"""
    scored: NDArray[np.bool_]
    """[L] True for tokens that carry loss; never a sequence's first token, which has nothing before it."""
    starts: NDArray[np.int64]
    """[S + 1] sequence ``s`` is ``starts[s]:starts[s + 1]``."""
    sampler_logprobs: NDArray[np.float32]
    """[L] NaN where nothing was sampled."""
    reference_logprobs: NDArray[np.float32] | None
    """[L] NaN where not scored, or None if no sample has any."""
    token_weights: NDArray[np.float32]
    """[L] weight of the sequence times weight of the token."""
    advantages: NDArray[np.float32]
    """[S]"""
    sampled: NDArray[np.bool_]
    """[L] True where an engine sampled the token, and so must have returned its log-prob."""
    token_advantages: NDArray[np.float32] | None = None
    """[L] in the place of ``advantages``, or None if no sample has any."""
    targets: NDArray[np.float32] | None = None
    """[L] what a value head is to predict before scored tokens, or None if no sample has any."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    @property
    def sequence_of(self) -> NDArray[np.int64]:
        """[L] index of the sequence that each token belongs to."""
        return np.repeat(np.arange(len(self.starts) - 1), self.lengths)

    def split(self, flat: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Cut an array over all tokens [L] into one a sequence."""
        return np.split(flat, self.starts[1:-1])

    def not_finite(self) -> dict[int, str]:
        """Sequences with a value that must be finite and is not, and the name of that value."""
        sampler, reference = self.sampler_logprobs, self.reference_logprobs
        of_tokens = {
            "log-probs of the sampling engine": np.isinf(sampler) | (np.isnan(sampler) & self.sampled),
            "log-probs of the reference": np.zeros_like(self.scored) if reference is None else ~np.isfinite(reference),
            "weights": ~np.isfinite(self.token_weights),
            "the advantage": np.zeros_like(self.scored)
            if self.token_advantages is None
            else ~np.isfinite(self.token_advantages),
            "targets": np.zeros_like(self.scored) if self.targets is None else ~np.isfinite(self.targets),
        }
        faults: dict[int, str] = {}
        for name, broken in of_tokens.items():
            faults |= dict.fromkeys(np.unique(self.sequence_of[self.scored & broken]).tolist(), name)
        return faults | dict.fromkeys(np.flatnonzero(~np.isfinite(self.advantages)).tolist(), "the advantage")

    @property
    def weighted(self) -> bool:
        """Whether scored tokens have weights other than 1."""
        return bool((self.token_weights[self.scored] != 1).any())

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "SampleBatch":
        """Lay ``samples`` end to end."""
        assert samples, "no samples"
        tokens = [sample.tokens for sample in samples]
        starts = np.concatenate([[0], np.cumsum([len(t) for t in tokens])]).astype(np.int64)
        scored = np.concatenate([t.mask for t in tokens])
        scored[starts[:-1][np.diff(starts) > 0]] = False
        weights = np.repeat(np.asarray([s.weight for s in samples], np.float32), np.diff(starts))
        for index, sample in enumerate(samples):
            if sample.token_weights is not None:
                weights[starts[index] : starts[index + 1]] *= sample.token_weights
        return cls(
            ids=np.concatenate([t.ids for t in tokens]),
            scored=scored,
            starts=starts,
            sampler_logprobs=np.concatenate([t.logprobs for t in tokens]),
            reference_logprobs=_of_all("reference", [s.reference_logprobs for s in samples]),
            token_weights=weights,
            advantages=np.asarray([s.advantage for s in samples], np.float32),
            sampled=np.concatenate([t.versions >= 0 for t in tokens]),
            token_advantages=_of_all("token_advantages", [s.token_advantages for s in samples]),
            targets=_of_all("targets", [s.targets for s in samples]),
        )

    @classmethod
    def of_sequences(cls, sequences: Sequence[TokenSequence]) -> "SampleBatch":
        return cls.of([Sample(tokens=sequence) for sequence in sequences])


def _of_all(name: str, arrays: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    """End to end, or None if there are none."""
    given = [np.asarray(array, np.float32) for array in arrays if array is not None]
    assert len(given) in (0, len(arrays)), f"{name} for some samples only"
    return np.concatenate(given) if given else None
