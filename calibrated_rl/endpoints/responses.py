"""What a response means: an answer, a wait, a refusal of this request, or the end of all."""

import datetime
import email.utils
import math
from collections.abc import Mapping

from calibrated_rl.endpoints.errors import EndpointStopped, Refused, Unanswered
from calibrated_rl.errors import printable

LONGEST_WAIT_S = 900.0
"""A server that asks for a longer wait (a daily quota) ends the run, which can be resumed."""
RETRIED = (408, 409, 425, 429)
"""Beside 5xx."""
FATAL = {
    401: "it refuses the key", 402: "it asks for payment", 403: "it refuses access",
    404: "it does not know the address or the model",
}  # fmt: skip
SPENT = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of a 429 that no wait mends."""


def failure_of(status: int, headers: Mapping[str, str], body: str, model: str) -> Exception:
    """The error that a response with an error ``status`` stands for.

    Args:
        body: of the response, quoted in messages.
    """
    quoted = printable(" ".join(body.split()), 200) or "no reason"
    if status in FATAL:
        return EndpointStopped(f"{FATAL[status]} (status {status}, model '{model}': {quoted})")
    if status == 429 and any(code in body for code in SPENT):
        return EndpointStopped(f"its account is exhausted (status {status}: {quoted})")
    if status in RETRIED or status >= 500:
        wait_s = wait_of(headers)
        if wait_s is not None and wait_s > LONGEST_WAIT_S:
            return EndpointStopped(f"it asks to wait for {wait_s:.0f} s (status {status}: {quoted})")
        return Unanswered(f"status {status}", wait_s)
    return Refused(f"status {status}", quoted)


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``retry-after-ms`` or ``retry-after`` (seconds, or a date; RFC 9110, 10.2.3) asks for; None where it
    is missing or means nothing."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            if unit != 1.0:
                continue
            try:
                date = email.utils.parsedate_to_datetime(text)
            except ValueError:
                return None
            date = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
            seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
        return max(0.0, seconds) if math.isfinite(seconds) else None
    return None
