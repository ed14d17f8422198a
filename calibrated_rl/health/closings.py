"""Words with which a conversation is closed, or given up, in the languages of ``STOP_WORDS`` (``languages.py``).

A clause counts, not a word: "goodbye" closes, "I have to say goodbye to my sister" does not. A turn that asks something
closes nothing.
"""

import re
from functools import lru_cache

from calibrated_rl.health.text import asks, clauses, plain

_LEAD = (
    r"(?:ok(?:ay)?|all ?right|alright|well|so|then|and|yes|yep|no|great|perfect|fine|cool|good|cheers|thanks?|thank "
    r"you|(?:very|so) much|a lot|again|danke|vielen dank|merci|gracias|grazie|obrigad[oa]|bedankt|tack|und|et|y|e|en"
    r"|och)"
)
_DAYTIME = (
    r"(?:day|morning|afternoon|evening|night|weekend|week|trip|time|one|holidays?|summer|flight|rest of your day)"
)
_FAREWELL = (
    r"(?:good ?bye|no (?:more|further) questions|(?:i am|i'm) all set|talk soon|bye(?: ?bye)?|farewell|see (?:you|ya)"
    r"|talk to you (?:later|soon|then)|speak (?:to you )?soon|take care|until (?:next time|then)|so long|"
    rf"have an? (?:\w+ )?(?:nice|great|good|lovely|wonderful|pleasant|safe|fantastic) {_DAYTIME}|enjoy (?:your|the) "
    rf"(?:rest of the )?{_DAYTIME}"
    r"|(?:auf )?wieder(?:sehen|hören)|bis (?:bald|dann)|tschüss|tschau|ciao|schönen (?:tag|abend)(?: noch)?|au revoir"
    r"|à bientôt|bonne journée|bonne soirée|adi[oó]s|hasta luego|hasta pronto|arrivederci|buona giornata|tchau|adeus"
    r"|até logo|tot ziens|doei|hej då)"
)
_ALL = (
    r"(?:(?:that|this|it)(?:'s| is| was| will be|'ll be| would be)|das (?:ist|war|wäre)) (?:all|it|everything"
    r"|alles)(?: that)?(?: i (?:need(?:ed)?|wanted))?(?: (?:for (?:today|now)|from me|from my side|then|thanks?|thank "
    r"you).*)?$"
)
_GIVING_UP = (
    r"(?:forget (?:about )?(?:it|this|that)|i give up|i quit|whatever i quit|i'?m done(?: here| with this)?|(?:i "
    r")?(?:do not|don't) (?:need|want) (?:it|this|that|to go on)? ?(?:any ?more|any longer)|(?:i'?m |i am )?not "
    r"interested (?:any ?more|any longer)|(?:it )?(?:does not|doesn't) matter any ?more|cancel everything|(?:i'?m|i "
    r"am) leaving|das hat keinen sinn|vergiss es|vergessen sie es|laisse(?:z)? tomber|olvídalo)"
)
MOST_WORDS = 8
"""Of a clause that closes; in longer ones the words mean something else."""

_GOODBYE = re.compile(rf"^(?:{_LEAD}[ ,]+)*(?:{_FAREWELL}\b|{_ALL})", re.I)
_LEADS = re.compile(rf"(?:{_LEAD}[ ,]*)+", re.I)
_NEVER_MIND = re.compile(rf"(?:{_LEAD}[ ,]+)*never ?mind(?: then)?", re.I)
_GIVES_UP = re.compile(rf"^(?:{_LEAD}[ ,]+)*{_GIVING_UP}(?: then| now| bye)*$", re.I)


@lru_cache(maxsize=20_000)
def says_goodbye(text: str) -> bool:
    """Whether the turn says goodbye, or that nothing more is wanted."""
    return not asks(text) and any(_GOODBYE.match(clause) for clause in _short_clauses(text))


@lru_cache(maxsize=20_000)
def gives_up(text: str) -> bool:
    """Whether the turn says that its speaker no longer wants what it came for."""
    if asks(text):
        return False
    parts = _short_clauses(text)
    if any(_GIVES_UP.match(clause) for clause in parts):
        return True
    # "Never mind, I'll take the other one" goes on.
    further = [clause for clause in clauses(plain(text)) if not _NEVER_MIND.fullmatch(clause)]
    only = all(_LEADS.fullmatch(clause) or _GOODBYE.match(clause) for clause in further)
    return only and any(map(_NEVER_MIND.fullmatch, parts))


def closes(text: str) -> bool:
    """Whether the turn does either."""
    return says_goodbye(text) or gives_up(text)


def _short_clauses(text: str) -> list[str]:
    parts = [part for clause in clauses(plain(text)) for part in re.split(r"\band (?=good|bye|see|take)", clause)]
    return [part.strip() for part in parts if len(part.split()) <= MOST_WORDS]
