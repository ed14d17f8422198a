"""Empty turn: the simulator says nothing. No letter, no digit, no question mark, no symbol that could be an answer.

Any language. What a template's control tokens leave, and words in brackets that stand for silence, say nothing either.
"""

import re
import unicodedata

from calibrated_rl.health.base import NothingToSet, UserTurn

_CONTROL_TOKEN = re.compile(r"<\|[^|>]*\|>|</?s>|<(?:pad|eos|bos|unk)>", re.I)
_BRACKETED = re.compile(r"[\[(<*{]+([^\[\](){}<>*]*)[\])>*}]+")
_SILENCE = re.compile(
    r"\s*(?:no (?:response|reply|answer|output|text|message)|empty|blank|none|null|nothing|end)\s*[.!]*\s*"
    r"|.*\bsilen(?:t|ce)\b.*|.*\b(?:not|n't) (?:respond|reply|answer|say anything)\b.*|.*\bsays nothing\b.*",
    re.I,
)
_SMILEY = re.compile(r"[:;=][-']?[()DPpOo/|\\]")


class EmptyTurn(NothingToSet):
    """Judges every turn."""

    name = "empty_turn"

    def detect(self, turn: UserTurn) -> bool | None:
        text = _CONTROL_TOKEN.sub("", turn.text).strip()
        bracketed = _BRACKETED.fullmatch(text)
        if turn.turn.flaw == "empty" or (bracketed is not None and _SILENCE.fullmatch(bracketed[1])):
            return True
        return not any(map(_says_something, text)) and not _SMILEY.search(text)


def _says_something(character: str) -> bool:
    """Letters, digits, question marks, and symbols such as pictures; no other marks."""
    category = unicodedata.category(character)
    return category[0] in "LN" or category in ("So", "Sc", "Sm") and character not in "<>|~" or character in "?？؟"
