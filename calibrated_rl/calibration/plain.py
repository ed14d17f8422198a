"""Calibration by supervised fine-tuning on human turns as they were logged, with equal weights.

The alignment of "From Static Context to Calibrated Interactive RL" (arXiv 2605.26403). It does not see that the
policy moves: repeated during training, it gives the same simulator again unless there are further human turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from calibrated_rl.calibration.base import CalibrationInputs, CalibrationMethod
from calibrated_rl.calibration.sft import fine_tune, log_samples, sample_items
from calibrated_rl.data.dialogue import Side
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import SIMULATOR


class PlainSFT(CalibrationMethod):
    """Restarts from the uncalibrated simulator: continuing from the last alignment would only overfit the logs."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Nothing to set."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def align(self, inputs: CalibrationInputs) -> dict[str, float]:
        samples, monitor, metrics = self.samples_to_fit(inputs)
        fit = fine_tune(
            inputs.learner, SIMULATOR, inputs.base, samples, monitor, inputs.sft, inputs.folder, inputs.seed,
            inputs.progress,
        )  # fmt: skip
        return metrics | {"simulator_monitor_nll": fit["nll_after"]}

    def samples_to_fit(self, inputs: CalibrationInputs) -> tuple[Sequence[Sample], Sequence[Sample], dict[str, float]]:
        """Human turns to fit (logged and gathered), logged turns for early stopping, and metrics to log."""
        samples, monitor = (
            log_samples(logs, Side.USER, inputs.simulator_chat) for logs in (inputs.logs, inputs.monitor)
        )
        subset = sample_items(samples, inputs.sft.most_dialogues, inputs.seed)
        return [*subset, *(turn.sample for turn in inputs.extra)], monitor, {}
