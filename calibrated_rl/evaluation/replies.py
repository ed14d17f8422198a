"""What a simulator says where real people have said something: the data that estimators of its shift work on."""

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.dialogue import Dialogue, Side, TokenSequence, Turn
from calibrated_rl.parts import Parts
from calibrated_rl.rollout.pool import ReplicaPool
from calibrated_rl.shift.base import MatchedReplies
from calibrated_rl.shift.in_run import ExactReplies
from calibrated_rl.tasks.base import ScriptedHuman


def matched_replies(parts: Parts, simulator: ReplicaPool, real: Sequence[Dialogue], key: str) -> MatchedReplies:
    """A fresh reply of the simulator to every history at which a person replied in ``real``; ``key`` seeds the draws.

    Replies that an engine failed to give are left out, together with the person's.
    """
    points = [(dialogue, index) for dialogue in real for index in dialogue.user_turn_indices()]
    histories = [(dialogue.scenario, dialogue.turns[:index]) for dialogue, index in points]
    replies = asyncio.run(parts.collector.next_turns(simulator, Side.USER, histories, 1, key))
    kept = [(d, index, reply[0][0]) for (d, index), reply in zip(points, replies, strict=True) if reply]

    def acts(dialogue: Dialogue, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        return parts.task.acts(dialogue.scenario, turns, index)

    return MatchedReplies(
        histories=[d.turns[:index] for d, index, _ in kept],
        human=[d.turns[index].text for d, index, _ in kept],
        simulator=[turn.text for _, _, turn in kept],
        turn=[d.user_turn_indices().index(index) + 1 for d, index, _ in kept],
        dialogue=[d.id for d, _, _ in kept],
        human_acts=[acts(d, d.turns, index) for d, index, _ in kept],
        simulator_acts=[acts(d, (*d.turns[:index], turn), index) for d, index, turn in kept],
    )


def exact_replies(
    human: ScriptedHuman,
    real: Sequence[Dialogue],
    views: Sequence[TokenSequence],
    log_probs: Sequence[NDArray[np.float32]],
) -> ExactReplies:
    """People's replies in ``real`` scored by the program that the people are, and by the simulator.

    Args:
        views, log_probs: the user's view of each dialogue, and the simulator's log-probs [T] of its tokens.
    """
    people, simulator, ordinals, names = [], [], [], []
    for dialogue, view, values in zip(real, views, log_probs, strict=True):
        for ordinal, index in enumerate(dialogue.user_turn_indices(), start=1):
            people.append(human.log_prob(dialogue.scenario, dialogue.turns[:index], dialogue.turns[index].text))
            simulator.append(float(np.nansum(values[view.turns == index], dtype=np.float64)))
            ordinals.append(ordinal)
            names.append(dialogue.id)
    return ExactReplies(human=people, simulator=simulator, turn=ordinals, dialogue=names)
