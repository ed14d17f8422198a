"""Traits of the other side in one dialogue, as numbers: what ``similarity.py`` and ``coverage.py`` compare human users
by.

They need text alone. Where dialogue acts are known, an act counts like its words (``deny`` is pushback, however it was
typed). Word lists are English. All are computed from one dialogue, so that nothing is fitted.

| dimension | trait | what it is |
|---|---|---|
| style | ``turn_words`` | words a user turn |
| | ``short_turns`` | share of user turns of at most 3 words |
| | ``polite_turns`` | share with thanks, please, a greeting or an apology |
| | ``repeated_words`` | share of its words that it had used in an earlier turn |
| | ``typing_noise`` | share of the five slips of ``_SLIPS`` that it makes, a turn |
| disclosure | ``first_disclosure`` | share of what it tells in all that it tells in its first turn |
| | ``disclosure_a_turn`` | things told for the first time, a turn |
| | ``last_disclosure`` | share of its turns that come after the last one that tells something new |
| clarification | ``question_turns`` | share of turns that ask |
| | ``pushback_turns`` | share that refuse, deny or correct |
| | ``uncertain_turns`` | share that hedge or do not know |
| reaction | ``objects_after_error`` | of its turns right after an error, the share with pushback |
| | ``rephrases_after_error`` | the share that says again at least half of the words of its turn before |
| | ``words_after_error`` | log ratio of the words in these turns and in its others |

"Things told" are the goal's values (for numbers, their names) where both sides of the comparison have goals, else
distinct words of at least four letters or with a digit. An "error" is a turn of the policy that apologises, says that
it cannot, or says again (at least four fifths of the words) what it said before. A trait without its occasion (no
error, no user turn) is NaN.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibrated_rl.data.dialogue import Dialogue, Side
from calibrated_rl.errors import UserError
from calibrated_rl.shift.interface import DialogueSets, Floats
from calibrated_rl.shift.profile import SHORT_WORDS

DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "style": ("turn_words", "short_turns", "polite_turns", "repeated_words", "typing_noise"),
    "disclosure": ("first_disclosure", "disclosure_a_turn", "last_disclosure"),
    "clarification": ("question_turns", "pushback_turns", "uncertain_turns"),
    "reaction": ("objects_after_error", "rephrases_after_error", "words_after_error"),
}
TRAITS = tuple(name for names in DIMENSIONS.values() for name in names)
_LONGEST = 20_000
"""Characters of a turn that are looked at; bounds the cost of a rambling one."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_POLITE = re.compile(r"\b(please|thanks?|thank you|sorry|hello|hi|hey|good (?:morning|evening|day)|bye)\b", re.I)
_QUESTION = re.compile(r"\?|^\s*(?:what|which|when|where|who|why|how|can|could|do|does|is|are|would)\b", re.I)
_PUSHBACK = re.compile(
    r"\b(no|nope|not|never|wrong|incorrect|actually|instead|but|disagree|unfair|refuse|[a-z]+n['\u2019]t)\b", re.I
)
_UNCERTAIN = re.compile(
    r"\b(maybe|perhaps|probably|i (?:think|guess|suppose)|not sure|unsure|don['\u2019]?t know|no idea|any|whatever)\b",
    re.I,
)
_ERROR = re.compile(
    r"\b(sorry|apologi[sz]e|unfortunately|unable|cannot|can['\u2019]t|not available"
    r"|(?:did|do) ?n[o'\u2019]t understand)\b",
    re.I,
)
_SLIPS = (  # no capital at the start, no mark at the end, a small "i", shorthand, a letter three times
    re.compile(r"^\s*[a-z]"),
    re.compile(r"[^\s.!?)]\s*$"),
    re.compile(r"(?:^|\s)i(?:['\s]|$)"),
    re.compile(r"\b(u|ur|r|pls|plz|thx|ty|ok|k|lol|gonna|wanna|btw|idk|im|dont|cant)\b", re.I),
    re.compile(r"([a-z])\1\1", re.I),
)
_ACT_WORDS = {
    "question": ("ask", "request", "confused", "question"),
    "pushback": ("deny", "negate", "refuse", "reject", "change", "grumble"),
    "polite": ("greet", "thank", "bye"),
    "uncertain": ("indifferent", "uncertain", "confused"),
}


def goal_terms(goal: Mapping[str, Any]) -> set[str]:
    """What there is to tell: texts in the goal, and the names of its numbers, in lower case."""
    terms: set[str] = set()
    for key, value in goal.items():
        if isinstance(value, Mapping):
            terms |= goal_terms(value)
        elif isinstance(value, str) and value.strip():
            terms.add(value.strip().lower())
        elif isinstance(value, int | float) and not isinstance(value, bool):
            terms.add(str(key).lower())
    return terms


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else math.nan


def traits_of(dialogue: Dialogue, acts: Sequence[Sequence[str]] | None, by_goal: bool) -> dict[str, float]:
    """All of ``TRAITS`` for one dialogue; NaN where there was no occasion.

    Args:
        acts: of each turn, where they are known.
        by_goal: what is told is counted in values of the goal, not in words.
    """
    user_turns = dialogue.user_turn_indices()
    texts = [dialogue.turns[i].text[:_LONGEST] for i in user_turns]
    spoken = [_words(text) for text in texts]

    def marked(kind: str, pattern: re.Pattern[str]) -> list[bool]:
        roots = _ACT_WORDS[kind]
        return [
            bool(pattern.search(text)) or bool(acts and any(act.startswith(roots) for act in acts[i]))
            for i, text in zip(user_turns, texts, strict=True)
        ]

    pushback = marked("pushback", _PUSHBACK)
    return (
        {
            "turn_words": float(np.mean([len(words) for words in spoken])) if spoken else math.nan,
            "short_turns": _share([len(words) <= SHORT_WORDS for words in spoken]),
            "polite_turns": _share(marked("polite", _POLITE)),
            "repeated_words": _repeated(spoken),
            "typing_noise": _share([bool(slip.search(text)) for text in texts for slip in _SLIPS]),
            "question_turns": _share(marked("question", _QUESTION)),
            "pushback_turns": _share(pushback),
            "uncertain_turns": _share(marked("uncertain", _UNCERTAIN)),
        }
        | _disclosure(dialogue, texts, spoken, by_goal)
        | _reaction(dialogue, user_turns, spoken, pushback)
    )


def _repeated(spoken: Sequence[Sequence[str]]) -> float:
    used_words: set[str] = set()
    repeated: list[bool] = []
    for words in spoken:
        repeated += [word in used_words for word in words] if used_words else []
        used_words.update(words)
    return _share(repeated)


def _disclosure(
    dialogue: Dialogue, texts: Sequence[str], spoken: Sequence[Sequence[str]], by_goal: bool
) -> dict[str, float]:
    names = DIMENSIONS["disclosure"]
    if by_goal:
        terms = goal_terms(dialogue.scenario.goal)
        disclosed = [{term for term in terms if re.search(rf"\b{re.escape(term)}\b", text.lower())} for text in texts]
    else:
        disclosed = [{w for w in words if len(w) > 3 or any(c.isdigit() for c in w)} for words in spoken]
    all_disclosed: set[str] = set().union(*disclosed)
    if not all_disclosed:
        return dict.fromkeys(names, math.nan) | ({"disclosure_a_turn": 0.0} if texts else {})
    n_new, disclosed_before = [], set[str]()
    for turn_terms in disclosed:
        n_new.append(len(turn_terms - disclosed_before))
        disclosed_before |= turn_terms
    last = max(i for i, count in enumerate(n_new) if count)
    values = (len(disclosed[0]) / len(all_disclosed), len(all_disclosed) / len(texts), 1 - (last + 1) / len(texts))
    return dict(zip(names, values, strict=True))


def _reaction(
    dialogue: Dialogue, at: Sequence[int], spoken: Sequence[Sequence[str]], pushback: Sequence[bool]
) -> dict[str, float]:
    errors = _errors(dialogue)
    after_error = [k for k, i in enumerate(at) if i > 0 and i - 1 in errors]
    other_lengths = [len(words) for k, words in enumerate(spoken) if k not in after_error]
    repeats = [
        len(set(spoken[k]) & set(spoken[k - 1])) >= 0.5 * len(set(spoken[k - 1])) > 0 for k in after_error if k > 0
    ]
    ratio = math.nan
    if after_error and other_lengths:
        ratio = math.log(
            (1 + float(np.mean([len(spoken[k]) for k in after_error]))) / (1 + float(np.mean(other_lengths)))
        )
    values = (_share([pushback[k] for k in after_error]), _share(repeats), ratio)
    return dict(zip(DIMENSIONS["reaction"], values, strict=True))


def _errors(dialogue: Dialogue) -> set[int]:
    """Indices of the policy's turns that are errors."""
    earlier_turns: list[set[str]] = []
    errors = set()
    for index, turn in enumerate(dialogue.turns):
        if turn.side is Side.POLICY:
            words = set(_words(turn.text[:_LONGEST]))
            repeats = any(len(words & earlier) >= 0.8 * len(words | earlier) > 0 for earlier in earlier_turns)
            if index and (repeats or _ERROR.search(turn.text[:_LONGEST])):
                errors.add(index)
            earlier_turns.append(words)
    return errors


def trait_tables(sets: DialogueSets, name: str) -> tuple[Floats, Floats, bool]:
    """Traits of the human's dialogues [N, F] and the simulator's [M, F], columns as in ``TRAITS``, and whether
    disclosure was counted by goals.

    Raises:
        UserError: a set is empty, or on one side no user ever speaks.
    """
    sets.require_both(name)
    by_goal = all(goal_terms(d.scenario.goal) for side in (sets.human, sets.simulator) for d in side)
    tables = []
    for label, side in (("human", sets.human), ("simulator", sets.simulator)):
        rows = [traits_of(d, sets.acts(d), by_goal) for d in side]
        table = np.array([[row[trait] for trait in TRAITS] for row in rows], np.float64)
        if np.isnan(table).all():
            raise UserError(f"{name}: no user ever speaks on the {label} side")
        tables.append(table)
    return tables[0], tables[1], by_goal
