"""What an OpenAI client asks of the chat endpoint, checked, as a dialogue of this project. Pure data.

A client's messages are seen from the served side: ``assistant`` is what the served model said, ``user`` what the
other side said. For the policy, a first ``assistant`` message is the greeting; for the simulator, the policy's greeting
is the first ``user`` message, as the simulator has learned it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from calibrated_rl.data.dialogue import Scenario, Side, Source, Turn

MOST_MESSAGES = 1000
_UNUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "stop": ([],), "frequency_penalty": (0,), "presence_penalty": (0,), "logprobs": (False,),
    "top_logprobs": (0,), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "logit_bias": ({},),
    "response_format": ({"type": "text"},), "parallel_tool_calls": (True, False), "store": (False,),
    "service_tier": ("auto", "default"), "modalities": (["text"],),
}  # fmt: skip
"""Parameters that clients send and this server has no use for, with the values (beside null) that ask for nothing."""
_KNOWN = {
    "model", "messages", "metadata", "stream", "stream_options", "temperature", "top_p", "max_tokens",
    "max_completion_tokens", "user", "safety_identifier", "return_token_ids",
}  # fmt: skip


class BadRequest(ValueError):
    """The client's mistake, in OpenAI's terms."""

    def __init__(self, message: str, parameter: str | None = None, code: str = "invalid_value", status: int = 400):
        super().__init__(message)
        self.parameter, self.code, self.status = parameter, code, status


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request for one reply."""

    model: str
    messages: list[tuple[str, str]]
    """Role (``system``, ``user`` or ``assistant``) and text."""
    scenario: str | None
    """Id of a scenario, or its number as text; None: not named."""
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    stream: bool
    include_usage: bool
    """The stream's last chunk counts tokens."""
    return_token_ids: bool


def chat_request(body: Any) -> ChatRequest:
    """Check the JSON body of ``/v1/chat/completions``.

    Raises:
        BadRequest: names the parameter.
    """
    if not isinstance(body, Mapping):
        raise BadRequest("the body must be a JSON object")
    for name, value in body.items():
        if name in _UNUSED:
            if value is not None and value not in _UNUSED[name]:
                raise BadRequest(f"{name} is not supported by this server", name, "unsupported_parameter")
        elif name not in _KNOWN:
            raise BadRequest(f"unknown parameter {str(name)[:80]!r}", str(name)[:80], "unknown_parameter")
    metadata = _typed(body, "metadata", Mapping, {})
    if others := [name for name in metadata if name != "scenario"]:
        raise BadRequest(f"metadata has {str(others[0])[:80]!r}; only 'scenario' is known", "metadata")
    scenario = metadata.get("scenario")
    if scenario is not None and (isinstance(scenario, bool) or not isinstance(scenario, str | int)):
        raise BadRequest("metadata.scenario must be a scenario's id or number", "metadata")
    options = _typed(body, "stream_options", Mapping, {})
    return ChatRequest(
        model=_typed(body, "model", str, ""),
        messages=_messages(body.get("messages")),
        scenario=None if scenario is None else str(scenario),
        temperature=None if body.get("temperature") is None else _number(body, "temperature", 0, 2),
        top_p=None if body.get("top_p") is None else _number(body, "top_p", 0, 1, above=True),
        max_tokens=_max_tokens(body),
        stream=_typed(body, "stream", bool, False),
        include_usage=bool(options.get("include_usage")),
        return_token_ids=_typed(body, "return_token_ids", bool, False),
    )


def _typed(body: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise BadRequest(f"{name} is of the wrong type", name, "invalid_type")
    return value


def _number(body: Mapping[str, Any], name: str, least: float, most: float, above: bool = False) -> float:
    value = _typed(body, name, int | float, None)
    if isinstance(value, bool) or not math.isfinite(value) or not least <= value <= most or (above and value == least):
        raise BadRequest(f"{name} must be {'above' if above else 'from'} {least:g} {'and at most' if above else 'to'} "
                         f"{most:g}", name)  # fmt: skip
    return float(value)


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadRequest(f"{name} must be a whole number of at least 1", name)
            return value
    return None


def _messages(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise BadRequest("messages must be a list of at least one message", "messages")
    if len(value) > MOST_MESSAGES:
        raise BadRequest(f"messages has {len(value)} messages, of at most {MOST_MESSAGES}", "messages")
    messages = []
    for number, message in enumerate(value):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise BadRequest(f"{where} must be an object", where)
        role = message.get("role")
        role = "system" if role == "developer" else role
        if role not in ("system", "user", "assistant"):
            raise BadRequest(f"{where}.role must be system, user or assistant", f"{where}.role")
        if role == "system" and number:
            raise BadRequest(f"{where}: only the first message may be of the system", f"{where}.role")
        messages.append((role, _text(message.get("content"), where)))
    return messages


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        return "".join(part["text"] for part in content)
    raise BadRequest(f"{where}.content must be text", f"{where}.content")


def turns_of(request: ChatRequest, side: Side, scenario: Scenario) -> tuple[Scenario, list[Turn]]:
    """The dialogue so far, with the greeting first, and the scenario with the client's own instructions, if any.

    Raises:
        BadRequest: the messages do not alternate, or the other side has not spoken last.
    """
    messages = list(request.messages)
    if messages[0][0] == "system":
        instructions = messages.pop(0)[1]
        if request.scenario is not None:
            raise BadRequest("give either metadata.scenario or a system message of your own, not both", "messages")
        changed = {"policy_instructions" if side is Side.POLICY else "user_instructions": instructions}
        scenario = replace(scenario, **changed)  # type: ignore[arg-type]
    greets = "assistant" if side is Side.POLICY else "user"
    if messages and messages[0][0] == greets:
        scenario = replace(scenario, greeting=messages.pop(0)[1])
    elif side is Side.USER:
        raise BadRequest("the first message to the simulator must be of the user: the policy's greeting", "messages")
    turns = [Turn(side=Side.POLICY, text=scenario.greeting, source=Source.GREETING)]
    for number, (role, text) in enumerate(messages):
        speaker = side if role == "assistant" else side.other
        if speaker is turns[-1].side:
            at = len(request.messages) - len(messages) + number
            raise BadRequest(f"messages[{at}]: two messages in a row are of the same side", f"messages[{at}].role")
        turns.append(Turn(side=speaker, text=text, source=Source.LOG))
    if turns[-1].side is side:
        raise BadRequest("the last message must be of the user, for the model to answer", "messages")
    return scenario, turns


def find_scenario(scenarios: Sequence[Scenario], wanted: str | None) -> Scenario:
    """The scenario with this id or number; the first where none is named.

    Raises:
        BadRequest: there is no such scenario.
    """
    if wanted is None:
        return scenarios[0]
    for scenario in scenarios:
        if scenario.id == wanted:
            return scenario
    if wanted.isdecimal() and int(wanted) < len(scenarios):
        return scenarios[int(wanted)]
    raise BadRequest(
        f"there is no scenario {wanted[:80]!r}: name the id of one that /v1/dialogues/scenarios lists, or its number, "
        f"0 to {len(scenarios) - 1}", "metadata", "scenario_not_found",
    )  # fmt: skip
