"""Role inversion: the user's turn does the policy's part. It offers help, asks for data, reports what it has booked.

Two parts, of which either is enough:

- English phrases of assistants, clerks and tutors, and names of roles at the beginning of a line (any language).
- What the logs tell, in any language: a naive Bayes classifier (Manning, Raghavan, Schütze, "Introduction to
  Information Retrieval", 2008, section 13.2) of single words and pairs, smoothed by one, for who of the two sides says
  a turn. With ``r`` the log of the likelihood ratio of policy to user, a turn is inverted if ``r`` is above
  ``log(Config.odds)`` and above all but ``Config.spare`` of the human user turns, each scored by a classifier that has
  not seen its dialogue. Where both sides talk alike (two negotiators), so that a turn of the policy's has the higher
  ``r`` less often than ``Config.least_auc``, it says nothing, and is left out.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy.stats import rankdata

from calibrated_rl.data.dialogue import Dialogue, Side
from calibrated_rl.health.base import UserTurn
from calibrated_rl.health.text import plain, words
from calibrated_rl.rollout.failures import confuses_roles
from calibrated_rl.settings.fields import Positive, Range

_THINGS = (
    r"(?:refund|order|booking|reservation|request|appointment|payment|parcel|package|account|ticket|subscription"
    r"|table|case|warranty|claim|flight|delivery|replacement)"
)
_DID = (
    r"(?:booked|scheduled|processed|issued|refunded|cancelled|canceled|updated|reserved|upgraded|arranged|forwarded"
    r"|escalated|registered|rebooked|opened|created|added|sent|set up)"
)
_OFFERS = (
    r"\bhow (?:can|may|could) (?:i|we) (?:help|assist|be of)\b",
    r"\b(?:happy|glad|here|pleased|delighted) to (?:assist|help you (?:with|understand|find))\b",
    r"\b(?:assist you|help you with (?:that|this|your))\b",
    r"\b(?:anything|something) else (?:that )?(?:i|we) can\b",
    r"\banything else you(?: would|'d)? (?:need help|like help|like to know)\b",
    r"\bwould you like (?:me|us) to\b",
    r"\bwould you like (?:more |any |some |an?(?:other)? )?(?:information|details|hint|example|exercise|booking"
    r"|reservation|recommendation|directions)\b",
    r"\bwould you like to (?:order|book|reserve|proceed|schedule|make a (?:booking|reservation)|add|know more)\b",
    r"\b(?:shall|can|may|should|could) i\b[^.?!]*\bfor you\b",
    r"\bshall i (?:go ahead|book|reserve|write|explain|show)\b",
    r"\bfeel free to (?:reach|ask|contact|call|let|message)\b",
    r"\b(?:don't|do not) hesitate to\b",
    r"(?:^|[.!] )(?:hi|hello|good (?:morning|afternoon|evening))[^.!?]*\bwelcome\b",
    r"\b(?:certainly|absolutely)[!,.] (?:i(?:'ll| can| will)|let(?:'s| me)|here(?:'s| is| are))\b",
    r"\b(?:glad|happy) (?:i|we) could (?:help|assist|be of)\b",
    r"\bwho am i speaking (?:with|to)\b",
    r"\bi recommend (?:the|an?|you)\b",
    r"\b(?:great|excellent|wonderful) choice[!.,]",
    # The same greeting in other languages
    r"\b(?:wie|womit) kann ich (?:ihnen|dir|euch) (?:weiter)?helfen\b|\bwas kann ich für (?:sie|dich) tun\b|\bhelfe "
    r"ich (?:ihnen|dir)\b|\bbitte (?:nennen|geben|teilen) sie (?:mir|uns)\b",
    r"\bpuis-je (?:vous|t')\s?aider\b|\bque puis-je faire pour vous\b|\bveuillez (?:me |nous )?(?:fournir|indiquer"
    r"|donner)\b",
    r"\ben qué (?:le |te |lo )?puedo ayudar|\bcómo puedo ayudar|\bcome posso aiutar|\bcomo posso ajudar|\bhoe kan ik "
    r"(?:u|je) helpen\b|\bhur kan jag hjälpa\b",
)
_DATA = (
    r"\b(?:could|can|would) you(?: please| also)? (?:provide|give me|tell me|share|confirm|verify|send me)(?: me)? "
    r"your\b",
    r"\b(?:could|can|may|might) i(?: please| also)? (?:have|get) your (?:\w+ )?(?:name|number|address|e-?mail|birth"
    r"|details|account|reference|date)\b",
    r"\bplease (?:provide|share|confirm|enter|verify|give me|tell me|send me)(?: me| us)?(?: with)? your\b",
    r"\bwhat(?:'s| is) your (?:customer|account|order|booking|reservation|phone|email|e-mail|policy|reference"
    r"|contract|ticket)\b",
    r"\bdo you have (?:any|an?) (?:\w+ )?(?:preferences?|price range|area in mind|(?:other |further )?questions "
    r"about)\b",
    r"\bon file\b",
)
_SERVICE = (
    rf"\b(?:i|we)(?:'ve| have)?(?: now| just| already| gone ahead and)* {_DID}\b[^.?!]*\b(?:for you|your)\b",
    rf"\b(?:i|we)(?:'ve| have) gone ahead and {_DID}\b",
    r"\bi(?:'ve| have) opened an? (?:claim|case|ticket)\b",
    r"\b(?:i|we) (?:was|were) able to (?:book|reserve|find)\b|\bbooking was successful\b",
    rf"\byour {_THINGS} (?:has been|will be|is (?:now|still|being|confirmed|booked|ready|on its way|valid)"
    r"|should (?:appear|arrive|be))\b",
    r"\b(?:your|the) (?:reference|confirmation|booking) (?:number|code) is\b",
    r"\b(?:match|meet|fit)(?:es|s)? your (?:criteria|preferences|request|needs|requirements)\b",
    r"\blet me (?:check|look|see|verify|pull up|find|confirm)\b[^.?!]*\b(?:your|for you)\b",
    r"\b(?:i|we)(?:'ll| will| can| could) (?:check|look into|look up|arrange|schedule|rebook|book|process|transfer"
    r"|connect)\b[^.?!]*\b(?:for you|your|you to)\b",
    r"\bso (?:that )?(?:i|we) can (?:look into|assist|locate|verify)\b",
    r"\byou will receive (?:an?|your|the)\b",
    r"\b(?:a colleague|a technician|one of our \w+) will\b|\b(?:one of our|our (?:records|system|technicians?|staff"
    r"|agents?|store|shop|gym|customers|website|opening hours))\b",
    r"\bwe (?:have|offer) (?:\d+|many|several|plenty of|a lot of|lots of|a range of)\b",
    r"\bplease (?:make sure|hold the line|hold on|be advised|note that|bear with|try (?:holding|restarting|the))\b",
    r"\b(?:go to|navigate to|click(?: on)?|open)\b[^.?!]*\b(?:and|then) (?:select|click|choose|tap|enter)\b",
    r"\blet me know if (?:the (?:problem|issue)|that (?:helps|works)|you have any)\b",
    r"\bhere (?:are|is) (?:some|a few|the|two|three|four|five|\d+) (?:\w+ )?(?:steps|suggestions|options|tips|ways"
    r"|examples)\b",
    r"\bhere(?:'s| is)(?: an?| the| your)?(?: \w+)? (?:improved|revised|corrected|updated|rewritten|step-by-step)\b",
    r"\[(?:your|insert|recipient|company|employer)[^\]]*\]",
    r"\bthank(?:s| you) for (?:contacting|calling|reaching out|choosing|providing|that information|getting in touch"
    r"|your (?:call|inquiry|enquiry|purchase|interest))\b",
    r"\b(?:apologi[sz]e for (?:the|any) (?:inconvenience|delay|trouble|confusion)|sorry for (?:the|any) "
    r"inconvenience)\b",
    r"\b(?:i )?(?:completely |totally |fully )?understand your (?:frustration|concern)\b",
    r"\bsorry to hear about your\b|\bsorry,? (?:but )?there (?:are|is) no\b",
    r"\b(?:as|i am|i'm)(?: just| only)? an? (?:ai|artificial|large language|language model|virtual assistant"
    r"|automated|chatbot|digital assistant)\b",
)
_TEACHING = (
    r"\byou(?:'re| are) (?:on the right track|almost there|very close|making progress)\b",
    r"\byou(?:'ve| have) (?:correctly|successfully|got (?:the right|it exactly))\b",
    r"\b(?:not quite|nice try|good try|well done|great job|good job|excellent work)\b[^?]*\b(?:let's|you|now|try"
    r"|think)\b",
    r"\b(?:correct|right)[!.] +(?:now|next|let's|since|so)\b",
    r"\blet(?:'s| us) (?:start (?:with|by)|tackle|focus on|clarify|go through|step back|move on to|work through|look "
    r"at the|break (?:it|this|that|down)|take (?:it|this) step)\b",
    r"\bhere(?:'s| is) a hint\b",
    r"(?:^|[.!] )(?:great|good|excellent) question\b",
    r"\b(?:can|could) you (?:tell|show) me (?:what happens|what you (?:get|got|tried)|how you (?:got|would))\b",
    r"\bdo you (?:see (?:how|why|what)|have any (?:ideas|questions))\b",
)
_PHRASES = re.compile("|".join((*_OFFERS, *_DATA, *_SERVICE, *_TEACHING)), re.I)

Grams = tuple[str, ...]


class RoleInversion:
    """Judges every turn."""

    name = "role_inversion"

    @dataclass(frozen=True)
    class Config:
        odds: Annotated[float, Range(at_least=1)] = 20.0
        """Least ratio of likelihoods."""
        spare: Annotated[float, Range(at_least=0, below=1)] = 0.005
        """Share of human turns that may lie above the limit."""
        least_auc: Annotated[float, Range(at_least=0.5, at_most=1)] = 0.9
        """Least probability that of a turn of each side the policy's has the higher ratio."""
        fewest_logs: Positive = 20
        """Dialogues without which nothing is learned."""
        most_logs: Positive = 4000
        """Dialogues to learn from, at most."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()
        self._sides: _Sides | None = None
        self._limit = math.inf

    def learn(self, logs: Sequence[Dialogue]) -> None:
        logs = [log for log in logs if log.user_turn_indices()][: self.config.most_logs]
        self._sides, self._limit = None, math.inf
        if len(logs) < self.config.fewest_logs:
            return
        scores: dict[Side, list[float]] = {side: [] for side in Side}
        for fold in (0, 1):
            sides = _Sides(logs[1 - fold :: 2])
            for turn in (turn for log in logs[fold::2] for turn in log.turns[1:]):
                scores[turn.side].append(sides.score(turn.text))
        if not scores[Side.POLICY] or _auc(scores[Side.POLICY], scores[Side.USER]) < self.config.least_auc:
            return
        self._sides = _Sides(logs)
        self._limit = max(math.log(self.config.odds), float(np.quantile(scores[Side.USER], 1 - self.config.spare)))

    def detect(self, turn: UserTurn) -> bool | None:
        text = plain(turn.text)
        if turn.turn.flaw == "role_confusion" or confuses_roles(text) or _PHRASES.search(text):
            return True
        return self._sides is not None and self._sides.score(text) > self._limit


class _Sides:
    """Who says what: counts of words and pairs of each side."""

    def __init__(self, logs: Sequence[Dialogue]) -> None:
        self._counts: dict[Side, Counter[Grams]] = {side: Counter() for side in Side}
        for log in logs:
            for turn in log.turns[1:]:  # the greeting is the same everywhere, or a turn like any other
                self._counts[turn.side].update(_grams(turn.text))
        vocabulary = len(set().union(*self._counts.values())) + 1
        self._totals = {side: counts.total() + vocabulary for side, counts in self._counts.items()}

    def score(self, text: str) -> float:
        """Log of the likelihood ratio of policy to user."""
        policy, user = (self._counts[side] for side in (Side.POLICY, Side.USER))
        shift = math.log(self._totals[Side.USER] / self._totals[Side.POLICY])
        return sum(math.log((policy[gram] + 1) / (user[gram] + 1)) + shift for gram in _grams(text))


def _auc(higher: Sequence[float], lower: Sequence[float]) -> float:
    """Probability that one of ``higher`` is above one of ``lower``, ties counted half (Mann and Whitney 1947)."""
    ranks = rankdata([*higher, *lower])[: len(higher)]
    return float((ranks.sum() - len(higher) * (len(higher) + 1) / 2) / (len(higher) * len(lower)))


def _grams(text: str) -> Iterator[Grams]:
    spoken = words(text)
    yield from ((word,) for word in spoken)
    yield from zip(spoken, spoken[1:], strict=False)
