"""Supervised fine-tuning: weighted negative log-likelihood.

``L = −Σ w log π / Σ w`` over the scored tokens of the step. With density ratios as weights this is
self-normalised importance sampling: the likelihood under another distribution of histories.
"""

from dataclasses import dataclass

from calibrated_rl.learner.losses.base import Loss, LossInputs, LossOutput


class SFT(Loss):
    """Weighted negative log-likelihood."""

    policy_gradient = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, inputs: LossInputs) -> LossOutput:
        return LossOutput(loss=-(inputs.weights * inputs.logprobs).sum() / max(inputs.totals.weight, 1e-12))
