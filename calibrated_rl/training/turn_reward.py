"""The reward of a single turn on a logged history, for static context RL."""

import asyncio
import dataclasses
from functools import partial

from calibrated_rl.data.dialogue import Dialogue, Outcome, Side
from calibrated_rl.errors import RolloutFailure
from calibrated_rl.judges.checked import CheckedJudge
from calibrated_rl.rollout.failures import DEGENERATE, ending_of, score_with_retries
from calibrated_rl.rollout.judging import judged_dialogue
from calibrated_rl.rollout.statistics import RolloutStatistics
from calibrated_rl.runtime.event_loop import run_to_end
from calibrated_rl.tasks.base import Task
from calibrated_rl.training.quota import Members
from calibrated_rl.turn_values.base import TurnValue
from calibrated_rl.turn_values.checked import values_of

ONE_TURN = "one_turn"


def reward_turns(
    task: Task, value: TurnValue, groups: list[Members | None], statistics: RolloutStatistics,
    judge: CheckedJudge | None = None,
) -> list[Members | None]:  # fmt: skip
    """The same turns with their rewards: the outcome where the turn ends the dialogue, the task's or the judge's, else
    its ``value``. None for groups that were dropped, or in which a turn could not be scored."""
    flat = [dialogue for group in groups if group is not None for dialogue in group]
    estimates = values_of(value, [(d.scenario, d.turns[:-1], d.turns[-1].text) for d in flat])
    by_id = {dialogue.id: float(estimate) for dialogue, estimate in zip(flat, estimates, strict=True)}

    def score(dialogue: Dialogue) -> Dialogue:
        degenerate = DEGENERATE[Side.POLICY] if dialogue.turns[-1].flaw == "control_token" else None
        ending = ending_of(task, dialogue.scenario, dialogue.turns) or degenerate
        outcome = (
            task.outcome(dialogue.scenario, dialogue.turns, ending)
            if ending is not None
            else Outcome(reward=by_id[dialogue.id], success=False)
        )
        return dataclasses.replace(dialogue, outcome=outcome, ending=ending or ONE_TURN)

    def count_failure(failure: RolloutFailure) -> None:
        statistics.drop(failure.reason)

    async def scored(dialogue: Dialogue) -> Dialogue | RolloutFailure:
        try:
            dialogue = score_with_retries(partial(score, dialogue), count_failure)
            if dialogue.ending == ONE_TURN:
                return dialogue
            return await judged_dialogue(judge, task, dialogue, count_failure)
        except RolloutFailure as failure:
            return failure

    async def all_scored() -> list[Dialogue | RolloutFailure]:
        return await asyncio.gather(*map(scored, flat))

    by_id_scored = dict(zip(by_id, run_to_end(all_scored()), strict=True))

    def scored_group(group: Members) -> Members | None:
        members: Members = []
        for dialogue in group:  # all of them, as in whole dialogues: each that cannot be scored counts as broken
            result = by_id_scored[dialogue.id]
            if isinstance(result, RolloutFailure):
                statistics.fail_after_all("rollout", result)
                statistics.drop_group(group[0].group_id, f"with a turn that could not be scored ({result.reason})")
            else:
                members.append(result)
        return members if len(members) == len(group) else None

    return [None if group is None else scored_group(group) for group in groups]
