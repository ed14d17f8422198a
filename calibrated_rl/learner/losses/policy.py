"""The shared parts of all policy-gradient losses: settings, the penalty terms, and how tokens are averaged.

The penalty is meant to keep ``KL(π ‖ ref)`` low, so its gradient must be that divergence's:
``E_π[(log π − log ref) · ∇ log π]``. With ``d = log π(y) − log ref(y)`` at a token ``y`` that ``π`` sampled, there are
three estimators of the value (Schulman 2020, "Approximating KL divergence"):

| | value | in expectation | gradient in expectation, if one differentiates it as it stands |
|---|---|---|---|
| ``k1`` | ``d`` | the divergence; single values may be negative | zero: it penalises nothing |
| ``k2`` | ``d² / 2`` | not the divergence, but near it if that is small | the divergence's |
| ``k3`` | ``e^−d − 1 + d`` | the divergence; no value is negative | that of ``KL(ref ‖ π)``, another divergence |

(arXiv 2510.01555.) Differentiated together with the probability of having sampled the token (``ρ = π / π_old``, 1 in
value before the first optimizer step; DeepSeek-V3.2, arXiv 2512.02556, eq. 7), ``ρ k1`` and ``ρ k3`` have the
divergence's gradient as well, and it is token by token the same as that of ``k2``, up to a term whose expectation is
zero and which is left out: ``ρ · d · ∇ log π``. So that is the gradient here, and the estimator decides what the value
of the loss says. After a first step, and under staleness, the tokens come from another policy than ``π``: ``ρ`` and the
importance correction ``w`` weigh for that, in the penalty as in the surrogate.

Prefixes are fixed as sampled: the effect of an update on later prefixes is left out, as in all these losses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from calibrated_rl.learner.losses.base import Loss, LossInputs, LossOutput
from calibrated_rl.learner.losses.correction import Correction
from calibrated_rl.settings.fields import Range, check_settings

Clip = Annotated[float, Range(above=0, at_most=1)]
"""How far below 1 a ratio may lie."""


def k1(target: Tensor, sampled: Tensor) -> Tensor:
    """Estimates ``KL(sampled ‖ target)`` from tokens drawn from ``sampled``: ``log sampled − log target``; unbiased in
    value."""
    return sampled - target


def k2(target: Tensor, sampled: Tensor) -> Tensor:
    """The same by ``d² / 2``: biased in value, never negative."""
    return (sampled - target).square() / 2


def k3(target: Tensor, sampled: Tensor) -> Tensor:
    """The same by ``e^−d − 1 + d``: unbiased in value, never negative."""
    difference = target - sampled
    return torch.expm1(difference) - difference


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""By the names that Schulman gave them."""


def kl_penalty(estimator: str, inputs: LossInputs) -> Tensor:
    """[N] shares of ``KL(π ‖ ref)``: in value ``ρ`` times the estimator, with the gradient ``ρ · d · ∇ log π``."""
    assert inputs.reference_logprobs is not None, "a KL penalty needs reference log-probs"
    logprobs = inputs.logprobs.detach()
    ratio = torch.exp(logprobs - inputs.old_logprobs)
    value = ESTIMATORS[estimator](inputs.reference_logprobs, logprobs)
    return ratio * (value + (logprobs - inputs.reference_logprobs) * (inputs.logprobs - logprobs))


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
        kl_coefficient: Annotated[float, Range(at_least=0)] = 0.0
        """β: weight of the KL divergence ``KL(π ‖ ref)`` to the reference."""
        kl_estimator: Literal["k1", "k2", "k3"] = "k3"
        """By which estimator the divergence enters the loss's value: `k1`, `k2` or `k3`. The gradient is the
        divergence's with all three."""
        entropy_coefficient: Annotated[float, Range(at_least=0)] = 0.0
        """Weight of the entropy bonus."""
        correction: Correction.Config = field(default_factory=Correction.Config)
        """How the step from sampling engine to learner is corrected."""

    def __init__(self, config: Config) -> None:
        check_settings(config, "loss_config")
        self.correction = Correction(config.correction)
        self.needs_reference = config.kl_coefficient > 0
        self.entropy_gradient = config.entropy_coefficient != 0
        self._kl_coefficient, self._kl_estimator = config.kl_coefficient, config.kl_estimator
        self._entropy_coefficient = config.entropy_coefficient

    def without_effect(self, settings: Mapping[str, Any], steps: int) -> list[str]:
        assert self.correction is not None
        reasons = self.correction.without_effect(settings.get("correction") or {})
        if "kl_estimator" in settings and not self._kl_coefficient:
            reasons.append("kl_estimator does nothing where kl_coefficient is 0")
        return reasons

    def importance(self, inputs: LossInputs) -> Tensor:
        """[N] weights from the sampling engine to the learner before the update."""
        assert self.correction is not None
        return self.correction.weights(inputs.old_logprobs, inputs.sampler_logprobs)

    def penalties(self, inputs: LossInputs) -> Tensor:
        """[N] ``β · w · KL − bonus · entropy``, to be averaged the way the surrogate is."""
        values = torch.zeros_like(inputs.logprobs)
        if self._kl_coefficient:
            divergence = self.importance(inputs) * kl_penalty(self._kl_estimator, inputs)
            values = values + self._kl_coefficient * divergence
        if self._entropy_coefficient:
            values = values - self._entropy_coefficient * inputs.entropy
        return values


class ClippedLoss(PolicyLoss):
    """One that clips ``ρ``, the policy now to the policy before the update, to ``[1 − ε_low, 1 + ε_high]``."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PolicyLoss.Config):
        clip_low: Clip = 0.2
        """ε_low, above 0; 1 turns the lower bound off."""
        clip_high: Annotated[float, Range(above=0)] = 0.2
        """ε_high, above 0."""

    def without_effect(self, settings: Mapping[str, Any], steps: int) -> list[str]:
        reasons = super().without_effect(settings, steps)
        if steps == 1:
            # Clipping takes place between the steps of an update: at the first one ρ is 1.
            reasons += [
                f"{key} does nothing where training.minibatches is 1"
                for key in ("clip_low", "clip_high") if key in settings
            ]  # fmt: skip
        return reasons


def clip_shares(ratio: Tensor, advantages: Tensor, low: float, high: float) -> dict[str, tuple[Tensor, Tensor | float]]:
    """How often clipping ``ratio`` to ``[1 − low, 1 + high]`` took the gradient away, on either side."""
    count = float(ratio.numel())
    return {
        "clip_low_share": (((ratio < 1 - low) & (advantages < 0)).sum(), count),
        "clip_high_share": (((ratio > 1 + high) & (advantages > 0)).sum(), count),
    }


__all__ = [
    "ClippedLoss", "LossInputs", "LossOutput", "PolicyLoss", "clip_shares", "k1", "k2", "k3", "kl_penalty",
    "sequence_mean", "token_mean",
]  # fmt: skip
