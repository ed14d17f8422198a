"""REINFORCE on whole sequences; with the advantage ``rloo`` it is REINFORCE leave-one-out.

``L = −1/S Σ_i A_i Σ_t w_t log π(y_{i,t}) + β · KL`` (Williams 1992; arXiv 2402.14740, eqs. 6 and 7). A
sequence's log-prob is a sum over its tokens: lengths are not divided out. Nothing is clipped, so it is
meant for one optimizer step a batch.
"""

from dataclasses import dataclass

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
        values = -self.importance(inputs) * inputs.advantages * inputs.logprobs + self.penalties(inputs)
        return LossOutput(loss=values.sum() / inputs.totals.sequences)
