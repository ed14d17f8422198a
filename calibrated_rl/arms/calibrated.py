"""Calibrated interactive RL: the simulator is aligned with human logs before and *during* training.

One update is: *calibrate* if it is due, *measure* how far training with this simulator is from real dialogues (every
``shift.every`` updates), *collect* groups of dialogues with it, *store* them, give *credit*, *step* the learner, *sync*
the replicas. The simulator is aligned again because the policy has moved: every ``calibration.every`` updates, or when
what was measured says that it is time (``calibration.trigger``). How, is up to ``calibration.method``; by default from
its uncalibrated base, on the same human turns, each weighted by how often the *current* policy would reach its history
(density ratio, clipped), stopping on the monitor split. Nothing of the held-out humans is seen. Where the method fits
several simulators (``calibration/ensemble.py``), each update meets the next of them.

Arms derived from this one add further human turns to each re-calibration (``further_turns``) or leave it out.

After "From Static Context to Calibrated Interactive RL" (arXiv 2605.26403), which aligns once.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from calibrated_rl.config.arms import Arm, ArmStyle

if TYPE_CHECKING:
    from calibrated_rl.calibration.base import ExtraTurn
    from calibrated_rl.training.arm_run import ArmRun
    from calibrated_rl.training.training_run import TrainingRun


class Calibrated(Arm["TrainingRun", "ArmRun"]):
    """Trains with a simulator that is kept aligned."""

    name = "calibrated"
    style = ArmStyle("calibrated", "simulator calibrated again and again", "#0072B2", "^")
    order = 5
    compared_with: ClassVar[Sequence[str]] = ("interactive", "static", "cloned", "calibrated_once")
    calibrates: ClassVar[Literal["never", "once", "again"]] = "again"

    def further_turns(self, run: "TrainingRun", arm: "ArmRun", update: int) -> "Sequence[ExtraTurn]":
        """Human turns beside the logs that the re-calibration before ``update`` adds to those of earlier ones."""
        return ()

    def train(self, run: "TrainingRun", seed: int) -> "ArmRun":
        arm = run.begin(self.name, seed)
        again = self.calibrates == "again"
        user = run.simulator.pool
        further: list[ExtraTurn] = []
        for alignment in arm.calibration.schedule.state.alignments:  # done before the arm was stopped
            further += self.further_turns(run, arm, alignment.update)
        arm.calibration.before_training(again=again)
        while arm.running:
            if again and arm.updates and arm.calibration.due():
                further += self.further_turns(run, arm, arm.updates)
                arm.calibration.realign(further)
            arm.calibration.serve_member()
            measurement = arm.measure(user)
            batch = arm.collect(user, until=arm.calibration.next_change(again=again))
            groups = arm.store(batch)
            credited = arm.advantages(groups, arm.calibration.penalties(groups))
            metrics = arm.step(credited, measurement)
            arm.sync()
            arm.log_update(batch, groups, credited, metrics)
            arm.checkpoint()
        arm.measure(user)
        arm.human_turns += len(further) + (arm.calibration.human_turns if again else 0)
        return arm
