"""Calibrated, on-policy: each re-calibration also learns from human replies on the policy's own histories."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calibrated_rl.arms.calibrated import Calibrated
from calibrated_rl.config.arms import ArmStyle

if TYPE_CHECKING:
    from calibrated_rl.calibration.base import ExtraTurn
    from calibrated_rl.training.arm_run import ArmRun
    from calibrated_rl.training.training_run import TrainingRun


class CalibratedOnPolicy(Calibrated):
    """Asks humans of the training population ``calibration.human_turns`` times at each re-calibration."""

    name = "calibrated_on_policy"
    style = ArmStyle("calibrated, on-policy", "and humans answer the policy's own histories", "#332288", "P")
    order = 6
    compared_with = ("calibrated", "calibrated_more_logs")
    asks_humans = True

    def further_turns(self, run: "TrainingRun", arm: "ArmRun", update: int) -> "Sequence[ExtraTurn]":
        from calibrated_rl.training.simulator_calibration import ask_humans

        latest = run.cluster.store.rollouts_of(self.name, update - 1)
        requested = run.inputs.config.calibration.human_turns
        return ask_humans(run.inputs, run.models, latest, requested, arm.seed * 1000 + update)
