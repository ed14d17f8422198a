"""REINFORCE on whole sequences; with the advantage ``rloo`` it is REINFORCE leave-one-out.

``L = −1/S Σ_i A_i Σ_t w_t sg(ρ_t) log π(y_{i,t}) + β · KL`` (Williams 1992; arXiv 2402.14740, eqs. 6 and 7). A
sequence's log-prob is a sum over its tokens: lengths are not divided out. ``ρ_t = π / π_old``, without gradient, is 1
at the first optimizer step of an update; at further ones (``minibatches``) it weighs for their tokens having been drawn
from the policy before the update. It is that of each token: the product over a sequence would be exact, and vary too
much to be of use. Nothing is clipped, so it is meant for few optimizer steps a batch.
"""

from dataclasses import dataclass

import torch

from calibrated_rl.learner.losses.policy import LossInputs, LossOutput, PolicyLoss


class Reinforce(PolicyLoss):
    """REINFORCE; the baseline is already in the advantages."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PolicyLoss.Config):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config = config

    def __call__(self, inputs: LossInputs) -> LossOutput:
        ratio = torch.exp(inputs.logprobs.detach() - inputs.old_logprobs)
        credit = self.importance(inputs) * ratio * inputs.advantages
        values = -credit * inputs.logprobs + self.penalties(inputs)
        return LossOutput(loss=values.sum() / inputs.totals.sequences)
