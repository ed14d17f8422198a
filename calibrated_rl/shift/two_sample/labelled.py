"""Replies of two sides with the side as their label: what the families of two-sample tests turn into features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import Turn
from calibrated_rl.shift.base import MatchedReplies
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.shift.two_sample.test import Floats, Rows


@dataclass(frozen=True, kw_only=True)
class LabelledReplies:
    """One entry for each reply in all parts; ``acts`` is empty where they are not known of every reply."""

    replies: Sequence[str]
    histories: Sequence[Sequence[Turn]]
    """The turns before each reply; empty where replies are scored alone."""
    turn: Sequence[int]
    """Which user turn of its dialogue, from 1."""
    user: Sequence[str]
    """Whose replies stay in one fold: the dialogue or, where dialogues share scenarios, the scenario."""
    label: NDArray[np.int64]
    """[N], 1 for the simulator's."""
    acts: Sequence[Sequence[str]] = ()

    def __len__(self) -> int:
        return len(self.replies)

    def rows(self, see: "See") -> Rows:
        """The same as ``see`` sees it; users become numbers from 0 in the order of their names."""
        number = np.unique(np.asarray(self.user, dtype=str), return_inverse=True)[1]
        text, dense = see(self)
        turn_N = np.asarray(self.turn, dtype=np.int64)
        return Rows(label=self.label, dialogue=number, turn=turn_N, text=text, dense=dense)


See = Callable[[LabelledReplies], tuple[Any, Floats]]
"""What is seen of each reply: [N, F] (an array or a sparse matrix) and dense features [N, K] (K may be 0). Nothing in
it may be fitted to the labels."""


def both_sides(matched: MatchedReplies) -> LabelledReplies:
    """The human's replies, then the simulator's to the same histories."""
    return LabelledReplies(
        replies=[*matched.human, *matched.simulator],
        histories=[*matched.histories, *matched.histories],
        turn=[*matched.turn, *matched.turn],
        user=[*matched.dialogue, *matched.dialogue],
        label=np.repeat([0, 1], len(matched)),
        acts=[*matched.human_acts, *matched.simulator_acts],
    )


def human_side(matched: MatchedReplies) -> LabelledReplies:
    """The human's replies alone."""
    return LabelledReplies(
        replies=matched.human,
        histories=matched.histories,
        turn=matched.turn,
        user=matched.dialogue,
        label=np.zeros(len(matched), dtype=np.int64),
        acts=matched.human_acts,
    )


def replies_alone(sets: DialogueSets) -> LabelledReplies:
    """All user turns of both sets without their histories, by scenario; not yet balanced."""
    replies, turns, users, labels = [], [], [], []
    acts: list[tuple[str, ...]] = []
    for label, dialogues in enumerate((sets.human, sets.simulator)):
        for dialogue in dialogues:
            dialogue_acts = sets.acts(dialogue)
            for ordinal, index in enumerate(dialogue.user_turn_indices(), start=1):
                replies.append(dialogue.turns[index].text)
                turns.append(ordinal)
                users.append(dialogue.scenario.id)
                labels.append(label)
                acts += [dialogue_acts[index]] if dialogue_acts else []
    return LabelledReplies(
        replies=replies,
        histories=[()] * len(replies),
        turn=turns,
        user=users,
        label=np.asarray(labels, dtype=np.int64),
        acts=acts if len(acts) == len(replies) else (),
    )
