"""CISPO: the importance ratio is clipped, not the update, so that every token keeps a gradient.

``L = −mean_tokens[ w · sg(clip(ρ, 1 − ε_low, 1 + ε_high)) · A · log π ] + β · KL`` (MiniMax-M1, arXiv
2506.13585, eqs. 4 and 5), where ``sg`` stops the gradient. As there, ``ε_low = 1`` leaves small ratios
alone.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from calibrated_rl.learner.losses.policy import Clip, ClippedLoss, LossInputs, LossOutput, token_mean
from calibrated_rl.settings.fields import Range


class CISPO(ClippedLoss):
    """Clipped importance-sampling policy optimisation."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ClippedLoss.Config):
        clip_low: Clip = 1.0
        """ε_low, above 0; 1 turns the lower bound off."""
        clip_high: Annotated[float, Range(above=0)] = 1.0
        """ε_high, above 0."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config = config

    def __call__(self, inputs: LossInputs) -> LossOutput:
        low, high = 1 - self.config.clip_low, 1 + self.config.clip_high
        ratio = torch.exp(inputs.logprobs.detach() - inputs.old_logprobs)
        surrogate = ratio.clamp(low, high) * inputs.advantages * inputs.logprobs
        values = -self.importance(inputs) * surrogate + self.penalties(inputs)
        count = float(ratio.numel())
        return LossOutput(
            loss=token_mean(inputs, values),
            means={
                "clip_low_share": ((ratio < low).sum(), count),
                "clip_high_share": ((ratio > high).sum(), count),
            },
        )
