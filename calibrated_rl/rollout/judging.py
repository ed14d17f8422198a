"""Asks a judge for the outcomes of finished dialogues, and again where it fails."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.errors import RolloutFailure
from calibrated_rl.judges.base import NoVerdict
from calibrated_rl.judges.checked import CheckedJudge
from calibrated_rl.rollout.failures import MAX_TRIES
from calibrated_rl.tasks.base import Task

T = TypeVar("T")


async def judge_with_retries(judge: Callable[[], Awaitable[T]], on_failure: Callable[[RolloutFailure], None]) -> T:
    """As ``failures.score_with_retries``, for a judge that is awaited; one that has answered without a verdict is not
    asked again (``NoVerdict``)."""
    for _ in range(MAX_TRIES - 1):
        try:
            return await judge()
        except NoVerdict:
            raise
        except RolloutFailure as failure:
            on_failure(failure)
    return await judge()


async def judged_dialogue(
    judge: CheckedJudge | None, task: Task, dialogue: Dialogue, on_failure: Callable[[RolloutFailure], None]
) -> Dialogue:
    """``dialogue`` with the judge's outcome, where there is a judge and the dialogue is scored at all.

    Args:
        on_failure: called with each failure but the last.

    Raises:
        RolloutFailure: the judge gives no verdict; the last of ``MAX_TRIES``.
    """
    if judge is None or dialogue.outcome is None:
        return dialogue
    outcome = await judge_with_retries(lambda: judge.outcome(task, dialogue), on_failure)
    return replace(dialogue, outcome=outcome)
