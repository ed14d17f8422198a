"""GSPO: one ratio for a whole sequence, clipped as a whole.

``s_i = (π(y_i) / π_old(y_i))^{1/|y_i|} = exp(mean_t log ρ_t)``, ``L = −1/S Σ_i w_i · min(s_i A_i, clip(s_i,
1 − ε_low, 1 + ε_high) A_i) + β · KL`` (arXiv 2507.18071, eqs. 5, 7). The importance correction is taken the same way,
``w_i = (π_old(y_i) / π_engine(y_i))^{1/|y_i|}``, so that ``w_i s_i`` is the ratio of the policy now to the engine that
sampled; bounds of the correction apply to it (``truncate``), or to single tokens before (``mask``).
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from calibrated_rl.learner.losses.policy import Clip, ClippedLoss, LossInputs, LossOutput, clip_shares, sequence_mean
from calibrated_rl.settings.fields import Range


class GSPO(ClippedLoss):
    """Group sequence policy optimisation."""

    turn_credit = False  # its ratio, and so its credit, is that of a whole sequence

    @dataclass(frozen=True, kw_only=True)
    class Config(ClippedLoss.Config):
        clip_low: Clip = 3e-4
        """ε_low, above 0; far smaller than for tokens, because a mean over tokens varies less."""
        clip_high: Annotated[float, Range(above=0)] = 4e-4
        """ε_high, above 0."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config = config

    def __call__(self, inputs: LossInputs) -> LossOutput:
        low, high = self.config.clip_low, self.config.clip_high
        lengths = inputs.sequence_lengths()
        ratio = torch.exp(inputs.per_sequence(inputs.logprobs - inputs.old_logprobs) / lengths)
        advantages = inputs.per_sequence(inputs.advantages) / lengths
        assert self.correction is not None
        old_mean, sampler_mean = (
            inputs.per_sequence(v) / lengths for v in (inputs.old_logprobs, inputs.sampler_logprobs)
        )
        importance = self.correction.weights(old_mean, sampler_mean)
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
        loss = -(importance * surrogate).sum() / inputs.totals.sequences
        return LossOutput(
            loss=loss + sequence_mean(inputs, self.penalties(inputs)),
            means=clip_shares(ratio.detach(), advantages, low, high),
        )
