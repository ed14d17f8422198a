"""Dr. GRPO: GRPO without the two biases of its means.

``L = −1/(S · C) Σ_i Σ_t w · min(ρ A, clip(ρ) A) + β · KL`` with a constant ``C`` in place of each
sequence's own length, so that long wrong answers are not favoured (arXiv 2503.20783, section 3.2; its code
divides by the generation budget). The other half of its definition is in the advantages, which must not be divided by
the group's deviation: ``dr_grpo``, or ``rloo``, which is the same up to the factor n / (n − 1) (its section 3.2). With
other advantages it is refused.
"""

from dataclasses import dataclass

import torch

from calibrated_rl.learner.losses.policy import ClippedLoss, LossInputs, LossOutput, clip_shares
from calibrated_rl.settings.fields import Positive


class DrGRPO(ClippedLoss):
    """GRPO done right: a sum over tokens divided by a constant."""

    advantages = ("dr_grpo", "rloo")

    @dataclass(frozen=True, kw_only=True)
    class Config(ClippedLoss.Config):
        max_tokens: Positive = 256
        """C: most tokens that the policy may speak in a dialogue. It only scales the loss."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config = config

    def __call__(self, inputs: LossInputs) -> LossOutput:
        low, high = self.config.clip_low, self.config.clip_high
        ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
        surrogate = torch.minimum(ratio * inputs.advantages, ratio.clamp(1 - low, 1 + high) * inputs.advantages)
        values = -self.importance(inputs) * surrogate + self.penalties(inputs)
        return LossOutput(
            loss=values.sum() / (inputs.totals.sequences * self.config.max_tokens),
            means=clip_shares(ratio.detach(), inputs.advantages, low, high),
        )
