"""Checks that a run's logs suffice, as soon as they are read, before actors start.

Otherwise the problem would appear when a part first uses them, after engines have started and models were fitted.
"""

from collections.abc import Mapping, Sequence

from calibrated_rl.config.arms import find_arms
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import EvaluationConfig
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.errors import UserError
from calibrated_rl.run.turn_value import turn_value_method
from calibrated_rl.shift.sizes import FOLDS, least_to_halve
from calibrated_rl.tasks.base import Task

REPORTED_SCENARIOS = 3
"""Held-out scenarios whose dialogues the report shows where arms have no eval user."""


def check_logs(config: RunConfig, task: Task, logs: Mapping[Split, Sequence[Dialogue]]) -> None:
    """Refuse logs that a later part cannot work with.

    Args:
        logs: all of each split, those of ``calibration.reserve`` too.

    Raises:
        UserError: names the part, what it needs and what the logs have.
    """
    _calibration_logs(config, logs[Split.CALIBRATION])
    n_calibration = len(logs[Split.CALIBRATION]) - config.calibration.reserve
    of_all_arms = {**logs, Split.CALIBRATION: logs[Split.CALIBRATION][:n_calibration]}
    for arm in find_arms([*config.arms, *config.control_arms]):
        arm().check_logs(of_all_arms, logs[Split.CALIBRATION][n_calibration:])
        if arm.values_turns:
            turn_value_method(config).check_logs(of_all_arms)
    held_out_logs = [log for log in logs[Split.HELD_OUT][: config.evaluation.logs] if log.user_turn_indices()]
    if len(held_out_logs) < (minimum := least_to_halve(FOLDS)):
        raise UserError(
            f"the held-out split has {len(held_out_logs)} dialogues in which a user speaks, among the first "
            f"{config.evaluation.logs} (evaluation.logs): simulators are measured on random halves of them in {FOLDS} "
            f"folds, which takes at least {minimum}"
        )
    if not any(log.user_turn_indices() for log in logs[Split.MONITOR]):
        raise UserError("no user speaks in the monitor split: simulators and epochs could not be evaluated on it")
    if not config.has_eval_user:
        task.scenarios(Split.HELD_OUT, REPORTED_SCENARIOS)


def check_evaluation(task: Task, sizes: EvaluationConfig) -> None:
    """Refuse, before anything starts, evaluation settings that the task has too few scenarios for.

    Raises:
        UserError: the task does not have so many, or not that population.
    """
    for population, count in (("same", sizes.scenarios), ("shifted", sizes.shifted)):
        if count:
            task.scenarios(Split(sizes.split), count, population)


def _calibration_logs(config: RunConfig, logs: Sequence[Dialogue]) -> None:
    reserve = config.calibration.reserve
    if len(logs) <= reserve:
        raise UserError(f"calibration.reserve is {reserve}, of {len(logs)} calibration logs: no log would be left")
    for_all_arms = logs[: len(logs) - reserve]
    from_logs = any(arm.learns_from_logs for arm in find_arms([*config.arms, *config.control_arms]))
    trained_sides = [Side.USER] + ([Side.POLICY] if config.policy.warm_start.epochs or from_logs else [])
    for side in trained_sides:
        if not any(turn.side is side for log in for_all_arms for turn in log.turns[1:]):
            raise UserError(f"the {side.value} never speaks in the calibration logs: there is nothing to learn from")
