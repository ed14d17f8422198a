"""Adds and removes replicas while dialogues run. A thread for each waits until it has joined or left."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from calibrated_rl.inference.admission import Admission
from calibrated_rl.inference.membership import Drain, Withdraw
from calibrated_rl.inference.placement import PlacedReplica
from calibrated_rl.inference.replica_group import ReplicaGroup

logger = logging.getLogger(__name__)

DRAIN_PROBE_S = 0.05
"""Pause between checks whether a leaving replica has finished its turns; a turn takes a tenth of a second or more."""


class Resizing:
    """Starts and ends replicas of a group."""

    def __init__(self, group: ReplicaGroup, admission: Admission, probing: threading.Lock, timeout_s: float) -> None:
        """
        Args:
            probing: locked while lost replicas are probed; a replica is removed only under it.
            timeout_s: for the turns of a replica that leaves.
        """
        self._group, self._admission, self._probing, self._timeout_s = group, admission, probing, timeout_s
        self._pending: dict[int, PlacedReplica] = {}
        self.threads: list[threading.Thread] = []
        """Each waits for a replica to join or to finish."""

    def grow(self, count: int) -> None:
        """Start ``count`` further replicas; see ``ReplicaPool.grow``."""
        for _ in range(count):
            placed = self._group.fleet.start()
            with self._group.changed:
                pending = self._group.membership.start()
                self._pending[pending] = placed
            self._run_in_thread(self._wait_for, pending, placed)

    def _wait_for(self, pending: int, placed: PlacedReplica) -> None:
        self._admission.admit(pending, placed)
        with self._group.changed:
            self._pending.pop(pending, None)

    def shrink(self, count: int) -> None:
        """Remove ``count`` replicas; see ``ReplicaPool.shrink``."""
        for _ in range(count):
            with self._group.changed:
                leaving = self._group.leave_group()
                if isinstance(leaving, Withdraw):
                    self._pending.pop(leaving.pending).end()  # its thread sees it die
                elif isinstance(leaving, Drain):
                    self._run_in_thread(self._drain, leaving.index)

    def _drain(self, index: int) -> None:
        """End a replica that is no member any more, once nothing is in flight on it."""
        group, deadline = self._group, time.monotonic() + self._timeout_s
        while group.load.in_flight(index) and time.monotonic() < deadline:
            if group.closed.wait(DRAIN_PROBE_S):
                return
        n_cut_off = group.load.in_flight(index)
        group.fleet.placed[index].end()
        with self._probing, group.changed:
            group.forget(index)
        if n_cut_off:
            logger.warning(f"{group.role} replica {index} left before {n_cut_off} of its turns were sampled")
        else:
            logger.info(f"{group.role} replica {index} left")

    def _run_in_thread(self, work: Callable[..., None], *arguments: Any) -> None:
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def pending(self) -> list[PlacedReplica]:
        """Replicas that were started and do not serve yet."""
        with self._group.changed:
            return [self._pending[number] for number in self._group.membership.pending]

    def join(self, timeout_s: float) -> None:
        """Wait until the threads have ended, ``timeout_s`` for each."""
        for thread in self.threads:
            thread.join(timeout_s)
