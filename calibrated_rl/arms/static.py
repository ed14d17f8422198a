"""Static context RL: on a logged history the policy says one turn; nobody answers.

A turn that closes the dialogue earns the task's terminal reward for the logged person's goal; any other turn
earns ``Q(history, turn)``, frozen models fitted on the returns of the calibration logs, of which none has seen the
dialogue that the history is from. Suffers the
policy-induced shift: the histories are those of the logged policy.
"""

import dataclasses
from functools import partial

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Split, Turn
from calibrated_rl.errors import RolloutFailure
from calibrated_rl.rollout.failures import DEGENERATE, ending_of, judged
from calibrated_rl.run.parts import Parts
from calibrated_rl.training.arm import Arm
from calibrated_rl.training.quota import Members
from calibrated_rl.training.turn_value import TurnValue


def logged_histories(parts: Parts) -> list[tuple[Scenario, tuple[Turn, ...]]]:
    """Every point of the calibration logs at which the policy spoke."""
    return [
        (log.scenario, log.turns[:index])
        for log in parts.logs[Split.CALIBRATION]
        for index, turn in enumerate(log.turns)
        if index and turn.side is Side.POLICY
    ]


def rewarded(parts: Parts, value: TurnValue, groups: list[Members | None]) -> list[Members | None]:
    """The same turns with their rewards; None for groups that were dropped, or of which a judge failed on one."""
    flat = [dialogue for group in groups if group is not None for dialogue in group]
    estimates = value.value([(d.scenario, d.turns[:-1], d.turns[-1].text) for d in flat])
    by_id = {dialogue.id: float(estimate) for dialogue, estimate in zip(flat, estimates, strict=True)}
    statistics = parts.collector.statistics

    def one(dialogue: Dialogue) -> Dialogue:
        degenerate = DEGENERATE[Side.POLICY] if dialogue.turns[-1].flaw == "control_token" else None
        ending = ending_of(parts.task, dialogue.scenario, dialogue.turns) or degenerate
        outcome = (
            parts.task.outcome(dialogue.scenario, dialogue.turns, ending)
            if ending is not None
            else Outcome(reward=by_id[dialogue.id], success=False)
        )
        return dataclasses.replace(dialogue, outcome=outcome, ending=ending or "one_turn")

    def whole(group: Members) -> Members | None:
        scored: Members = []
        for each in group:  # all of them, as in whole dialogues: each that cannot be scored counts as broken
            try:
                scored.append(judged(partial(one, each), lambda failure: statistics.drop(failure.reason)))
            except RolloutFailure as failure:
                statistics.fail_after_all("rollout", failure)
                statistics.drop_group(group[0].group_id, f"with a turn that could not be scored ({failure.reason})")
        return scored if len(scored) == len(group) else None

    return [None if group is None else whole(group) for group in groups]


def train(parts: Parts, seed: int) -> Arm:
    """Train on logged histories alone."""
    arm = Arm(parts, "static", seed, single_turns=True)
    histories = logged_histories(parts)
    value = TurnValue(parts.logs[Split.CALIBRATION], parts.logs[Split.TUNING])
    arm.log({"turn_value_r2": value.explained})
    while arm.running:
        arm.measure_shift(None)
        random = np.random.default_rng([seed, arm.updates])
        order = random.permutation(len(histories))

        def ask(first: int, count: int, order: NDArray[np.int64] = order) -> list[Members | None]:
            groups = parts.collector.turn_groups(
                [histories[i] for i in order[first : first + count]], group_size=parts.config.training.group_size,
                arm=arm.name, update=arm.updates, seed=seed, first=first,
            )  # fmt: skip
            return rewarded(parts, value, groups)

        arm.learn(arm.fill(ask))
    arm.measure_shift(None)
    return arm
