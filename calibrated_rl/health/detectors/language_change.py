"""Language change: the user's turn is in another language than the conversation.

Told by script in any language, and within the Latin script by little words of the languages of ``languages.py``. The
language of the conversation is that of all earlier turns of both sides; where these have none yet, that of most users
in the calibration logs. Latin letters in a conversation of another script are a change only as sentences: names and
product numbers are written so everywhere. A change that is the policy's before it is the user's is none.
"""

from collections import Counter
from collections.abc import Sequence

from calibrated_rl.data.dialogue import Dialogue, Side
from calibrated_rl.health.base import NothingToSet, UserTurn
from calibrated_rl.health.languages import CLEARLY, hits, language, language_of_all, script

LATIN = "LATIN"
SHORT_HAN = "CJK"
"""A turn in Han alone may be Chinese as well as Japanese."""
MOST_LOGS = 200
"""Of which the language is taken: enough to know it."""


class LanguageChange(NothingToSet):
    """Judges turns whose language can be told, in conversations whose language can be told."""

    name = "language_change"

    def __init__(self, config: NothingToSet.Config | None = None) -> None:
        super().__init__(config)
        self._of_logs = ("", "")
        """Script and language of most human dialogues."""

    def learn(self, logs: Sequence[Dialogue]) -> None:
        seen: Counter[tuple[str, str]] = Counter()
        for log in logs[:MOST_LOGS]:
            texts = [turn.text for turn in log.turns if turn.side is Side.USER]
            seen[script("\n".join(texts)), language_of_all(texts)] += 1
        for key in [key for key in seen if not key[0]]:
            del seen[key]
        self._of_logs = seen.most_common(1)[0][0] if seen else ("", "")

    def detect(self, turn: UserTurn) -> bool | None:
        own_script, texts = script(turn.text), [earlier.text for earlier in turn.history if earlier.text.strip()]
        script_before = script("\n".join(texts)) or self._of_logs[0]
        if not own_script or not script_before:
            return None
        if own_script != script_before:
            if own_script == LATIN and not language(turn.text):
                return None
            if (own_script, script_before) == (SHORT_HAN, "KANA"):
                return None
            return not (turn.answered is not None and script(turn.answered.text) == own_script)
        if own_script != LATIN:
            return False
        own, before = language(turn.text), language_of_all(texts) or self._of_logs[1]
        if not own or not before:
            return None
        if own == before:
            return False
        if turn.answered is not None and language(turn.answered.text) == own:
            return False
        counts = hits(turn.text)
        return counts[own] >= CLEARLY * counts[before]
