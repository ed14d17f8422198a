"""Dialogues as sequences of words, from the seat of the user: what the neural proxies read and write.

``<goal> the user's instructions <other> what the policy said <end> <own> what the user said <end> ...``; texts are cut
at white space. Words of the user's turns and the ends of these turns are its own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.chat.tokens import audible
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Turn

PAD, UNKNOWN, GOAL, OTHER, OWN, END = "<pad>", "<unknown>", "<goal>", "<other>", "<own>", "<end>"
MARKS = (PAD, UNKNOWN, GOAL, OTHER, OWN, END)


@dataclass(frozen=True, slots=True, eq=False)
class WordSequence:
    """One dialogue."""

    words: list[str]
    own: NDArray[np.bool_]
    """[T] words of the user's turns, and their ends."""
    said: NDArray[np.bool_]
    """[T] words of either side's turns, and their ends."""
    goal: int
    """How many words the goal has, its mark included."""


def word_sequence(scenario: Scenario, turns: Sequence[Turn], secret_after: str) -> WordSequence:
    """``turns`` as the user of ``scenario`` knows them. An empty greeting is left out."""
    words = [GOAL, *scenario.user_instructions.split()]
    goal = len(words)
    is_own_T, is_spoken_T = [False] * goal, [False] * goal
    for turn in turns:
        is_own = turn.side is Side.USER
        spoken = (turn.text if is_own else audible(turn.text, secret_after)).split()
        if spoken:
            words += [OWN if is_own else OTHER, *spoken, END]
            is_own_T += [False, *[is_own] * (len(spoken) + 1)]
            is_spoken_T += [False, *[True] * (len(spoken) + 1)]
    return WordSequence(words=words, own=np.asarray(is_own_T), said=np.asarray(is_spoken_T), goal=goal)


class Vocabulary:
    """Words and their numbers; the marks come first."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [*MARKS, *(word for word in words if word not in MARKS)]
        self._numbers = {word: number for number, word in enumerate(self.words)}
        self.unknown = self._numbers[UNKNOWN]

    @classmethod
    def of(cls, dialogues: Sequence[Dialogue], least: int) -> "Vocabulary":
        """The words that occur in ``dialogues`` at least ``least`` times, and all of goals."""
        counts: Counter[str] = Counter()
        for dialogue in dialogues:
            counts.update(word for turn in dialogue.turns for word in turn.text.split())
            counts.update({word: least for word in dialogue.scenario.user_instructions.split()})
        return cls([word for word, count in sorted(counts.items(), key=lambda w: (-w[1], w[0])) if count >= least])

    def __len__(self) -> int:
        return len(self.words)

    def number(self, word: str) -> int:
        """That of an unknown word is that of ``<unknown>``."""
        return self._numbers.get(word, self.unknown)

    def numbers(self, words: Sequence[str]) -> NDArray[np.int64]:
        """[T]"""
        return np.asarray([self.number(word) for word in words], np.int64)


def exchanged(words: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """``words`` with some renamed."""
    return [renamed.get(word, word) for word in words]


def renaming(groups: Sequence[Sequence[str]], order: Sequence[int]) -> dict[str, str]:
    """Each word of group ``i`` renamed to that of group ``order[i]`` at the same position."""
    return {old: new for i, j in enumerate(order) if i != j for old, new in zip(groups[i], groups[j], strict=True)}
