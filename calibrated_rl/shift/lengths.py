"""Wasserstein distances of lengths: words a user turn, user turns a dialogue. No per-turn shift.

For integers with distribution functions ``F`` (human) and ``G`` (simulator), ``W1 = sum_x |F(x) - G(x)|`` (Villani,
"Topics in Optimal Transportation", 2003, remark 2.19): the least mean number of words (turns) by which one side's turns
(dialogues) had to be made longer or shorter to look like the other's. Its unit is words (turns). Chance makes it
positive; the null band shows by how much.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.errors import UserError
from calibrated_rl.shift.base import Estimate
from calibrated_rl.shift.interface import DialogueEstimator, DialogueSets, Floats, bootstrap, people_of, user_texts
from calibrated_rl.shift.shares import between, table


def wasserstein(p_BK: Floats, q_BK: Floats, support_K: NDArray[np.int64]) -> Floats:
    """Wasserstein-1 [B] of distributions over the increasing numbers ``support_K``, row by row."""
    return np.asarray(np.abs(np.cumsum(p_BK - q_BK, axis=1)[:, :-1]) @ np.diff(support_K))


class Lengths(DialogueEstimator):
    """``wasserstein_turn_words`` in words a user turn, ``wasserstein_user_turns`` in user turns a dialogue; lower is
    nearer. A dialogue without user turns counts in the second alone."""

    @dataclass(frozen=True)
    class Config:
        null_halvings: int = 5
        """Random halvings of the human dialogues for the null band; 0 leaves it out."""
        seed: int = 0

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        super().__init__(config.null_halvings, config.seed)

    def compare(self, sets: DialogueSets) -> dict[str, Estimate]:
        sets.require_both("Wasserstein")
        words, turns = [], []
        for side in (sets.human, sets.simulator):
            words.append([[len(text.split()) for text in user_texts(dialogue)] for dialogue in side])
            turns.append([[len(own)] for own in words[-1]])
        if not all(any(side) for side in words):
            raise UserError("Wasserstein: on one side nobody of the users says anything")
        found = {}
        note = ("chance alone makes it positive: read it beside its null band",)
        for name, rows in (("wasserstein_turn_words", words), ("wasserstein_user_turns", turns)):
            support = np.unique([value for side in rows for own in side for value in own])
            places = [[np.searchsorted(support, own).tolist() for own in side] for side in rows]
            human, simulator = (table(side, len(support)) for side in places)
            statistic = between(partial(wasserstein, support_K=support), human, simulator)
            measured = bootstrap(statistic, (people_of(sets.human), people_of(sets.simulator)), self.seed)
            found[name] = measured.estimate(name, far="above", notes=note)
        return found
