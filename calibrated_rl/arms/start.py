"""Start: the policy that every arm starts from, evaluated as it is."""

from typing import TYPE_CHECKING

from calibrated_rl.config.arms import Arm, ArmStyle

if TYPE_CHECKING:
    from calibrated_rl.training.arm_run import ArmRun
    from calibrated_rl.training.training_run import TrainingRun


class Start(Arm["TrainingRun", "ArmRun"]):
    """No update at all."""

    name = "start"
    style = ArmStyle("start", "the checkpoint that every arm starts from", "#8A8A8A", "o")
    order = 0
    meets = "nobody"
    runs_rollouts = False

    def train(self, run: "TrainingRun", seed: int) -> "ArmRun":
        return run.begin(self.name, seed)
