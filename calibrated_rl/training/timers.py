"""How long the parts of an update took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class UpdateTimers:
    """The timers of one arm; the clock of an update begins where the previous one ended."""

    def __init__(self, seconds_before: float = 0.0) -> None:
        """``seconds_before``: what the arm took before it was stopped."""
        self._began = time.monotonic() - seconds_before
        self.start_update()

    @property
    def total(self) -> float:
        """Seconds spent on the arm, also before it was stopped."""
        return time.monotonic() - self._began

    def start_update(self) -> None:
        """Start measuring the next update."""
        self._update_began = time.monotonic()
        self.waiting = 0.0
        """Seconds spent waiting for rollouts, before anything else of the update."""
        self.seconds: dict[str, float] = {}

    def rollouts_ready(self) -> None:
        """The update's groups are there."""
        self.waiting = time.monotonic() - self._update_began

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time within to ``name``."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def metrics(self, rollout: float | None = None) -> dict[str, float]:
        """``seconds_*`` of the update so far.

        Args:
            rollout: for which groups were in flight, where they are while the learner steps; None: those that the
                update waited for them.
        """
        seconds = {name: self.seconds.get(name, 0.0) for name in ("store", "reference", "step", "weight_sync")}
        learning = seconds["store"] + self.seconds.get("advantages", 0.0) + seconds["reference"] + seconds["step"]
        measuring = self.seconds.get("measuring", 0.0)
        return {
            "seconds_store": seconds["store"],
            "seconds_reference": seconds["reference"],
            "seconds_learning": learning,
            "seconds_weight_sync": seconds["weight_sync"],
            "seconds_rollout": self.waiting if rollout is None else rollout,
            "seconds_waiting": self.waiting,
            "seconds_update": self.waiting + learning + seconds["weight_sync"] + measuring,
        }
