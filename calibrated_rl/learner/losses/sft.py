"""Supervised fine-tuning: weighted negative log-likelihood.

``L = −Σ w log π / n`` over the ``n`` scored tokens of the step. With density ratios of mean one as weights this is
importance sampling: the likelihood under another distribution of histories. Dividing by ``Σ w`` of each step
instead would give a step of small ratios as much say as one of large ones.
"""

from dataclasses import dataclass

from calibrated_rl.learner.losses.base import Loss, LossInputs, LossOutput


class SFT(Loss):
    """Weighted negative log-likelihood."""

    policy_gradient = False
    reads_weights = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=-(inputs.weights * inputs.logprobs).sum() / max(inputs.totals.tokens, 1))
