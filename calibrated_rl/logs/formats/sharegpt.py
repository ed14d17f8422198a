"""ShareGPT: ``{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}``.

``system`` is the policy's instructions, as an entry or as a key of the record; ``function_call`` and ``observation``
(or ``tool``) are a tool call and its result.
"""

from collections.abc import Iterator
from typing import Any

from calibrated_rl.components.plain_data import kind_of
from calibrated_rl.logs.base import LogProblem, Refused
from calibrated_rl.logs.formats.messages import talk
from calibrated_rl.logs.found import Found, one_a_row, parsed
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.sides import Sides

_PLACES = ("conversations", "conversation", "messages")
_IDS = ("id", "conversation_id", "hash")
_KNOWN = ("system", "tools", "model", "source", "idx", "avg_rating")


class ShareGptFormat:
    """A record is a dialogue."""

    title = "ShareGPT"

    def fit(self, content: Any) -> int:
        return 2 if _place(content) is not None else 0

    def dialogues(self, rows: Iterator[Row], settings: FileSettings) -> Iterator[Found | LogProblem]:
        sides = Sides(settings)
        yield from one_a_row(rows, lambda row: iter([_found(row, sides)]), sides)


def _entries(value: Any) -> bool:
    value = parsed(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and {"from", "value"} <= set(value[0])


def _place(content: Any) -> str | None:
    """The key of the entries; empty where the record is the list itself; None: there are none."""
    if isinstance(content, list):
        return "" if _entries(content) else None
    return next((key for key in _PLACES if _entries(content.get(key))), None) if isinstance(content, dict) else None


def _found(row: Row, sides: Sides) -> Found:
    place = _place(row.content)
    if place is None:
        raise Refused("'conversations' is missing, or no list of objects with 'from' and 'value'")
    content = row.content if place else {"conversations": row.content}
    key = place or "conversations"
    messages = [_message(entry, index) for index, entry in enumerate(parsed(content[key]))]
    found = talk(row, content, messages, sides, key=key, ids=_IDS, known=_KNOWN, speaker="from")
    if isinstance(system := content.get("system"), str) and system.strip():
        found.line.setdefault("policy_instructions", system)
    return found


def _message(entry: Any, index: int) -> dict[str, Any]:
    """An entry as a message with a role."""
    if not isinstance(entry, dict) or not {"from", "value"} <= entry.keys():
        raise Refused(f"entry {index} is {kind_of(entry)}, not an object with 'from' and 'value'")
    rest = {key: value for key, value in entry.items() if key not in ("from", "value")}
    if entry["from"] != "function_call":
        return {**rest, "role": entry["from"], "content": entry["value"]}
    call = parsed(entry["value"])
    call = call if isinstance(call, dict) else {"name": None, "arguments": entry["value"]}
    return {**rest, "role": "assistant", "content": "", "tool_calls": [call]}
