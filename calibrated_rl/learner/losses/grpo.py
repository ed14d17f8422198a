"""GRPO: the clipped surrogate of PPO with the advantage of a group.

``L = −mean[ w · min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) ] + β · KL``, ``ρ = π / π_old`` (DeepSeekMath,
arXiv 2402.03300, eq. 3; sequence mean). ``clip_high > clip_low`` is the clip-higher of DAPO, and
``aggregation: token`` its token mean (arXiv 2503.14476, eqs. 8 and 10). ``w`` is the importance correction.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from calibrated_rl.learner.losses.policy import (
    ClippedLoss,
    LossInputs,
    LossOutput,
    clip_shares,
    sequence_mean,
    token_mean,
)  # fmt: skip


class GRPO(ClippedLoss):
    """Group-relative policy optimisation, with the variants of DAPO."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ClippedLoss.Config):
        aggregation: Literal["token", "sequence"] = "token"
        """``token``: all tokens count alike; ``sequence``: all sequences do."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config = config

    def __call__(self, inputs: LossInputs) -> LossOutput:
        low, high = self.config.clip_low, self.config.clip_high
        ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
        surrogate = torch.minimum(ratio * inputs.advantages, ratio.clamp(1 - low, 1 + high) * inputs.advantages)
        values = -self.importance(inputs) * surrogate + self.penalties(inputs)
        mean = token_mean if self.config.aggregation == "token" else sequence_mean
        return LossOutput(loss=mean(inputs, values), means=clip_shares(ratio.detach(), inputs.advantages, low, high))
