"""Calibration on human turns that count as often as the *current* policy would reach their histories.

Before training that is ``PlainSFT``. Afterwards every logged human turn, of the calibration and of the monitor
split, is weighted by the clipped density ratio of its history (``density_ratio.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from calibrated_rl.calibration.base import CalibrationInputs
from calibrated_rl.calibration.density_ratio import history_weights
from calibrated_rl.calibration.plain import PlainSFT
from calibrated_rl.calibration.sft import log_samples, some_of
from calibrated_rl.dialogue import Dialogue, Side
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import POLICY
from calibrated_rl.settings import Range


class WeightedSFT(PlainSFT):
    """Supervised fine-tuning with density ratios."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """How far the weights may go."""

        ratio_clip: Annotated[float, Range(at_least=1)] = 5.0
        """Largest density ratio of a logged history under the current policy."""

    def __init__(self, config: Config) -> None:
        self.clip = config.ratio_clip

    def chosen(self, inputs: CalibrationInputs) -> tuple[Sequence[Sample], Sequence[Sample], dict[str, float]]:
        if inputs.update == 0:
            return super().chosen(inputs)
        logs = some_of(answered(inputs.logs), inputs.sft.most_dialogues, inputs.seed * 1000 + inputs.update)
        monitored = answered(inputs.monitor)
        samples, share = self.weighted(inputs, logs)
        monitor, _ = self.weighted(inputs, monitored[: inputs.sft.most_monitored or len(monitored)])
        return samples, monitor, {"calibration_effective_share": share}

    def weighted(self, inputs: CalibrationInputs, logs: Sequence[Dialogue]) -> tuple[list[Sample], float]:
        """Human turns of ``logs`` with density-ratio weights, and the effective share of them."""
        samples = log_samples(logs, Side.USER, inputs.simulator_chat)
        views = [sample.tokens for sample in log_samples(logs, Side.POLICY, inputs.policy_chat)]
        weights, share = history_weights(
            views,
            inputs.learner.log_probs(POLICY, views),
            inputs.log_probs_at_start(logs),
            [sample.tokens for sample in samples],
            self.clip,
        )
        return [Sample(tokens=s.tokens, token_weights=w) for s, w in zip(samples, weights, strict=True)], share


def answered(logs: Sequence[Dialogue]) -> list[Dialogue]:
    """Logs in which both sides have spoken."""
    spoken = ({turn.side for turn in log.turns[1:]} for log in logs)
    return [log for log, sides in zip(logs, spoken, strict=True) if len(sides) == 2]
