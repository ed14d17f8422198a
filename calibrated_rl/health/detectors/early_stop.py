"""Early stop: the user ends the conversation before its matter is settled.

It closes (``closings.py``) in its very first turn, or in place of an answer to a question that needs one; or it gives
up. "Anything else?" needs no answer, "which day?" does. A task that knows when its users leave (``LeavingTask``)
decides itself, in any language; without it what counts as a close or a question is known of a few languages only.

People stop early, too, some often: read the rate beside theirs.
"""

import re

from calibrated_rl.data.dialogue import Side
from calibrated_rl.health.base import NothingToSet, UserTurn
from calibrated_rl.health.closings import gives_up, says_goodbye
from calibrated_rl.health.text import asks
from calibrated_rl.tasks.base import LeavingTask

_QUESTION_WORD = re.compile(
    r"\b(?:what|which|when|where|who|whom|whose|why|how|could you|can you|would you rather|may i have|or|was"
    r"|welche[rsnm]?|wann|wo|wer|wen|wem|wie|warum|oder|quel(?:le)?s?|quand|où|qui|combien|comment|pourquoi|ou|qué"
    r"|cuál(?:es)?|cuándo|dónde|quién|cómo|cuánt[oa]s?|che|quale|quali|quando|dove|chi|come|quanto|perché|wat|wanneer"
    r"|waar|wie|hoe|hoeveel|qual|quais|onde|quem|quantos?|vad|vilken|när|vem|hur)\b",
    re.I,
)
_REQUEST = re.compile(r"\b(?:please (?:tell|give|provide|share|send|enter|spell|name|confirm|choose)|tell me)\b", re.I)
_OFFER = re.compile(
    r"\b(?:else|further|more (?:i|we) can|sonst noch|autre chose|algo más|altro|nog iets|mais alg|något mer)\b|does "
    r"(?:that|this) (?:make sense|help|work|answer|suit|sound)|\bdeal\b|\bright\b",
    re.I,
)


class EarlyStop(NothingToSet):
    """Judges every turn."""

    name = "early_stop"

    def detect(self, turn: UserTurn) -> bool | None:
        task = turn.task
        if isinstance(task, LeavingTask):
            return task.leaves_early(turn.scenario, turn.turns)
        if gives_up(turn.text):
            return True
        if not says_goodbye(turn.text):
            return False
        first = not turn.earlier(Side.USER)
        return first or (turn.answered is not None and needs_an_answer(turn.answered.text))


def needs_an_answer(text: str) -> bool:
    """Whether the policy's turn ends with a question that a farewell does not answer, or requests something."""
    sentences = [sentence for sentence in re.split(r"(?<=[.!?？؟])\s+|\n", text.strip()) if sentence.strip()]
    if not sentences or _OFFER.search(sentences[-1]):
        return False
    return (asks(sentences[-1]) and bool(_QUESTION_WORD.search(sentences[-1]))) or bool(_REQUEST.search(sentences[-1]))
