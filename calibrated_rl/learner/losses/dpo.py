"""DPO: preferences without a reward model.

``L = −mean_pairs w log σ(β [(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)])`` (arXiv
2305.18290, eq. 7). Samples come in pairs, the chosen one first; log-probs are sums over a sequence's scored
tokens; ``w`` is the weight of the chosen sample, 1 unless said otherwise.

``sft_coefficient`` α adds ``−α mean_pairs log π(chosen) / |chosen|``, the likelihood of the chosen sequences, each
divided by its length (Pang et al., "Iterative Reasoning Preference Optimization", arXiv 2404.19733, eq. 1): DPO alone
may lower it, as long as that of the rejected ones falls faster. It has no weight: a pair of weight 0 prefers nothing,
and its chosen sequence is learned from all the same.
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
    reads_weights = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        beta: Annotated[float, Range(above=0)] = 0.1
        """Strength of the pull towards the reference; higher stays closer."""
        sft_coefficient: Annotated[float, Range(at_least=0)] = 0.0
        """α: weight of the likelihood of the chosen sequences."""

    def __init__(self, config: Config) -> None:
        check_settings(config, "loss_config")
        self.config = config

    def __call__(self, inputs: LossInputs) -> LossOutput:
        assert inputs.count % 2 == 0, "a pair lost one of its sequences"
        assert inputs.reference_logprobs is not None, "DPO needs reference log-probs"
        gains = inputs.per_sequence(inputs.logprobs - inputs.reference_logprobs)
        lengths = inputs.sequence_lengths()
        margins = self.config.beta * (gains[0::2] - gains[1::2])
        weights = (inputs.per_sequence(inputs.weights) / lengths)[0::2]
        values = -weights * logsigmoid(margins)
        if self.config.sft_coefficient:
            values = values - self.config.sft_coefficient * (inputs.per_sequence(inputs.logprobs) / lengths)[0::2]
        total = weights.sum()
        return LossOutput(
            loss=values.sum() / (inputs.totals.sequences / 2),
            means={
                "preference_accuracy": ((weights * (margins > 0)).sum(), total),
                "preference_margin": ((weights * margins.detach()).sum(), total),
            },
        )
