"""How fast requests may go: so many at once and a minute, and a pause of all of them when the server asks for one."""

import asyncio

from aiolimiter import AsyncLimiter

from calibrated_rl.endpoints.config import EndpointConfig

MINUTE_S = 60.0


class Rate:
    """At most so much a minute, evenly spread: in no minute more than ``per_minute`` and a second's share of it.

    A leaky bucket that holds a minute's worth would let twice as much through in its first minute."""

    def __init__(self, per_minute: float) -> None:
        """``per_minute``: 0 for no limit."""
        self._share = max(1.0, per_minute / MINUTE_S)
        self._limiter = AsyncLimiter(self._share, MINUTE_S * self._share / per_minute) if per_minute else None

    async def take(self, amount: float) -> None:
        """Wait until ``amount`` may pass."""
        while self._limiter is not None and amount > 0:
            await self._limiter.acquire(min(amount, self._share))
            amount -= self._share


class Pace:
    """The limits of one endpoint; belongs to one event loop."""

    def __init__(self, config: EndpointConfig) -> None:
        self._at_once = asyncio.Semaphore(config.concurrency)
        self._requests, self._tokens = Rate(config.requests_per_minute), Rate(config.tokens_per_minute)
        self._paused_until = 0.0

    def pause(self, seconds: float) -> None:
        """Send nothing for so long."""
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)

    async def __aenter__(self) -> None:
        await self._at_once.acquire()

    async def __aexit__(self, *error: object) -> None:
        self._at_once.release()

    async def turn(self, tokens: int) -> None:
        """Wait until a request of so many tokens may be sent; within ``async with``."""
        await self._requests.take(1)
        await self._tokens.take(tokens)
        while (rest := self._paused_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(rest)
