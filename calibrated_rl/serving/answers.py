"""Between an engine's answers and what a client is sent."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from calibrated_rl.data.dialogue import Finish
from calibrated_rl.errors import printable
from calibrated_rl.serving.replies import Prompt, ReplyText
from calibrated_rl.serving.requests import BadRequest


class ReplicaUnavailable(RuntimeError):
    """No replica gave a reply."""


def engine_failed(error: BaseException) -> bool:
    """Whether what a replica raised says that its engine died or failed, in whatever Ray has wrapped it; by the names
    of vLLM's classes, since importing them takes seconds."""
    causes: list[BaseException | None] = [error, getattr(error, "cause", None), error.__cause__]
    return any(type(cause).__name__ in ("EngineDeadError", "EngineGenerateError") for cause in causes)


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a sampled reply."""

    ids: list[int]
    finished: bool


def parts_of(answer: Any) -> list[Part]:
    """The sampled ids in one answer of the engine: a whole completion, or some lines of its stream."""
    raise_refusal(answer)
    if not isinstance(answer, list | str):
        choice = answer.choices[0]
        return [Part(list(choice.token_ids or ()), True)]
    parts = []
    for line in ("".join(answer) if isinstance(answer, list) else answer).split("\n\n"):
        content = line.removeprefix("data: ").strip()
        if content and content != "[DONE]":
            event = json.loads(content)
            if "error" in event:
                raise ReplicaUnavailable(printable(str(event["error"])))
            for choice in event.get("choices", ()):
                parts.append(Part(choice.get("token_ids") or [], choice.get("finish_reason") is not None))
    return parts


def raise_refusal(answer: Any) -> None:
    first = answer[0] if isinstance(answer, list) and answer else answer
    # Ray's and vLLM's own classes of this name look alike and are not related.
    error = getattr(first, "error", None)
    if error is not None:
        if int(error.code) >= 500:  # the engine's fault and not the request's
            raise ReplicaUnavailable(printable(str(error.message)))
        raise BadRequest(printable(str(error.message)), getattr(error, "param", None), status=int(error.code))


async def forwarded(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[str]:
    for_client = "".join(first) if isinstance(first, list) else str(first)
    yield for_client
    async for answer in rest:
        yield "".join(answer) if isinstance(answer, list) else str(answer)


def finish_reason(reply: ReplyText) -> str:
    return "length" if reply.how is Finish.LENGTH else "stop"


def usage_of(prompt: Prompt, reply: ReplyText) -> dict[str, int]:
    return {
        "prompt_tokens": len(prompt.ids), "completion_tokens": len(reply.ids),
        "total_tokens": len(prompt.ids) + len(reply.ids),
    }  # fmt: skip


def server_event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
