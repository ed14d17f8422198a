"""Who brings lost replicas back, and who waits for them. What a look for them is, the pool knows; no actors here.

- Beside training (``begin``): one thread for all, while any is lost. Nobody waits for it as long as another serves.
- In lockstep (``until_all_are_back``): whoever calls, because who serves decides which dialogue goes where.

A replica that does not come back in time is given up: that is said, and nobody waits for it any more. It is looked for
all the same, since the machine that it needs may come much later.
"""

import threading
import time
from collections.abc import Callable, Iterable

from calibrated_rl.errors import PartLost

PROBE_S = 1.0
"""Pause between looks whether a replica is back; it takes tens of seconds to load its model."""


class Recovery:
    """Looks for lost replicas until none is lost."""

    def __init__(
        self,
        lost: Callable[[], Iterable[int]],
        look: Callable[[set[int]], None],
        patience_s: float,
        give_up: Callable[[int], None],
        changing: threading.Condition,
        closed: threading.Event,
    ) -> None:
        """
        Args:
            lost: the replicas that are lost at the moment.
            look: puts those of them into service again that are back; it may take ``PROBE_S`` longer than that.
            patience_s: a replica that is lost for longer is given up.
            give_up: is told which one is.
            changing: its lock is held where replicas are lost or come back; who waits for it hears of ``unable``.
            closed: ends the thread.
        """
        self._lost, self._look, self._patience_s, self._give_up = lost, look, patience_s, give_up
        self._changing, self._closed = changing, closed
        self._since: dict[int, float] = {}
        self._given_up: set[int] = set()
        self._thread: threading.Thread | None = None
        self.looking = threading.Lock()
        """Held while a look is taken; a replica goes for good only under it."""
        self.unable: PartLost | None = None
        """Why the last look in the thread could bring back none."""

    def mark(self, index: int) -> None:
        """A replica is lost."""
        self._since[index] = time.monotonic()

    def lost_for(self, index: int) -> float:
        """Seconds since it was lost."""
        return time.monotonic() - self._since[index]

    def forget(self, index: int) -> None:
        """A replica is back, or is none any more."""
        self._since.pop(index, None)
        self._given_up.discard(index)

    def has_given_up_all(self) -> bool:
        """Whether none of those that are lost is still waited for."""
        return set(self._lost()) <= self._given_up

    def begin(self) -> None:
        """Look from now on in a thread, until none is lost; the lock is held."""
        if self._thread is None and not self._closed.is_set():
            self._thread = threading.Thread(target=self._beside, name="recovery", daemon=True)
            self._thread.start()

    def _beside(self) -> None:
        while not self._closed.wait(PROBE_S):
            unable = None
            try:
                self._once()
            except PartLost as error:
                unable = error
            with self._changing:
                self.unable = unable
                self._changing.notify_all()
                lost = set(self._lost())
                self._say_given_up({index for index in lost if self.lost_for(index) > self._patience_s})
                if not lost:
                    self._thread = None
                    return

    def until_all_are_back(self) -> None:
        """Look here and now, and return when all are back or given up.

        Raises:
            PartLost: none can be brought back, as ``look`` says.
        """
        deadline = time.monotonic() + self._patience_s
        while set(self._lost()):
            self._once()
            waiting = set(self._lost()) - self._given_up
            if time.monotonic() > deadline:
                self._say_given_up(waiting)
            elif waiting:
                self._closed.wait(PROBE_S)
                continue
            return

    def _once(self) -> None:
        with self.looking:
            if lost := set(self._lost()):
                self._look(lost)

    def _say_given_up(self, overdue: set[int]) -> None:
        for index in sorted(overdue - self._given_up):
            self._given_up.add(index)
            self._give_up(index)

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended."""
        if (thread := self._thread) is not None:
            thread.join(timeout_s)
