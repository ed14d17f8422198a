"""What a simulator replies to histories of real dialogues: the data that estimators of its shift work on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import Dialogue, TokenSequence, Turn
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.rollout.users import UserModel
from calibrated_rl.runtime.event_loop import run_to_end
from calibrated_rl.shift.base import MatchedReplies
from calibrated_rl.shift.in_run import ExactReplies
from calibrated_rl.shift.probabilities.ending import Endings
from calibrated_rl.shift.probabilities.exact import reply_log_prob
from calibrated_rl.tasks.base import ScriptedHuman, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One history to which a human user replied, and what a simulator replies to it."""

    dialogue: Dialogue
    """The human user's."""
    index: int
    """Of the human reply in its turns."""
    replies: Sequence[Turn]
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
    collector: Collector, simulator: UserModel, dialogues: Sequence[Dialogue], key: str, draws: int = 1
) -> list[Answer]:
    """``draws`` fresh replies to every history to which a human user replied in ``dialogues``; ``key`` seeds them.

    Histories at which an engine or an endpoint failed are left out.
    """
    points = [(dialogue, index) for dialogue in dialogues for index in dialogue.user_turn_indices()]
    histories = [(dialogue.scenario, dialogue.turns[:index]) for dialogue, index in points]
    draws_by_history = run_to_end(collector.next_replies(simulator, histories, draws, key))
    return [
        Answer(dialogue=dialogue, index=index, replies=history_draws)
        for (dialogue, index), history_draws in zip(points, draws_by_history, strict=True)
        if history_draws
    ]


def matched_with_humans(task: Task, drawn_answers: Sequence[Answer]) -> MatchedReplies:
    """The human replies, and the first that the simulator drew at each history."""
    return _matched(
        task, [(answer, answer.dialogue.turns[answer.index], answer.replies[0]) for answer in drawn_answers]
    )


def matched_simulators(task: Task, first: Sequence[Answer], second: Sequence[Answer]) -> MatchedReplies:
    """The first replies of two simulators at the histories that both answered; ``first`` stands for the human."""
    second_replies = {answer.key: answer.replies[0] for answer in second}
    return _matched(task, [(a, a.replies[0], second_replies[a.key]) for a in first if a.key in second_replies])


def _matched(task: Task, rows: Sequence[tuple[Answer, Turn, Turn]]) -> MatchedReplies:
    def acts(answer: Answer, turn: Turn) -> tuple[str, ...]:
        turns = (*answer.dialogue.turns[: answer.index], turn)
        return tuple(task.acts(answer.dialogue.scenario, turns, answer.index))

    return MatchedReplies(
        histories=[answer.dialogue.turns[: answer.index] for answer, _, _ in rows],
        human=[reference.text for _, reference, _ in rows],
        simulator=[compared.text for _, _, compared in rows],
        turn=[answer.ordinal for answer, _, _ in rows],
        dialogue=[answer.dialogue.id for answer, _, _ in rows],
        human_acts=[acts(answer, reference) for answer, reference, _ in rows],
        simulator_acts=[acts(answer, compared) for answer, _, compared in rows],
    )


def endings_of(task: Task, drawn_answers: Sequence[Answer]) -> Endings:
    """Whether the human user ended the dialogue with the reply, and how often the simulator's draws would have.

    A probability is a share of draws: with few of them the calibration error is that of the shares.
    """

    def ends(answer: Answer, turn: Turn) -> bool:
        return task.ending(answer.dialogue.scenario, (*answer.dialogue.turns[: answer.index], turn)) is not None

    return Endings(
        probability=[float(np.mean([ends(answer, turn) for turn in answer.replies])) for answer in drawn_answers],
        ended=[ends(answer, answer.dialogue.turns[answer.index]) for answer in drawn_answers],
        turn=[answer.ordinal for answer in drawn_answers],
        dialogue=[answer.dialogue.id for answer in drawn_answers],
        draws=min((len(answer.replies) for answer in drawn_answers), default=0),
    )


def exact_replies(
    human: ScriptedHuman,
    dialogues: Sequence[Dialogue],
    views: Sequence[TokenSequence],
    log_probs: Sequence[NDArray[np.float32]],
    max_turn_tokens: int,
) -> ExactReplies:
    """Human replies in ``dialogues``, scored by the scripted human and by the simulator.

    Args:
        views, log_probs: the user's view of each dialogue, and the simulator's log-probs [T] of its tokens.
        max_turn_tokens: after so many the simulator's turns are cut off.
    """
    human_logprobs, simulator_logprobs, ordinals, dialogue_ids = [], [], [], []
    for dialogue, view, values in zip(dialogues, views, log_probs, strict=True):
        for ordinal, index in enumerate(dialogue.user_turn_indices(), start=1):
            is_reply_token = view.mask & (view.turns == index)
            if not is_reply_token.any():
                continue  # the context cut it off: the simulator has no prompt for it
            human_logprobs.append(human.log_prob(dialogue.scenario, dialogue.turns[:index], dialogue.turns[index].text))
            simulator_logprobs.append(reply_log_prob(values[is_reply_token], max_turn_tokens))
            ordinals.append(ordinal)
            dialogue_ids.append(dialogue.id)
    return ExactReplies(human=human_logprobs, simulator=simulator_logprobs, turn=ordinals, dialogue=dialogue_ids)
