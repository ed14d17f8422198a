"""What a simulator says where real people have said something: the data that estimators of its shift work on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import Dialogue, Side, TokenSequence, Turn
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.runtime.event_loop import run_to_end
from calibrated_rl.shift.base import MatchedReplies
from calibrated_rl.shift.in_run import ExactReplies
from calibrated_rl.shift.probabilities.ending import Endings
from calibrated_rl.shift.probabilities.exact import reply_log_prob
from calibrated_rl.tasks.base import ScriptedHuman, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One history at which a person replied, and what a simulator says there."""

    dialogue: Dialogue
    """The person's."""
    index: int
    """Of the person's reply in its turns."""
    drawn: Sequence[Turn]
    """Fresh replies of the simulator, at least one."""

    @property
    def ordinal(self) -> int:
        """Which user turn it is, from 1."""
        return self.dialogue.user_turn_indices().index(self.index) + 1

    @property
    def key(self) -> tuple[str, int]:
        """The same for two simulators at the same history."""
        return self.dialogue.id, self.index


def answers(
    collector: Collector, simulator: ReplicaPool, real: Sequence[Dialogue], key: str, draws: int = 1
) -> list[Answer]:
    """``draws`` fresh replies to every history at which a person replied in ``real``; ``key`` seeds them.

    Histories at which an engine failed are left out.
    """
    points = [(dialogue, index) for dialogue in real for index in dialogue.user_turn_indices()]
    histories = [(dialogue.scenario, dialogue.turns[:index]) for dialogue, index in points]
    drawn = run_to_end(collector.next_turns(simulator, Side.USER, histories, draws, key))
    return [
        Answer(dialogue=dialogue, index=index, drawn=[turn for turn, _ in own])
        for (dialogue, index), own in zip(points, drawn, strict=True)
        if own
    ]


def matched_with_people(task: Task, found: Sequence[Answer]) -> MatchedReplies:
    """The people's replies, and the first that the simulator drew at each history."""
    return _matched(task, [(answer, answer.dialogue.turns[answer.index], answer.drawn[0]) for answer in found])


def matched_simulators(task: Task, one: Sequence[Answer], other: Sequence[Answer]) -> MatchedReplies:
    """The first replies of two simulators at the histories that both answered; ``one`` stands for the people."""
    others = {answer.key: answer.drawn[0] for answer in other}
    return _matched(task, [(a, a.drawn[0], others[a.key]) for a in one if a.key in others])


def _matched(task: Task, rows: Sequence[tuple[Answer, Turn, Turn]]) -> MatchedReplies:
    def acts(answer: Answer, turn: Turn) -> tuple[str, ...]:
        turns = (*answer.dialogue.turns[: answer.index], turn)
        return tuple(task.acts(answer.dialogue.scenario, turns, answer.index))

    return MatchedReplies(
        histories=[answer.dialogue.turns[: answer.index] for answer, _, _ in rows],
        human=[left.text for _, left, _ in rows],
        simulator=[right.text for _, _, right in rows],
        turn=[answer.ordinal for answer, _, _ in rows],
        dialogue=[answer.dialogue.id for answer, _, _ in rows],
        human_acts=[acts(answer, left) for answer, left, _ in rows],
        simulator_acts=[acts(answer, right) for answer, _, right in rows],
    )


def endings_of(task: Task, found: Sequence[Answer]) -> Endings:
    """Whether people ended the dialogue with their reply, and how often the simulator's draws would have.

    A probability is a share of draws: with few of them the calibration error is that of the shares.
    """

    def ends(answer: Answer, turn: Turn) -> bool:
        return task.ending(answer.dialogue.scenario, (*answer.dialogue.turns[: answer.index], turn)) is not None

    return Endings(
        probability=[float(np.mean([ends(answer, turn) for turn in answer.drawn])) for answer in found],
        ended=[ends(answer, answer.dialogue.turns[answer.index]) for answer in found],
        turn=[answer.ordinal for answer in found],
        dialogue=[answer.dialogue.id for answer in found],
        draws=min((len(answer.drawn) for answer in found), default=0),
    )


def exact_replies(
    human: ScriptedHuman,
    real: Sequence[Dialogue],
    views: Sequence[TokenSequence],
    log_probs: Sequence[NDArray[np.float32]],
    max_turn_tokens: int,
) -> ExactReplies:
    """People's replies in ``real`` scored by the program that the people are, and by the simulator.

    Args:
        views, log_probs: the user's view of each dialogue, and the simulator's log-probs [T] of its tokens.
        max_turn_tokens: after so many the simulator's turns are cut off.
    """
    people, simulator, ordinals, names = [], [], [], []
    for dialogue, view, values in zip(real, views, log_probs, strict=True):
        for ordinal, index in enumerate(dialogue.user_turn_indices(), start=1):
            own = view.mask & (view.turns == index)
            if not own.any():
                continue  # cut off by the context: the simulator was never asked
            people.append(human.log_prob(dialogue.scenario, dialogue.turns[:index], dialogue.turns[index].text))
            simulator.append(reply_log_prob(values[own], max_turn_tokens))
            ordinals.append(ordinal)
            names.append(dialogue.id)
    return ExactReplies(human=people, simulator=simulator, turn=ordinals, dialogue=names)
