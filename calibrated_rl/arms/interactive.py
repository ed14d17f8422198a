"""Interactive RL: whole dialogues with a user model, groups of them, one policy update a batch of groups.

Suffers the simulator-induced shift: the policy learns whatever pleases this user model.
The loop stands in full here and in ``oracle.py``, which differs in the user: an arm is read in one file.
"""

from typing import TYPE_CHECKING

from calibrated_rl.config.arms import Arm, ArmStyle

if TYPE_CHECKING:
    from calibrated_rl.training.arm_run import ArmRun
    from calibrated_rl.training.training_run import TrainingRun


class Interactive(Arm["TrainingRun", "ArmRun"]):
    """Trains with the simulator as it comes."""

    name = "interactive"
    style = ArmStyle("interactive", "against the uncalibrated simulator", "#D55E00", "D")
    order = 3

    def train(self, run: "TrainingRun", seed: int) -> "ArmRun":
        arm = run.begin(self.name, seed)
        user = run.simulator.user
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
