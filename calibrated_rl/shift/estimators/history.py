"""History shift: how far the histories that a policy meets are from the logged ones. No per-turn shift.

``history_shift`` at turn ``t`` compares whole histories up to and with the user's turn ``t``; the greeting, which
nobody chooses, is left out. It has *accumulated*: with user turns counted from 1 it is at most

    sum_{i < t} eps_i + sum_{i <= t} delta_i

so it must never be weighted by ``H - t + 1``, and it bounds no single turn. It is the test of ``two_sample/test.py`` on
words, every word marked with who said it, with equally many histories of either kind at each turn; hence
``max(0, 2a - 1)``. One can be large without the other: a policy may meet quite other histories although each single
turn of it is nearly the logged one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrated_rl.data.dialogue import Side, Turn
from calibrated_rl.settings.fields import Positive, check_settings
from calibrated_rl.shift.base import Estimate
from calibrated_rl.shift.estimators.words import WordsTest
from calibrated_rl.shift.interface import DialogueSets, Estimator
from calibrated_rl.shift.two_sample.labelled import LabelledReplies
from calibrated_rl.shift.two_sample.replies import FamilyConfig


class HistoryShift(Estimator[DialogueSets]):
    """``history_shift_accuracy``, ``history_shift_auc`` and ``history_shift_tv`` between the histories of two sets, by
    user turn. ``human`` are the logs, ``simulator`` the dialogues of the current policy with any user.

    ``history_shift_tv.low`` is a lower bound of the distance between the two history distributions (mixed over turns as
    measured), not of a per-turn shift. ``measure`` raises UserError where a side has too few dialogues.
    """

    classifiers = WordsTest.classifiers

    @dataclass(frozen=True, kw_only=True)
    class Config(FamilyConfig):
        turns: Positive = 8
        """User turns up to which histories are compared."""
        characters: Positive = 4000
        """Of a longer history the end is seen."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        check_settings(config, "history_shift")
        test_settings = {name: getattr(config, name) for name in ("folds", "null_halvings", "seed")}
        self._test = WordsTest(WordsTest.Config(**test_settings))

    def measure(self, data: DialogueSets) -> dict[str, Estimate]:
        data.require_both("history shift")
        return self._test.measure_replies(self._histories(data), "history_shift", matched=False, tv=True)

    def _histories(self, data: DialogueSets) -> LabelledReplies:
        texts, turns, users, labels = [], [], [], []
        for label, dialogues in enumerate((data.human, data.simulator)):
            for dialogue in dialogues:
                for ordinal, index in enumerate(dialogue.user_turn_indices()[: self.config.turns], start=1):
                    greeted = dialogue.turns[0].side is Side.POLICY
                    texts.append(self._text(dialogue.turns[int(greeted) : index + 1]))
                    turns.append(ordinal)
                    users.append(dialogue.scenario.id)
                    labels.append(label)
        return LabelledReplies(
            replies=texts,
            histories=[()] * len(texts),
            turn=turns,
            user=users,
            label=np.asarray(labels, np.int64),
        )

    def _text(self, turns: Sequence[Turn]) -> str:
        """Words carry who said them, so that the same words from the other side are other words."""
        marked = [
            " ".join(f"{turn.side.value[0]}_{word}" for word in turn.text[-self.config.characters :].split())
            for turn in turns
        ]
        return "\n".join(marked)[-self.config.characters :]
