"""A request and its answer, as plain data: what identifies it, what it may cost, how an answer is read."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calibrated_rl.endpoints.config import EndpointConfig
from calibrated_rl.endpoints.errors import Unanswered

BYTES_PER_TOKEN = 4
"""Of usual text and tokenizers; an estimate."""
MESSAGE_TOKENS = 8
"""Of a message beside its text, at most: its role and marks of begin and end."""
MILLION = 1_000_000
STOP, LENGTH = "stop", "length"
_THOUGHT = re.compile(r"\s*<think>(.*?)(</think>\s*|\Z)", re.DOTALL)

Messages = Sequence[Mapping[str, str]]
"""``role`` and ``content`` of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One answer that is wanted: equal ones have the same answer."""

    messages: Messages
    seed: int
    """Which of the answers: two draws from the same model differ in it."""
    temperature: float
    max_tokens: int
    response_format: Mapping[str, Any] | None = None
    """What form the answer must have, as the API takes it; None: nothing is sent of it."""

    def body(self, config: EndpointConfig) -> dict[str, Any]:
        """What is sent."""
        body = {
            "model": config.model, "messages": [dict(message) for message in self.messages],
            "temperature": self.temperature, config.limit_key: self.max_tokens, **config.parameters,
        }  # fmt: skip
        if self.response_format is not None:
            body["response_format"] = dict(self.response_format)
        return body | ({"seed": self.seed} if config.send_seed else {})

    def key(self, config: EndpointConfig) -> str:
        """Digest of where it goes, of what is sent, and of the seed, whether that is sent or not."""
        content = [config.base_url.rstrip("/"), self.body(config), self.seed]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def _bytes(self) -> int:
        form = "" if self.response_format is None else json.dumps(self.response_format)  # servers charge for it, too
        texts = [form, *(message["content"] for message in self.messages)]
        return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)

    @property
    def estimated_tokens(self) -> int:
        """Of the request and the longest answer."""
        return math.ceil(self._bytes / BYTES_PER_TOKEN) + MESSAGE_TOKENS * len(self.messages) + self.max_tokens

    def highest_cost(self, config: EndpointConfig) -> float:
        """No tokenizer makes more tokens of a text than it has bytes."""
        tokens = self._bytes + MESSAGE_TOKENS * (len(self.messages) + 1)
        return cost_of(tokens, self.max_tokens, config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer that was paid for."""

    text: str
    """Without reasoning."""
    finish: str
    """``stop``, ``length`` (it was cut), or the API's own word, such as ``content_filter``."""
    prompt_tokens: int
    completion_tokens: int
    metered: bool = True
    """Whether the server said how many tokens it took; they are estimated otherwise."""
    unfinished_thought: bool = False
    """It was cut before its reasoning ended."""


def cost_of(prompt_tokens: int, completion_tokens: int, config: EndpointConfig) -> float:
    """In the currency of the prices."""
    return (prompt_tokens * config.price_in + completion_tokens * config.price_out) / MILLION


def read_answer(content: bytes, request: ChatRequest) -> Answer:
    """The answer in the body of a response to ``request``.

    Raises:
        Unanswered: it is no JSON, or not what ``/chat/completions`` answers.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unanswered("no JSON") from error
    try:
        choice = body["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unanswered("no choice in the answer") from error
    if not isinstance(text, str | None) or not isinstance(finish, str | None):
        raise Unanswered("no text in the answer")
    text = (text or "").encode("utf-8", "replace").decode("utf-8")  # half a character has no place in a dialogue
    thought = _THOUGHT.match(text)
    unfinished = thought is not None and not thought[2]
    usage = body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    metered = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts)
    if not metered:
        said = math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)
        counts = [request.estimated_tokens - request.max_tokens, said]
    return Answer(
        text=text[thought.end() :] if thought else text, finish=finish or STOP, prompt_tokens=int(counts[0]),  # type: ignore[arg-type]
        completion_tokens=int(counts[1]), metered=metered, unfinished_thought=unfinished,  # type: ignore[arg-type]
    )  # fmt: skip
