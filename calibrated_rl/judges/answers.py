"""What a model that judges may answer: one JSON object of a given form, and nothing else.

Reading is strict. An answer that is nearly right is none: its scores would be guessed, and a guess becomes a reward.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from calibrated_rl.endpoints.requests import LENGTH, STOP, Answer

_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?\s*```\s*", re.DOTALL)
REASON, SCORE, BETTER = "reason", "score", "better"
FIRST, SECOND, EQUAL = "first", "second", "equal"
SHARES = {FIRST: 1.0, SECOND: 0.0, EQUAL: 0.5}
"""Of a vote for the first of two dialogues."""


class Unreadable(Exception):
    """An answer that is no vote; the message is the cause under which it is counted."""


def read_scores(answer: Answer, names: Sequence[str], lowest: int, highest: int) -> dict[str, int]:
    """The scores of one vote by criterion, in the order of ``names``.

    Raises:
        Unreadable: the answer is not exactly what ``scores_schema`` asks for.
    """
    vote = _object(answer)
    if vote.keys() != set(names):
        raise Unreadable("a criterion is missing or unknown")
    scores = {}
    for name in names:
        entry = vote[name]
        if not isinstance(entry, dict) or entry.keys() != {REASON, SCORE} or not isinstance(entry[REASON], str):
            raise Unreadable("a criterion without reason and score")
        score = entry[SCORE]
        if not isinstance(score, int) or isinstance(score, bool):
            raise Unreadable("a score that is no whole number")
        if not lowest <= score <= highest:
            raise Unreadable("a score outside the scale")
        scores[name] = score
    return scores


def read_preference(answer: Answer) -> float:
    """1 for the first of two dialogues, 0 for the second, 1/2 where they are equal.

    Raises:
        Unreadable: the answer is not exactly what ``PREFERENCE_SCHEMA`` asks for.
    """
    vote = _object(answer)
    if vote.keys() != {REASON, BETTER} or not isinstance(vote[REASON], str):
        raise Unreadable("no reason and preference")
    better = vote[BETTER]
    if not isinstance(better, str) or better not in SHARES:
        raise Unreadable("a preference for neither dialogue")
    return SHARES[better]


def scores_schema(names: Sequence[str], lowest: int, highest: int, longest_reason: int) -> dict[str, Any]:
    """JSON schema of one vote: ``{CRITERION: {"reason": ..., "score": ...}, ...}``.

    Args:
        longest_reason: characters; 0: no limit.
    """
    # A choice of numbers: servers that take a schema all know it, and not all know a minimum.
    entry = _closed({REASON: _text(longest_reason), SCORE: {"type": "integer", "enum": [*range(lowest, highest + 1)]}})
    return _closed(dict.fromkeys(names, entry))


def preference_schema(longest_reason: int) -> dict[str, Any]:
    """JSON schema of one vote on two dialogues: ``{"reason": ..., "better": "first"}``."""
    return _closed({REASON: _text(longest_reason), BETTER: {"type": "string", "enum": [*SHARES]}})


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", **({"maxLength": longest} if longest else {})}


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    """An object with all of ``properties`` and no others."""
    return {
        "type": "object", "properties": dict(properties), "required": [*properties], "additionalProperties": False,
    }  # fmt: skip


def _object(answer: Answer) -> dict[str, Any]:
    text = answer.text
    if answer.unfinished_thought:
        raise Unreadable("unfinished reasoning")
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Unreadable(_why_no_json(answer)) from None
    if not isinstance(value, dict):
        raise Unreadable("no JSON object")
    return value


def _why_no_json(answer: Answer) -> str:
    if answer.finish == LENGTH:
        return "cut off at the token limit"
    if answer.finish != STOP:
        return f"held back ({answer.finish[:40]})"
    return "no JSON" if answer.text.strip() else "no words"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice")
    return content


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
