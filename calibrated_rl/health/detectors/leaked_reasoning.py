"""Leaked reasoning: the user's turn contains what its model was to think, not to say.

Marks of reasoning and headings ("Thought:") in any language; in English talk about one's part ("my persona", "as the
customer, I should ...") and sentences of the prompt that tell the simulator what it is or is to do, word for word.
Facts of the prompt (a problem to solve, a form of words) may be said.
"""

import re
from dataclasses import dataclass

from calibrated_rl.health.base import UserTurn
from calibrated_rl.health.text import longest_common_run, plain, words
from calibrated_rl.settings.fields import Positive

_MARK = re.compile(
    r"</?\s*(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis|inner[_ ]monologue)\b[^>]*>"
    r"|<\|[^|>]*(?:think|thought|reason)[^|>]*\|>",
    re.I,
)
_HEADING = re.compile(
    r"(?:^|\n|[.!?\"]\s)\s*[\[(*_\"]*\s*(?:my |internal |inner |user'?s? |customer'?s? |chain of )?(?:thinking|thinks"
    r"|thoughts?|thought process|reasoning|monologue|strategy|gedanken?|pensée|pensamiento"
    r"|razonamiento)\s*[*_]*(?:\s*:|\s*\])|(?:^|\n)\s*[\[(*_]*(?:my |user'?s? |customer'?s? |student'?s? |next "
    r")?(?:response|reply|utterance|internal note|note to self|ooc)\s*[*_\])]*\s*:|[*(]\s*(?:thinks"
    r"|thinking)\b[^*)]*[*)]",
    re.I,
)
_PARTS = (
    r"(?:user|customer|student|learner|client|caller|patient|buyer|seller|guest|traveller|traveler|persona|negotiator)"
)
_SAYING = r"(?:say|ask|sound|reply|respond|answer|mention|reveal|pretend|make|want)"
_TALK = re.compile(
    "|".join(
        (
            rf"\b(?:my|the|this|{_PARTS}) persona\b",
            r"\bmy (?:character|profile|role) (?:says|would|should|wants|doesn't|does not|is supposed)\b",
            r"\b(?:stay|staying|remain|be|am|keep) in character\b",
            r"\b(?:play|playing|act|acting|respond|responding|reply|replying|speak|speaking) (?:the (?:role|part) of"
            r"|as)"
            rf" (?:an?|the|this) {_PARTS}\b",
            rf"\bas (?:the|a simulated) {_PARTS},? i (?:need|should|would|will|must|have|am|'m|want)\b",
            rf"\bsimulat(?:e|ed|es|ing) (?:an? |the )?{_PARTS}\b",
            rf"\b{_PARTS} simulator\b",
            r"\b(?:according to|based on|as per|following) my (?:instructions|prompt|goal|persona|profile|scenario"
            r"|role)\b",
            r"\bmy (?:instructions|prompt|scenario) (?:say|says|said|tell|tells|state|states|require|requires|don't"
            r"|do not)\b",
            r"\bthe (?:scenario|prompt|system prompt|persona) (?:says|states|tells|requires|wants|mentions|gives"
            r"|doesn't|does not|didn't)\b",
            r"\bmy goal (?:says|states)\b",
            r"\b(?:user|customer|student) in this (?:scenario|conversation|dialogue)\b",
            r"\bthe user (?:wants|needs|is asking|asked|is supposed|should|would)\b",
            r"\bthe (?:assistant|chatbot|ai) (?:asks|asked|is asking|wants|has asked|has (?:done|answered|provided)"
            r"|just)\b",
            rf"\bthe {_PARTS} (?:should|would (?:probably|likely)|might) {_SAYING}\b",
            rf"\btypical (?:{_PARTS}) (?:mistake|error|question|reply|response)\b",
            r"\b(?:mistake|error)s? on purpose\b",
            r"\bi(?:'m| am) (?:supposed|instructed) to (?:act|play|pretend|be|not|only|say|answer|respond|reveal"
            r"|mention)\b",
            r"\bi (?:need|have|ought|am supposed|'m supposed|should|must) (?:to )?(?:respond|reply|answer) (?:in|with"
            r"|as|like)\b",
            r"\bso i (?:should|will|need to|must|have to) (?:answer|respond|reply|say|pretend|end the (?:conversation"
            r"|dialogue))\b",
            r"\bi (?:should|must|need to) (?:pretend|act as|(?:not|avoid) (?:reveal|say|tell|mention)(?:ing)?)\b",
            r"\bi would (?:reply|respond|say)\s*:",
            r"\bhere(?:'s| is) (?:an?|my|the|one)(?: \w+){0,2} (?:reply|response|message)(?: from| as|:)",
        )
    ),
    re.I,
)
_SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n")
_ORDER = re.compile(
    r"\s*(?:you(?:'re| are| should| must| may| want| need| do| have to)|do not|don't|never|always|act|try)\b", re.I
)


class LeakedReasoning:
    """Judges every turn."""

    name = "leaked_reasoning"

    @dataclass(frozen=True)
    class Config:
        words: Positive = 8
        """Fewest words of a piece of the prompt."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def detect(self, turn: UserTurn) -> bool | None:
        text = plain(turn.text)
        if (
            turn.turn.flaw == "unfinished_reasoning"
            or _MARK.search(text)
            or _HEADING.search(text)
            or _TALK.search(text)
        ):
            return True
        sentences = _SENTENCE.split(turn.scenario.user_instructions)
        orders = [words(sentence) for sentence in sentences if _ORDER.match(sentence)]
        return any(longest_common_run(words(text), order, self.config.words) for order in orders)
