"""Records of chats with served models: WildChat, LMSYS-Chat-1M, and the pairs of Chatbot Arena.

    {"conversation_hash": "3f", "model": "m", "conversation": [{"role": "user", "content": "Hi"}, ...]}

A record of the arena has two dialogues, ``conversation_a`` and ``conversation_b``, which become two; who won is in the
metadata of both. They share the human's turns, and so their split.
"""

import json
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from calibrated_rl.logs.base import LogProblem, Refused
from calibrated_rl.logs.formats.messages import is_messages, talk
from calibrated_rl.logs.found import Found, one_a_row
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.sides import Sides

_PLACES = ("conversation", "conversations", "conversation_a", "conversation_b")
_IDS = ("conversation_id", "conversation_hash", "question_id", "id")
_KNOWN = (
    "model", "timestamp", "turn", "language", "openai_moderation", "detoxify_moderation", "toxic", "redacted", "state",
    "country", "hashed_ip", "header", "conversation_hash", "conversation_id", "model_a", "model_b", "winner", "judge",
    "anony", "tstamp", "toxic_chat_tag", "question_id",
)  # fmt: skip


class WildChatFormat:
    """A record is a dialogue, or two."""

    title = "WildChat or LMSYS-Chat"

    def fit(self, content: Any) -> int:
        return 2 * sum(map(is_messages, map(content.get, _PLACES))) if isinstance(content, dict) else 0

    def dialogues(self, rows: Iterator[Row], settings: FileSettings) -> Iterator[Found | LogProblem]:
        sides = Sides(settings)
        yield from one_a_row(rows, lambda row: _found(row, sides), sides)


def _found(row: Row, sides: Sides) -> Iterator[Found]:
    content = row.content
    places = [key for key in _PLACES if content.get(key) is not None] if isinstance(content, dict) else []
    if not places:
        raise Refused("'conversation' is missing")
    for key in places:
        others = [each for each in places if each != key]
        without_others = {name: value for name, value in content.items() if name not in others}
        dialogue = talk(row, without_others, content[key], sides, key=key, ids=_IDS, known=_KNOWN)
        if others:
            dialogue.line["split_group"] = dialogue.line["id"] if "id" in dialogue.line else _digest(content, places)
        if others and "id" in dialogue.line:
            dialogue.line["id"] += f"-{key.rpartition('_')[2]}"
        yield dialogue


def _digest(content: dict[str, Any], places: list[str]) -> str:
    """A name for dialogues that are given together."""
    talks = json.dumps([content[key] for key in places], sort_keys=True)
    return blake2b(talks.encode(), digest_size=8).hexdigest()
