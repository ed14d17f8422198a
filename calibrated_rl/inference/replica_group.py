"""The replicas of one role, shared by several threads and event loops: applies what ``Membership`` decides.

One lock guards which replicas are members, which serve and where dialogues go. It is locked for moments only;
``changed`` is notified when any of that has changed.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from calibrated_rl.inference.fleet import ReplicaFleet
from calibrated_rl.inference.load import LoadMeter
from calibrated_rl.inference.membership import Admit, Decision, Drain, Membership, Withdraw
from calibrated_rl.inference.placement import PlacedReplica
from calibrated_rl.inference.request_batcher import RequestBatcher
from calibrated_rl.inference.routing import Router, preferred

logger = logging.getLogger(__name__)


class LoadedWeights(NamedTuple):
    """What a replica has loaded."""

    publication: int
    """As ``Membership`` counts them."""
    version: int


class ReplicaGroup:
    """Membership, routing and actors of one role, changed together."""

    def __init__(
        self,
        role: str,
        fleet: ReplicaFleet,
        slack: int,
        on_unavailable: Callable[[], None],
    ) -> None:
        """
        Args:
            slack: how many dialogues more than the least loaded replica one may have to share a prefix.
            on_unavailable: called under the lock when a replica was lost and is being restarted.
        """
        self.role, self.fleet = role, fleet
        self._on_unavailable = on_unavailable
        self.membership = Membership(len(fleet.placed))
        self.load = LoadMeter()
        """What is in flight, by replica."""
        self.changed = threading.Condition(threading.RLock())
        self.closed = threading.Event()
        self.last_failure = ""
        """Cause of the latest failure of a replica."""
        self._router = Router(slack)
        self._batchers: dict[tuple[int, asyncio.AbstractEventLoop], tuple[int, RequestBatcher]] = {}
        """How turns reach each replica from each event loop, with the replica's incarnation that it belongs to."""
        self._update_routes()

    def route(self, key: str, *, by_load: bool) -> int:
        """The replica of the dialogue ``key``; ``by_load``: where there is capacity for it, else by the key alone."""
        with self.changed:
            if not by_load or not self.membership.serving:
                return preferred(key, self.membership.serving or self.membership.members)
            return self._router.route(key)

    def leave(self, key: str) -> None:
        """The dialogue ``key`` is over: its replica has capacity for another."""
        with self.changed:
            self._router.leave(key)

    def begin_turns(self, key: str, count: int, *, by_load: bool) -> tuple[int, int]:
        """Returns the replica, with its incarnation, to send turns of the dialogue ``key`` to. A leaving replica waits
        for them, or does not get them. ``end_turns`` must follow."""
        with self.changed:
            index = self.route(key, by_load=by_load)
            self.load.add(index, count)
            return index, self.membership.incarnation(index)

    def end_turns(self, index: int, count: int) -> None:
        """The turns are sampled, or have failed."""
        self.load.add(index, -count)

    def batcher(self, index: int, incarnation: int) -> RequestBatcher:
        """The batcher of turns from the running event loop to a replica's ``incarnation``."""
        loop = asyncio.get_running_loop()
        with self.changed:
            batcher_incarnation, batcher = self._batchers.get((index, loop), (incarnation, None))
            if batcher is None or batcher_incarnation != incarnation:
                self._batchers = {key: other for key, other in self._batchers.items() if not key[1].is_closed()}
                batcher = RequestBatcher(self.fleet.handle(index))
                self._batchers[index, loop] = incarnation, batcher
            return batcher

    def mark_unavailable(self, index: int, incarnation: int, cause: str) -> None:
        """Take a replica out of service and let Ray restart it, unless that has been done since ``incarnation``."""
        with self.changed:
            if not self.membership.lost(index, incarnation, time.monotonic()):
                return
            self.last_failure = cause
            logger.warning(f"{self.role} replica {index} marked unavailable: {cause}; it rejoins after recovery")
            self._update_routes()
            self.fleet.restart(index)
            self._on_unavailable()

    def give_up(self, indices: frozenset[int], after_s: float) -> None:
        """Stop waiting for these replicas, which were lost ``after_s`` ago."""
        with self.changed:
            for index in self.membership.give_up(indices):
                logger.warning(
                    f"{self.role} replica {index} did not recover within {after_s:g} s: nothing waits for it any "
                    "longer; it rejoins if it recovers"
                )

    def back(self, index: int, incarnation: int, loaded: LoadedWeights | None) -> Decision:
        """A lost replica answers again and has ``loaded`` these weights; None: it has not reported any."""
        with self.changed:
            lost_at = self.membership.lost_at(index)
            decision = self.membership.back(index, incarnation, loaded and loaded.publication)
            if isinstance(decision, Admit):
                assert lost_at is not None and loaded is not None
                self.fleet.mark_healthy(index)
                self._update_routes()
                seconds = time.monotonic() - lost_at
                logger.info(
                    f"{self.role} replica {index} recovered after {seconds:.0f} s, "
                    f"with weights of version {loaded.version}"
                )
        return decision

    def join(self, pending: int, placed: PlacedReplica, loaded: LoadedWeights | None) -> Decision:
        """A pending replica has loaded its model and these weights; None: it has not reported any."""
        with self.changed:
            decision = self.membership.join(pending, loaded and loaded.publication)
            if isinstance(decision, Admit):
                self.fleet.add(decision.index, placed)
                self._update_routes()
        return decision

    def leave_group(self) -> Withdraw | Drain | None:
        """Choose a replica to remove; its dialogues go to others from now on."""
        with self.changed:
            leaving = self.membership.leave()
            self._update_routes()
        return leaving

    def forget(self, index: int) -> None:
        """A replica that left has ended."""
        with self.changed:
            self.fleet.remove(index)
            self._batchers = {key: batcher for key, batcher in self._batchers.items() if key[0] != index}

    def _update_routes(self) -> None:
        with self.changed:
            self._router.serve(self.membership.serving)
            self.changed.notify_all()
