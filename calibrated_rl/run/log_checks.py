"""What a run needs of its logs, beside ``config_check.py``: looked at as soon as they are read, before actors start.

What would otherwise come to light when a part has its turn, after engines have started and models were fitted.
"""

from collections.abc import Mapping, Sequence

from calibrated_rl.config.arms import find_arms
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import EvaluationConfig
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.errors import UserError
from calibrated_rl.shift.sizes import FOLDS, least_to_halve
from calibrated_rl.tasks.base import Task

SHOWN = 3
"""Dialogues of an arm that nobody judges, on held-out scenarios, which the report shows."""


def check_logs(config: RunConfig, task: Task, logs: Mapping[Split, Sequence[Dialogue]]) -> None:
    """Refuse logs that a later part cannot work with.

    Args:
        logs: all of each split, those of ``calibration.reserve`` too.

    Raises:
        UserError: names the part, what it needs and what is there.
    """
    _calibration_logs(config, logs[Split.CALIBRATION])
    kept = len(logs[Split.CALIBRATION]) - config.calibration.reserve
    of_all_arms = {**logs, Split.CALIBRATION: logs[Split.CALIBRATION][:kept]}
    for arm in find_arms([*config.arms, *config.control_arms]):
        arm().check_logs(of_all_arms, logs[Split.CALIBRATION][kept:])
    measured = [log for log in logs[Split.HELD_OUT][: config.evaluation.logs] if log.user_turn_indices()]
    if len(measured) < (least := least_to_halve(FOLDS)):
        raise UserError(
            f"the held-out split has {len(measured)} dialogues in which a user speaks, among the first "
            f"{config.evaluation.logs} (evaluation.logs): simulators are measured on random halves of them in {FOLDS} "
            f"folds, which takes at least {least}"
        )
    if not any(log.user_turn_indices() for log in logs[Split.MONITOR]):
        raise UserError("no user speaks in the monitor split: simulators and epochs could not be judged on it")
    if not config.human and not config.proxy.model:
        task.scenarios(Split.HELD_OUT, SHOWN)


def check_judging(task: Task, sizes: EvaluationConfig) -> None:
    """Refuse before anything starts what the task cannot judge policies with.

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
    kept = logs[: len(logs) - reserve]
    from_logs = any(arm.learns_from_logs for arm in find_arms([*config.arms, *config.control_arms]))
    learns = [Side.USER] + ([Side.POLICY] if config.policy.warm_start.epochs or from_logs else [])
    for side in learns:
        if not any(turn.side is side for log in kept for turn in log.turns[1:]):
            raise UserError(f"the {side.value} never speaks in the calibration logs: there is nothing to learn from")
