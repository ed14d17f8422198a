"""Oracle: interactive RL with humans of the training population themselves; only where humans are scripted.

The loop stands in full here and in ``interactive.py``, which differs in the user: an arm is read in one file.
"""

from typing import TYPE_CHECKING

from calibrated_rl.config.arms import Arm, ArmStyle

if TYPE_CHECKING:
    from calibrated_rl.training.arm_run import ArmRun
    from calibrated_rl.training.training_run import TrainingRun


class Oracle(Arm["TrainingRun", "ArmRun"]):
    """Trains with the scripted human; its replies are counted as human turns."""

    name = "oracle"
    style = ArmStyle("oracle", "against humans of the training population", "#009E73", "*")
    order = 8
    compared_with = ("calibrated",)
    meets = "human"

    def train(self, run: "TrainingRun", seed: int) -> "ArmRun":
        user = run.inputs.human
        assert user is not None, "the config check admits this arm only with a scripted human"
        arm = run.begin(self.name, seed)
        while arm.running:
            measurement = arm.measure(user)
            batch = arm.collect(user)
            groups = arm.store(batch)
            credited = arm.advantages(groups)
            metrics = arm.step(credited, measurement)
            arm.sync()
            arm.log_update(batch, groups, credited, metrics)
            arm.checkpoint()
        arm.measure(user)
        return arm
