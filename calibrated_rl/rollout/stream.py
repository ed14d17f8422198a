"""Runs groups of dialogues in the background, while the learner trains on others.

An event loop in a thread of its own runs them; the trainer admits groups, and takes complete ones in the order in
which they became complete. None waits for the slowest, and none is lost to it: a long dialogue is taken later. Dropped
groups are returned, too, so that the trainer can request others.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from calibrated_rl.data.dialogue import Dialogue, Scenario
from calibrated_rl.errors import PartLost
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.rollout.users import User

CLOSE_TIMEOUT_S = 30.0
"""For cancelled dialogues to end."""


class EndedGroup(NamedTuple):
    """A group that is complete, or was dropped."""

    update: int
    number: int
    """Within its update."""
    dialogues: list[Dialogue] | None
    """None: it was dropped."""


class GroupStream:
    """The rollouts of one arm, with one user model."""

    def __init__(self, collector: Collector, user: User, *, group_size: int, arm: str, seed: int) -> None:
        self._collector, self._user = collector, user
        self._group_settings: dict[str, Any] = {"group_size": group_size, "arm": arm, "seed": seed}
        self._changed = threading.Condition()
        """Guards the attributes below; notified when a group ends."""
        self._done: deque[EndedGroup] = deque()
        self._in_flight = 0
        self._error: BaseException | None = None
        self._busy, self._since = 0.0, 0.0
        self._tasks: set[asyncio.Task[EndedGroup]] = set()
        """Keeps running tasks from being collected; belongs to the loop's thread."""
        self._ending: asyncio.Task[None] | None = None
        """Keeps the task that ends the loop, for the same reason."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def admit(self, update: int, scenarios: Sequence[tuple[int, Scenario]]) -> None:
        """Begin groups of ``update``, each with its number there. Returns at once."""
        with self._changed:
            if not self._in_flight:
                self._since = time.monotonic()
            self._in_flight += len(scenarios)
        self._loop.call_soon_threadsafe(self._begin, update, list(scenarios))

    def take(self, count: int, timeout_s: float) -> list[EndedGroup]:
        """Wait until ``count`` groups have ended, complete or dropped, and return them in that order; fewer where
        fewer are left.

        Args:
            timeout_s: longest wait for each further group to end.

        Raises:
            PartLost: nothing ended within ``timeout_s``.
            Exception: an error in a group that is no ``RolloutFailure``.
        """
        with self._changed:
            n_ended, deadline = len(self._done), time.monotonic() + timeout_s
            while len(self._done) < count and self._in_flight and self._error is None:
                self._changed.wait(1.0)
                if len(self._done) > n_ended:
                    n_ended, deadline = len(self._done), time.monotonic() + timeout_s
                if time.monotonic() > deadline:
                    raise PartLost(f"no dialogues ended for {timeout_s:g} s, with {self._in_flight} groups in flight")
            if self._error is not None:
                raise self._error
            return [self._done.popleft() for _ in range(min(count, len(self._done)))]

    def busy_seconds(self) -> float:
        """How long groups were in flight since the last call."""
        with self._changed:
            now = time.monotonic()
            if self._in_flight:
                self._busy += now - self._since
                self._since = now
            busy, self._busy = self._busy, 0.0
            return busy

    @property
    def in_flight(self) -> int:
        """Groups that are running."""
        with self._changed:
            return self._in_flight

    def close(self) -> None:
        """Cancel what is in flight and end the thread. May be called more than once."""
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._cancel_all)
        self._thread.join(CLOSE_TIMEOUT_S)

    # --- below: in the loop's thread

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _begin(self, update: int, scenarios: list[tuple[int, Scenario]]) -> None:
        async def run(number: int, scenario: Scenario) -> EndedGroup:
            group = await self._collector.group(number, scenario, self._user, update=update, **self._group_settings)
            return EndedGroup(update, number, group)

        for number, scenario in scenarios:
            task = self._loop.create_task(run(number, scenario))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[EndedGroup]) -> None:
        self._tasks.discard(task)
        with self._changed:
            self._in_flight -= 1
            if not self._in_flight:
                self._busy += time.monotonic() - self._since
            if task.cancelled():
                pass  # the stream is being closed
            elif (error := task.exception()) is not None:
                self._error = self._error or error
            else:
                self._done.append(task.result())
            self._changed.notify_all()

    def _cancel_all(self) -> None:
        async def end() -> None:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._loop.stop()

        self._ending = self._loop.create_task(end())
