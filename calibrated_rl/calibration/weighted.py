"""Calibration on human turns that count as often as the *current* policy would reach their histories.

Before training that is ``PlainSFT``. Afterwards every logged human turn, of the calibration and of the monitor
split, is weighted by the clipped density ratio of its history (``density_ratio.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.base import CalibrationInputs
from calibrated_rl.calibration.density_ratio import history_weights
from calibrated_rl.calibration.plain import PlainSFT
from calibrated_rl.calibration.sft import log_samples, some_of
from calibrated_rl.dialogue import Dialogue, Side, Split, TokenSequence
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import POLICY, START


class WeightedSFT(PlainSFT):
    """Supervised fine-tuning with density ratios."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """How far the weights may go."""

        ratio_clip: float = 5.0
        """Largest density ratio of a logged history under the current policy."""

    def __init__(self, config: Config) -> None:
        self.clip = config.ratio_clip
        self._under_start: dict[tuple[Split, str], NDArray[np.float32]] = {}
        """Log-probs [T] of logged policy turns under the start, by split and id: a run starts from one policy."""

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
            self._logged(inputs.learner, logs, views),
            [sample.tokens for sample in samples],
            self.clip,
        )
        return [Sample(tokens=s.tokens, token_weights=w) for s, w in zip(samples, weights, strict=True)], share

    def _logged(
        self, learner: LearnerGroup, logs: Sequence[Dialogue], views: Sequence[TokenSequence]
    ) -> list[NDArray[np.float32]]:
        """Log-probs of the policy's logged turns under ``START``, each asked for once in a run."""
        keys = [(log.scenario.split, log.id) for log in logs]
        new = {key: view for key, view in zip(keys, views, strict=True) if key not in self._under_start}
        self._under_start |= dict(zip(new, learner.log_probs(START, list(new.values())), strict=True))
        return [self._under_start[key] for key in keys]


def answered(logs: Sequence[Dialogue]) -> list[Dialogue]:
    """Logs in which both sides have spoken."""
    spoken = ({turn.side for turn in log.turns[1:]} for log in logs)
    return [log for log, sides in zip(logs, spoken, strict=True) if len(sides) == 2]
