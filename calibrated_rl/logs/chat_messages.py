"""Messages with roles, as chat models take them, folded into turns of two sides.

What is decided here, for all formats that are lists of messages:

- system and developer messages before the first turn are the policy's instructions; later ones are kept beside the next
  turn;
- what the user hears are the turns. Tool calls, with their results, are kept beside the turn of the same side that
  follows them (``metadata.tools``), a message of calls alone is no turn of its own; nor is one with words beside its
  calls where the format sends such messages to the tools alone: the words are kept beside the first call;
- of content in parts the texts are joined by line breaks; a picture, a sound or a file is ``[image]``, ``[audio]`` or
  ``[file]`` in the text;
- everything else that a message says is kept beside its turn.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrated_rl.components.plain_data import kind_of
from calibrated_rl.data.dialogue import Side
from calibrated_rl.errors import printable
from calibrated_rl.logs.base import Refused
from calibrated_rl.logs.found import parsed

TOOL_CALLS = "tool calls, kept beside the turns"
UNHEARD = "messages with tool calls that nobody hears, their words kept beside the calls"
TOOL_RESULTS_ALONE = "tool results without a call, kept beside the turns"
TOOLS_AT_THE_END = "dialogues that end with tool calls, kept beside the dialogue"
LATE_SYSTEM = "system messages inside a dialogue, kept beside the next turn"
PARTS = "pictures, sounds and files, for which the text has [image], [audio] or [file]"

INSTRUCTIONS = ("system", "developer")
RESULTS = ("tool", "function", "observation", "tool_response")
_RESULT_KEYS = ("role", "content", "tool_call_id", "id", "name")
_TEXT_PARTS = ("text", "input_text", "output_text")
_OTHER_PARTS = {
    "image_url": "[image]", "image": "[image]", "input_image": "[image]",
    "input_audio": "[audio]", "audio": "[audio]", "file": "[file]", "input_file": "[file]",
}  # fmt: skip


@dataclass
class Folded:
    """Turns, and what stood beside them."""

    turns: list[dict[str, Any]] = field(default_factory=list)
    policy_instructions: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Of the dialogue: texts and calls after the last turn."""
    counts: Counter[str] = field(default_factory=Counter)
    calls_are_unheard: bool = False
    _calls: list[dict[str, Any]] = field(default_factory=list)
    """All tool calls so far, in their order."""
    _waiting: list[dict[str, Any]] = field(default_factory=list)
    """Tool calls since the last turn."""
    _waiting_system: list[str] = field(default_factory=list)


SideOf = Callable[[str, Mapping[str, Any]], Side | None]
"""The side of a role, in small letters, and its whole message; None: neither."""


def fold(messages: Any, side_of: SideOf, *, calls_are_unheard: bool = False) -> Folded:
    """Turns out of a list of objects with ``role`` and ``content``.

    Args:
        side_of: which side a message is of.
        calls_are_unheard: a message with tool calls goes to the tools alone, whatever words it has.

    Raises:
        Refused: it is no such list, or a message is of a role that is nobody's.
    """
    if not isinstance(messages, list) or not messages:
        raise Refused(f"the messages are {kind_of(messages)}, not a list of at least one")
    folded = Folded(calls_are_unheard=calls_are_unheard)
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise Refused(f"message {index} is {kind_of(message)}, not an object with 'role' and 'content'")
        _add(folded, message, f"message {index}", side_of)
    if folded._waiting:
        folded.metadata["tools_at_the_end"] = folded._waiting
        folded.counts[TOOLS_AT_THE_END] += 1
    if folded._waiting_system:
        folded.metadata["system_at_the_end"] = "\n\n".join(folded._waiting_system)
    return folded


def _add(folded: Folded, message: Mapping[str, Any], place: str, side_of: SideOf) -> None:
    role = message.get("role")
    name = role.strip().lower() if isinstance(role, str) else ""
    text = _text(message.get("content"), f"{place}: content", folded.counts)
    if name in INSTRUCTIONS:
        _add_instructions(folded, text)
    elif name in RESULTS:
        _add_result(folded, message, text)
    elif (side := side_of(name, message)) is None:
        raise Refused(f"{place}: the role is {printable(repr(role), 40)}, which is of neither side: name those of the "
                      "policy (policy) or of the users (users)")  # fmt: skip
    else:
        _add_turn(folded, message, side, text, place)


def _add_instructions(folded: Folded, text: str) -> None:
    if not text.strip():
        return
    if folded.turns or folded._waiting:
        folded.counts[LATE_SYSTEM] += 1
        folded._waiting_system.append(text)
    else:
        folded.policy_instructions = "\n\n".join(filter(None, (folded.policy_instructions, text)))


def _add_turn(folded: Folded, message: Mapping[str, Any], side: Side, text: str, place: str) -> None:
    calls = [_call(call, side) for call in _calls(message, place)]
    folded.counts[TOOL_CALLS] += len(calls)
    folded._calls += calls
    used = ["role", "content", "tool_calls", "function_call"]
    if not text.strip() and isinstance(refusal := message.get("refusal"), str):
        text = refusal
        used.append("refusal")
    if calls and (folded.calls_are_unheard or not text.strip()):
        if text.strip():
            calls[0]["content"] = text
            folded.counts[UNHEARD] += 1
        folded._waiting += calls
        return
    metadata = {key: value for key, value in message.items() if key not in used and value not in (None, "", [], {})}
    if text.strip():  # what waits is beside a turn that stays
        if tools := [*(call for call in folded._waiting if _caller(call) is side), *calls]:
            metadata["tools"] = tools
        if folded._waiting_system:
            metadata["system"] = "\n\n".join(folded._waiting_system)
        folded._waiting = [call for call in folded._waiting if _caller(call) is not side]
        folded._waiting_system = []
    folded.turns.append({"side": side.value, "text": text, **({"metadata": metadata} if metadata else {})})


def _calls(message: Mapping[str, Any], place: str) -> Sequence[Any]:
    calls = parsed(message.get("tool_calls")) or []
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise Refused(f"{place}: 'tool_calls' is {kind_of(calls)}, not a list of objects")
    old_form = parsed(message.get("function_call"))
    return [*calls, *([old_form] if isinstance(old_form, Mapping) else [])]


def _call(call: Mapping[str, Any], side: Side) -> dict[str, Any]:
    """A call as ``{"name", "arguments", "id"}``, whichever of its forms it has, and ``side`` if a user calls."""
    function = parsed(call.get("function"))
    function = function if isinstance(function, Mapping) else call
    plain = {"name": function.get("name"), "arguments": parsed(function.get("arguments")), "id": call.get("id")}
    plain["side"] = side.value if side is Side.USER else None
    return {key: value for key, value in plain.items() if value is not None}


def _caller(call: Mapping[str, Any]) -> Side:
    return Side(call.get("side", Side.POLICY))


def _add_result(folded: Folded, message: Mapping[str, Any], text: str) -> None:
    """Put a result beside its call: the one with its id, else the first that has neither id nor result."""
    wanted = message.get("tool_call_id") or message.get("id")
    open_calls = [call for call in folded._calls if "result" not in call]
    named = [call for call in open_calls if wanted is not None and call.get("id") == wanted]
    if call := next(iter(named or [call for call in open_calls if wanted is None or "id" not in call]), None):
        call["result"] = text
        if beside := {key: value for key, value in message.items() if key not in _RESULT_KEYS and value is not None}:
            call["result_metadata"] = beside
    else:
        folded.counts[TOOL_RESULTS_ALONE] += 1
        folded._waiting.append({"result": text, **({"name": message["name"]} if message.get("name") else {})})


def _text(content: Any, place: str, counts: Counter[str]) -> str:
    """The words of a message: a text, or the texts of its parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        raise Refused(f"{place} is {kind_of(content)}, neither a text nor a list of parts")
    return "\n".join(filter(None, (_part(part, f"{place}[{index}]", counts) for index, part in enumerate(content))))


def _part(part: Any, place: str, counts: Counter[str]) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise Refused(f"{place} is {kind_of(part)}, not a part of a message")
    kind = part.get("type", "text" if isinstance(part.get("text"), str) else None)
    if not isinstance(kind, str):
        raise Refused(f"{place} has no type")
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    if kind in _OTHER_PARTS:
        counts[PARTS] += 1
        return _OTHER_PARTS[kind]
    raise Refused(f"{place} is a part of type {printable(repr(kind), 40)}, which is not known")
