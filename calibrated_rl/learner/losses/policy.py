"""What all policy-gradient losses share: settings, the penalty terms, and how tokens are averaged."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from calibrated_rl.errors import UserError
from calibrated_rl.learner.losses.base import Loss, LossInputs, LossOutput
from calibrated_rl.learner.losses.correction import Correction


def k3(target: Tensor, sampled: Tensor) -> Tensor:
    """Estimates ``KL(sampled ‖ target)`` from tokens drawn from ``sampled``: ``e^d − 1 − d`` with
    ``d = log target − log sampled``; unbiased, never negative (Schulman 2020, "Approximating KL
    divergence")."""
    difference = target - sampled
    return torch.expm1(difference) - difference


def token_mean(inputs: LossInputs, values: Tensor) -> Tensor:
    """Every token of the step counts alike (DAPO, arXiv 2503.14476, eq. 8)."""
    return values.sum() / inputs.totals.tokens


def sequence_mean(inputs: LossInputs, values: Tensor) -> Tensor:
    """Every sequence of the step counts alike: the mean over its tokens, then over sequences."""
    return (inputs.per_sequence(values) / inputs.sequence_lengths()).sum() / inputs.totals.sequences


class PolicyLoss(Loss):
    """A policy-gradient loss: its surrogate, plus ``β · KL`` to the reference, minus an entropy bonus."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        kl_coefficient: float = 0.0
        """β: weight of the k3 estimate of the KL divergence to the reference."""
        entropy_coefficient: float = 0.0
        """Weight of the entropy bonus."""
        correction: Correction.Config = field(default_factory=Correction.Config)
        """How the step from sampling engine to learner is corrected."""

    def __init__(self, config: Config) -> None:
        if config.kl_coefficient < 0:
            raise UserError("kl_coefficient must not be negative")
        self.correction = Correction(config.correction)
        self.needs_reference = config.kl_coefficient > 0
        self.entropy_gradient = config.entropy_coefficient != 0
        self._kl_coefficient = config.kl_coefficient
        self._entropy_coefficient = config.entropy_coefficient

    def importance(self, inputs: LossInputs) -> Tensor:
        """[N] weights from the sampling engine to the learner before the update."""
        assert self.correction is not None
        return self.correction.weights(inputs.old_logprobs, inputs.sampler_logprobs)

    def penalties(self, inputs: LossInputs) -> Tensor:
        """[N] ``β · KL − bonus · entropy``, to be averaged the way the surrogate is."""
        values = torch.zeros_like(inputs.logprobs)
        if self._kl_coefficient:
            assert inputs.reference_logprobs is not None, "a KL penalty needs reference log-probs"
            values = values + self._kl_coefficient * k3(inputs.reference_logprobs, inputs.logprobs)
        if self._entropy_coefficient:
            values = values - self._entropy_coefficient * inputs.entropy
        return values


def clip_shares(
    ratio: Tensor, advantages: Tensor, low: float, high: float
) -> dict[str, tuple[Tensor, Tensor | float]]:
    """How often clipping ``ratio`` to ``[1 − low, 1 + high]`` took the gradient away, on either side."""
    count = float(ratio.numel())
    return {
        "clip_low_share": (((ratio < 1 - low) & (advantages < 0)).sum(), count),
        "clip_high_share": (((ratio > 1 + high) & (advantages > 0)).sum(), count),
    }


__all__ = [
    "LossInputs", "LossOutput", "PolicyLoss", "clip_shares", "k3", "sequence_mean", "token_mean",
]  # fmt: skip
