"""The reward of a single turn on a logged history, for static context RL."""

import dataclasses
from functools import partial

from calibrated_rl.data.dialogue import Dialogue, Outcome, Side
from calibrated_rl.errors import RolloutFailure
from calibrated_rl.rollout.failures import DEGENERATE, ending_of, score_with_retries
from calibrated_rl.rollout.statistics import RolloutStatistics
from calibrated_rl.tasks.base import Task
from calibrated_rl.training.quota import Members
from calibrated_rl.turn_values.base import TurnValue
from calibrated_rl.turn_values.checked import values_of


def reward_turns(
    task: Task, value: TurnValue, groups: list[Members | None], statistics: RolloutStatistics
) -> list[Members | None]:
    """The same turns with their rewards: the task's outcome where the turn ends the dialogue, else its ``value``. None
    for groups that were dropped, or in which the task could not score a turn."""
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
        return dataclasses.replace(dialogue, outcome=outcome, ending=ending or "one_turn")

    def score_group(group: Members) -> Members | None:
        scored: Members = []
        for dialogue in group:  # all of them, as in whole dialogues: each that cannot be scored counts as broken
            try:
                scored.append(
                    score_with_retries(partial(score, dialogue), lambda failure: statistics.drop(failure.reason))
                )
            except RolloutFailure as failure:
                statistics.fail_after_all("rollout", failure)
                statistics.drop_group(group[0].group_id, f"with a turn that could not be scored ({failure.reason})")
        return scored if len(scored) == len(group) else None

    return [None if group is None else score_group(group) for group in groups]
