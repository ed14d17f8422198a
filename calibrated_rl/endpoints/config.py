"""Settings of an endpoint, in a file of their own so that reading them loads no client."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Name, NotNegative, Positive, Range, check_settings

PREFIX = "endpoint:"
"""Before the name of an endpoint, where a setting could name a model instead."""
OWN_KEYS = (
    "model", "messages", "seed", "temperature", "max_tokens", "max_completion_tokens", "stream", "n", "response_format",
)  # fmt: skip
"""Of the body of a request; settings of a side or of the judge decide them, or the answer would not be one text."""
RUNNING = (
    "api_key", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "retries", "price_in", "price_out",
    "budget",
)  # fmt: skip
"""Settings that decide how and at what price an answer is got, and not which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """One model behind an OpenAI-compatible API (`/chat/completions`)."""

    base_url: Name
    """Where the API is, such as `https://api.example.com/v1`."""
    model: Name
    """The model's name there."""
    api_key: str = ""
    """The key, as a reference: `${oc.env:NAME}`. Empty: none is sent."""
    concurrency: Positive = 8
    """Most requests at once."""
    requests_per_minute: NotNegative = 0
    """Most requests a minute, evenly spread, tries that failed among them; 0: as many as the server takes."""
    tokens_per_minute: NotNegative = 0
    """Most tokens a minute, evenly spread: of a request what its text is estimated at, and as many as it may answer
    with; 0: no limit."""
    timeout: Annotated[float, Range(above=0)] = 60.0
    """Seconds within which the whole answer to one try must arrive."""
    retries: NotNegative = 5
    """How often a request is tried again that timed out, could not be sent, or got an error of the server (408, 409,
    425, 429, 5xx), half an answer or no JSON. A wait that the server itself asks for (`retry-after`) counts as none."""
    price_in: Annotated[float, Range(at_least=0)] = 0.0
    """Price of a million tokens of requests, in the currency of `budget`."""
    price_out: Annotated[float, Range(at_least=0)] = 0.0
    """Price of a million tokens of answers."""
    budget: Annotated[float, Range(at_least=0)] = 0.0
    """Most that all answers of the run may cost. A request that could cost more than is left is not sent: the run ends
    at a checkpoint, and resumes with a larger budget. 0: no limit."""
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The API's name for the most tokens of an answer."""
    send_seed: bool = True
    """Send the seed of each draw; some APIs refuse it. Without it, and with an API that ignores it, only the answers
    that were kept make a run repeatable."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Further parameters of each request, such as `top_p: 0.9` or `reasoning_effort: low`."""
    cache: str = ""
    """Folder in which answers are kept; empty: `answers` in the run folder. Runs that share one share its answers,
    and the budget counts all that was paid into it."""

    def __post_init__(self) -> None:
        check_settings(self, "endpoint")
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UserError(f"base_url is '{_without_login(self.base_url)}': write http://HOST/v1 or https://HOST/v1")
        if "@" in address.netloc or address.query or address.fragment:
            raise UserError("base_url has a login or parameters in it: write the address alone, and the key as api_key")
        if self.budget and not (self.price_in or self.price_out):
            raise UserError("budget is set, and price_in and price_out are 0: nothing would ever be spent of it")
        if taken := [key for key in OWN_KEYS if key in self.parameters]:
            raise UserError(f"parameters has {taken[0]}, which other settings decide")


def _without_login(url: str) -> str:
    return url.rpartition("@")[2]


def endpoint_name(model: object) -> str | None:
    """The endpoint that the setting ``model`` names; None where it names something else."""
    return model.removeprefix(PREFIX) if isinstance(model, str) and model.startswith(PREFIX) else None
