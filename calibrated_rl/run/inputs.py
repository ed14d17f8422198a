"""The inputs of a run: its task, its human, its logs, as the configuration names them. Nothing is started."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from calibrated_rl.calibration.base import CalibrationMethod
from calibrated_rl.calibration.checked import build_method
from calibrated_rl.config.endpoint_checks import endpoint_keys, judges_of_their_own
from calibrated_rl.config.log_settings import log_settings
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.without_effect import settings_without_effect
from calibrated_rl.data.dialogue import Dialogue, Source, Split
from calibrated_rl.endpoints.config import endpoint_name
from calibrated_rl.endpoints.registry import Endpoints
from calibrated_rl.errors import UserError
from calibrated_rl.judges.checked import CheckedJudge, build_judge
from calibrated_rl.logs.base import problem_lines
from calibrated_rl.logs.checked import build_reader
from calibrated_rl.run.judged_logs import JUDGING, judged_logs, without_outcomes
from calibrated_rl.run.log_checks import check_evaluation, check_logs
from calibrated_rl.runtime import third_party
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.tasks.base import ScriptedHuman, Task
from calibrated_rl.tasks.checked import build_human, build_task

logger = logging.getLogger(__name__)

Logs = Mapping[Split, list[Dialogue]]


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """Read once, the same for all arms."""

    config: RunConfig
    folder: Path
    progress: Progress
    task: Task
    human: ScriptedHuman | None
    """The scripted human; None where there are only logs."""
    calibration: CalibrationMethod
    logs: Logs
    reserve: list[Dialogue]
    """Calibration logs for the arms alone that need further ones (``calibration.reserve``)."""
    pretraining_logs: Logs
    """Of the population that the uncalibrated simulator comes from; empty where its model is used as it comes."""

    asked: list[Dialogue] = field(default_factory=list)
    """Replies that humans were asked for (``calibration.asked``)."""
    endpoints: Endpoints = field(default_factory=lambda: Endpoints({}, Path()))
    """The models behind APIs; whoever starts the run closes them."""
    judge: CheckedJudge | None = None
    """Decides outcomes in place of the task: those of ``logs``, too."""

    def human_logs(self, split: Split) -> list[Dialogue]:
        """The logs that simulators are aligned with; a placebo run takes those of the simulator's pretraining."""
        if self.config.calibration.source == "pretraining":
            return self.pretraining_logs[split]
        return [*self.logs[split], *self.asked] if split is Split.CALIBRATION else self.logs[split]


def read_inputs(
    config: RunConfig, folder: Path, progress: Progress, *, training: bool = True, compares_logs: bool = False
) -> RunInputs:
    """Read the inputs of a run. Where it has a judge, training begins with its verdicts on logs.

    Args:
        training: False where an existing run is evaluated or chatted with: its logs need not suffice for
            training.
        compares_logs: whether outcomes of logs are needed all the same.

    Raises:
        UserError: task, human, logs or settings do not allow the run, or the judge has no verdict on most logs.
    """
    third_party.hide_bars()
    for line in (*settings_without_effect(config), *judges_of_their_own(config)) if training else ():
        logger.warning(line)
    task = build_task(config.task, config.task_config, "task_config")
    human = build_human(config.human, config.human_config, "human_config", task) if config.human else None
    calibration = build_method(config.calibration.method, config.calibration.method_config, "calibration.method_config")
    reader = build_reader(str(config.logs["reader"]), log_settings(config), "logs", task)
    logs = {split: reader.read(split) for split in Split}
    endpoints = Endpoints(config.endpoints, folder)
    if training:
        endpoints.check_keys(name for _, model in endpoint_keys(config) if (name := endpoint_name(model)) is not None)
    judge = build_judge(config.judge, config.judge_config, "judge_config", endpoints) if config.judge else None
    if config.has_eval_user:
        check_evaluation(task, config.evaluation)
    if judge is not None:
        asks = training or compares_logs
        logs = _judged(config, judge, task, logs, endpoints, progress) if asks else without_outcomes(logs)
    n_calibration = max(0, len(logs[Split.CALIBRATION]) - config.calibration.reserve)
    reserve = logs[Split.CALIBRATION][n_calibration:]
    if training:
        check_logs(config, task, logs)
    logs[Split.CALIBRATION] = logs[Split.CALIBRATION][:n_calibration]
    for line in problem_lines(reader.problems):
        logger.warning(line)
    asked = _asked(config, task) if training else []
    return RunInputs(
        config=config, folder=folder, progress=progress, task=task, human=human, calibration=calibration, logs=logs,
        reserve=reserve, pretraining_logs=_pretraining_logs(config, task), asked=asked, endpoints=endpoints,
        judge=judge,
    )  # fmt: skip


def _judged(
    config: RunConfig, judge: CheckedJudge, task: Task, logs: Logs, endpoints: Endpoints, progress: Progress
) -> dict[Split, list[Dialogue]]:
    endpoints.charge_to(JUDGING)
    try:
        return judged_logs(config, judge, task, logs, progress)
    except BaseException:
        endpoints.close()  # what has been sent is paid for
        raise


def _asked(config: RunConfig, task: Task) -> list[Dialogue]:
    """The replies of ``calibration.asked``.

    Raises:
        UserError: the file has none, or a line of it that was not asked for: logs belong into ``logs``.
    """
    if not config.calibration.asked:
        return []
    values = {"path": config.calibration.asked, "held_out": 0.0, "monitor": 0.0, "tuning": 0.0}
    reader = build_reader("calibrated_rl.logs.jsonl:JsonLines", values, "calibration.asked", task)
    for line in problem_lines(reader.problems):
        logger.warning(line)
    replies = reader.read(Split.CALIBRATION)
    if others := [reply.scenario.id for reply in replies if all(turn.source is Source.LOG for turn in reply.turns[1:])]:
        raise UserError(
            f"calibration.asked: {config.calibration.asked} has the dialogue '{others[0]}', which is no reply that was "
            'asked for ("asked": true, as jobs/ask.py writes it): logs belong into the file that the log reader reads'
        )
    return replies


def _pretraining_logs(config: RunConfig, task: Task) -> Logs:
    pretraining = config.pretraining
    if not pretraining.chosen:
        return {}
    path, values = pretraining.reader, dict(pretraining.logs)
    if not path:
        path = "calibrated_rl.logs.scripted:ScriptedLogs"
        values |= {"human": pretraining.human, "human_config": pretraining.human_config}
    reader = build_reader(path, values, "pretraining", task)
    return {split: reader.read(split) for split in (Split.CALIBRATION, Split.MONITOR)}
