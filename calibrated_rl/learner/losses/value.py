"""Regression of a value head on returns: the mean squared error.

``L = Σ w (v − G)² / n`` over the ``n`` scored tokens of the step, for predictions ``v`` and targets ``G``.
"""

from dataclasses import dataclass

from calibrated_rl.learner.losses.base import Loss, LossInputs, LossOutput


class ValueRegression(Loss):
    """Weighted mean squared error of a value head."""

    policy_gradient = False
    reads_weights = True
    reads_values = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, inputs: LossInputs) -> LossOutput:
        assert inputs.values is not None and inputs.targets is not None
        errors = (inputs.values - inputs.targets).square()
        return LossOutput(
            loss=(inputs.weights * errors).sum() / max(inputs.totals.tokens, 1),
            means={"value_error": (errors.detach().sum(), float(errors.numel()))},
        )
