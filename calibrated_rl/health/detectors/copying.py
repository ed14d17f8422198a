"""Copying the assistant: a long piece of what the policy said before, word for word, is most of the user's turn.

Any language. With ``c`` the longest run of words that the turn has in common with one earlier turn of the policy, it is
copied if ``c`` has at least ``Config.words`` words and makes up at least ``Config.share`` of the turn. Not so where the
user only says again what it had said itself, and where it answers a question by repeating it as a statement ("a table
for four at seven?" "yes, a table for four at seven"). What the policy wrote down unseen (``SecretiveTask``) is not
copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from calibrated_rl.data.dialogue import Side
from calibrated_rl.health.base import UserTurn, is_secret
from calibrated_rl.health.text import asks, is_written_without_spaces, longest_common_run, words
from calibrated_rl.settings.fields import Positive, Range


class Copying:
    """Judges every turn; turns that are shorter than ``Config.words`` are no copies."""

    name = "copying"

    @dataclass(frozen=True)
    class Config:
        words: Positive = 7
        """Fewest words of a copy. Shorter ones are what people say back to each other."""
        characters: Positive = 12
        """The same for scripts without spaces."""
        share: Annotated[float, Range(above=0, at_most=1)] = 0.7
        """Least part of the turn that is copied."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def detect(self, turn: UserTurn) -> bool | None:
        spoken = words(turn.text)
        least = max(self._least(spoken), int(self.config.share * len(spoken)))
        if len(spoken) < least:
            return False
        own = [words(earlier.text) for earlier in turn.earlier(Side.USER)]
        for said in turn.earlier(Side.POLICY):
            if is_secret(turn.task, said.text):
                continue
            run = longest_common_run(spoken, words(said.text), least)
            if not run or len(run) < self.config.share * len(spoken):
                continue
            said_before = any(len(longest_common_run(run, earlier)) >= len(run) - 1 for earlier in own)
            confirms = said is turn.answered and asks(said.text) and not asks(turn.text)
            if not said_before and not confirms:
                return True
        return False

    def _least(self, spoken: Sequence[str]) -> int:
        single = sum(map(is_written_without_spaces, spoken))
        return self.config.characters if single > len(spoken) / 2 else self.config.words
