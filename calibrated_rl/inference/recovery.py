"""Waits until lost replicas are back. ``Membership`` knows which are lost, ``admission.py`` probes and readmits them.

- In the background (``begin``): one thread for all, while any is unavailable. Nothing waits for it as long as another
  replica serves.
- In lockstep (``until_all_are_back``): in the caller's thread, because routes depend on which replicas serve.

A replica that is not back in time is given up: nothing waits for it any more, but it is still probed.
"""

import threading
import time
from collections.abc import Callable

from calibrated_rl.errors import PartLost
from calibrated_rl.inference.membership import Membership

PROBE_S = 1.0
"""Pause between probes; a replica takes tens of seconds to load its model."""


class Recovery:
    """Probes lost replicas until none is unavailable."""

    def __init__(
        self,
        membership: Membership,
        readmit: Callable[[frozenset[int]], None],
        give_up: Callable[[frozenset[int], float], None],
        patience_s: float,
        changed: threading.Condition,
        closed: threading.Event,
    ) -> None:
        """
        Args:
            readmit: brings those of the lost replicas that answer back into service.
            give_up: called with the replicas that nothing waits for any longer, and after how many seconds.
            patience_s: a replica that is lost for longer is given up.
            changed: its lock guards changes of ``membership``; it is notified of ``unable``.
            closed: ends the thread.
        """
        self._membership, self._readmit, self._give_up, self._patience_s = membership, readmit, give_up, patience_s
        self._changed, self._closed = changed, closed
        self._thread: threading.Thread | None = None
        self.probing = threading.Lock()
        """Locked during a probe; a replica is removed only under it."""
        self.unable: PartLost | None = None
        """Why the last probe in the thread could readmit none."""

    def begin(self) -> None:
        """Probe in a thread from now on, until none is unavailable."""
        with self._changed:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="recovery", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(PROBE_S):
            unable = None
            try:
                self._probe()
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
        """Probe in the thread, and return when a replica serves, or when all are given up.

        Raises:
            PartLost: none can be readmitted, as ``readmit`` reports.
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
        """Probe in this thread, and return when all are back or given up.

        Raises:
            PartLost: none can be readmitted, as ``readmit`` reports.
        """
        deadline = time.monotonic() + self._patience_s
        while self._membership.unavailable:
            self._probe()
            awaited = self._membership.awaited()
            if time.monotonic() > deadline:
                self._give_up(awaited, self._patience_s)
            elif awaited:
                self._closed.wait(PROBE_S)
                continue
            return

    def _probe(self) -> None:
        with self.probing:
            if lost := self._membership.unavailable:
                self._readmit(lost)

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended."""
        if (thread := self._thread) is not None:
            thread.join(timeout_s)
