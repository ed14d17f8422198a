"""Calibration on human turns that count as often as the *current* policy would reach their histories.

Before training that is ``PlainSFT``. Afterwards every human turn, of the calibration and of the monitor split and of
those gathered during training, is weighted by the density ratio of its history (``density_ratio.py``): the current
policy, at the temperature with which it speaks, over the one that spoke. Their mean weight is 1 at every turn of the
dialogue, in the logs and in what was gathered at each update alike: a gathered turn counts on average as much as a
logged one.

The logged policy is known by a clone. Which one, ``folds`` says:

- 0: the policy that training starts from, which was cloned from these logs (``policy.warm_start``). The current policy
  comes from it, and what both have learned by heart cancels: before the first update all ratios are 1 (at temperature
  1, at which the clone was fitted).
- 2 and more: clones that were not fitted to the log they score (cross-fitting). Needed where the start is no clone, and
  right where it has learned its logs by heart: then the ratio at a logged turn is too near to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.base import CalibrationInputs, ExtraTurn
from calibrated_rl.calibration.density_ratio import LOGS, Weighted, history_weights
from calibrated_rl.calibration.plain import PlainSFT
from calibrated_rl.calibration.sft import log_samples, log_view, sample_items
from calibrated_rl.data.dialogue import Dialogue, Side
from calibrated_rl.errors import UserError
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import POLICY
from calibrated_rl.settings.fields import Range

KEYS = "calibration.method_config"


class WeightedSFT(PlainSFT):
    """Supervised fine-tuning with density ratios.

    Raises:
        UserError: a single fold.
    """

    weighs_logs: ClassVar[bool] = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """How far the weights may go, and what they are of."""

        ratio_clip: Annotated[float, Range(at_least=1)] = 5.0
        """Largest weight of a turn, at least 1 (all weights are 1)."""
        temper: Annotated[float, Range(above=0, at_most=1)] = 1.0
        """Power of the ratio, above 0 and at most 1: less evens the weights out."""
        window: Annotated[int, Range(at_least=0)] = 0
        """How many of the policy's last turns before a human turn the ratio has; 0: all."""
        folds: Annotated[int, Range(at_least=0)] = 0
        """Clones of the logged policy, each fitted to the logs of the other folds; 0: the policy's warm start stands
        for it. They are fitted once a run, before the simulator is first aligned again."""

    def __init__(self, config: Config) -> None:
        self.settings = config
        if config.folds == 1:
            raise UserError(
                f"{KEYS}.folds is 1: a clone that has not seen a log needs at least 2 folds; 0: the policy's start"
            )

    def check(self, start_epochs: int) -> None:
        if start_epochs == 0 and not self.settings.folds:
            raise UserError(
                "policy.warm_start.epochs is 0, so the policy that training starts from is no clone of the logged one, "
                f"and logs cannot be weighted by it: set {KEYS}.folds=2 (clones are fitted), calibration.every=0 "
                "(aligned once) or calibration.method=calibrated_rl.calibration.plain:PlainSFT (without weights)"
            )

    def samples_to_fit(self, inputs: CalibrationInputs) -> tuple[Sequence[Sample], Sequence[Sample], dict[str, float]]:
        if inputs.update == 0:
            return super().samples_to_fit(inputs)
        logs = sample_items(answered(inputs.logs), inputs.sft.most_dialogues, inputs.seed * 1000 + inputs.update)
        samples, weighted = self.weighted(inputs, logs, inputs.extra)
        monitor, _ = self.weighted(inputs, _monitored(inputs))
        return samples, monitor, weighted.metrics()

    def effective_share(self, inputs: CalibrationInputs) -> float:
        return self.weighted(inputs, _monitored(inputs))[1].effective_share

    def weighted(
        self, inputs: CalibrationInputs, logs: Sequence[Dialogue], extra: Sequence[ExtraTurn] = ()
    ) -> tuple[list[Sample], Weighted]:
        """Human turns of ``logs`` and ``extra`` with density-ratio weights."""
        samples = [*log_samples(logs, Side.USER, inputs.simulator_chat), *(turn.sample for turn in extra)]
        views = [log_view(log, Side.POLICY, inputs.policy_chat) for log in logs]
        views += [turn.policy for turn in extra]
        from_logs = [turn.log for turn in extra if turn.spoken is None and turn.log is not None]
        logged_logprobs = self._logged(inputs, [*logs, *from_logs])
        spoken_logprobs, gathered_logprobs = logged_logprobs[: len(logs)], iter(logged_logprobs[len(logs) :])
        spoken_logprobs += [next(gathered_logprobs) if turn.spoken is None else turn.spoken for turn in extra]
        config = self.settings
        weights = history_weights(
            views, inputs.learner.log_probs(POLICY, views, inputs.temperature), spoken_logprobs,
            [sample.tokens for sample in samples], clip=config.ratio_clip, temper=config.temper, window=config.window,
            sources=[LOGS] * len(logs) + [turn.source for turn in extra],
        )  # fmt: skip
        return [replace(s, token_weights=w) for s, w in zip(samples, weights.tokens, strict=True)], weights

    def _logged(self, inputs: CalibrationInputs, logs: Sequence[Dialogue]) -> list[NDArray[np.float32]]:
        if self.settings.folds:
            return inputs.log_probs_cross_fitted(logs, self.settings.folds)
        return inputs.log_probs_at_start(logs)


def _monitored(inputs: CalibrationInputs) -> list[Dialogue]:
    """The monitor logs on which epochs are evaluated."""
    logs = answered(inputs.monitor)
    return logs[: inputs.sft.most_monitored or len(logs)]


def answered(logs: Sequence[Dialogue]) -> list[Dialogue]:
    """Logs in which both sides have spoken."""
    spoken = ({turn.side for turn in log.turns[1:]} for log in logs)
    return [log for log, sides in zip(logs, spoken, strict=True) if len(sides) == 2]
