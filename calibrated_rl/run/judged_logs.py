"""The outcomes of a run's logs where it has a judge: the judge's, so that logs and rollouts are on one scale.

Judged are the logs that something learns from or compares with: those of calibration, monitor and tuning where an arm
learns from what logs were worth, of the evaluation's split as many as proxies are compared with, and the few that the
report shows. All other logs lose their outcome: what they say of it is on another scale. A log without a verdict has
none either; its turns still align simulators.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from calibrated_rl.components.component import import_path
from calibrated_rl.config.arms import find_arms
from calibrated_rl.data.dialogue import Dialogue, Source, Split
from calibrated_rl.errors import RolloutFailure
from calibrated_rl.judges.checked import CheckedJudge
from calibrated_rl.learner.advantages.checked import advantage_path
from calibrated_rl.rollout.failures import MOST_BROKEN, MostlyBroken
from calibrated_rl.rollout.judging import judge_with_retries
from calibrated_rl.runtime.event_loop import run_to_end
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.tasks.base import Task

if TYPE_CHECKING:
    from calibrated_rl.config.run_config import RunConfig

logger = logging.getLogger(__name__)

JUDGING = "judging logs"
"""Who pays for the verdicts on logs."""
SHOWN = 3
"""Held-out logs that the report shows beside the arms' dialogues."""


def judged_logs(
    config: "RunConfig", judge: CheckedJudge, task: Task, logs: Mapping[Split, Sequence[Dialogue]], progress: Progress
) -> dict[Split, list[Dialogue]]:
    """``logs`` with the judge's outcomes, and without any where it was not asked or gave none. Answers that are there
    already are not asked for again.

    Raises:
        MostlyBroken: the judge gives no verdict on most of them.
        EndpointStopped: the judge's endpoint answers nobody.
    """
    counts = logs_to_judge(config, logs)
    wanted = {log.id for split, count in counts.items() for log in logs[split][:count] if _is_over(log)}
    asked = [log for of_split in logs.values() for log in of_split if log.id in wanted]
    tick = progress.ticks("judging logs", len(asked))
    reasons: Counter[str] = Counter()

    async def judged(log: Dialogue) -> Dialogue:
        try:
            outcome = await judge_with_retries(lambda: judge.outcome(task, log), lambda failure: None)
        except RolloutFailure as failure:
            reasons[failure.reason] += 1
            return replace(log, outcome=None)
        finally:
            tick()
        return replace(log, outcome=outcome)

    async def all_judged() -> list[Dialogue]:
        return await asyncio.gather(*map(judged, asked))

    by_id = {log.id: log for log in run_to_end(all_judged())}
    _report(len(asked), reasons)
    return {
        split: [by_id.get(log.id) or replace(log, outcome=None) for log in of_split] for split, of_split in logs.items()
    }


def without_outcomes(logs: Mapping[Split, Sequence[Dialogue]]) -> dict[Split, list[Dialogue]]:
    """``logs`` where their outcomes are not needed, and the judge is not to be asked."""
    return {split: [replace(log, outcome=None) for log in of_split] for split, of_split in logs.items()}


def logs_to_judge(config: "RunConfig", logs: Mapping[Split, Sequence[Dialogue]]) -> dict[Split, int]:
    """How many of the first logs of each split are judged."""
    counts = dict.fromkeys(Split, 0)
    if learns_from_outcomes(config):
        counts |= {split: len(logs[split]) for split in (Split.MONITOR, Split.TUNING)}
        counts[Split.CALIBRATION] = max(0, len(logs[Split.CALIBRATION]) - config.calibration.reserve)
    compared = config.evaluation.scenarios if config.proxies else 0
    evaluated = Split(config.evaluation.split)
    counts[evaluated] = max(counts[evaluated], compared)
    counts[Split.HELD_OUT] = max(counts[Split.HELD_OUT], SHOWN)
    return {split: min(count, len(logs[split])) for split, count in counts.items()}


def learns_from_outcomes(config: "RunConfig") -> bool:
    """Whether an arm learns from what logs were worth: it trains on them, values turns by them, or has a critic that is
    fitted to them."""
    arms = find_arms([*config.arms, *config.control_arms])
    critic = getattr(import_path(advantage_path(config.training.advantage)), "needs_values", False)
    return any(arm.learns_from_logs or arm.values_turns or (critic and arm.runs_rollouts) for arm in arms)


def _is_over(log: Dialogue) -> bool:
    """Whether people have said all of it: a reply that was asked for ends no dialogue."""
    return all(turn.source is Source.LOG for turn in log.turns[1:])


def _report(asked: int, reasons: Counter[str]) -> None:
    failed = reasons.total()
    told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    if failed > MOST_BROKEN * asked:
        raise MostlyBroken(
            f"the judge gave no verdict on {failed} of {asked} logs ({told}): what is left would be a selection, if "
            "anything. Repair the judge (jobs/judge.py check tries one on a file of logs), and start the run again"
        )
    if asked:
        without = f"; {failed} without a verdict, which have no outcome now ({told})" if failed else ""
        logger.info(f"the judge has said what {asked - failed} logs were worth{without}")
