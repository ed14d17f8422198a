"""DPO: preferences without a reward model.

``L = −mean_pairs log σ(β [(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)])`` (arXiv
2305.18290, eq. 7). Samples come in pairs, the chosen one first; log-probs are sums over a sequence's scored
tokens.
"""

from dataclasses import dataclass
from typing import Annotated

from torch.nn.functional import logsigmoid

from calibrated_rl.learner.losses.base import Loss, LossInputs, LossOutput
from calibrated_rl.settings.fields import Range, check_settings


class DPO(Loss):
    """Direct preference optimisation."""

    unit = 2
    needs_reference = True
    policy_gradient = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        beta: Annotated[float, Range(above=0)] = 0.1
        """Strength of the pull towards the reference; higher stays closer."""

    def __init__(self, config: Config) -> None:
        check_settings(config, "loss_config")
        self.config = config

    def __call__(self, inputs: LossInputs) -> LossOutput:
        assert inputs.count % 2 == 0, "a pair lost one of its sequences"
        assert inputs.reference_logprobs is not None, "DPO needs reference log-probs"
        gains = inputs.per_sequence(inputs.logprobs - inputs.reference_logprobs)
        margins = self.config.beta * (gains[0::2] - gains[1::2])
        pairs = float(margins.numel())
        return LossOutput(
            loss=-logsigmoid(margins).sum() / (inputs.totals.sequences / 2),
            means={
                "preference_accuracy": ((margins > 0).sum(), pairs),
                "preference_margin": (margins.detach().sum(), pairs),
            },
        )
