"""What a run needs of its logs, beside ``config_check.py``: looked at as soon as they are read, before actors start.

What would otherwise come to light when a part has its turn, after engines have started and models were fitted.
"""

from collections.abc import Mapping, Sequence

from calibrated_rl.config.run_config import EvaluationConfig, RunConfig
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
    if "static" in (*config.arms, *config.control_arms):
        from calibrated_rl.training.turn_value import refuse_unscored  # loads scikit-learn

        refuse_unscored(logs[Split.CALIBRATION], logs[Split.TUNING])
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
    arms = {*config.arms, *config.control_arms}
    learns = [Side.USER] + ([Side.POLICY] if config.policy.start.epochs or arms & {"static", "cloned"} else [])
    for side in learns:
        if not any(turn.side is side for log in kept for turn in log.turns[1:]):
            raise UserError(f"the {side.value} never speaks in the calibration logs: there is nothing to learn from")
    if "cloned" in arms and not any(log.outcome is not None and log.outcome.success for log in kept):
        raise UserError("the arm 'cloned' needs successful dialogues in the calibration logs, and there is none")
    if "calibrated_more_logs" in arms and not any(log.user_turn_indices()[1:] for log in logs[len(kept) :]):
        raise UserError("the arm 'calibrated_more_logs' needs second user turns in calibration.reserve; there is none")
