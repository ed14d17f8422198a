"""How many turns a pool has in flight: now, replica by replica, and on average over a stretch of time."""

import threading
import time
from collections import Counter
from collections.abc import Callable


class LoadMeter:
    """Counts turns in flight and adds up the time that they are; used from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._in_flight: Counter[int] = Counter()
        self._total = 0
        self._turn_seconds, self._since = 0.0, clock()

    def add(self, replica: int, count: int) -> None:
        """``count`` further turns are in flight on ``replica``; negative: so many are done."""
        with self._lock:
            self._advance()
            self._in_flight[replica] += count
            self._total += count

    def in_flight(self, replica: int | None = None) -> int:
        """Turns in flight on ``replica``, or on all."""
        with self._lock:
            return self._total if replica is None else self._in_flight[replica]

    def take(self) -> float:
        """Turns in flight summed over time, in turn-seconds, since the last call."""
        with self._lock:
            self._advance()
            turn_seconds, self._turn_seconds = self._turn_seconds, 0.0
            return turn_seconds

    def _advance(self) -> None:
        now = self._clock()
        self._turn_seconds += self._total * (now - self._since)
        self._since = now
