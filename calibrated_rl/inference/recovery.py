"""Waits until lost replicas are back; what a look for them is, ``admission.py`` knows, who is lost, ``Membership``.

- Beside training (``begin``): one thread for all, while any is unavailable. Nobody waits for it as long as another
  serves.
- In lockstep (``until_all_are_back``): whoever calls, because who serves decides which dialogue goes where.

A replica that does not come back in time is given up: nobody waits for it any more. It is looked for all the same.
"""

import threading
import time
from collections.abc import Callable

from calibrated_rl.errors import PartLost
from calibrated_rl.inference.membership import Membership

PROBE_S = 1.0
"""Pause between looks whether a replica is back; it takes tens of seconds to load its model."""


class Recovery:
    """Looks for lost replicas until none is unavailable."""

    def __init__(
        self,
        membership: Membership,
        look: Callable[[frozenset[int]], None],
        give_up: Callable[[frozenset[int], float], None],
        patience_s: float,
        changed: threading.Condition,
        closed: threading.Event,
    ) -> None:
        """
        Args:
            look: puts those of the lost replicas into service again that are back.
            give_up: is told which are no longer waited for, and after how many seconds.
            patience_s: a replica that is lost for longer is given up.
            changed: its lock is held where ``membership`` changes; who waits for it hears of ``unable``.
            closed: ends the thread.
        """
        self._membership, self._look, self._give_up, self._patience_s = membership, look, give_up, patience_s
        self._changed, self._closed = changed, closed
        self._thread: threading.Thread | None = None
        self.looking = threading.Lock()
        """Held while a look is taken; a replica goes for good only under it."""
        self.unable: PartLost | None = None
        """Why the last look in the thread could bring back none."""

    def begin(self) -> None:
        """Look from now on in a thread, until none is unavailable."""
        with self._changed:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="recovery", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(PROBE_S):
            unable = None
            try:
                self._look_once()
            except PartLost as error:
                unable = error
            with self._changed:
                self.unable = unable
                self._changed.notify_all()
                self._give_up(self._membership.overdue(time.monotonic(), self._patience_s), self._patience_s)
                if not self._membership.unavailable:
                    self._thread = None
                    return

    def until_one_serves(self) -> None:
        """Look in the thread, and return when a replica serves, or when all are given up.

        Raises:
            PartLost: none can be brought back, as ``look`` says.
        """
        membership = self._membership
        with self._changed:
            self.begin()
            self._changed.wait_for(
                lambda: membership.serving or self.unable or not membership.awaited() or self._closed.is_set(),
                self._patience_s,
            )
            if self.unable is not None and not membership.serving:
                raise self.unable

    def until_all_are_back(self) -> None:
        """Look here and now, and return when all are back or given up.

        Raises:
            PartLost: none can be brought back, as ``look`` says.
        """
        deadline = time.monotonic() + self._patience_s
        while self._membership.unavailable:
            self._look_once()
            awaited = self._membership.awaited()
            if time.monotonic() > deadline:
                self._give_up(awaited, self._patience_s)
            elif awaited:
                self._closed.wait(PROBE_S)
                continue
            return

    def _look_once(self) -> None:
        with self.looking:
            if lost := self._membership.unavailable:
                self._look(lost)

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended."""
        if (thread := self._thread) is not None:
            thread.join(timeout_s)
