"""OpenAI chat messages: ``{"messages": [{"role": "user", "content": "Hi"}, ...]}``, or the list alone.

Contents of parts, tool calls in both of their forms, system messages and an assistant that speaks first are read as
``chat_messages.py`` says.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from calibrated_rl.data.dialogue import Side
from calibrated_rl.logs.base import LogProblem, Refused
from calibrated_rl.logs.chat_messages import fold
from calibrated_rl.logs.found import Found, id_of, line_of, one_a_row, parsed
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.sides import Sides

_IDS = ("id", "conversation_id", "dialogue_id", "prompt_id", "uuid")
_KNOWN = ("tools", "functions", "parallel_tool_calls", "model", "created", "usage", "weight")


class MessagesFormat:
    """A record is a dialogue."""

    title = "OpenAI messages"

    def fit(self, content: Any) -> int:
        return int(is_messages(content.get("messages") if isinstance(content, dict) else content))

    def dialogues(self, rows: Iterator[Row], settings: FileSettings) -> Iterator[Found | LogProblem]:
        sides = Sides(settings)
        yield from one_a_row(rows, lambda row: iter([_found(row, sides)]), sides)


def is_messages(value: Any) -> bool:
    """Whether ``value`` is a list of messages with roles, or one as text."""
    value = parsed(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def _found(row: Row, sides: Sides) -> Found:
    content = {"messages": row.content} if isinstance(row.content, list) else row.content
    if not isinstance(content, dict) or "messages" not in content:
        raise Refused("'messages' is missing")
    return talk(row, content, content["messages"], sides, key="messages", ids=_IDS, known=_KNOWN)


def talk(
    row: Row, content: dict[str, Any], messages: Any, sides: Sides, *, key: str, ids: tuple[str, ...],
    known: tuple[str, ...] = (), speaker: str = "role", calls_are_unheard: bool = False,
) -> Found:  # fmt: skip
    """A dialogue out of a record that has its messages under ``key``.

    Args:
        ids: keys of the dialogue's id, the first that is there.
        known: other keys that the format is known to have.
        speaker: the format's own key of who speaks, for selectors such as ``from=gpt``.
        calls_are_unheard: a message with tool calls is no turn, whatever words it has.

    Raises:
        Refused: the messages cannot be used.
    """

    def side_of(name: str, message: Mapping[str, Any]) -> Side | None:
        return sides.of(name, {**message, speaker: message.get("role")})

    folded = fold(parsed(messages), side_of, calls_are_unheard=calls_are_unheard)
    own_id = id_of(content, *ids)
    used = (key, next((each for each in ids if content.get(each) is not None), "")) if own_id else (key,)
    line, unknown = line_of(content, folded.turns, used=used, known=(*ids, *known), metadata=folded.metadata)
    if own_id:
        line["id"] = own_id
    if folded.policy_instructions:
        line.setdefault("policy_instructions", folded.policy_instructions)
    return Found(row=row, line=line, unknown=unknown, counts=folded.counts)
