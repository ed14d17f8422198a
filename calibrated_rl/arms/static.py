"""Static context RL: on a logged history the policy says one turn; nobody answers.

A turn that closes the dialogue earns the task's (or the judge's) reward for the logged user's goal; any other turn
earns ``Q(history, turn)``, frozen models fitted on the returns of the calibration logs (``training.turn_value``), of
which none has seen the dialogue that the history is from, unless a single one is asked for. Suffers the
policy-induced shift: the histories are those of the logged policy.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.config.arms import Arm, ArmStyle
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Split, Turn

if TYPE_CHECKING:
    from calibrated_rl.training.arm_run import ArmRun
    from calibrated_rl.training.quota import Members
    from calibrated_rl.training.training_run import TrainingRun


def logged_histories(logs: Sequence[Dialogue]) -> list[tuple[Scenario, tuple[Turn, ...]]]:
    """Every point of ``logs`` at which the policy spoke."""
    return [
        (log.scenario, log.turns[:index])
        for log in logs
        for index, turn in enumerate(log.turns)
        if index and turn.side is Side.POLICY
    ]


class Static(Arm["TrainingRun", "ArmRun"]):
    """Trains on logged histories alone."""

    name = "static"
    style = ArmStyle("static", "one turn at a time on logged histories", "#E69F00", "s")
    order = 2
    meets = "nobody"
    learns_from_logs = True
    values_turns = True

    def train(self, run: "TrainingRun", seed: int) -> "ArmRun":
        from calibrated_rl.training.turn_reward import reward_turns
        from calibrated_rl.training.turn_value import fit_turn_value

        value, value_metrics = fit_turn_value(run)
        arm = run.begin(self.name, seed, single_turns=True)
        inputs, collector = run.inputs, run.cluster.collector
        histories = logged_histories(inputs.logs[Split.CALIBRATION])
        if not arm.updates:  # an arm that resumes has them
            arm.log(dict(value_metrics))

        def score_turns(first: int, count: int) -> "list[Members | None]":
            """Groups of single turns on the update's histories, from the number ``first`` on, with their rewards."""
            random: NDArray[np.int64] = np.random.default_rng([seed, arm.updates]).permutation(len(histories))
            groups = collector.turn_groups(
                [histories[i] for i in random[first : first + count]], group_size=inputs.config.training.group_size,
                arm=self.name, update=arm.updates, seed=seed, first=first,
            )  # fmt: skip
            return reward_turns(inputs.task, value, groups, collector.statistics, collector.judge)

        while arm.running:
            measurement = arm.measure(None)
            batch = arm.rollouts.collect_turns(score_turns)
            groups = arm.store(batch)
            credited = arm.advantages(groups)
            metrics = arm.step(credited, measurement)
            arm.sync()
            arm.log_update(batch, groups, credited, metrics)
            arm.checkpoint()
        value.close()
        arm.measure(None)
        return arm
